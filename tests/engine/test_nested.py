"""Calls inside calls, methods that somebody replaced after ``wrap``, and copies of a wrapped model."""

from __future__ import annotations

import copy
import functools
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import vtoken
from tests.conftest import ROOT
from tests.engine.changed import GREEDY, NAMES, ask, inputs_of
from tests.families.tiny import FAMILIES
from tests.families.tokenizer import tokenizer_of
from vtoken.errors import VtokenError

PLAN = "grt | divprune:keep=0.5"


class Asking:
    """A streamer that calls the model itself when the first new token comes."""

    def __init__(self, call: Any) -> None:
        self.call, self.puts = call, 0
        self.found: Any = None

    def put(self, value: Tensor) -> None:
        self.puts += 1
        if self.puts == 2:  # the first one is the prompt
            self.found = self.call()

    def end(self) -> None:
        pass


@pytest.mark.parametrize("way", ["generate", "forward", "ask"])
@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_a_call_inside_a_call_is_a_call_of_its_own(name: str, way: str) -> None:
    model = vtoken.wrap(FAMILIES[name].build(), PLAN)
    outer, inner, words = inputs_of(name, model, 1), inputs_of(name, model, 2), tokenizer_of(model)
    calls: dict[str, Any] = {
        "generate": lambda: model.generate(**inner, **GREEDY),
        "forward": lambda: model(**inner).logits,
        "ask": lambda: ask(model, words, PLAN).tokens,
    }
    alone, wanted = model.generate(**outer, **GREEDY), calls[way]()
    streamer = Asking(calls[way])
    assert torch.equal(model.generate(**outer, **GREEDY, streamer=streamer), alone)
    assert streamer.puts == 1 + GREEDY["max_new_tokens"] and torch.equal(streamer.found, wanted)
    assert {"prefill", "generate"} <= model.vtoken.report.milliseconds.keys()


@torch.no_grad()
def test_a_call_of_another_wrapped_model_inside_a_call() -> None:
    model, other = (vtoken.wrap(FAMILIES["qwen2_5_vl"].build(seed), PLAN) for seed in (0, 1))
    inputs, inner = (inputs_of("qwen2_5_vl", model, seed) for seed in (1, 2))
    alone, wanted = model.generate(**inputs, **GREEDY), other.generate(**inner, **GREEDY)
    streamer = Asking(lambda: other.generate(**inner, **GREEDY))
    assert torch.equal(model.generate(**inputs, **GREEDY, streamer=streamer), alone)
    assert torch.equal(streamer.found, wanted)


@pytest.mark.parametrize("method", ["forward", "generate"])
def test_unwrap_refuses_where_others_changed_a_method(method: str) -> None:
    """accelerate's ``prepare`` does so, for one."""
    model = vtoken.wrap(FAMILIES["qwen2_5_vl"].build(), PLAN)
    ours = getattr(model, method)

    @functools.wraps(ours)
    def theirs(*args: Any, **options: Any) -> Any:
        return ours(*args, **options)

    setattr(model, method, theirs)
    with pytest.raises(VtokenError, match=method):
        vtoken.unwrap(model)
    assert vars(model)[method] is theirs and vars(model)["vtoken"].plan is not None  # nothing is half undone
    inputs = inputs_of("qwen2_5_vl", model)
    model.generate(**inputs, **GREEDY)
    assert model.vtoken.report.tokens < model.vtoken.report.cells
    setattr(model, method, ours)
    vtoken.unwrap(model)
    assert not vars(model).keys() & {"forward", "generate", "vtoken"}


def test_unwrap_puts_back_what_lay_on_the_object() -> None:
    model = FAMILIES["qwen2_5_vl"].build()
    stock = model.forward

    @functools.wraps(stock)
    def own(*args: Any, **options: Any) -> Any:
        return stock(*args, **options)

    model.forward = own
    before = dict(vars(model))
    for _ in range(2):
        vtoken.unwrap(vtoken.wrap(model, PLAN))
        assert vars(model) == before and model.forward is own


