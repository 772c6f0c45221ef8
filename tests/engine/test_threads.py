"""Eight threads at one model get the answers of one thread, complete reports, and leave the model as it was."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch

import vtoken
from tests.engine.changed import GREEDY, NAMES, ask, inputs_of
from tests.families.tiny import FAMILIES
from tests.families.tokenizer import tokenizer_of

THREADS, ROUNDS = 8, 2
ASKED = ["grt", "cls:keep=0.5", "grt | visionzip:keep=0.5"]  # the last two need scores and keys of the encoder
STAGES = {"decode", "encode", "reduce", "prefill", "generate"}
Job = Callable[[], torch.Tensor]


@pytest.fixture(autouse=True)
def impatient() -> Iterator[None]:
    """Threads take turns after ten microseconds instead of five milliseconds."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


def answer(model: Any, words: Any, plan: str | None, seed: int) -> torch.Tensor:
    made = ask(model, words, plan, seed)
    missing = STAGES - made.report.milliseconds.keys()
    assert not missing and made.report.tokens > 0 and made.report.prompt > 0, f"the report lacks {missing}"
    return torch.cat([made.tokens, torch.tensor([made.report.tokens, made.report.encoded, made.report.prompt])])


def jobs(name: str, model: Any, plans: Sequence[str | None]) -> list[Job]:
    """Questions under every plan, ``generate`` and ``forward``, about two clips."""
    words, out = tokenizer_of(model), []
    for seed in (1, 2):
        inputs = inputs_of(name, model, seed)
        out += [lambda p=plan, s=seed: answer(model, words, p, s) for plan in plans]
        out += [lambda i=inputs: model.generate(**i, **GREEDY), lambda i=inputs: model(**i).logits]
    return out


def state(model: Any) -> list[Any]:
    """Attributes and hooks of every module."""
    return [
        (set(vars(m)), len(m._forward_hooks), len(m._forward_pre_hooks), vars(m).get("forward"))
        for m in model.modules()
    ]


def built(name: str) -> Any:
    """A model after one call of its own, in which transformers installs hooks that stay."""
    model = FAMILIES[name].build()
    model(**inputs_of(name, model))
    return model


@torch.no_grad()
def run(jobs: list[Job]) -> None:
    """Every job several times on eight threads, each compared with what it gave alone."""
    alone = [job() for job in jobs]

    def one(i: int) -> bool:
        with torch.no_grad():
            return torch.equal(jobs[i](), alone[i])

    with ThreadPoolExecutor(THREADS) as pool:
        same = list(pool.map(one, [i for _ in range(ROUNDS) for i in range(len(jobs))]))
    assert all(same), f"{same.count(False)} of {len(same)} results differ from those of one thread"


@pytest.mark.parametrize("name", NAMES)
def test_threads_on_a_model_that_is_not_wrapped(name: str) -> None:
    model = built(name)
    before = state(model)
    run(jobs(name, model, ASKED))
    assert state(model) == before


@pytest.mark.parametrize("name", NAMES)
def test_threads_on_a_wrapped_model(name: str) -> None:
    model = vtoken.wrap(built(name), "grt | cls:keep=0.5")
    before = state(model)
    run(jobs(name, model, [None, *ASKED]))
    assert state(model) == before
    vtoken.unwrap(model)
    assert "forward" not in vars(model) and "generate" not in vars(model) and "vtoken" not in vars(model)


@pytest.mark.parametrize("name", NAMES)
def test_threads_that_wrap_models_of_their_own(name: str) -> None:
    """Nothing is shared between models either."""
    models = [built(name) for _ in range(3)]
    parts = [job for model in models for job in jobs(name, vtoken.wrap(model, ASKED[1]), ASKED[:1])[:3]]
    run(parts)
