"""Where a token that stands for a run of steps stands in time, and features that are sent again: by oracles."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import vtoken
from tests.engine.test_gated import LLAVA, POOLED, QWEN, tower
from tests.families.masked import masked_clip_features, masked_qwen_features
from tests.families.oracle import rows, run, visual_mask
from tests.families.prepared import prepared as ready_of
from tests.families.tiny import FAMILIES, model_of, moving_block
from vtoken.data.frames import GateMap
from vtoken.errors import InputError
from vtoken.methods.plan import Plan

GATE = "mad:threshold=8"
STALE = "l2:threshold=112,apply=reuse"  # every token is sent, made of the patch embeddings last projected


def prepared(name: str, plan: str) -> tuple[Any, dict[str, Tensor], GateMap, dict[str, Any], Any]:
    """Model, inputs, the gate's map, the cut arguments with the logits, and the report."""
    model, family = model_of(name), FAMILIES[name]
    clip = moving_block(6, *family.size, seed=1)
    video = "video" in family.modalities
    visual = [("video", clip)] if video else [("image", frame[None]) for frame in clip]
    inputs = family.inputs(model, [[("text", 5), *visual, ("text", 4)]])
    gate = Plan.parse(plan).gate
    with vtoken.wrapped(model, plan):
        (found,) = model.vtoken.family.clips(model, inputs, gate, None, None)
        ready = ready_of(model, inputs)
        call, cut = ready.inputs, ready.cut
        logits = model(**inputs).logits
        report = model.vtoken.report
    return model, inputs, found.gate, {"logits": logits, "cut": cut, **call}, report


