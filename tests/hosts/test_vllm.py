"""The plug-in for vLLM as far as it needs no vLLM: plans, masks of a video's rows, sequences. The rest: tests/vllm."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.families.tiny import FAMILIES, Clip, model_of, moving_block
from tests.tokenizers.scenes import GATES
from vtoken.data.frames import Grid
from vtoken.encoders import clip as encoder
from vtoken.encoders.pool import pool
from vtoken.errors import InputError
from vtoken.families import of
from vtoken.families.runs import run_slot
from vtoken.hosts.vllm import MODELS
from vtoken.hosts.vllm.gating import as_levels, gate_frames, gate_rows, homes, patch_map, segments, shown, spacing_of
from vtoken.hosts.vllm.plans import asked, gate_of, of_server
from vtoken.hosts.vllm.prompt import in_order, whole_prompt
from vtoken.methods.plan import Plan

SIZE = {"qwen2_5_vl": (168, 224), "qwen3_vl": (160, 224)}


def geometry(family: str) -> Any:
    """How a processor of the family cuts and normalises frames."""
    return of(model_of(family)).preprocess(model_of(family))  # type: ignore[attr-defined]


class Config:
    """A model's config with what hf_overrides put on it."""

    def __init__(self, **values: Any) -> None:
        vars(self).update(values)


def test_a_gate_runs_without_hold_and_second_stage() -> None:
    gate = gate_of("grt:threshold=8")
    assert gate is not None and not gate.hold and gate.anchoring.count == 1
    assert str(gate) == str(Plan.parse("grt:threshold=8,hold=off,merge=none").gate)
    assert Plan((gate,)).reducers == []  # nothing acts after the encoder
    assert gate_of("none") is None


@pytest.mark.parametrize(
    ("plan", "said"),
    [
        ("grt | divprune:keep=0.5", "divprune cannot run in vLLM"),
        ("uniform:keep=0.5", "uniform cannot run in vLLM"),
        ("grt:recall=2", "sends earlier features again"),
        ("grt:anchors=(2,reuse)", "sends earlier features again"),
        ("grt | fastv:keep=0.5", "fastv cannot run in vLLM"),
        ("nonsense", "unknown method"),
    ],
)
def test_other_plans_are_refused(plan: str, said: str) -> None:
    for refuse in (
        lambda: gate_of(plan),
        lambda: asked({"vtoken": plan}, "grt"),
        lambda: of_server(Config(vtoken=plan), None),
    ):
        with pytest.raises(InputError, match=said):
            refuse()


def test_arguments_of_a_request_and_of_the_server() -> None:
    assert asked({"fps": 4}, "mad") == ("mad", {"fps": 4})
    assert asked({"fps": 4, "vtoken": "none"}, "mad") == ("none", {"fps": 4})
    with pytest.raises(InputError, match="keep=0.5"):
        asked({"vtoken": "grt", "keep": 0.5}, "mad")
    assert of_server(Config(), None) == "grt" and of_server(Config(vtoken="mad"), {"fps": 2}) == "mad"
    with pytest.raises(InputError, match="hf_overrides"):
        of_server(Config(), {"vtoken": "mad"})
    with pytest.raises(InputError, match="as text"):
        of_server(Config(vtoken=3), None)


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl"])
@pytest.mark.parametrize("plan", ["grt", "mad:anchors=0", "grt:anchors=(spread:3),run_position=end"])
@pytest.mark.parametrize("as_bytes", [True, False])
def test_the_mask_is_that_of_a_wrapped_model(family: str, plan: str, as_bytes: bool) -> None:
    """Levels, which vLLM normalises on its device, and normalised values give the cells that ``generate`` gates."""
    model, gate = model_of(family), gate_of(plan)
    assert gate is not None
    given = FAMILIES[family].encode(model, "video", Clip(moving_block(12, *SIZE[family], block=40))).data
    (wanted,) = of(model).clips(model, given, gate, 2.0, None)
    preprocess, rows = geometry(family), given["pixel_values_videos"]
    if as_bytes:
        rows = preprocess.normalise.back(rows.unflatten(1, (3, -1))).flatten(1)
    found = gate_rows(rows, given["video_grid_thw"][0], 0.5, gate, preprocess)
    assert 0 < found.keep.sum() < len(found.keep)
    assert torch.equal(found.keep, torch.from_numpy(wanted.gate.keep.ravel()))
    assert torch.equal(found.home, homes(wanted, gate))
    kept = as_levels(preprocess).normalise.rows(found.rows) if as_bytes else found.rows
    again = preprocess.normalise.back(wanted.rows.unflatten(1, (3, -1))).flatten(1) if as_bytes else wanted.rows
    assert torch.equal(kept.float(), again.float())


