"""Images behind the gate of repeated cells: which cells, and that the model computes what a slow form computes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import vtoken
from tests.engine import held as oracle
from tests.families.tiny import FAMILIES, model_of
from vtoken import families
from vtoken.data.hold import HoldMap
from vtoken.engine.call import Call
from vtoken.engine.prepare import prepare
from vtoken.errors import InputError, UnsupportedError
from vtoken.families.images import gate_images
from vtoken.methods.plan import Plan
from vtoken.methods.registry import build

QWEN = ["qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_5"]
NAMES = [*QWEN, "llava", "llava_siglip"]


def slow(cells: np.ndarray, threshold: float) -> np.ndarray:
    """One cell after the other, in raster order."""
    h, w = cells.shape[:2]
    root = np.arange(h * w).reshape(h, w)
    for y in range(h):
        for x in range(w):
            found = []
            for near in ([(y, x - 1)] if x else []) + ([(y - 1, x)] if y else []):
                stands = divmod(int(root[near]), w)
                found.append((float(np.abs(cells[y, x] - cells[stands]).max()), int(root[near])))
            if found and min(found, key=lambda f: f[0])[0] <= threshold:
                root[y, x] = min(found, key=lambda f: f[0])[1]
    return root


@settings(max_examples=150, deadline=None)
@given(st.integers(1, 7), st.integers(1, 7), st.integers(1, 4), st.sampled_from([0.0, 1.0, 3.0]), st.integers(0, 999))
def test_repeats_are_those_of_a_raster_scan(h: int, w: int, levels: int, threshold: float, seed: int) -> None:
    cells = np.random.default_rng(seed).integers(0, levels, (h, w, 2)).astype(np.float32)
    got = build("pixelprune", threshold=threshold).repeats(torch.from_numpy(cells)).numpy()  # type: ignore[attr-defined]
    assert np.array_equal(got, slow(cells, threshold))
    stands = got.ravel()
    assert np.array_equal(stands[stands], stands)  # what stands for a cell stands for itself
    assert np.abs(cells.reshape(h * w, -1) - cells.reshape(h * w, -1)[stands]).max() <= threshold


def page(height: int, width: int) -> np.ndarray:
    """A white page with two lines of dark strokes."""
    image = np.full((height, width, 3), 255, np.uint8)
    for y in (height // 5, height // 2):
        image[y : y + 4, width // 8 : width // 2 : 3] = 20
    return image


def prompt(name: str, images: int = 1) -> tuple[Any, families.Family, dict[str, Tensor]]:
    model, bench = model_of(name), FAMILIES[name]
    pixels = [np.ascontiguousarray(np.roll(page(*bench.size), 5 * i, 0))[None] for i in range(images)]
    segments = [("text", 4), *[("image", p) for p in pixels], ("text", 3)]
    return model, families.of(model), bench.inputs(model, [segments])


def shown_map(model: Any, inputs: dict[str, Tensor], shown: Tensor) -> HoldMap:
    return HoldMap.of([shown], oracle.visual_mask(model, inputs["input_ids"]), inputs["attention_mask"])


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_skipped_cells_are_neither_encoded_nor_in_the_prompt(name: str) -> None:
    """The tokens are those of the encoder on the kept patches alone, at the stock prompt's positions."""
    model, family, inputs = prompt(name, images=2)
    clips, shown = gate_images(family, model, inputs, build("pixelprune"))  # type: ignore[arg-type]
    kept = int((shown == torch.arange(len(shown))).sum())
    assert 0 < kept < len(shown) and len(clips) == 2
    vtoken.wrap(model, "pixelprune")
    try:
        out = model.generate(**inputs, max_new_tokens=2, do_sample=False)
        report = model.vtoken.report
        assert (report.cells, report.encoded, report.tokens) == (len(shown), kept, kept)
        assert report.prompt == inputs["input_ids"].shape[1] - len(shown) + kept
        assert torch.equal(out[:, : inputs["input_ids"].shape[1]], inputs["input_ids"])
    finally:
        vtoken.unwrap(model)
    features = family.encode_clips(model, clips, frozenset())
    assert torch.equal(features.index, (shown == torch.arange(len(shown))).nonzero().squeeze(1))


@pytest.mark.parametrize("name", [n for n in NAMES if n != "qwen3_5"])
@torch.no_grad()
def test_held_slots_show_what_stands_for_them(name: str) -> None:
    """Which column each column shows; that any such map is computed right is shown in tests/engine/test_hold.py."""
    model, family, inputs = prompt(name)
    _, shown = gate_images(family, model, inputs, build("pixelprune"))  # type: ignore[arg-type]
    ready = prepare(Call(model, family, Plan.parse("pixelprune:hold=true")), dict(inputs), True)
    assert ready.hold is not None
    assert torch.equal(ready.hold.shows, shown_map(model, inputs, shown).shows)
    vtoken.wrap(model, "pixelprune:hold=true")
    try:
        model.generate(**inputs, max_new_tokens=2, do_sample=False)
        assert model.vtoken.report.tokens == int((shown == torch.arange(len(shown))).sum())
        assert not any("hold" in note for note in model.vtoken.report.notes)
    finally:
        vtoken.unwrap(model)


@torch.no_grad()
def test_an_image_without_repeats_runs_the_stock_model() -> None:
    model, _, _ = prompt("qwen2_5_vl")
    noise = np.random.default_rng(0).integers(0, 256, (1, *FAMILIES["qwen2_5_vl"].size, 3), dtype=np.uint8)
    inputs = FAMILIES["qwen2_5_vl"].inputs(model, [[("text", 4), ("image", noise), ("text", 3)]])
    stock = model(**inputs).logits
    for plan in ("pixelprune", "pixelprune:hold=true"):
        vtoken.wrap(model, plan)
        try:
            assert torch.equal(model(**inputs).logits, stock)
        finally:
            vtoken.unwrap(model)


@torch.no_grad()
def test_images_and_videos_of_a_prompt_have_gates_of_their_own() -> None:
    model, bench = model_of("qwen2_5_vl"), FAMILIES["qwen2_5_vl"]
    inputs = bench.inputs(
        model, [[("text", 2), ("image", page(*bench.size)[None]), ("text", 1), ("video", "moving"), ("text", 2)]]
    )
    told = {}
    for plan in ("mad", "pixelprune", "mad | pixelprune", "mad | pixelprune | divprune:keep=0.2", "grt | pixelprune"):
        vtoken.wrap(model, plan, fps=2.0)
        try:
            model.generate(**inputs, max_new_tokens=1, do_sample=False)
            told[plan] = model.vtoken.report
        finally:
            vtoken.unwrap(model)
    cells = told["mad"].cells
    skipped = {plan: cells - told[plan].encoded for plan in told}
    assert skipped["mad | pixelprune"] == skipped["mad"] + skipped["pixelprune"] and min(skipped.values()) > 0
    assert told["mad | pixelprune | divprune:keep=0.2"].tokens < told["mad | pixelprune"].tokens


def test_refusals() -> None:
    for plan in ("pixelprune | grt", "pixelprune | pixelprune", "pixelprune | tome:keep=0.5", "divprune | pixelprune"):
        with pytest.raises(InputError, match="plan"):
            Plan.parse(plan, None if "keep" in plan else 0.5)
    with pytest.raises(UnsupportedError, match="skips cells of images before the encoder"):
        vtoken.wrap(model_of("llava_onevision"), "pixelprune")
