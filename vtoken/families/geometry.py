"""Real model geometry by name: tokens and FLOPs of a clip computed from published configs, without any weights."""

from __future__ import annotations

import difflib
from dataclasses import dataclass, replace

import numpy as np

from vtoken.errors import InputError


@dataclass(frozen=True)
class Vision:
    """A vision transformer.

    Attributes:
        layers, hidden, ff, heads: the usual sizes.
        patch: side of a patch in pixels.
        merge: patches in one cell are merge x merge.
        frames: frames in one time step.
        gated: whether the MLP has three matrices instead of two.
        cls: whether every frame has a CLS token.
        image: fixed side of a frame in pixels, or 0 where the grid follows the frame.
        window: side of an attention window in cells, or 0 for attention over the whole time step.
        full: layers that attend over the whole time step although there are windows.
    """

    layers: int
    hidden: int
    ff: int
    heads: int
    patch: int
    merge: int = 1
    frames: int = 1
    gated: bool = False
    cls: bool = False
    image: int = 0
    window: int = 0
    full: int = 0


@dataclass(frozen=True)
class Text:
    """A language model with grouped-query attention and a gated MLP."""

    layers: int
    hidden: int
    ff: int
    heads: int
    kv_heads: int
    head: int = 128


@dataclass(frozen=True)
class Geometry:
    """A vision-language model by its sizes alone.

    Attributes:
        name: the name on the command line, such as ``qwen2.5-vl-7b``.
        family: the ``model_type`` of transformers.
        pool: side of the pooling between encoder and language model (2 for LLaVA-OneVision), 1 for none.
    """

    name: str
    family: str
    vision: Vision
    text: Text
    pool: int = 1

    def tokens(self, height: int, width: int, frames: int) -> int:
        """Visual tokens of a stock model for a resized clip of ``frames`` frames of height x width pixels.

        Newline rows between frames or images are not counted.
        """
        side = self.vision.patch * self.vision.merge
        steps = -(-frames // self.vision.frames)
        rows, columns = (-(-(n // side) // self.pool) for n in (height, width))
        return steps * rows * columns

    def encoder_flops(self, keep: np.ndarray) -> float:
        """FLOPs of the vision transformer on the kept cells, which attend among themselves only.

        Two FLOPs a multiply-add; patch embedding and blocks, without projector or merger.

        Args:
            keep: bool [T, rows, columns], the cells (merge x merge patches of one time step) that are encoded.
        """
        v = self.vision
        unit = v.merge**2
        sequences = keep.reshape(len(keep), -1).sum(axis=1) * float(unit) + v.cls * keep.any(axis=(1, 2))
        rows = float(sequences.sum())
        linear = rows * (4 * v.hidden**2 + (3 if v.gated else 2) * v.hidden * v.ff) * v.layers
        embed = float(keep.sum()) * unit * 3 * v.patch**2 * v.frames * v.hidden
        whole = v.full if v.window else v.layers
        pairs = float((sequences**2).sum()) * whole
        if v.window:
            pairs += float(((_windows(keep, v.window) * float(unit)) ** 2).sum()) * (v.layers - whole)
        return 2 * (linear + embed + 2 * pairs * v.hidden)

    def prefill_flops(self, tokens: int, columns: int | None = None) -> float:
        """FLOPs of the language model's prefill with causal attention; the head runs on one token and is left out.

        Args:
            columns: that attention sees, where it sees more than the tokens that are computed.
        """
        t = self.text
        wide, narrow = t.heads * t.head, t.kv_heads * t.head
        linear = tokens * (2 * t.hidden * wide + 2 * t.hidden * narrow + 3 * t.hidden * t.ff) * t.layers
        return 2.0 * (linear + tokens * (columns or tokens) * wide * t.layers)

    def cache_bytes(self, tokens: int) -> int:
        """Bytes of the KV cache in bfloat16."""
        return tokens * self.text.layers * 2 * self.text.kv_heads * self.text.head * 2


def _windows(keep: np.ndarray, side: int) -> np.ndarray:
    """Kept cells in every window of side x side cells."""
    steps, rows, columns = keep.shape
    padded = np.pad(keep, ((0, 0), (0, -rows % side), (0, -columns % side)))
    return padded.reshape(steps, padded.shape[1] // side, side, -1, side).sum(axis=(2, 4))


CLIP_L_336 = Vision(24, 1024, 4096, 16, patch=14, cls=True, image=336)
SIGLIP_SO400M_384 = Vision(27, 1152, 4304, 16, patch=14, image=384)
# LLaVA-OneVision drops the last layer of the tower in its checkpoint
ONEVISION = replace(SIGLIP_SO400M_384, layers=26)
QWEN2_VIT = Vision(32, 1280, 5120, 16, patch=14, merge=2, frames=2)
QWEN25_VIT = Vision(32, 1280, 3420, 16, patch=14, merge=2, frames=2, gated=True, window=4, full=4)
QWEN3_VIT_SMALL = Vision(24, 1024, 4096, 16, patch=16, merge=2, frames=2)
QWEN3_VIT = Vision(27, 1152, 4304, 16, patch=16, merge=2, frames=2)

VICUNA_7B = Text(32, 4096, 11008, 32, 32)
QWEN2_05B = Text(24, 896, 4864, 14, 2, head=64)
QWEN2_15B = Text(28, 1536, 8960, 12, 2)
QWEN2_7B = Text(28, 3584, 18944, 28, 4)
QWEN25_3B = Text(36, 2048, 11008, 16, 2)
QWEN3_2B = Text(28, 2048, 6144, 16, 8)
QWEN3_4B = Text(36, 2560, 9728, 32, 8)
QWEN3_8B = Text(36, 4096, 12288, 32, 8)

GEOMETRIES: dict[str, Geometry] = {
    g.name: g
    for g in (
        Geometry("llava-1.5-7b", "llava", CLIP_L_336, VICUNA_7B),
        Geometry("llava-next-video-7b", "llava_next_video", CLIP_L_336, VICUNA_7B, pool=2),
        Geometry("llava-onevision-0.5b", "llava_onevision", ONEVISION, QWEN2_05B, pool=2),
        Geometry("llava-onevision-7b", "llava_onevision", ONEVISION, QWEN2_7B, pool=2),
        Geometry("qwen2-vl-2b", "qwen2_vl", QWEN2_VIT, QWEN2_15B),
        Geometry("qwen2-vl-7b", "qwen2_vl", QWEN2_VIT, QWEN2_7B),
        Geometry("qwen2.5-vl-3b", "qwen2_5_vl", QWEN25_VIT, QWEN25_3B),
        Geometry("qwen2.5-vl-7b", "qwen2_5_vl", QWEN25_VIT, QWEN2_7B),
        Geometry("qwen3-vl-2b", "qwen3_vl", QWEN3_VIT_SMALL, QWEN3_2B),
        Geometry("qwen3-vl-4b", "qwen3_vl", QWEN3_VIT_SMALL, QWEN3_4B),
        Geometry("qwen3-vl-8b", "qwen3_vl", QWEN3_VIT, QWEN3_8B),
    )
}


def geometry(name: str) -> Geometry:
    """The geometry of a model by name.

    Raises:
        InputError: no such name; the message gives the nearest and all known ones.
    """
    found = GEOMETRIES.get(name.lower())
    if found is None:
        near = difflib.get_close_matches(name.lower(), GEOMETRIES, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise InputError(f"unknown model {name!r}; {hint}known: {', '.join(GEOMETRIES)}, or the folder of a checkpoint")
    return found
