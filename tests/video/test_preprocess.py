"""Preprocessing against stored outputs of the real processors, the PIL processors, and its own whole frames."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.video.hf_cases import DATA, levels, ours, stock, video
from vtoken.data.frames import Frames, Grid
from vtoken.errors import InputError, UnsupportedError
from vtoken.kernels.luma import of_rgb
from vtoken.video.preprocess import Preprocessor
from vtoken.video.processors import PRESETS, read_processor
from vtoken.video.sizes import smart_resize, smart_resize_clip

STORED = np.load(DATA)
NAMES = sorted({key.split(".")[0] for key in STORED.files} - {"sizes"})
FAMILIES = sorted(PRESETS)


@pytest.mark.parametrize("name", NAMES)
def test_equals_stored_outputs_of_the_real_video_processors(name):
    facts = json.loads(str(STORED[f"{name}.facts"]))
    own, values, grid = ours(facts["config"], video(*facts["video"]))
    assert (None if grid is None else grid.tolist()) == facts["grid"]
    expected = torch.from_numpy(STORED[f"{name}.levels"]).float()
    got = levels(own, values, grid)
    assert got.shape == expected.shape
    assert ((got - expected).abs() <= 1).double().mean() >= 0.999


def pil_cases():
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
    from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
    from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

    return {
        "clip": CLIPImageProcessorPil(size={"shortest_edge": 336}, crop_size={"height": 336, "width": 336}),
        "llava": LlavaImageProcessorPil(),
        "siglip": SiglipImageProcessorPil(size={"height": 384, "width": 384}),
        "qwen2": Qwen2VLImageProcessorPil(),
    }


@pytest.mark.parametrize("name", ["clip", "llava", "siglip", "qwen2"])
@pytest.mark.parametrize("size", [(240, 320), (97, 131), (500, 333)])
def test_equals_the_pil_image_processors(name, size):
    """Pillow's bicubic rounds a little differently from torch's: within 1 level of 255 on 99.9 %."""
    processor, clip = pil_cases()[name], video(1, *size)
    expected, grid = stock(processor, clip)
    own, values, own_grid = ours(processor, clip)
    expected = torch.as_tensor(np.asarray(expected))
    assert values.shape == expected.shape
    assert grid is None or np.asarray(grid).tolist() == own_grid.tolist()
    gap = (levels(own, values, own_grid) - levels(own, expected, own_grid)).abs()
    assert (gap <= 1.001).double().mean() >= 0.999 and gap.max() < 4


class Counted(Frames):
    """Frames that remember which of them were converted to RGB."""

    def __init__(self, clip: np.ndarray) -> None:
        self.converted: list[int] = []
        super().__init__(None, np.arange(len(clip)) / 10, luma=clip[..., 1].copy(), convert=self._one)
        self.clip = clip

    def _one(self, index: int) -> np.ndarray:
        self.converted.append(index)
        return self.clip[index]


def small(name: str) -> Preprocessor:
    """A family's preset at a size that tests can afford."""
    own = PRESETS[name]
    sizes = {"size": (70, 70)} if own.kind == "clip" else {"min_pixels": 1024, "max_pixels": 100_000}
    return read_processor(name, **sizes, crop=(70, 70) if own.crop else None)


@settings(max_examples=25, deadline=None)
@given(
    data=st.data(), name=st.sampled_from(FAMILIES), frames=st.integers(1, 5), share=st.sampled_from([0.0, 0.05, 0.5])
)
def test_kept_cells_equal_the_rows_of_whole_frames(data, name, frames, share):
    own, clip = small(name), video(frames, data.draw(st.integers(40, 90)), data.draw(st.integers(40, 90)))
    grid = own.grid(clip.shape[1], clip.shape[2], frames)
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    keep = rng.random((grid.steps(frames), grid.rows, grid.columns)) < share
    counted = Counted(clip)
    rows = own.cells(counted, grid, keep)

    whole = own.pixel_values(Frames(clip, np.arange(frames)), grid)
    flat = torch.from_numpy(keep.reshape(-1))
    if own.kind == "qwen":
        expected = whole[flat.repeat_interleave(own.merge**2)]
    else:
        p, inside = own.patch, whole[:, :, : grid.rows * own.patch, : grid.columns * own.patch]
        expected = torch.nn.functional.unfold(inside, p, stride=p).transpose(1, 2).reshape(-1, 3 * p * p)[flat]
    assert torch.equal(rows, expected)
    needed = {
        min(step * grid.frames + i, frames - 1) for step in np.flatnonzero(keep.any((1, 2))) for i in range(grid.frames)
    }
    assert sorted(counted.converted) == sorted(needed)


