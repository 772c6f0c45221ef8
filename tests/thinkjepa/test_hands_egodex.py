"""EgoDex's form: what is written is read back, and what is broken is named."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from vtoken.errors import InputError, VideoError
from vtoken.thinkjepa import hands

h5py = pytest.importorskip("h5py", reason="needs the extra jepa")
from vtoken.thinkjepa.hands import egodex  # noqa: E402


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two tasks, three episodes."""
    root = tmp_path_factory.mktemp("egodex")
    for seed, name in enumerate(("part1/stack/0", "part1/stack/1", "part1/tidy/0")):
        egodex.write(hands.episode(seed), root / name, crf=4)
    return root


def test_episodes_are_read_as_they_were(folder: Path) -> None:
    found = egodex.read(folder)
    assert [e.group for e in found] == ["part1/stack", "part1/stack", "part1/tidy"]
    for seed, one in enumerate(found):
        truth = hands.episode(seed)
        assert np.array_equal(one.points, truth.points)
        assert np.allclose(one.extrinsics, truth.extrinsics, atol=1e-6)
        assert np.array_equal(one.intrinsics, truth.intrinsics)
        assert (one.fps, len(one), one.confidence) == (8.0, 112, None)
        assert "two hands" in one.scene["llm_description"]
    picked = found[1].drawn([0, 37, 111])
    assert np.abs(picked.astype(int) - hands.episode(1).drawn([0, 37, 111])).mean() < 4
    assert np.array_equal(found[1].frames[[0, 37, 111]], picked)
    assert not [p for p in folder.rglob("*") if p.suffix == ".part"]


def test_confidences_are_read_in_the_order_of_the_points(folder: Path, tmp_path: Path) -> None:
    path = egodex.write(hands.episode(0), tmp_path / "0")
    with h5py.File(path, "a") as file:
        for i, name in enumerate(hands.POINTS):
            file[f"confidences/{name}"] = np.full(112, i / 52)
    sure = egodex.read(tmp_path)[0].confidence
    assert sure is not None
    assert np.allclose(sure, np.arange(52) / 52)


def _without(name: str):
    return lambda file: file.__delitem__(name)


def _set(name: str, value: np.ndarray):
    def change(file) -> None:
        del file[name]
        file[name] = value

    return change


BROKEN = {
    "lacks a joint": (_without("transforms/leftForearm"), "no field 'transforms/leftForearm'"),
    "lacks the camera": (_without("transforms/camera"), "no field 'transforms/camera'"),
    "a lens of another shape": (_set("camera/intrinsic", np.eye(4)), r"camera/intrinsic is \[4, 4\]"),
    "a joint that is shorter": (_set("transforms/leftHand", np.zeros((5, 4, 4))), r"leftHand is \[5, 4, 4\]"),
    "not a number": (_set("transforms/leftHand", np.full((112, 4, 4), np.nan)), "not finite"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_files_are_named(case: str, tmp_path: Path) -> None:
    change, message = BROKEN[case]
    path = egodex.write(hands.episode(0), tmp_path / "7")
    with h5py.File(path, "a") as file:
        change(file)
    with pytest.raises(InputError, match=message) as caught:
        egodex.read(tmp_path)
    assert "7.hdf5" in str(caught.value)


def test_missing_files_are_named(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such folder"):
        egodex.read(tmp_path / "nothing")
    with pytest.raises(InputError, match="no .hdf5"):
        egodex.read(tmp_path)
    (tmp_path / "0.hdf5").write_bytes(b"no HDF5")
    with pytest.raises(VideoError, match="0.mp4 is missing"):
        egodex.read(tmp_path)
    os.link(folder / "part1/tidy/0.mp4", tmp_path / "0.mp4")
    with pytest.raises(InputError, match="not an HDF5 file"):
        egodex.read(tmp_path)


def test_frames_must_rise_and_be_there(folder: Path) -> None:
    one = egodex.read(folder)[0]
    with pytest.raises(InputError, match="rising"):
        one.drawn([5, 5])
    with pytest.raises(VideoError, match="no frame 112"):
        one.drawn([110, 112])
