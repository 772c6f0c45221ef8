"""Motion vectors as a field: they follow a moving camera, over frames that are not sampled, and say where not."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vtoken.data.frames import Frames, GateMap, Grid
from vtoken.methods.plan import Plan
from vtoken.qa.pieces import pieces, push, seen_chunks
from vtoken.video import open_video
from vtoken.video.preprocess import Preprocessor
from vtoken.video.vectors import REMEMBERED, Vectors, on_cells

SIDE, SPEED = 224, 3


def pan(path: Path, codec: str = "libx264", **options: str) -> Path:
    """A camera that moves to the right by three pixels a frame."""
    import av
    import cv2

    wide = np.random.default_rng(0).integers(30, 220, (SIDE // 8, 60, 3), np.uint8)
    wide = cv2.resize(wide, (480, SIDE), interpolation=cv2.INTER_CUBIC)
    with av.open(str(path), "w") as file:
        stream: Any = file.add_stream(codec, rate=25, options=options)
        stream.width = stream.height = SIDE
        for i in range(30):
            picture = wide[:, SPEED * i : SPEED * i + SIDE].astype(np.uint8, order="C")
            file.mux(stream.encode(av.VideoFrame.from_ndarray(picture, "rgb24")))
        file.mux(stream.encode(None))
    return path


def read(path: Path) -> Frames:
    with open_video(path, chunk=1000) as reader:
        reader.follow_packets(vectors=True)
        (frames,) = reader
    return frames


@pytest.mark.parametrize("bf", ["0", "2", "3"])
@pytest.mark.parametrize(("first", "last"), [(3, 4), (3, 7), (5, 15)])
def test_a_pan_is_followed_over_several_frames(tmp_path: Path, bf: str, first: int, last: int) -> None:
    found = read(
        pan(
            tmp_path / "pan.mp4",
            bf=bf,
            refs="3" if bf == "3" else "1",
            **{"x264-params": f"b-pyramid={'none' if bf == '2' else 'normal'}"},
        )
    ).vectors
    assert found is not None and found.any
    field = found.between(first, last)
    assert field is not None and field.shape == (SIDE // 16, SIDE // 16, 2)
    inner = field[2:-2, 2:-4]  # what came into the picture meanwhile was nowhere
    assert np.median(inner[..., 0]) == pytest.approx(SPEED * (last - first), abs=0.1 * (last - first) + 0.5)
    assert abs(np.median(inner[..., 1])) < 0.5


def test_it_is_zero_within_a_frame_and_unknown_too_far_back(tmp_path: Path) -> None:
    found = read(pan(tmp_path / "pan.mp4", bf="0")).vectors
    assert isinstance(found, Vectors)
    same = found.between(4, 4)
    assert same is not None and not same.any()
    assert found.between(3, 30) is None  # it has not come
    found._fields.popleft()
    found._fields.popleft()
    assert found.between(0, 5) is None and found.between(1, 5) is not None
    assert found._fields.maxlen == REMEMBERED


def test_codecs_without_vectors_say_so(tmp_path: Path) -> None:
    path = pan(tmp_path / "pan.mkv", "libx265", **{"x265-params": "log-level=none"})
    frames = read(path)
    assert frames.vectors is not None and not frames.vectors.any
    made, notes = keep(path, "codec:motion=vectors")
    assert sum("no motion vectors" in note for note in notes) == 1
    plain, others = keep(path, "codec:keep_after_change=false")
    assert np.array_equal(made.keep, plain.keep) and not any("vectors" in note for note in others)


def test_on_cells_reads_the_places_that_a_crop_leaves() -> None:
    field = np.zeros((4, 8, 2), np.float32)
    field[:, 4:] = (10, -4)
    whole = on_cells(field, (64, 128), (32, 64), (4, 8), 8)
    assert (whole[:, :4] == 0).all() and (whole[:, 4:] == (5, -2)).all()
    middle = on_cells(field, (64, 128), (32, 64), (4, 4), 8)  # columns 16 to 48 of 64
    assert (middle[:, :2] == 0).all() and (middle[:, 2:] == (5, -2)).all()


def keep(path: Path, plan: str, chunk: int = 16, frames: int = 1) -> tuple[GateMap, list[str]]:
    own = Preprocessor("qwen", "exact", (SIDE, SIDE), patch=14, temporal=frames)
    with open_video(path, chunk=chunk) as reader:
        grid = own.grid(*reader.size)
        found = list(pieces(reader, own, Plan.parse(plan).gate, grid, lambda name: nullcontext()))
    return GateMap.concatenate([piece.gate for piece in found]), reader.notes


@pytest.mark.parametrize("frames", [1, 2])
def test_a_moving_camera_keeps_fewer_cells_wherever_a_file_is_cut(tmp_path: Path, frames: int) -> None:
    path, bare = pan(tmp_path / "pan.mp4", crf="18"), "cut_kept=1,cut_histogram=1"
    plain, moved, again = (
        keep(path, plan, chunk, frames)[0]
        for plan, chunk in (
            (f"codec:{bare}", 16),
            (f"codec:{bare},motion=vectors", 16),
            (f"codec:{bare},motion=vectors", 6),
        )
    )
    assert moved.keep[1:].mean() < 0.6 * plain.keep[1:].mean()
    assert np.array_equal(moved.keep, again.keep)


def test_the_pixels_judge(tmp_path: Path) -> None:
    """Whatever the vectors say, what a skipped cell shows is within the threshold of the frame."""
    path, own = pan(tmp_path / "pan.mp4", crf="30"), Preprocessor("qwen", "exact", (SIDE, SIDE), patch=14)
    gate = Plan.parse("codec:motion=vectors,noise_cap=1,cut_kept=1,cut_histogram=1").gate
    assert gate is not None
    grid, skipped = Grid(SIDE, SIDE, 14), 0
    with open_video(path, chunk=1) as reader:
        reader.follow_packets(vectors=True)
        stream = gate.stream(grid)
        for frames, planes in seen_chunks(iter(reader), own, gate, grid, lambda name: nullcontext()):
            assert planes is not None and stream is not None
            found = push(stream, planes, frames, grid)
            assert stream.content is not None
            score = gate.score(own.luma(frames.plane(0), grid), stream.content[-1], grid)
            assert score[~found.keep[0]].max(initial=0) <= 6 + 1e-3
            skipped += int((~found.keep).sum())
    assert skipped > 1000