def test_merge_block_order():
    """One level a cell: the 4 rows of a cell stand together, cells in raster order, time outermost."""
    own = read_processor("qwen2.5-vl", min_pixels=1, max_pixels=10**7)
    clip = np.kron(np.arange(12).reshape(2, 2, 3), np.ones((1, 28, 28)))[..., None].repeat(3, -1).repeat(2, 0)
    grid = own.grid(56, 84)
    rows = own.pixel_values(Frames(clip.astype(np.uint8), np.arange(4)), grid)
    back = own.pictures(rows, own.grid_thw(4, grid))
    assert (grid.rows, grid.columns, grid.frames) == (2, 3, 2) and rows.shape == (2 * 4 * 6, 3 * 2 * 14 * 14)
    mean, std = torch.tensor(own.mean), torch.tensor(own.std)
    level = (rows.reshape(48, 3, -1) * std.view(3, 1) + mean.view(3, 1)) * 255
    assert torch.allclose(level.mean((1, 2)), torch.arange(12.0).repeat_interleave(4), atol=1e-3)
    assert np.array_equal(back, clip)


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("size", [(60, 90), (90, 60), (71, 71)])
def test_the_resized_frames_come_back_from_values(name, size):
    own, clip = small(name), video(3, *size)
    grid = own.grid(*size, 3)
    thw = own.grid_thw(3, grid)
    values = own.pixel_values(Frames(clip, np.arange(3)), grid)
    rgb = own.pictures(values, thw if own.kind == "qwen" else None)
    assert rgb.dtype == np.uint8 and len(rgb) == grid.steps(3) * grid.frames
    assert np.array_equal(rgb[:3], np.stack([own.resize(frame, grid) for frame in clip]))


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("size", [(120, 200), (200, 120), (64, 64)])
def test_luma_has_the_geometry_of_the_pixels(name, size):
    """A single bright square lies in the same cell for the gate and for the model."""
    own = small(name)
    grid = own.grid(*size, 2)
    frame = np.zeros((*size, 3), np.uint8)
    y, x = size[0] // 2 - 6, size[1] // 2 + 5
    frame[y : y + 12, x : x + 12] = 255
    plane = own.luma(np.ascontiguousarray(frame[..., 0]), grid)
    pixels = own.resize(frame, grid)[..., 0]
    assert plane.shape == (grid.height, grid.width) == pixels.shape and plane.dtype == np.uint8

    def centre(image):
        weight = image.astype(float)
        return [(weight.sum(axis) * np.arange(len(weight.sum(axis)))).sum() / weight.sum() for axis in (1, 0)]

    np.testing.assert_allclose(centre(plane), centre(pixels), atol=0.5)


def test_grids_of_the_families():
    for name, size, cell in [
        ("llava-1.5", (336, 336), 14),
        ("llava-next-video", (336, 336), 14),
        ("video-llava", (224, 224), 14),
        ("llava-onevision", (384, 384), 14),
        ("qwen2.5-vl", (476, 616), 28),
    ]:
        grid = read_processor(name).grid(480, 640)
        assert (grid.height, grid.width, grid.cell) == (*size, cell) or name == "qwen2.5-vl"
    assert read_processor("qwen2-vl").grid(480, 640) == Grid(476, 644, 28, 2)
    assert read_processor("qwen3-vl").grid(480, 640, 100) == Grid(416, 576, 32, 2)
    assert read_processor("llava-onevision").grid(10, 999).cells == 27 * 27


@settings(deadline=None)  # the first call imports transformers
@given(
    height=st.integers(1, 3000),
    width=st.integers(1, 3000),
    low=st.integers(784, 200_000),
    high=st.integers(200_000, 13_000_000),
)
def test_qwen2_frame_sizes(height, width, low, high):
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize as stock_resize

    if max(height, width) <= 200 * min(height, width):
        assert smart_resize(height, width, 28, low, high) == stock_resize(height, width, 28, low, high)


def test_qwen3_frame_sizes():
    for (frames, *size, low, high), given_size in zip(STORED["sizes.asked"], STORED["sizes.given"], strict=True):
        got = smart_resize_clip(int(frames), int(size[0]), int(size[1]), 32, 2, int(low), int(high))
        assert got == tuple(given_size), (frames, size, low, high)


def test_caps_are_told():
    qwen3 = read_processor("qwen3-vl")
    assert qwen3.notes(480, 640, 8) == []
    assert "pixel cap: frames of 640x480 become 576x416" in qwen3.notes(480, 640, 100)[0]
    capped = read_processor("qwen3-vl", cap_pixels_per_frame=True)
    assert capped.grid(1080, 1920, 4).cells <= 768 < qwen3.grid(1080, 1920, 4).cells
    assert "pixel cap" in capped.notes(1080, 1920, 4)[0]
    qwen2 = read_processor("qwen2-vl", max_frames=64)
    assert qwen2.notes(280, 280, 64) == []
    assert "max_frames=64" in qwen2.notes(280, 280, 65)[0]
    assert qwen2.fit_fps(2.0, 30) == (30, [])
    fps, notes = qwen2.fit_fps(10.0, 30)
    assert fps == 6.4 and "lowers fps=30 to 6.4" in notes[0]
    with pytest.raises(InputError, match="whole clip; give its number of frames"):
        qwen3.grid(480, 640)


