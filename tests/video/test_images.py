"""Frames that are already pictures: arrays, tensors, lists and folders of images."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from vtoken.video import open_video

PIXELS = np.arange(5 * 4 * 6 * 3, dtype=np.uint8).reshape(5, 4, 6, 3)


def check(source, **options):
    reader = open_video(source, **options)
    (frames,) = list(reader)
    assert np.array_equal(frames.pixels, PIXELS)
    return reader, frames


def test_array_tensor_and_lists():
    for source in (
        PIXELS,
        torch.from_numpy(PIXELS),
        list(PIXELS),
        [torch.from_numpy(p) for p in PIXELS],
        [Image.fromarray(p) for p in PIXELS],
    ):
        reader, frames = check(source, native_fps=4)
        assert frames.pts.tolist() == [0, 0.25, 0.5, 0.75, 1.0]
        assert reader.duration == 1.25 and reader.backend == "memory" and not reader.notes


def test_default_rate_is_one_a_second_with_a_note():
    reader, frames = check(PIXELS)
    assert frames.pts.tolist() == [0, 1, 2, 3, 4]
    assert "native_fps" in reader.notes[0]


def test_folder_in_natural_order(tmp_path):
    for number, pixels in zip((1, 2, 9, 10, 11), PIXELS, strict=True):
        Image.fromarray(pixels).save(tmp_path / f"frame{number}.png")
    (tmp_path / "notes.txt").write_text("no image")
    check(tmp_path, native_fps=2)
    check([tmp_path / f"frame{n}.png" for n in (1, 2, 9, 10, 11)])


def test_sampling_and_chunks():
    reader = open_video(PIXELS, native_fps=10, fps=5, start=0.1, chunk=1)
    assert [frames.pts.tolist() for frames in reader] == [[0.1], [pytest.approx(0.3)]]


def test_grey_16_bit_images(tmp_path):
    Image.fromarray(np.full((4, 6), 40_000, np.uint16)).save(tmp_path / "a.png")
    frames = next(iter(open_video(tmp_path)))
    assert (frames.pixels == 40_000 >> 8).all()
