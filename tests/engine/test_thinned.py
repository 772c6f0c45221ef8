"""Plans whose tokens leave inside the encoder, in whole models: counts, positions, batches, gates, refusals."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import vtoken
from tests.families.oracle import rows, run, visual_mask
from tests.families.prepared import prepared
from tests.families.tiny import FAMILIES, model_of, moving_block
from tests.families.tokenizer import tokenizer_of
from vtoken.data.budget import Budget
from vtoken.engine.quota import per_frame
from vtoken.errors import InputError, UnsupportedError
from vtoken.methods.plan import Plan

QWEN = ["qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_5"]
THINS = ["llava", "llava_siglip", *QWEN]
METHODS = ["tome", "pitome", "turbo", "flowcut"]
POOLED = ["llava_next", "llava_next_video", "llava_onevision", "video_llava", "internvl"]
GATE = "mad:threshold=8,anchors=1"


def inputs_of(name: str, kind: str | None = None) -> tuple[Any, dict[str, Tensor]]:
    """Two samples of different length: a clip or its frames as images, and one with less."""
    model, family = model_of(name), FAMILIES[name]
    kind = kind or ("video" if "video" in family.modalities else "image")
    clip = moving_block(6, *family.size, seed=1)
    long: list[Any] = [("video", clip)] if kind == "video" else [("image", frame[None]) for frame in clip]
    short: list[Any] = [("video", clip[:4])] if kind == "video" else long[:1]
    return model, family.inputs(model, [[("text", 5), *long, ("text", 4)], [("text", 3), *short, ("text", 2)]])


def per_sample(model: Any, inputs: dict[str, Tensor]) -> list[int]:
    return visual_mask(model, inputs["input_ids"]).sum(1).tolist()


@pytest.mark.parametrize("kind", ["image", "video"])
@pytest.mark.parametrize("name", THINS)
@pytest.mark.parametrize("method", METHODS)
@torch.no_grad()
def test_exact_counts_and_positions(method: str, name: str, kind: str) -> None:
    """The count is exact in every sample, and what is left stands where its heaviest member stood."""
    if kind not in FAMILIES[name].modalities:
        pytest.skip(f"not applicable: {name} takes no {kind}")
    model, inputs = inputs_of(name, kind)
    with vtoken.wrapped(model, method, keep=0.3):
        ready = prepared(model, inputs)
        call, cut = ready.inputs, ready.cut
        logits = model(**inputs).logits
        report = model.vtoken.report
    total = per_sample(model, inputs)
    wanted = [Budget(keep=0.3).resolve(n, 1.0) for n in total]
    keep = torch.zeros_like(inputs["input_ids"], dtype=torch.bool)
    for b, slots in enumerate(cut.slots):
        assert torch.equal(slots, cut.content[b])  # raster order: every slot holds its own token
        keep[b, slots] = True
    assert (visual_mask(model, inputs["input_ids"]) & keep).sum(1).tolist() == wanted
    assert report.tokens == sum(wanted) and report.encoded == report.cells == sum(total)
    handed = next(iter(call["mm_encoder_outputs"].values()))
    features = torch.cat(list(handed.pooler_output)).split(wanted)
    deep = [torch.cat(list(d)).split(wanted) for d in getattr(handed, "deepstack_features", None) or []]
    for b, row in enumerate(rows(model, inputs, keep)):
        row.embeds[visual_mask(model, inputs["input_ids"])[b, keep[b]]] = features[b]
        row.deepstack = [d[b] for d in deep]
        expected = run(model, row)
        torch.testing.assert_close(
            logits[b, -len(expected) :], expected, atol=1e-3 if name == "qwen3_5" else 1e-4, rtol=1e-3
        )


@pytest.mark.parametrize(
    "plan", [*METHODS, "earlytom:drop=1 | decoupled", f"{GATE} | tome | divprune", f"{GATE} | flowcut"]
)
@pytest.mark.parametrize("name", THINS)
@torch.no_grad()
def test_a_batch_is_its_samples(name: str, plan: str) -> None:
    model, inputs = inputs_of(name)
    family = FAMILIES[name]
    with vtoken.wrapped(model, plan, keep=0.3):
        both = model.generate(**inputs, max_new_tokens=4, do_sample=False)
        assert torch.equal(both, model.generate(**inputs, max_new_tokens=4, do_sample=False, use_cache=False))
        clip = moving_block(6, *family.size, seed=1)
        kind = "video" if "video" in family.modalities else "image"
        visual: list[Any] = [("video", clip)] if kind == "video" else [("image", frame[None]) for frame in clip]
        alone = family.inputs(model, [[("text", 5), *visual, ("text", 4)]])
        one = model.generate(**alone, max_new_tokens=4, do_sample=False)
    assert torch.equal(both[0, -4:], one[0, -4:])


@pytest.mark.parametrize("name", THINS)
@torch.no_grad()
def test_keeping_all_is_the_stock_model(name: str) -> None:
    model, inputs = inputs_of(name)
    stock = model(**inputs).logits
    for method in METHODS:
        with vtoken.wrapped(model, method, keep=1.0):
            assert torch.equal(model(**inputs).logits, stock)
    if name != "qwen3_5":  # its linear attention is left to the encoder tests: it magnifies the last bits
        with vtoken.wrapped(model, "tome:r=0"):
            torch.testing.assert_close(model(**inputs).logits, stock, atol=5e-5, rtol=1e-4)


@pytest.mark.parametrize("name", THINS)
@torch.no_grad()
def test_behind_a_gate_and_before_pruners(name: str) -> None:
    model, inputs = inputs_of(name)
    total = per_sample(model, inputs)
    for plan, options in (
        (f"{GATE} | tome | divprune", {"tokens": 5}),
        ("grt | pitome", {"tokens": 6}),
        (f"{GATE} | tome", {"keep": 0.2}),  # of the stock model's tokens, not of those behind the gate
        (f"{GATE} | flowcut:keep=0.5 | evs", {"keep": 0.1}),
        ("tome | cls | divprune", {"keep": 0.1}),
    ):
        with vtoken.wrapped(model, plan, **options):
            model(**inputs)
            report = model.vtoken.report
        wanted = [Budget(**options).resolve(n, 1.0) for n in total]
        assert report.tokens == sum(wanted)
        assert (report.encoded < report.cells) == ("tome | cls" not in plan)


@torch.no_grad()
def test_sizes_add_up_over_gate_and_encoder(name: str = "qwen2_5_vl") -> None:
    model, inputs = inputs_of(name)
    with vtoken.wrapped(model, f"{GATE} | tome", keep=0.2):
        session = model.vtoken
        clips = session.family.clips(model, inputs, session.plan.gate, None, None)
        from vtoken.encoders.packed import Thinning

        goal = torch.cat([torch.from_numpy(c.gate.keep.reshape(len(c.gate.keep), -1).sum(1)) for c in clips])
        features = session.family.encode_clips(
            model, clips, frozenset({"keys@1"}), Thinning(session.plan.thinner, (goal + 1) // 2)
        )
    assert int(features.size.sum()) == sum(c.gate.keep.size for c in clips)
    assert len(features.x) == len(features.index) == len(features.signals["keys@1"]) == int(((goal + 1) // 2).sum())
    assert features.signals["motion"].shape == features.signals["scene"].shape == features.size.shape


def test_ask_with_a_thinner() -> None:
    model = model_of("qwen2_5_vl")
    clip = moving_block(8, 84, 112, seed=3)
    options: dict[str, Any] = {"native_fps": 4, "fps": "native", "max_new_tokens": 3}
    for plan, budget in (("tome", {"keep": 0.25}), ("grt | flowcut", {"per_second": 6.0})):
        answer = vtoken.ask(model, tokenizer_of(model), clip, "what moves?", plan=plan, **budget, **options)
        report = answer.report
        assert report.tokens == (round(0.25 * report.cells) if "keep" in budget else 12)


def test_steps_without_a_share_are_told() -> None:
    model, inputs = inputs_of("qwen2_vl")
    with torch.no_grad(), vtoken.wrapped(model, "flowcut", tokens=2):
        model(**inputs)
        assert model.vtoken.report.tokens == 4
        assert any("time steps" in note for note in model.vtoken.report.notes)


def test_per_frame_counts() -> None:
    assert per_frame(torch.tensor([8, 8, 8, 8]), 10).tolist() == [2, 3, 2, 3]
    assert per_frame(torch.tensor([1, 100, 0, 1]), 5).tolist() == [1, 3, 0, 1]
    assert per_frame(torch.tensor([5, 5, 5, 5]), 2).tolist() == [0, 1, 0, 1]
    rng = np.random.default_rng(0)
    for _ in range(200):
        sizes = torch.from_numpy(rng.integers(0, 9, 7))
        k = int(rng.integers(0, int(sizes.sum()) + 1))
        got = per_frame(sizes, k)
        assert int(got.sum()) == k and bool((got <= sizes).all()) and bool((got >= 0).all())
        if k >= int((sizes > 0).sum()):
            assert bool((got[sizes > 0] > 0).all())


@pytest.mark.parametrize("name", POOLED)
def test_other_families_are_refused_before_anything_runs(name: str) -> None:
    with pytest.raises(UnsupportedError, match="inside the encoder"):
        vtoken.wrap(model_of(name), "tome", keep=0.5)


@pytest.mark.parametrize(
    "plan", ["divprune | tome", "tome | pitome", "tome | grt", "grt | divprune | flowcut", "tome:keep=0.5,r=3"]
)
def test_wrong_plans(plan: str) -> None:
    with pytest.raises(InputError):
        Plan.parse(plan, keep=0.5)


def test_budgets_of_plans() -> None:
    with pytest.raises(InputError, match="needs a budget"):
        Plan.parse("grt | tome")
    with pytest.raises(InputError, match="no stage"):
        Plan.parse("tome:r=3", keep=0.5)
    plan = Plan.parse("tome:r=(8,-1.0)")
    assert str(plan) == "tome:r=(8, -1.0)" and plan.sharing == [] and str(Plan.parse(str(plan))) == str(plan)
    shared = Plan.parse("tome | divprune", keep=0.25)
    assert shared.thin([100], [100], [float("nan")]) == [50]  # half the way
    assert Plan.parse("tome", per_second=5.0).thin([100], [200], [4.0]) == [20]