def test_whole_processors_and_configs():
    clip = pil_cases()["clip"]

    class Processor:
        image_processor = clip
        patch_size = 16

    assert read_processor(Processor()).patch == 16
    nested = {"video_processor": json.loads(str(STORED["qwen3-cap-small.facts"]))["config"], "image_processor": {}}
    own = read_processor(nested)
    assert (own.resize_to, own.patch, own.merge, own.cap_pixels_per_frame) == ("smart_clip", 16, 2, True)
    old = {
        "image_processor_type": "Qwen2VLImageProcessor",
        "min_pixels": 3136,
        "max_pixels": 12845056,
        "size": {},
        "merge_size": 2,
        "patch_size": 14,
        "temporal_patch_size": 2,
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
    }
    with pytest.raises(InputError, match="no size"):
        read_processor(old)
    old["size"] = {"min_pixels": 3136, "max_pixels": 12845056}
    assert read_processor(old).max_pixels == 12845056


@pytest.mark.parametrize(
    ("source", "changes", "error", "words"),
    [
        ("qwen9-vl", {}, InputError, "family 'qwen9-vl' is unknown; known are llava-1.5"),
        ("qwen2-vl", {"patches": 3}, InputError, "unknown field 'patches'"),
        (object(), {}, InputError, "object is no image or video processor"),
        ({"size": {"height": 3, "width": 3}, "do_pad": True}, {}, UnsupportedError, "do_pad"),
        ({"size": {"height": 3, "width": 3}, "image_grid_pinpoints": [[1, 1]]}, {}, UnsupportedError, "tiles"),
        ({"size": {"longest_edge": 3}}, {}, UnsupportedError, "resizes by"),
        ({"size": {"shortest_edge": 3, "longest_edge": 9}, "merge_size": 2}, {}, UnsupportedError, "no type"),
        ({"size": {"height": 3, "width": 3}, "resample": 1}, {}, UnsupportedError, "resample=1"),
    ],
)
def test_processors_that_do_not_fit(source, changes, error, words):
    with pytest.raises(error, match=words):
        read_processor(source, **changes)


def test_shapes_that_do_not_fit():
    own = read_processor("qwen2-vl")
    frames = Frames(video(2, 56, 56), np.arange(2))
    grid = own.grid(56, 56)
    with pytest.raises(InputError, match="keep is bool"):
        own.cells(frames, grid, np.ones((2, grid.rows, grid.columns), bool))
    with pytest.raises(InputError, match="keep is uint8"):
        own.cells(frames, grid, np.ones((1, grid.rows, grid.columns), np.uint8))
    with pytest.raises(InputError, match="give grid_thw"):
        own.pictures(torch.zeros(4, 1176))
    with pytest.raises(InputError, match="do not fit grid 1x4x4"):
        own.pictures(torch.zeros(4, 1176), torch.tensor([1, 4, 4]))
    with pytest.raises(InputError, match=r"give one clip's \[T, 3, H, W\]"):
        read_processor("llava-1.5").pictures(torch.zeros(1, 2, 3, 4, 4))
    with pytest.raises(InputError, match="200 times"):
        own.grid(2, 900)
    with pytest.raises(InputError, match="no content"):
        own.grid(0, 9)


def test_one_pixel_frames():
    for name in FAMILIES:
        own = read_processor(name)
        grid = own.grid(1, 1, 1)
        values = own.pixel_values(Frames(np.full((1, 1, 1, 3), 128, np.uint8), np.zeros(1)), grid)
        rgb = own.pictures(values, own.grid_thw(1, grid) if own.kind == "qwen" else None)
        assert (rgb == 128).all()


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 4), st.integers(1, 300), st.sampled_from(FAMILIES), st.booleans(), st.integers(0, 9))
def test_levels_and_luma_come_back_from_values(rows: int, size: int, name: str, half: bool, seed: int):
    """Exactly those that the values were made of; what no level gives is clipped."""
    own = read_processor(name).normalise
    levels = torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (rows, 3, size), dtype=np.uint8))
    values = own(levels)
    if half and own.std is not None and max(own.std) / own.rescale < 128:
        values = values.half()
    assert torch.equal(own.back(values), levels)
    want = of_rgb(levels.permute(0, 2, 1).numpy())
    assert np.array_equal(own.back(values, luma=True)[:, 0].numpy(), want)
    far = values.float() * 100
    assert set(own.back(far.abs() + 1000).unique().tolist()) == {255} and own.back(-far.abs() - 1000).max() == 0
