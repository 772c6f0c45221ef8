"""Autocast, a float64 default dtype, bfloat16 weights, and copies of a wrapped model in and out of the process."""

from __future__ import annotations

import copy
import io
import multiprocessing
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

import vtoken
from tests.catalogue import MERGERS, PRUNERS, Row, label
from tests.families import configs
from tests.families.oracle import oracle_scores
from tests.families.prepared import prepared
from tests.families.tiny import FAMILIES, model_of, moving_block
from tests.families.tokenizer import tokenizer_of
from vtoken.errors import InputError, UnsupportedError
from vtoken.methods import registry
from vtoken.methods.plan import Plan

PLANS = ["none", "random:keep=0.4", "grt", "grt | divprune:keep=0.5", "tome:keep=0.5", "flowcut:keep=0.5"]
PLANS += ["pitome:keep=0.5", "jepa_surprise:encoder=tiny | surprise:keep=0.5"]
NAMES = ["llava", "llava_onevision", "qwen2_5_vl", "qwen3_vl"]


@contextmanager
def default(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def inputs_of(name: str) -> dict[str, Tensor]:
    layouts = FAMILIES[name].layouts()
    return FAMILIES[name].inputs(model_of(name), layouts.get("image_video") or layouts["two_images"])


def columns(name: str, plan: Any) -> list[int]:
    with torch.no_grad(), vtoken.wrapped(model_of(name), plan, fps=2.0):
        return torch.cat(prepared(model_of(name), inputs_of(name)).cut.slots).tolist()


ROWS = [row for row in PRUNERS + MERGERS if row["name"] not in ("none", "surprise", "learned")]


@pytest.mark.parametrize("row", ROWS, ids=label)
def test_a_default_of_float64_changes_no_method(row: Row) -> None:
    for name in ("llava_onevision", "qwen3_vl"):
        method = registry.build(row["name"], **row["options"])
        try:
            plan = Plan.parse(method, keep=0.4 if method.needs_budget else None)
            want = columns(name, plan)
        except (InputError, UnsupportedError):
            assert row["signals"]
            continue
        with default(torch.float64):
            assert columns(name, plan) == want, name


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("plan", PLANS)
def test_a_default_of_float64_changes_no_plan(name: str, plan: str) -> None:
    """Of a float32 model; a float64 model runs too."""
    model = model_of(name)
    try:
        want = columns(name, plan)
    except UnsupportedError:
        return
    ask = {"native_fps": 4, "fps": "native", "plan": plan, "max_new_tokens": 2}
    answer = vtoken.ask(model, tokenizer_of(model), moving_block(6, 84, 112), "what?", **ask)
    with default(torch.float64):
        assert columns(name, plan) == want
        again = vtoken.ask(model, tokenizer_of(model), moving_block(6, 84, 112), "what?", **ask)
        assert again.tokens.tolist() == answer.tokens.tolist()
        double = FAMILIES[name].build(0).double()
        given = {n: v.double() if v.dtype == torch.float32 and "pixel" in n else v for n, v in inputs_of(name).items()}
        with torch.no_grad(), vtoken.wrapped(double, plan, fps=2.0):
            assert double(**given).logits.dtype == torch.float64
        vtoken.ask(double, tokenizer_of(double), moving_block(6, 84, 112), "what?", **ask)


@pytest.mark.parametrize("name", [*NAMES, "internvl", "video_llava", "llava_next_video", "qwen3_5"])
@pytest.mark.parametrize("plan", PLANS)
@torch.no_grad()
def test_autocast_and_bfloat16(name: str, plan: str) -> None:
    """Within bfloat16 of the float32 model, wherever as many tokens stay."""
    model, inputs = model_of(name), inputs_of(name)
    try:
        with vtoken.wrapped(model, plan, fps=2.0):
            want = model(**inputs).logits
            with torch.autocast("cpu", torch.bfloat16):
                mixed = model(**inputs).logits
                model.generate(**inputs, max_new_tokens=2, do_sample=False)
    except UnsupportedError:
        return
    assert bool(mixed.isfinite().all())
    if plan in PLANS[:3] and mixed.shape == want.shape:
        assert float((mixed.float() - want).abs().max()) < 0.5 * float(want.abs().max())
    small = copy.deepcopy(model).bfloat16()
    with vtoken.wrapped(small, plan, fps=2.0):
        assert small(**inputs).logits.dtype == torch.bfloat16


def saved_and_loaded(model: Any) -> Any:
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


WAYS = {"deepcopy": copy.deepcopy, "pickle": lambda m: pickle.loads(pickle.dumps(m)), "torch.save": saved_and_loaded}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("way", WAYS)
@torch.no_grad()
def test_a_copy_of_a_wrapped_model_is_a_model_of_its_own(name: str, way: str) -> None:
    model, inputs = FAMILIES[name].build(0), inputs_of(name)
    options = {"max_new_tokens": 3, "do_sample": False}
    vtoken.wrap(model, "grt | divprune:keep=0.5", fps=2.0)
    try:
        other = WAYS[way](model)
    except UnsupportedError:
        return
    want, tokens = model(**inputs).logits, model.generate(**inputs, **options)
    assert torch.equal(other(**inputs).logits, want) and torch.equal(other.generate(**inputs, **options), tokens)
    assert other.vtoken is not model.vtoken and str(other.vtoken.plan) == str(model.vtoken.plan)
    other.vtoken.plan = "none"
    assert str(model.vtoken.plan) != "none" and torch.equal(model(**inputs).logits, want)
    for weight in other.parameters():
        weight.zero_()
    assert torch.equal(model(**inputs).logits, want) and not torch.equal(other(**inputs).logits, want)
    vtoken.unwrap(other)
    assert "forward" not in vars(other) and "vtoken" in vars(model)
    with pytest.raises(InputError, match="already wrapped"):
        vtoken.wrap(model)
    vtoken.unwrap(model)
    assert "forward" not in vars(model)


def _answer(model: Any, inputs: dict[str, Tensor]) -> list[int]:
    torch.set_num_threads(1)
    return model.generate(**inputs, max_new_tokens=3, do_sample=False)[0].tolist()


@pytest.mark.slow
def test_a_wrapped_model_goes_to_a_process_of_its_own() -> None:
    """A stock LLaVA cannot be sent: its class forgets in the new process which states it records."""
    model, inputs = FAMILIES["qwen2_5_vl"].build(0), inputs_of("qwen2_5_vl")
    vtoken.wrap(model, "divprune:keep=0.5")
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(_answer, (model, inputs)) == _answer(model, inputs)


@pytest.mark.parametrize("plan", ["none", "random:keep=0.4", "grt | divprune:keep=0.5"])
@torch.no_grad()
def test_an_empty_deepstack(plan: str) -> None:
    """Qwen3-VL without DeepStack levels: forward, beams and a batch in which one prompt has no picture."""
    name, config = configs.qwen3_vl()
    config.vision_config.deepstack_visual_indexes = []
    model = configs.make((name, config), 0)
    family = FAMILIES["qwen3_vl"]
    for layout in ("image_video", "batch_text", "batch_mixed"):
        inputs = family.inputs(model, family.layouts()[layout])
        options = {"max_new_tokens": 3, "do_sample": False, "num_beams": 3, "num_return_sequences": 2}
        with vtoken.wrapped(model, plan, fps=2.0):
            keep = torch.zeros_like(inputs["input_ids"], dtype=torch.bool)
            for b, slots in enumerate(prepared(model, inputs).cut.slots):
                keep[b, slots] = True
            out = model.generate(
                **inputs, **options, length_penalty=0.0, return_dict_in_generate=True, output_scores=True
            )
            model(**inputs)
        if "grt" not in plan:  # behind a gate the encoder sees fewer patches
            new = out.sequences[:, keep.shape[1] :]
            wanted = oracle_scores(model, inputs, keep, new)
            torch.testing.assert_close(out.sequences_scores, wanted, atol=1e-3, rtol=1e-4)