def test_a_token_stands_once_and_in_its_own_cell() -> None:
    model, gate = model_of("qwen2_5_vl"), gate_of("grt")
    given = FAMILIES["qwen2_5_vl"].encode(model, "video", Clip(moving_block(12, 168, 224, block=40))).data
    found = gate_rows(given["pixel_values_videos"], given["video_grid_thw"][0], 0.5, gate, geometry("qwen2_5_vl"))
    t, h, w = given["video_grid_thw"][0].tolist()
    cells = h * w // 4
    kept = found.keep.nonzero()[:, 0]
    assert torch.equal(kept % cells, found.home % cells) and (found.home >= kept).all()
    assert (found.home != kept).any(), "some stand in the middle of their run"
    assert shown(found.home, t * cells).sum() == len(kept)


def test_no_gate_keeps_all() -> None:
    rows = torch.rand(2 * 4 * 4, 8)
    found = gate_rows(
        rows, torch.tensor([2, 4, 4]), None, None, of(model_of("qwen2_5_vl")).preprocess(model_of("qwen2_5_vl"))
    )  # type: ignore[attr-defined]
    assert found.rows is rows and found.keep.all() and torch.equal(found.home, torch.arange(8))


def onevision(plan: str, seed: int = 0) -> Any:
    """A video of LLaVA-OneVision: what a wrapped model makes of it, and what the processor of vLLM does."""
    model: Any = model_of("llava_onevision")
    family: Any = of(model)
    given = FAMILIES["llava_onevision"].encode(model, "video", Clip(moving_block(12, 70, 70, seed=seed, block=16))).data
    gate = gate_of(plan)
    (wanted,) = family.clips(model, given, gate, 2.0, None)
    pooling = partial(family.pooled, model)
    frames = given["pixel_values_videos"][0]
    return model, wanted, gate_frames(frames, 0.5, gate, family.preprocess(model), pooling), pooling


@pytest.mark.parametrize("plan", ["grt", "grt:run_position=start", "mad:anchors=0", "grt:anchors=(spread:3)"])
def test_pooled_frames_are_those_of_a_wrapped_model(plan: str) -> None:
    """Patches, their features and the order of the tokens; of the mask the flags alone travel."""
    model, wanted, found, pooling = onevision(plan)
    assert 0 < found.keep.sum() < len(found.keep)
    assert torch.equal(found.keep, torch.from_numpy(wanted.gate.keep.ravel()))
    assert torch.equal(found.rows, wanted.rows)
    assert plan != "grt" or (found.home.diff() < 0).any(), "some stand behind tokens of later steps"
    features = of(model).encode_clips(model, [wanted], frozenset())
    slot = run_slot(features.layout, gate_of(plan).run_position)  # type: ignore[union-attr]
    content = ~features.layout.structural[features.index]
    home = features.index if slot is None else slot[features.index]
    assert torch.equal(found.home, home[content])
    tower, projector = model.model.vision_tower, model.model.multi_modal_projector
    keep = found.keep.view(12, -1)
    with torch.no_grad():
        patches = projector(encoder.encode(tower, found.rows, keep, -1).x)
        rows, _ = pool(patches, patch_map(keep), pooling)
    assert torch.allclose(rows, features.x[content], atol=1e-6)
    assert len(rows) == len(found.home)


def test_no_gate_keeps_all_pooled_cells() -> None:
    _, _, found, pooling = onevision("none")
    assert found.keep.all() and len(found.rows) == len(found.keep) == 12 * 25
    assert torch.equal(found.home, torch.arange(12 * 9)) and pooling(torch.ones(1, 25, 1)).shape[1] == 9


@pytest.mark.parametrize("name", sorted(GATES))
def test_a_skipped_patch_repeats_the_last_kept_one(name: str) -> None:
    """So that the flags of the kept patches say all of a mask."""
    gate = gate_of(name)
    assert gate is not None
    planes = moving_block(12, 70, 70, block=16)
    grid = Grid(70, 70, 14)
    found = gate.gate_planes(planes[..., 0] if gate.signal == "luma" else planes, np.arange(12) / 2, grid)
    again = patch_map(torch.from_numpy(found.keep).flatten(1))
    assert np.array_equal(again.reference, found.reference) and np.array_equal(again.keep, found.keep)


