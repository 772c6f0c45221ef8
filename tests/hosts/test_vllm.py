"""The plug-in for vLLM as far as it needs no vLLM: plans, masks of a video's rows, sequences. The rest: tests/vllm."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.families.tiny import FAMILIES, Clip, model_of, moving_block
from vtoken.errors import InputError
from vtoken.families import of
from vtoken.hosts.vllm import MODELS
from vtoken.hosts.vllm.gating import as_levels, gate_rows, homes, segments, shown
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
