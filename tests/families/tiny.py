"""The test bench of families: tiny random models of the real transformers classes, and inputs for any layout.

    family = FAMILIES["qwen3_vl"]
    model = family.build()
    inputs = family.inputs(model, [[("text", 5), ("image", None), ("video", 6), ("text", 4)]])
    model.generate(**inputs, max_new_tokens=6, do_sample=False)

A layout is a list of samples, a sample a list of segments: ("text", count), ("image", what) or ("video", what), where
``what`` is None (random pixels of the family's size), a number of frames, a size (height, width), "turned" (the
family's size with height and width exchanged), "moving" (a block that moves over a still background), a ``Clip``, or
uint8 pixels [T, H, W, 3]. Samples of different length are padded on the left.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from tests.families import configs, inputs
from tests.families import inputs_rows as rows
from tests.families.configs import PAD, TEXT, VOCAB
from tests.families.inputs import Encoder, Visual

Segment = tuple[str, Any]
Layout = Sequence[Sequence[Segment]]


@dataclass(frozen=True)
class Clip:
    """uint8 pixels [T, H, W, 3] at ``fps`` frames a second."""

    pixels: np.ndarray
    fps: float = 2.0


def moving_block(frames: int, height: int, width: int, seed: int = 0, block: int = 16) -> np.ndarray:
    """uint8 [T, H, W, 3]: a still textured background over which a bright block moves, so a gate has cells to skip."""
    rng = np.random.default_rng(seed)
    still = rng.integers(40, 160, (height, width, 3), dtype=np.uint8)
    clip = np.repeat(still[None], frames, axis=0)
    for t in range(frames):
        x = t * max(1, (width - block) // max(1, frames - 1))
        y = (height - block) // 2
        clip[t, y : y + block, x : x + block] = (250, 240, 20)
    return clip


@dataclass(frozen=True)
class TinyFamily:
    """A family of the bench.

    Attributes:
        spec: gives the model class name and the tiny config.
        image, video: encoders of a segment; None where the family takes no such input.
        size: (height, width) in pixels of random images and frames.
        frames: frames of a random video.
        types: name of the token-type input, if the processor gives one.
        padded: names of inputs whose entries are zero-padded to a common shape.
        mixed: whether the stock model takes images and videos in one batch.
        ragged: whether videos of one batch may have different numbers of frames.
        tolerance: by how much padding may change logits. Qwen3.5's linear attention sums in chunks of 64 tokens, and
            padding that is no multiple of 64 moves the chunks. Experts and their gates enlarge such differences.
        finish: turns the inputs of all visuals of a batch into the family's own shape.
    """

    name: str
    spec: Callable[[], configs.Spec]
    image: Encoder | None = None
    video: Encoder | None = None
    size: tuple[int, int] = (84, 84)
    frames: int = 4
    types: str | None = None
    padded: frozenset[str] = frozenset()
    mixed: bool = True
    ragged: bool = True
    tolerance: float = 1e-5
    finish: Callable[[list[list[Visual]], dict[str, Tensor]], dict[str, Tensor]] | None = None

    @property
    def modalities(self) -> tuple[str, ...]:
        return tuple(m for m in ("image", "video") if getattr(self, m) is not None)

    def build(self, seed: int = 0) -> Any:
        """A fresh model; the same seed gives the same weights."""
        torch.manual_seed(seed)
        return configs.make(self.spec(), seed)

    def encode(self, model: Any, kind: str, clip: Clip, images: int = 1) -> Visual:
        encoder = getattr(self, kind, None)
        if encoder is None:
            raise ValueError(f"{self.name} takes no {kind}")
        return encoder(model.config, clip.pixels, images, clip.fps)

    def inputs(self, model: Any, layout: Layout, seed: int = 0, only: int | None = None) -> dict[str, Tensor]:
        """Everything ``model(**inputs)`` and ``model.generate(**inputs)`` need for ``layout``.

        ``only`` gives one sample of the layout by itself: the same ids and pixels, no padding.
        """
        texts, visuals = [], []
        for b, sample in enumerate(layout):
            if only not in (None, b):
                continue
            rng = np.random.default_rng((seed, b))
            images = sum(kind == "image" for kind, _ in sample)
            ids, types, own = [], [], []
            for kind, what in sample:
                if kind == "text":
                    visual = Visual(rng.integers(TEXT, VOCAB, what).tolist(), [0] * what)
                else:
                    visual = self.encode(model, kind, self._clip(kind, what, rng), images)
                    own.append(visual)
                ids += visual.ids
                types += visual.types
            texts.append((ids, types))
            visuals.append(own)
        return self._ids(texts) | self._tensors(visuals)

    def layouts(self) -> dict[str, Layout]:
        """The convenience layouts this family can take."""
        return {name: layout for name, layout in LAYOUTS.items() if self.takes(layout)}

    def takes(self, layout: Layout) -> bool:
        """Whether the stock model runs ``layout``."""
        kinds = {kind for sample in layout for kind, _ in sample} - {"text"}
        frames = {what for sample in layout for kind, what in sample if kind == "video" and isinstance(what, int)}
        return kinds <= set(self.modalities) and (self.mixed or len(kinds) < 2) and (self.ragged or len(frames) < 2)

    def stock_beams(self, layout: Layout) -> bool:
        """Whether stock beam search is right for ``layout``; where not, only the oracle's scores can be compared with.

        GLM-4V looks for videos by an id its prompts do not have and fails, and with several images in a sample it
        gives the beams the wrong ones, silently. VideoLLaMA3 counts features before its compression and fails.
        """
        if self.name in ("glm4v", "glm4v_moe"):
            kinds = [[kind for kind, _ in sample if kind != "text"] for sample in layout]
            return all(k in ([], ["image"]) for k in kinds)
        return self.name != "video_llama_3" or not any(what == "moving" for sample in layout for _, what in sample)

    def _clip(self, kind: str, what: Any, rng: np.random.Generator) -> Clip:
        if isinstance(what, Clip):
            return what
        if isinstance(what, np.ndarray):
            return Clip(what)
        frames = 1 if kind == "image" else what if isinstance(what, int) else self.frames
        height, width = self.size[::-1] if what == "turned" else what if isinstance(what, tuple) else self.size
        if what == "moving":
            return Clip(moving_block(frames, height, width, int(rng.integers(1 << 30))))
        return Clip(rng.integers(0, 256, (frames, height, width, 3), dtype=np.uint8))

    def _ids(self, rows: list[tuple[list[int], list[int]]]) -> dict[str, Tensor]:
        longest = max(len(ids) for ids, _ in rows)

        def left(values: list[int], fill: int) -> list[int]:
            return [fill] * (longest - len(values)) + values

        out = {
            "input_ids": torch.tensor([left(ids, PAD) for ids, _ in rows]),
            "attention_mask": torch.tensor([left([1] * len(ids), 0) for ids, _ in rows]),
        }
        if self.types:
            out[self.types] = torch.tensor([left(types, 0) for _, types in rows])
        return out

    def _tensors(self, visuals: list[list[Visual]]) -> dict[str, Tensor]:
        parts: dict[str, list[Tensor]] = {}
        for visual in (v for own in visuals for v in own):
            for name, value in visual.data.items():
                parts.setdefault(name, []).append(value)
        out = {n: stack(values) if n in self.padded else torch.cat(values) for n, values in parts.items()}
        return self.finish(visuals, out) if self.finish else out


def stack(values: list[Tensor]) -> Tensor:
    """Concatenate along the first dimension, zero-padding the others at their end to the largest."""
    shape = [max(v.shape[d] for v in values) for d in range(values[0].ndim)]
    room = [[n for d in range(v.ndim - 1, 0, -1) for n in (0, shape[d] - v.shape[d])] for v in values]
    return torch.cat([pad(v, r) for v, r in zip(values, room, strict=True)])


def video_pixels(family: str, model: Any, frames: np.ndarray, fps: float = 2.0) -> dict[str, Tensor]:
    """The video inputs (pixels, grids) of ``model`` for uint8 frames [T, H, W, 3]; nothing but normalising is done."""
    return FAMILIES[family].encode(model, "video", Clip(frames, fps)).data


LAYOUTS: dict[str, Layout] = {
    "image": [[("text", 5), ("image", None), ("text", 4)]],
    "video": [[("text", 5), ("video", None), ("text", 4)]],
    "image_video": [[("text", 3), ("image", None), ("text", 2), ("video", None), ("text", 4)]],
    "video_image": [[("text", 3), ("video", None), ("text", 2), ("image", None), ("text", 4)]],
    "two_images": [[("text", 3), ("image", None), ("text", 2), ("image", None), ("text", 4)]],
    "turned": [[("text", 3), ("image", "turned"), ("text", 2), ("image", None), ("text", 4)], [("image", "turned")]],
    "image_first": [[("image", None), ("text", 7)]],
    "image_last": [[("text", 6), ("image", None)]],
    "moving_video": [[("text", 5), ("video", "moving"), ("text", 4)]],
    "video_last": [[("text", 6), ("video", None)]],
    "batch_images": [
        [("text", 3), ("image", None), ("text", 4)],
        [("text", 8), ("image", None), ("text", 2), ("image", None), ("text", 5)],
    ],
    "batch_videos": [
        [("text", 9), ("video", None), ("text", 6)],
        [("text", 2), ("video", None), ("text", 3)],
    ],
    "ragged_videos": [
        [("text", 3), ("video", 3), ("text", 6)],
        [("text", 2), ("video", 6), ("text", 3), ("video", 2), ("text", 2)],
    ],
    "batch_mixed": [
        [("text", 4), ("video", None), ("text", 4)],
        [("text", 2), ("image", None), ("text", 6)],
        [("text", 2), ("image", None), ("text", 1), ("video", None), ("text", 3)],
    ],
    "batch_text": [
        [("text", 3), ("image", None), ("text", 4)],
        [("text", 9)],
        [("text", 2), ("image", None), ("text", 2)],
    ],
}


@cache
def model_of(name: str, seed: int = 0) -> Any:
    """The family's model, built once a process: for tests that leave it as it is."""
    return FAMILIES[name].build(seed)