def moved(keep: np.ndarray, where: str) -> list[int]:
    """Number of the cell in which each kept cell's token stands, in raster order of the kept cells: by a plain loop."""
    out = []
    for t, y, x in np.argwhere(keep):
        end = t
        while end + 1 < len(keep) and not keep[end + 1, y, x]:
            end += 1
        step = {"start": t, "middle": (t + end) // 2, "end": end}[where]
        out.append(int(np.ravel_multi_index((step, y, x), keep.shape)))
    return out


def check(
    model: Any, inputs: dict[str, Tensor], call: dict[str, Any], cells: list[int], x: Tensor, deep: list[Tensor]
) -> None:
    """The language model's answer where the features ``x`` stand in ``cells``, all in the stock model's positions."""
    columns = visual_mask(model, inputs["input_ids"])[0].nonzero().squeeze(1)
    order = torch.tensor(cells).argsort()
    keep = ~visual_mask(model, inputs["input_ids"])
    keep[0, columns[torch.tensor(cells)]] = True
    assert torch.equal(keep[0].nonzero().squeeze(1), call["cut"].slots[0])
    (row,) = rows(model, inputs, keep)
    visual = visual_mask(model, inputs["input_ids"])[0, keep[0]]
    row.embeds[visual] = x[order]
    if deep:
        row.deepstack = [d[order] for d in deep]
    torch.testing.assert_close(call["logits"][0], run(model, row), atol=5e-4, rtol=1e-3)


def features(name: str, model: Any, inputs: dict[str, Tensor], keep: np.ndarray) -> tuple[Tensor, list[Tensor]]:
    """The kept cells' tokens by brute force, and their DeepStack rows."""
    if name in QWEN:
        flags = torch.from_numpy(keep.ravel())
        pixels, grid = inputs["pixel_values_videos"], inputs["video_grid_thw"]
        return masked_qwen_features(model.model.visual, pixels, grid, flags)
    flat = torch.from_numpy(keep.reshape(len(keep), -1))
    hidden = masked_clip_features(tower(model), inputs["pixel_values"], flat, model.config.vision_feature_layer)
    return model.model.multi_modal_projector(torch.cat(hidden)), []


@pytest.mark.parametrize("where", ["start", "middle", "end"])
@pytest.mark.parametrize("name", [*QWEN, "llava"])
@torch.no_grad()
def test_a_token_stands_where_its_run_says(name: str, where: str) -> None:
    model, inputs, gate, call, _ = prepared(name, f"{GATE},anchors=0,run_position={where}")
    cells = moved(gate.keep, where)
    assert len(set(cells)) == len(cells)
    assert (cells == np.flatnonzero(gate.keep).tolist()) == (where == "start")
    x, deep = features(name, model, inputs, gate.keep)
    check(model, inputs, call, cells, x, deep)


@pytest.mark.parametrize("name", ["qwen3_vl", "qwen2_5_vl"])
@torch.no_grad()
def test_positions_and_time_stamps_of_a_static_clip(name: str) -> None:
    """One step of content, told at the end: the last block holds every token, at the last step's M-RoPE time."""
    model, family = model_of(name), FAMILIES[name]
    clip = np.repeat(moving_block(1, *family.size, seed=1), 6, axis=0)
    inputs = family.inputs(model, [[("text", 3), ("video", clip), ("text", 3)]])
    columns = visual_mask(model, inputs["input_ids"])[0].nonzero().squeeze(1)
    steps = len(clip) // 2
    whole, _ = model.model.get_rope_index(
        inputs["input_ids"], inputs["mm_token_type_ids"], video_grid_thw=inputs["video_grid_thw"],
        **({"second_per_grid_ts": inputs["second_per_grid_ts"]} if "second_per_grid_ts" in inputs else {}),
    )  # fmt: skip
    for where, step in (("start", 0), ("middle", (steps - 1) // 2), ("end", steps - 1)):
        with vtoken.wrapped(model, f"grt:hold=off,anchors=0,refresh_seconds=none,run_position={where}"):
            ready = ready_of(model, inputs)
            call, cut = ready.inputs, ready.cut
        mine = columns.view(steps, -1)[step]
        seen = call["input_ids"][0] == model.config.video_token_id
        assert torch.equal(cut.slots[0][seen], mine)
        assert torch.equal(call["position_ids"][-3:, 0][:, seen], whole[:, 0][:, mine])


@pytest.mark.parametrize("name", POOLED)
@torch.no_grad()
def test_pooled_tokens_move_with_the_newline_last(name: str) -> None:
    plain, late = (prepared(name, f"{GATE},anchors=0,run_position={w}")[3] for w in ("start", "end"))
    first, last = plain["cut"].slots[0], late["cut"].slots[0]
    assert len(first) == len(last) and not torch.equal(first, last) and int((last - first).min()) >= 0
    inputs = prepared(name, f"{GATE},anchors=0")[1]
    columns = visual_mask(model_of(name), inputs["input_ids"])[0].nonzero().squeeze(1)
    if name == "llava_onevision":
        assert int(columns[-1]) in last.tolist()
        columns = columns[:-1]
    shape = (6, len(columns) // 6)
    keep = torch.isin(columns, first).view(shape).numpy()[:, None]
    assert torch.isin(columns, last).nonzero().squeeze(1).tolist() == sorted(moved(keep, "end"))


@torch.no_grad()
def test_decisions_do_not_depend_on_where_tokens_stand() -> None:
    """A pruner behind the gate keeps the same features; only their places differ."""
    made = {w: prepared("qwen2_vl", f"{GATE},run_position={w} | divprune:keep=0.5")[3] for w in ("start", "end")}
    parts = [torch.cat(list(m["mm_encoder_outputs"]["video"].pooler_output)) for m in made.values()]
    assert torch.equal(parts[0].sum(1).sort().values, parts[1].sum(1).sort().values)
    assert not torch.equal(made["start"]["cut"].slots[0], made["end"]["cut"].slots[0])


@pytest.mark.parametrize("name", [*QWEN, "llava"])
@torch.no_grad()
def test_anchors_may_skip_the_encoder(name: str) -> None:
    model, inputs, gate, call, report = prepared(name, f"{GATE},anchors=(2,reuse)")
    assert gate.repeated.any() and not (gate.repeated & gate.keep).any()
    assert report.encoded == gate.keep.sum() and report.tokens == gate.sent.sum()
    last = np.maximum.accumulate(np.where(gate.keep, np.arange(len(gate.keep))[:, None, None], 0))
    number = np.cumsum(gate.keep.ravel()).reshape(gate.keep.shape) - 1
    pick = [number[last[t, y, x], y, x] for t, y, x in np.argwhere(gate.sent)]
    x, deep = features(name, model, inputs, gate.keep)
    check(model, inputs, call, np.flatnonzero(gate.sent).tolist(), x[pick], [d[pick] for d in deep])


@pytest.mark.parametrize("name", POOLED)
@torch.no_grad()
def test_anchors_of_pooled_families_may_skip_the_encoder(name: str) -> None:
    """The pooled cell of a repeated patch is what the last features there pool to; all of them are the whole clip's."""
    plan = f"{GATE},anchors=(100000,reuse)"
    _, _, gate, call, report = prepared(name, plan)
    assert gate.sent.all() and not gate.keep.all()
    assert not call["cut"].drops(call["input_ids"].shape[1])
    assert report.tokens == report.cells and report.encoded < report.cells
    fewer = prepared(name, f"{GATE},anchors=(1,reuse)")[4]
    assert prepared(name, f"{GATE},anchors=0")[4].tokens < fewer.tokens < report.tokens


def stale(name: str, model: Any, inputs: dict[str, Tensor], gate: GateMap) -> dict[str, Tensor]:
    """The inputs with the pixels of every skipped cell replaced by those of its last kept one."""
    out = dict(inputs)
    if name in QWEN:
        pixels = inputs["pixel_values_videos"].clone()
        cells = pixels.view(*gate.keep.shape, model.model.visual.spatial_merge_size**2, -1)
        for t, y, x in np.argwhere(~gate.keep):
            cells[t, y, x] = cells[t - 1, y, x]
        return out | {"pixel_values_videos": pixels}
    key = "pixel_values" if name in LLAVA else "pixel_values_videos"
    pixels, side = inputs[key].clone(), model.config.vision_config.patch_size
    frames = pixels.view(-1, *pixels.shape[-3:])
    for t, y, x in np.argwhere(~gate.keep):
        box = (slice(None), slice(y * side, (y + 1) * side), slice(x * side, (x + 1) * side))
        frames[t][box] = frames[t - 1][box]
    return out | {key: pixels}


@pytest.mark.parametrize("name", [*QWEN, *LLAVA, *POOLED])
@torch.no_grad()
def test_reuse_is_the_stock_model_on_stale_patches(name: str) -> None:
    """The released code's behaviour: every token is there, made of patch embeddings as they were last projected."""
    model, inputs, gate, call, report = prepared(name, f"{STALE},anchors=0,run_position=end")
    assert 0.05 < gate.keep.mean() < 0.9
    assert report.tokens == report.cells == report.encoded
    assert any("apply=reuse" in note and str(int(gate.keep.sum())) in note for note in report.notes)
    atol = max(1e-4, FAMILIES[name].tolerance)
    torch.testing.assert_close(call["logits"], model(**stale(name, model, inputs, gate)).logits, atol=atol, rtol=1e-4)


@pytest.mark.parametrize(
    "options", [f"{GATE},anchors=(2,reuse),run_position=end", STALE, f"{GATE},run_position=middle"]
)
@pytest.mark.parametrize("name", ["qwen2_5_vl", "llava", "llava_onevision"])
@torch.no_grad()
def test_clips_of_a_batch_fare_as_they_do_alone(name: str, options: str) -> None:
    model, family = model_of(name), FAMILIES[name]
    alone = []
    for seed in (1, 2):
        clip = moving_block(6, *family.size, seed=seed)
        visual = [("video", clip)] if "video" in family.modalities else [("image", frame[None]) for frame in clip]
        alone.append([("text", 5), *visual, ("text", 4)])

    def made(samples: list[Any]) -> tuple[list[Tensor], Tensor]:
        with vtoken.wrapped(model, options):
            ready = ready_of(model, family.inputs(model, samples))
            call, cut = ready.inputs, ready.cut
        (features,) = call["mm_encoder_outputs"].values()
        return cut.slots, torch.cat([p.flatten(0, -2) for p in features.pooler_output])

    slots, x = made(alone)
    parts = [made([sample]) for sample in alone]
    assert [s.tolist() for s in slots] == [own[0].tolist() for own, _ in parts]
    torch.testing.assert_close(x, torch.cat([own for _, own in parts]), atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_reuse_goes_with_reducers_and_generate() -> None:
    model, inputs, _, _, report = prepared("qwen2_5_vl", f"{STALE} | divprune:keep=0.25")
    assert report.encoded == report.cells and report.tokens == round(report.cells / 4)
    with vtoken.wrapped(model, "l2:apply=reuse"):
        out = model.generate(**inputs, max_new_tokens=3, do_sample=False)
    assert out.shape[1] == inputs["input_ids"].shape[1] + 3


@pytest.mark.parametrize("option", ["l2:apply=reuse", "grt:anchors=(1,reuse)"])
def test_features_of_earlier_cells_and_thinners_do_not_mix(option: str) -> None:
    with pytest.raises(InputError, match="tome may drop inside the encoder"):
        Plan.parse(f"{option} | tome", keep=0.5)