def test_the_spacing_of_frames() -> None:
    assert spacing_of({"fps": 30.0, "frames_indices": [0, 15, 30]}) == 0.5
    assert spacing_of(None) is None and spacing_of({"fps": 30.0, "frames_indices": [0]}) is None
    assert spacing_of({"fps": 0, "frames_indices": [0, 1]}) is None and spacing_of({"fps": 2}) is None


def test_segments_leave_empty_ones_out() -> None:
    keep = torch.tensor([1, 0, 0, 0, 1, 1, 0], dtype=torch.bool)
    found = segments(keep, torch.tensor([2, 2, 3]))
    assert found.tolist() == [1, 2] and found.dtype == np.int32


@dataclass(frozen=True)
class Place:
    """As vLLM says where a picture or video stands."""

    offset: int
    length: int
    is_embed: Any = None


@dataclass(frozen=True)
class Item:
    """As vLLM describes one picture or video of a prompt."""

    modality: str
    mm_position: Place
    data: dict[str, Any]


@dataclass
class Field:
    """One value of an item."""

    data: Any


VIDEO, MARK, END = 4, 5, 6


def video(offset: int, ids: list[int], keep: list[list[int]], home: list[int]) -> Item:
    """A video of len(keep) steps whose kept cells stand at ``home``."""
    cells = torch.tensor(keep, dtype=torch.bool).flatten()
    grid = torch.tensor([len(keep), 2, 2 * len(keep[0])])
    data = {"video_keep": cells, "video_home": torch.tensor(home), "video_grid_thw": grid}
    return Item("video", Place(offset, len(ids)), {name: Field(value) for name, value in data.items()})


def test_the_prompt_without_a_gate_one_run() -> None:
    tokens = [50, 51, VIDEO, VIDEO, VIDEO, 52, 3, 3, 53]
    moving = video(2, tokens[2:5], [[1, 1], [1, 0]], [0, 1, 3])
    picture = Item("image", Place(6, 2), {})
    ids, features, left = whole_prompt(tokens, [picture, moving], VIDEO, MARK)
    assert ids == [50, 51, *[VIDEO] * 4, 52, 3, 3, 53]
    assert [(f.modality, f.mm_position.offset, f.mm_position.length) for f in features] == [
        ("video", 2, 4),
        ("image", 7, 2),
    ]
    assert left.tolist() == [True, True, True, True, False, True, True, True, True, True]


def test_the_prompt_without_a_gate_steps_with_marks() -> None:
    """Every step has a stamp, a start and an end mark; the second one here has no kept cell."""
    own = [60, MARK, VIDEO, VIDEO, END, 61, MARK, END, 62, MARK, VIDEO, END]
    tokens = [70, *own, 71]
    moving = video(1, own, [[1, 1], [0, 0], [0, 1]], [0, 1, 5])
    ids, features, left = whole_prompt(tokens, [moving], VIDEO, MARK)
    steps = [[t, MARK, VIDEO, VIDEO, END] for t in (60, 61, 62)]
    assert ids == [70, *(i for step in steps for i in step), 71]
    assert [i for i, there in zip(ids, left.tolist(), strict=True) if there] == tokens
    assert left.tolist()[1:6] == [True] * 5 and left.tolist()[6:11] == [True, True, False, False, True]
    assert features[0].mm_position == Place(1, 15)


def test_rows_stand_in_the_order_of_their_homes() -> None:
    rows = torch.arange(5.0)[:, None]
    first, second = in_order(rows, torch.tensor([4, 1, 2, 9, 8]), [3, 2])
    assert first[:, 0].tolist() == [1, 2, 0] and second[:, 0].tolist() == [4, 3]


def test_the_entry_point_imports_nothing_of_vllm() -> None:
    code = "import sys, vtoken.hosts.vllm; sys.exit('vllm' in sys.modules or 'torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
    for place in MODELS.values():
        module, _, name = place.partition(":")
        spec = importlib.util.find_spec(module)
        assert spec is not None and spec.origin is not None
        assert f"class {name}(" in Path(spec.origin).read_text()
