"""All eight display matrices, against the pictures that ffmpeg's autorotate shows, in every backend."""

from __future__ import annotations

import struct

import numpy as np
import pytest

from tests.video.made import film
from vtoken.video import open_video, orientation

PICTURE = np.full((64, 96, 3), 30, np.uint8)  # no two of its eight orientations are alike
PICTURE[:20, :30], PICTURE[:20, -30:], PICTURE[-20:, :30] = (250, 20, 20), (20, 250, 20), (20, 20, 250)

# (a, b, c, d) of the matrix, and what ffmpeg -autorotate makes of it, in words of NumPy
EIGHT = {
    "upright": ((1, 0, 0, 1), lambda x: x),
    "hflip": ((-1, 0, 0, 1), np.fliplr),
    "vflip": ((1, 0, 0, -1), np.flipud),
    "half turn": ((-1, 0, 0, -1), lambda x: np.rot90(x, 2)),
    "transpose=clock": ((0, 1, -1, 0), lambda x: np.rot90(x, -1)),
    "transpose=cclock": ((0, -1, 1, 0), lambda x: np.rot90(x, 1)),
    "transpose=cclock_flip": ((0, 1, 1, 0), lambda x: x.swapaxes(0, 1)),
    "transpose=clock_flip": ((0, -1, -1, 0), lambda x: np.rot90(x.swapaxes(0, 1), 2)),
}


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return film(tmp_path_factory.mktemp("turned") / "plain.mp4", [i / 10 for i in range(5)], picture=PICTURE)


def marked(plain, matrix, path):
    """The same file with another display matrix in its track header."""
    data = bytearray(plain.read_bytes())
    at = data.index(b"tkhd") + 4
    at += 4 + (32 if data[at] else 20) + 16
    a, b, c, d = (round(65536 * number) for number in matrix)
    data[at : at + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("backend", ["pyav", "opencv", "decord", "torchcodec"])
@pytest.mark.parametrize("name", EIGHT)
def test_all_eight(tmp_path, plain, name, backend):
    if backend in ("decord", "torchcodec"):
        pytest.importorskip(backend, exc_type=(ImportError, RuntimeError, OSError))
    matrix, shown = EIGHT[name]
    right = shown(PICTURE)
    with open_video(marked(plain, matrix, tmp_path / "turned.mp4"), backend=backend) as reader:
        frames = next(iter(reader))
        assert reader.size == frames.size == right.shape[:2]
    assert np.abs(frames.rgb(2).astype(int) - right).mean() < 4
    grey = right.astype(float) @ (0.299, 0.587, 0.114)
    assert np.abs(frames.luma[2] - (16 + grey * 219 / 255)).mean() < 4


def test_an_odd_angle_is_told_and_left(tmp_path, plain):
    slant = (0.866, 0.5, -0.5, 0.866)
    with open_video(marked(plain, slant, tmp_path / "slant.mp4")) as reader:
        frames = next(iter(reader))
    assert np.abs(frames.rgb(0).astype(int) - PICTURE).mean() < 4
    assert any("turn its picture by 30 degrees" in note for note in reader.notes)


@pytest.mark.parametrize("matrix", [None, b"", bytes(36), struct.pack("9i", 0, 0, 0, 1, 0, 0, 0, 0, 0)])
def test_no_matrix_or_an_empty_one_is_upright(matrix):
    assert orientation.of_matrix(matrix) == orientation.Orientation()


@pytest.mark.parametrize("name", EIGHT)
def test_what_a_decoder_has_turned_is_put_right(name):
    (a, b, c, d), shown = EIGHT[name]
    upright = orientation.of_matrix(struct.pack("9i", a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30))
    turned = np.rot90(PICTURE, -upright.turns)
    assert np.array_equal(upright.after_turns(turned), shown(PICTURE))
    assert np.array_equal(upright.apply(PICTURE), shown(PICTURE))
    assert upright.size(*PICTURE.shape[:2]) == shown(PICTURE).shape[:2]
