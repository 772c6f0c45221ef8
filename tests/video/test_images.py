"""Frames that are already pictures: arrays, tensors, lists and folders of images."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from vtoken.errors import InputError, VideoError
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


def grey(values, kind):
    return Image.fromarray(np.asarray(values).astype(kind))


@pytest.mark.parametrize("kind", [np.int32, np.uint16, ">u2"])
def test_whole_numbers_are_scaled_by_their_range(kind):
    """Levels up to 255 are levels; above, 16 bits. One answer for the whole source, so that a dark frame stays dark."""
    ramp = np.arange(24).reshape(4, 6)
    (frames,) = open_video([grey(ramp * 10, kind)])
    assert np.array_equal(frames.pixels[0, ..., 0], ramp * 10)
    (frames,) = open_video([grey(ramp, kind), grey(ramp * 2800, kind)])
    assert np.array_equal(frames.pixels[0, ..., 0], ramp >> 8)
    assert np.array_equal(frames.pixels[1, ..., 0], ramp * 2800 >> 8)


def test_whole_numbers_of_files_share_a_scale(tmp_path):
    for i, top in enumerate((200, 60_000)):
        grey(np.full((4, 6), top), np.uint16).save(tmp_path / f"{i}.png")
    (frames,) = open_video(tmp_path)
    assert frames.pixels[:, 0, 0, 0].tolist() == [0, 60_000 >> 8]


@pytest.mark.parametrize("values", [[[-1, 3]], [[0, 70_000]]])
def test_whole_numbers_without_a_scale_are_named(values):
    with pytest.raises(InputError, match=r"frame 0 is a PIL image of whole numbers from -?\d+ to \d+; scale it"):
        open_video([grey(values, np.int32)])


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "RGBA", "CMYK", "YCbCr"])
def test_every_mode_with_colours_is_read(mode):
    image = Image.new("RGB", (6, 4), (255, 255, 255)).convert("L" if mode in ("LA", "PA") else "RGB").convert(mode)
    (frames,) = open_video([image])
    assert frames.pixels.shape == (1, 4, 6, 3) and frames.pixels.min() > 240


def test_modes_without_an_agreed_scale_are_named():
    for mode in ("LAB", "HSV", "F"):
        with pytest.raises(InputError, match=f"mode {mode}"):
            open_video([Image.new(mode, (6, 4))])


def test_16_bit_arrays_are_told_how_to_come():
    with pytest.raises(InputError, match=r"uint16; give uint8.*x >> 8"):
        open_video(np.zeros((2, 4, 4, 3), np.uint16))


@pytest.mark.parametrize("suffix", ["webp", "png", "apng", "gif"])
def test_animated_pictures_have_times_of_their_own(tmp_path, suffix):
    path = tmp_path / f"moving.{suffix}"
    drawn = [Image.new("RGB", (8, 8), (40 * i, 200, 4)) for i in range(5)]
    options = {"lossless": True} if suffix == "webp" else {"format": "PNG"} if suffix == "apng" else {}
    drawn[0].save(path, save_all=True, append_images=drawn[1:], duration=[100, 200, 300, 100, 400], **options)
    with open_video(path) as reader:
        (frames,) = list(reader)
    assert frames.pts == pytest.approx([0, 0.1, 0.3, 0.6, 0.7])
    assert np.abs(frames.pixels[:, 0, 0].astype(int) - [[40 * i, 200, 4] for i in range(5)]).max() <= 2
    assert [float(t) for f in open_video(path, fps=2) for t in f.pts] == pytest.approx([0, 0.6])
    if suffix != "gif":
        assert reader.duration == pytest.approx(1.1) and not reader.notes
        assert [float(t) for f in open_video(path, native_fps=2) for t in f.pts] == [0, 0.5, 1, 1.5, 2]


@pytest.mark.parametrize("suffix", ["webp", "jpg", "png", "bmp", "tiff", "gif"])
def test_a_still_picture_is_a_clip_of_one_frame(tmp_path, suffix):
    path = tmp_path / f"still.{suffix}"
    Image.new("RGB", (8, 6), (100, 100, 100)).save(path)
    (frames,) = list(open_video(path))
    assert frames.pts.tolist() == [0] and frames.size == (6, 8) and abs(int(frames.pixels.mean()) - 100) <= 1


def test_a_picture_on_its_side_is_turned(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (8, 6)).save(tmp_path / "a.jpg", exif=exif)
    assert open_video(tmp_path / "a.jpg").size == (8, 6)


@pytest.mark.parametrize("kind", ["file", "folder", "list", "opened"])
def test_a_damaged_picture_is_an_error_of_ours(tmp_path, kind):
    path = tmp_path / "cut.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:3000])
    source = {"file": path, "folder": tmp_path, "list": [path]}.get(kind) or [Image.open(path)]
    with pytest.raises(VideoError, match="cannot be (decoded|read)"):
        list(open_video(source))


def test_a_picture_too_large_to_be_meant_is_an_error_of_ours(tmp_path, monkeypatch):
    Image.new("L", (64, 64)).save(tmp_path / "bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(VideoError, match=r"bomb\.png"):
        open_video(tmp_path / "bomb.png")
