"""codec: grt on the steps that it looks at, every change within ``patience``, and grt itself without packets."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.tokenizers.scenes import blocks, gate, static
from vtoken.data.frames import Frames, GateMap, Grid
from vtoken.methods.gate import Gate
from vtoken.methods.plan import Plan
from vtoken.qa.pieces import cut_pieces, pieces
from vtoken.video import open_video
from vtoken.video.preprocess import Preprocessor

SIDE, CELL = 56, 14
NEVER = 1e12  # a threshold that no packet reaches, key frames neither
BARE = {"anchors": 0, "refresh_seconds": None, "noise_cap": 1.0, "cut_kept": 1.0, "cut_histogram": 1.0}


def prepare(frames: int = 1, side: int = SIDE) -> Preprocessor:
    return Preprocessor("qwen", "exact", (side, side), patch=CELL, temporal=frames)


def chunks(clip: np.ndarray, pts: np.ndarray, sent: np.ndarray | None, cuts: list[int]) -> Iterator[Frames]:
    """Luma [T, H, W] as the chunks of a file, of which packets are known."""
    ends = [0, *cuts, len(clip)]
    for a, b in zip(ends, ends[1:], strict=False):
        pixels = np.repeat(clip[a:b, ..., None], 3, -1)
        yield Frames(pixels, pts[a:b], luma=clip[a:b], sent=None if sent is None else sent[a:b])


def gated(made: Gate, clip: np.ndarray, pts: np.ndarray, sent: np.ndarray | None, cuts: list[int] = [], f: int = 1):  # noqa: B006
    grid = Grid(SIDE, SIDE, CELL, f)
    parts = cut_pieces(chunks(clip, pts, sent, cuts), prepare(f), made, grid, lambda name: nullcontext())
    return GateMap.concatenate([piece.gate for piece in parts])


def scene(frames: int, seed: int = 0) -> np.ndarray:
    """A still picture whose cells change at random times, by much."""
    rng = np.random.default_rng(seed)
    clip = static(blocks(rng, SIDE, SIDE), frames)
    for _ in range(frames // 2):
        t, y, x = rng.integers(0, [frames, SIDE // CELL, SIDE // CELL])
        clip[t:, y * CELL : (y + 1) * CELL, x * CELL : (x + 1) * CELL] = rng.integers(0, 255)
    return clip


def read(path: Path, plan: str, frames: int = 1, side: int = 448, **options: Any) -> tuple[GateMap, list[str]]:
    made, pre = Plan.parse(plan).gate, prepare(frames, side)
    with open_video(path, **options) as reader:
        found = list(pieces(reader, pre, made, pre.grid(*reader.size), lambda name: nullcontext()))
    return GateMap.concatenate([piece.gate for piece in found]), reader.notes


def same(one: GateMap, other: GateMap) -> bool:
    return all(np.array_equal(getattr(one, n), getattr(other, n)) for n in ("keep", "reference", "scene", "score"))


@pytest.mark.parametrize("options", ["packet_threshold=0", "patience=0"])
@pytest.mark.parametrize("more", ["", ",hold=off", ",hold=off,recall=2"])
def test_with_nothing_to_leave_out_it_is_grt(street: Path, options: str, more: str) -> None:
    asked = "grt:" + more[1:] if more else "grt"
    assert same(read(street, f"codec:{options}{more}", end=2.0)[0], read(street, asked, end=2.0)[0])


def test_without_packets_it_is_grt_and_says_so_once(street: Path) -> None:
    found, notes = read(street, "codec", backend="opencv")
    plain, others = read(street, "grt", backend="opencv")
    assert (
        same(found, plain) and sum("packets" in note for note in notes) == 1 and not any("packet" in n for n in others)
    )
    assert not any("packets" in note for note in read(street, "codec")[1])


def test_planes_have_no_packets() -> None:
    clip, grid = scene(20), Grid(SIDE, SIDE, CELL)
    made = (gate(name).gate_planes(clip, np.arange(20) / 10, grid) for name in ("codec", "grt"))
    assert same(*made)


@st.composite
def totals(draw: Any) -> tuple[np.ndarray, np.ndarray, list[int], int]:
    """Times, what packets add, borders of chunks, and frames of a step."""
    n, f = draw(st.integers(1, 40)), draw(st.sampled_from([1, 2]))
    gaps = draw(st.lists(st.sampled_from([0.02, 0.04, 0.1, 0.3]), min_size=n, max_size=n))
    added = draw(st.lists(st.sampled_from([0.0, 0.0, 0.2, 0.9, 5.0, 1e6]), min_size=n, max_size=n))
    ahead = draw(st.lists(st.sampled_from([0.0, 0.0, 0.0, 0.3, 4.0]), min_size=n, max_size=n))
    cuts = sorted({f * c for c in draw(st.lists(st.integers(1, 20), max_size=4)) if f * c < n})
    return np.cumsum(gaps), np.stack([np.cumsum(added), ahead], 1), cuts, f


@settings(max_examples=60)
@given(totals(), st.integers(0, 3))
def test_it_is_grt_on_the_steps_that_it_looks_at(drawn: Any, seed: int) -> None:
    pts, sent, cuts, f = drawn
    clip, grid, patience = scene(len(pts), seed), Grid(SIDE, SIDE, CELL, f), 0.5
    made = gated(gate("codec", patience=patience, keep_after_change=False, **BARE), clip, pts, sent, cuts, f)
    steps = -(-len(pts) // f)
    # an oracle of which steps are looked at
    looks, first, base = [], 0, 0.0
    for s in range(steps):
        mine = range(s * f, min(s * f + f, len(pts)))
        added = sent[mine[-1], 0] + max(sent[i, 1] for i in mine) - base
        late = pts[s * f] - pts[first] >= patience - 1e-6
        if s in (0, steps - 1) or len(mine) < f or added >= 1 or late:
            looks.append(s)
            first, base = s * f, sent[s * f, 0]
    index = [i for s in looks for i in range(s * f, min(s * f + f, len(pts)))]
    plain = gate("grt", keep_after_change=False, **BARE).gate_planes(clip[index], pts[index], grid)
    assert np.array_equal(made.keep[looks], plain.keep) and np.array_equal(made.score[looks], plain.score)
    assert not np.delete(made.keep, looks, 0).any()
    assert np.array_equal(made.reference[looks], np.array(looks)[plain.reference])


@pytest.mark.parametrize("f", [1, 2])
def test_every_change_is_kept_within_patience(f: int) -> None:
    """Packets say that nothing happens, and cells change all the same."""
    n, fps, patience = 60, 25.0, 0.3
    clip, pts = scene(n, 5), np.arange(n) / fps
    nothing = np.zeros((n, 2))
    made = gated(gate("codec", patience=patience, **BARE), clip, pts, nothing, f=f)
    plain = gated(gate("grt", **BARE), clip, pts, nothing, f=f)
    assert made.keep.any((1, 2)).sum() < plain.keep.any((1, 2)).sum() / 2
    wait = int(np.ceil(patience * fps / f)) - 1
    for s, y, x in np.argwhere(plain.keep):
        assert made.keep[s : s + wait + 1, y, x].any()
    assert made.keep[-1].any() or not plain.keep[-wait:].any()  # the last step is looked at


def test_what_looked_at_steps_skip_is_below_the_threshold(street: Path) -> None:
    """A real clip whose packets, whatever their size, count as nothing."""
    made, _ = read(street, f"codec:packet_threshold={NEVER},noise_cap=1,cut_kept=1,cut_histogram=1")
    looked = [s for s in range(len(made.keep)) if made.score[s].any()]
    assert looked == list(range(0, 41, 5)) + [41]  # at 10 a second, and the last one
    pre = prepare(side=448)
    with open_video(street) as reader:
        luma = np.stack([pre.luma(f.plane(i), pre.grid(*f.size)) for f in reader for i in range(len(f))]).astype(int)
    for s in looked:
        for y, x in np.argwhere(~made.keep[s]):
            cell = np.s_[y * CELL : (y + 1) * CELL, x * CELL : (x + 1) * CELL]
            difference = np.abs(luma[s][cell] - luma[made.reference[s, y, x]][cell])
            assert difference.reshape(2, 7, 2, 7).mean((1, 3)).max() <= 6 + 1e-3


def test_packets_of_a_still_stretch_are_left_out(tmp_path: Path) -> None:
    import av

    picture = np.random.default_rng(1).integers(60, 190, (14, 14, 3), np.uint8).repeat(16, 0).repeat(16, 1)
    path = tmp_path / "still.mkv"
    with av.open(str(path), "w") as file:
        stream: Any = file.add_stream("libx265", rate=25, options={"x265-params": "log-level=none"})
        stream.height = stream.width = 224
        for i in range(150):
            picture[:16, :16] = 200 if i >= 100 else 60
            file.mux(stream.encode(av.VideoFrame.from_ndarray(picture, "rgb24")))
        file.mux(stream.encode(None))
    made, plain = (read(path, plan, side=224)[0] for plan in ("codec", "grt"))
    assert np.array_equal(made.keep, plain.keep)
    prior = gate("codec").prior(Grid(224, 224, CELL))
    with open_video(path, chunk=1000) as reader:
        reader.follow_packets()
        looked = [prior.push(frames) for frames in reader]  # type: ignore[union-attr]
    assert 0.05 < looked[0].mean() < 0.8  # type: ignore[union-attr]


@pytest.mark.parametrize("seconds", [1.0, 4.0])
def test_timed_refresh_is_never_late(seconds: float) -> None:
    n, fps = 200, 20.0
    clip = static(blocks(np.random.default_rng(0), SIDE, SIDE), n)
    options: dict[str, Any] = {"hold": False, "refresh_seconds": seconds, "anchors": 0}
    made, plain = (
        gated(gate(name, **options, **more), clip, np.arange(n) / fps, np.zeros((n, 2)))
        for name, more in (("codec", {"patience": 0.7}), ("grt", {}))
    )
    assert np.array_equal(made.keep, plain.keep)


@pytest.mark.parametrize("anchors", [1, "(random:2)", "(1,reuse)"])
def test_anchors_are_in_every_step(anchors: Any) -> None:
    n = 40
    clip, pts = scene(n, 3), np.arange(n) / 20
    made = gated(gate("codec", hold=False, anchors=anchors, recall=0), clip, pts, np.zeros((n, 2)))
    plain = gated(gate("grt", hold=False, anchors=anchors, recall=0), clip, pts, None)
    assert made.sent.any((1, 2)).all() and np.array_equal(made.forced & ~made.keep, plain.forced & ~plain.keep)


def test_a_cell_kept_without_a_look_is_kept_at_the_next_look() -> None:
    """An anchor showed another content in between: neither what it had before nor that content counts any more."""
    grid = Grid(SIDE, SIDE, CELL)
    made = gate("codec", **{**BARE, "hold": False, "anchors": "(random:1)", "recall": 2})
    cells = [int(made.anchor_cells(grid, step)[0]) for step in range(4)]
    assert len(set(cells)) == 4
    y, x = divmod(cells[1], grid.columns)
    cell = np.s_[y * CELL : (y + 1) * CELL, x * CELL : (x + 1) * CELL]
    clip = static(blocks(np.random.default_rng(0), SIDE, SIDE), 4)
    clip[1][cell] = 250
    back = made.stream(grid).push(clip[:3], np.arange(3) / 10, np.array([True, False, True]))
    assert back.keep[1].sum() == 1 and back.keep[2, y, x] and back.reference[2, y, x] == 2
    clip[2][cell] = 30  # then the first content again, which no step since has shown
    again = made.stream(grid).push(clip, np.arange(4) / 10, np.array([True, False, True, True]))
    assert again.keep[2, y, x] and again.keep[3, y, x] and not again.repeated.any()


@pytest.mark.parametrize(("option", "value"), [("packet_threshold", -1), ("patience", -0.1)])
def test_bad_options_are_refused(option: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{option}.*0 looks at every step"):
        gate("codec", **{option: value})