@torch.no_grad()
def test_a_copy_of_a_wrapped_model_is_a_model_of_its_own() -> None:
    model = vtoken.wrap(FAMILIES["qwen2_5_vl"].build(), PLAN)
    inputs = inputs_of("qwen2_5_vl", model)
    wanted = model.generate(**inputs, **GREEDY)
    twin = copy.deepcopy(model)
    for weight in model.parameters():
        weight.zero_()
    assert torch.equal(twin.generate(**inputs, **GREEDY), wanted)
    assert twin.vtoken is not model.vtoken and twin.vtoken.report.tokens > 0
    vtoken.unwrap(twin)
    assert "vtoken" in vars(model) and not vars(twin).keys() & {"forward", "generate", "vtoken"}


def pickled(model: Any) -> bytes | None:
    """The model's pickle, or None where vtoken refuses it and says how to go on."""
    try:
        return pickle.dumps(model)
    except VtokenError as error:
        assert "unwrap" in str(error)
        return None


@torch.no_grad()
def test_a_pickled_model_answers_alike_or_is_refused() -> None:
    model = vtoken.wrap(FAMILIES["qwen2_5_vl"].build(), PLAN)
    inputs = inputs_of("qwen2_5_vl", model)
    data = pickled(model)
    if data is not None:
        twin = pickle.loads(data)
        assert torch.equal(twin.generate(**inputs, **GREEDY), model.generate(**inputs, **GREEDY))
        assert twin.vtoken.report.tokens == model.vtoken.report.tokens < twin.vtoken.report.cells
        vtoken.unwrap(twin)
        assert not vars(twin).keys() & {"forward", "generate", "vtoken"}
    vtoken.unwrap(model)
    assert pickle.loads(pickle.dumps(model)) is not None


CHILD = """
import sys, torch
model, inputs, wanted = torch.load(sys.argv[1], weights_only=False)
assert torch.equal(model.generate(**inputs, max_new_tokens=4, do_sample=False), wanted)
print(model.vtoken.report.tokens)
"""


@pytest.mark.slow
@torch.no_grad()
def test_a_wrapped_model_goes_to_another_process(tmp_path: Path) -> None:
    """As ``torch.multiprocessing`` with spawn sends it."""
    model = vtoken.wrap(FAMILIES["qwen2_5_vl"].build(), PLAN)
    inputs = inputs_of("qwen2_5_vl", model)
    wanted = model.generate(**inputs, **GREEDY)
    if pickled(model) is None:
        return
    torch.save((model, inputs, wanted), tmp_path / "model.pt")
    command = [sys.executable, "-c", CHILD, str(tmp_path / "model.pt")]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert ended.returncode == 0, ended.stderr
    assert int(ended.stdout) == model.vtoken.report.tokens


@pytest.mark.parametrize("wrapped", [False, True])
@torch.no_grad()
def test_a_draft_model_proposes_tokens(wrapped: bool) -> None:
    """Assisted decoding gives the greedy tokens of the large model, whatever the draft proposes."""
    model, draft = vtoken.wrap(FAMILIES["qwen2_5_vl"].build(), PLAN), FAMILIES["qwen2_5_vl"].build(1)
    if wrapped:
        vtoken.wrap(draft, "divprune:keep=0.25")
    inputs, calls = inputs_of("qwen2_5_vl", model), []
    hook = draft.model.language_model.register_forward_pre_hook(lambda *_: calls.append(1))
    wanted, report = model.generate(**inputs, **GREEDY), model.vtoken.report
    assert torch.equal(model.generate(**inputs, **GREEDY, assistant_model=draft), wanted)
    hook.remove()
    assert calls and model.vtoken.report.tokens == report.tokens and "prefill" in model.vtoken.report.milliseconds
