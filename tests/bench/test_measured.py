"""vtoken.measure: attention of generated tokens against a model that returns its attention, and by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import vtoken
from tests.families.oracle import visual_mask
from tests.families.tiny import model_of, moving_block
from tests.families.tokenizer import tokenizer_of
from vtoken.bench.attention import Seen, depths, dominance, watched
from vtoken.bench.fidelity import Asked
from vtoken.errors import InputError

OPTIONS: dict[str, Any] = {"fps": 4, "native_fps": 4, "new_tokens": 5}


def measured(family: str, plan: str, **options: Any) -> Any:
    video = moving_block(8, 84, 112)
    return vtoken.measure(
        model_of(family), tokenizer_of(model_of(family)), video, "what is red?", plan, **OPTIONS, **options
    )


def test_balance_is_one() -> None:
    for texts, visuals in ((3, 9), (10, 1)):
        assert dominance(texts / 20, visuals / 20, texts, visuals) == pytest.approx((1.0, 1.0))
    assert dominance(0.6, 0.2, 10, 30) == pytest.approx((9.0, 3.0))
    assert depths(32) == {"early": (0, 1), "middle": (15, 16), "late": (30, 31)}
    assert depths(2) == {"early": (0, 1), "middle": (0, 1), "late": (0, 1)}


def test_uniform_attention_is_balance() -> None:
    seen = Seen(torch.tensor([True, False, True, True, False]))
    seen.look(0, torch.zeros(1, 4, 1, 8), torch.randn(1, 2, 7, 8), None, None)
    seen.look(0, torch.zeros(1, 4, 1, 8), torch.randn(1, 2, 5, 8), None, None)  # the prompt's own last row: left out
    (text, visual, texts, visuals) = seen.masses[0][0]
    assert (texts, visuals, len(seen.masses[0])) == (2, 3, 1)
    assert (text, visual) == pytest.approx((2 / 7, 3 / 7))
    hidden = torch.tensor([True, False, True, True, True, True, True])[None, None, None]
    seen.look(1, torch.zeros(1, 4, 1, 8), torch.randn(1, 2, 7, 8), hidden, None)
    assert seen.masses[1][0] == pytest.approx((1 / 6, 3 / 6, 1, 3))


def longer(inputs: dict[str, Any], ids: torch.Tensor) -> dict[str, Any]:
    """The prompt's arguments with an answer behind it, for one forward without a cache."""
    out = {
        n: v for n, v in inputs.items() if n not in ("past_key_values", "use_cache", "logits_to_keep", "cache_position")
    }
    out["input_ids"] = torch.cat([inputs["input_ids"], ids], dim=1)
    for name, fill in (("attention_mask", 1), ("mm_token_type_ids", 0), ("token_type_ids", 0)):
        if inputs.get(name) is not None:
            out[name] = torch.cat([inputs[name], torch.full_like(ids, fill)], dim=1)
    if inputs.get("position_ids") is not None:
        at = inputs["position_ids"]
        more = at[..., -1:] + 1 + torch.arange(ids.shape[1])  # the prompt ends with text, counted on each axis
        out["position_ids"] = torch.cat([at, more], dim=-1)
    return out | {"use_cache": False}


@pytest.mark.parametrize("family", ["qwen3_vl", "llava_onevision"])
def test_attention_is_that_which_the_model_returns(family: str) -> None:
    """The stock model reads prompt and answer at once and returns its attention (eager)."""
    model, video = model_of(family), moving_block(8, 84, 112)
    found = measured(family, "none")
    assert found.kl == pytest.approx(0, abs=1e-6) and found.agree == 1 and found.same
    prompt: list[dict[str, Any]] = []
    hook = model.register_forward_pre_hook(lambda _, args, kwargs: prompt.append(kwargs), with_kwargs=True)
    try:
        options = {"fps": 4, "native_fps": 4}
        answer, _ = Asked(model, tokenizer_of(model), video, "what is red?", options | {"do_sample": False}).led(
            "none", None, 5
        )
    finally:
        hook.remove()
    inputs = next(kwargs for kwargs in prompt if kwargs["input_ids"].shape[1] > 5)
    visual = visual_mask(model, inputs["input_ids"])[0]
    ids = answer.tokens[None, :-1]
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        with torch.no_grad():
            out = model(**longer(inputs, ids), output_attentions=True)
    finally:
        model.set_attn_implementation(before)
    masses = []
    for weight in out.attentions[-2:]:  # the late ones
        rows = weight[0].mean(0)[len(visual) :, : len(visual)]
        masses += [(float(r[~visual].sum()), float(r[visual].sum())) for r in rows]
    counts = int((~visual).sum()), int(visual.sum())
    mdi = sum(dominance(m[0], m[1], *counts)[0] for m in masses) / len(masses)
    mass = sum(m[1] for m in masses) / len(masses)
    assert found.mdi["late"] == pytest.approx(mdi, rel=1e-3)
    assert found.visual_mass["late"] == pytest.approx(mass, rel=1e-3)


@pytest.mark.parametrize("plan", ["grt", "divprune:keep=0.3"])
def test_plans_have_fewer_visual_columns_and_leave_the_model_as_it_was(plan: str) -> None:
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    before = dict(ALL_ATTENTION_FUNCTIONS)
    found, whole = measured("qwen3_vl", plan), measured("qwen3_vl", "none")
    assert dict(ALL_ATTENTION_FUNCTIONS) == before
    assert found.kl > 0 and found.tokens < whole.tokens and found.reduce_ms >= 0
    assert set(found.mdi) == {"early", "middle", "late"} and found.mdi != whole.mdi
    assert 0 < found.visual_mass["late"] < 1
    if plan != "grt":  # with hold every slot is visible
        assert found.visual_mass["late"] < whole.visual_mass["late"]


def test_what_is_not_measured_is_none() -> None:
    assert measured("qwen3_vl", "divprune:keep=0.3", attention=False).mdi is None
    inner = measured("qwen3_vl", "fastv:keep=0.3,layer=1")
    assert inner.mdi is None and inner.kl > 0
    with pytest.raises(InputError, match="new_tokens=0"):
        vtoken.measure(model_of("qwen3_vl"), None, None, "q", "none", new_tokens=0)


def test_other_threads_are_not_watched() -> None:
    import threading

    model = model_of("qwen3_vl")
    seen = Seen(torch.tensor([True, False]))
    with watched(model, seen):
        thread = threading.Thread(target=lambda: model.generate(torch.tensor([[5, 6, 7]]), max_new_tokens=3))
        thread.start()
        thread.join()
        assert not seen.masses
        model.generate(torch.tensor([[5, 6]]), max_new_tokens=3)
    assert seen.masses