def _qwen(
    name: str, spec: Callable[[], configs.Spec], video: Encoder, size: tuple[int, int], tolerance: float = 1e-5
) -> TinyFamily:
    types = "mm_token_type_ids"
    return TinyFamily(name, spec, rows.qwen_image, video, size, frames=6, types=types, tolerance=tolerance)


def _glm(name: str, spec: Callable[[], configs.Spec]) -> TinyFamily:
    return replace(_qwen(name, spec, rows.glm_video, (84, 112)), mixed=False)


_PIXELS = frozenset({"pixel_values"})
_GEMMA = frozenset({"pixel_values", "pixel_values_videos"})
_ROWS = [
    TinyFamily("llava", configs.llava, inputs.llava_image),
    TinyFamily("llava_siglip", configs.llava_siglip, inputs.llava_image),
    TinyFamily("llava_next", configs.llava_next, inputs.next_image, size=(70, 100), padded=_PIXELS),
    TinyFamily(
        "llava_next_video",
        configs.llava_next_video,
        inputs.next_image,
        inputs.next_video,
        (84, 100),
        padded=_PIXELS,
        ragged=False,
    ),
    TinyFamily(
        "llava_onevision",
        configs.llava_onevision,
        inputs.onevision_image,
        inputs.onevision_video,
        size=(70, 100),
        padded=_PIXELS,
        ragged=False,
        finish=inputs.onevision_finish,
    ),
    TinyFamily(
        "video_llava", configs.video_llava, inputs.video_llava_image, inputs.video_llava_video, (56, 56), ragged=False
    ),
    _qwen("qwen2_vl", configs.qwen2_vl, rows.qwen2_video, (84, 112)),
    _qwen("qwen2_5_vl", configs.qwen2_5_vl, rows.qwen2_5_video, (84, 112)),
    replace(_qwen("qwen2_5_omni_thinker", configs.qwen2_5_omni_thinker, rows.omni_video, (84, 112)), types=None),
    _qwen("qwen3_vl", configs.qwen3_vl, rows.qwen3_video, (96, 128)),
    _qwen("qwen3_vl_moe", configs.qwen3_vl_moe, rows.qwen3_video, (96, 128)),
    _qwen("qwen3_5", configs.qwen3_5, rows.qwen3_video, (96, 128), tolerance=1e-4),
    _qwen("qwen3_5_moe", configs.qwen3_5_moe, rows.qwen3_video, (96, 128), tolerance=2e-3),
    TinyFamily("internvl", configs.internvl, inputs.internvl_image, inputs.internvl_video, (84, 168)),
    TinyFamily("idefics3", configs.idefics3, inputs.idefics_image, size=(84, 168), finish=inputs.by_sample),
    TinyFamily(
        "smolvlm", configs.smolvlm, inputs.idefics_image, inputs.smolvlm_video, (84, 168), finish=inputs.by_sample
    ),
    TinyFamily("gemma3", configs.gemma3, inputs.gemma3_image, types="token_type_ids"),
    TinyFamily(
        "gemma4",
        configs.gemma4,
        rows.gemma4_image,
        rows.gemma4_video,
        size=(64, 96),
        types="mm_token_type_ids",
        padded=_GEMMA,
        tolerance=5e-5,
    ),
    TinyFamily("paligemma", configs.paligemma, inputs.paligemma_image, types="token_type_ids"),
    TinyFamily("video_llama_3", configs.video_llama_3, rows.videollama3_image, rows.videollama3_video, (56, 84)),
    _glm("glm4v", configs.glm4v),
    _glm("glm4v_moe", configs.glm4v_moe),
    TinyFamily("mistral3", configs.mistral3, rows.mistral3_image, size=(84, 112), padded=_PIXELS),
    TinyFamily("perception_lm", configs.perception_lm, inputs.perception_image, inputs.perception_video, ragged=False),
]
FAMILIES: dict[str, TinyFamily] = {row.name: row for row in _ROWS}
