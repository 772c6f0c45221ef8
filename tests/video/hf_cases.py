"""Our preprocessing beside the real Hugging Face video and image processors. Run as a script; needs torchvision.

    python tests/video/hf_cases.py compare    one JSON line a case: shapes and differences in levels of 255
    python tests/video/hf_cases.py write      writes tests/video/data/processors.npz, which the suite reads anywhere

torchvision is looked for in the folder VTOKEN_TEST_TORCHVISION too. Next to a CPU build of torch it cannot load its
compiled operators, so two of them are declared first; nothing here calls them.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import numpy as np
import torch

DATA = Path(__file__).parent / "data" / "processors.npz"
KEYS = (
    "size crop_size do_resize do_center_crop do_rescale rescale_factor do_normalize image_mean image_std resample "
    "patch_size merge_size temporal_patch_size cap_pixels_per_frame max_video_tokens"
)


def video(frames: int, height: int, width: int, seed: int = 0) -> np.ndarray:
    """Soft shades with hard moving edges: what a resize shows its differences on."""
    import cv2

    rng = np.random.default_rng(seed)
    clip = np.empty((frames, height, width, 3), np.uint8)
    soft = rng.integers(0, 256, (height // 24 + 2, width // 24 + 2, 3), dtype=np.uint8)
    for t in range(frames):
        clip[t] = cv2.resize(soft, (width, height), interpolation=cv2.INTER_LINEAR)
        y, x = (7 * t) % max(1, height // 2), (5 * t) % max(1, width // 2)
        clip[t, y : y + height // 3, x : x + width // 4] = rng.integers(0, 256, 3)
    return clip


def cases() -> dict[str, tuple]:
    """Name -> (processor, frames, height, width, whether its output is small enough to store)."""
    from transformers import (
        CLIPImageProcessor,
        LlavaImageProcessor,
        LlavaNextVideoVideoProcessor,
        LlavaOnevisionVideoProcessor,
        Qwen2VLImageProcessor,
        Qwen3VLVideoProcessor,
        SiglipImageProcessor,
        VideoLlavaVideoProcessor,
    )
    from transformers.models.qwen2_vl.video_processing_qwen2_vl import Qwen2VLVideoProcessor

    def shortest(edge):
        return {"size": {"shortest_edge": edge}, "crop_size": {"height": edge, "width": edge}}

    def pixels(low, high):
        return {"size": {"shortest_edge": low, "longest_edge": high}}

    qwen3 = pixels(4096, 25165824)
    return {
        "clip-small": (LlavaNextVideoVideoProcessor(**shortest(28)), 3, 50, 71, True),
        "clip-tall-small": (LlavaNextVideoVideoProcessor(**shortest(42)), 2, 71, 35, True),
        "siglip-small": (LlavaOnevisionVideoProcessor(size={"height": 42, "width": 42}), 2, 37, 51, True),
        "qwen2-small": (Qwen2VLVideoProcessor(**pixels(3136, 9408), cap_pixels_per_frame=False), 3, 120, 90, True),
        "qwen2-cap-small": (
            Qwen2VLVideoProcessor(**pixels(1568, 9408), cap_pixels_per_frame=True, max_video_tokens=16),
            4,
            120,
            90,
            True,
        ),
        "qwen3-small": (Qwen3VLVideoProcessor(**pixels(1024, 24576), cap_pixels_per_frame=False), 5, 90, 70, True),
        "qwen3-cap-small": (
            Qwen3VLVideoProcessor(**pixels(1024, 24576), cap_pixels_per_frame=True, max_video_tokens=4),
            3,
            90,
            70,
            True,
        ),
        "llava-next-video": (LlavaNextVideoVideoProcessor(**shortest(336)), 2, 240, 320, False),
        "llava-next-video-up": (LlavaNextVideoVideoProcessor(**shortest(336)), 2, 97, 61, False),
        "video-llava": (VideoLlavaVideoProcessor(), 2, 336, 500, False),
        "llava-onevision": (LlavaOnevisionVideoProcessor(), 2, 480, 270, False),
        "qwen2-vl": (Qwen2VLVideoProcessor(cap_pixels_per_frame=False), 3, 240, 320, False),
        "qwen2-vl-large": (Qwen2VLVideoProcessor(cap_pixels_per_frame=False), 2, 720, 1280, False),
        "qwen2-vl-cap": (Qwen2VLVideoProcessor(cap_pixels_per_frame=True, max_video_tokens=700), 4, 480, 640, False),
        "qwen2-vl-wide": (
            Qwen2VLVideoProcessor(**pixels(3136, 12845056), cap_pixels_per_frame=False),
            2,
            30,
            1500,
            False,
        ),
        "qwen3-vl": (Qwen3VLVideoProcessor(**qwen3, cap_pixels_per_frame=False), 5, 240, 320, False),
        "qwen3-vl-cap": (Qwen3VLVideoProcessor(**qwen3, cap_pixels_per_frame=True), 4, 720, 1280, False),
        "qwen3-vl-default": (Qwen3VLVideoProcessor(cap_pixels_per_frame=False), 6, 336, 336, False),
        "qwen3-vl-tiny": (Qwen3VLVideoProcessor(**qwen3, cap_pixels_per_frame=False), 2, 20, 90, False),
        "clip-image": (CLIPImageProcessor(**shortest(224)), 1, 300, 401, False),
        "clip-image-pad": (
            CLIPImageProcessor(size={"shortest_edge": 40}, crop_size={"height": 51, "width": 64}),
            1,
            60,
            61,
            False,
        ),
        "llava-image": (LlavaImageProcessor(**shortest(336)), 1, 500, 333, False),
        "siglip-image": (SiglipImageProcessor(size={"height": 384, "width": 384}), 1, 200, 300, False),
        "siglip-bilinear": (SiglipImageProcessor(size={"height": 384, "width": 384}, resample=2), 1, 500, 600, False),
        "siglip-raw": (SiglipImageProcessor(do_normalize=False), 1, 500, 600, False),
        "qwen2-image": (Qwen2VLImageProcessor(), 1, 345, 222, False),
    }


def stock(processor, clip: np.ndarray):
    """(values, grid or None) of the Hugging Face processor."""
    if "VideoProcessor" in type(processor).__name__:
        out = processor(clip, return_tensors="pt", do_sample_frames=False)
        values, grid = out["pixel_values_videos"], out.get("video_grid_thw")
        return (values[0] if grid is None else values), grid
    out = processor(list(clip), return_tensors="pt")
    return out["pixel_values"], out.get("image_grid_thw")


def ours(source, clip: np.ndarray):
    """(preprocessor, values, grid or None) of ours."""
    from vtoken.data.frames import Frames
    from vtoken.video.processors import read_processor

    own = read_processor(source)
    grid = own.grid(clip.shape[1], clip.shape[2], len(clip))
    values = own.pixel_values(Frames(clip, np.arange(len(clip)) / 2), grid)
    return own, values, own.grid_thw(len(clip), grid) if own.kind == "qwen" else None


def levels(own, values: torch.Tensor, grid) -> torch.Tensor:
    return torch.from_numpy(own.pictures(values, grid)).float()


def compare() -> None:
    for name, (processor, frames, height, width, _) in cases().items():
        clip = video(frames, height, width)
        expected, thw = stock(processor, clip)
        own, values, own_thw = ours(processor, clip)
        same = values.shape == expected.shape and (thw is None or torch.equal(thw, own_thw))
        result = {"name": name, "same": same}
        if same:
            gap = (levels(own, values, own_thw) - levels(own, expected, own_thw)).abs()
            result |= {"within": (gap <= 1).double().mean().item(), "equal": torch.equal(values, expected)}
        print(json.dumps(result))


def frame_sizes(count: int = 400) -> tuple[np.ndarray, list]:
    """Random arguments (frames, height, width, min_pixels, max_pixels) and the size transformers gives Qwen3-VL."""
    from transformers.models.qwen3_vl.video_processing_qwen3_vl import smart_resize

    rng = np.random.default_rng(0)
    asked = np.stack(
        [
            rng.integers(2, 60, count),
            *(2 ** rng.uniform(3, 11, (2, count))).astype(int),
            (2 ** rng.uniform(10, 16, count)).astype(int),
            (2 ** rng.uniform(17, 25, count)).astype(int),
        ],
        1,
    )
    asked = asked[asked[:, 1:3].max(1) < 100 * asked[:, 1:3].min(1)]
    given = [
        smart_resize(int(t), int(h), int(w), temporal_factor=2, factor=32, min_pixels=int(low), max_pixels=int(high))
        for t, h, w, low, high in asked
    ]
    return asked, given


def write() -> None:
    asked, given = frame_sizes()
    stored = {"sizes.asked": asked, "sizes.given": np.array(given)}
    for name, (processor, frames, height, width, small) in cases().items():
        if not small:
            continue
        expected, thw = stock(processor, video(frames, height, width))
        full = json.loads(processor.to_json_string())
        config = {key: full[key] for key in KEYS.split() if key in full}
        config["video_processor_type"] = type(processor).__name__
        own, _, own_thw = ours(processor, video(frames, height, width))
        exact = levels(own, expected, own_thw)
        assert (exact - exact.round()).abs().max() < 1e-2, "levels are whole numbers"
        stored[f"{name}.levels"] = exact.round().to(torch.uint8).numpy()
        facts = {"config": config, "video": [frames, height, width], "grid": None if thw is None else thw.tolist()}
        stored[f"{name}.facts"] = np.array(json.dumps(facts))
    DATA.parent.mkdir(exist_ok=True)
    np.savez_compressed(DATA, **stored)
    print(f"{DATA}: {DATA.stat().st_size:,} bytes, {len(stored) // 2 - 1} cases")


def shim() -> None:
    if folder := os.environ.get("VTOKEN_TEST_TORCHVISION"):
        sys.path.insert(0, folder)
    if not hasattr(torch.ops.torchvision, "nms"):
        library = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        shim.library = library  # type: ignore[attr-defined]  # the declarations live as long as this object
    import torchvision  # noqa: F401


if __name__ == "__main__":
    shim()
    {"compare": compare, "write": write}[sys.argv[1]]()
