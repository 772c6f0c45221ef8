"""Images behind an image gate: their cells as clips of one step, and which cell stands for each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vtoken.families.family import Family
from vtoken.families.features import Clip, Features
from vtoken.methods.image_gate import ImageGate
from vtoken.video.levels import Normalise


def gate_images(
    family: Family, model: Any, inputs: dict[str, Any], gate: ImageGate, preprocess: Any = None
) -> tuple[list[Clip], Tensor]:
    """The images that a processor made, as clips of one step with the cells that the gate keeps.

    Args:
        preprocess: of the processor in use, or None for the family's preset.

    Returns:
        the clips, and int64 [R], for every placeholder row the one that stands for it.
    """
    normalise = family.preprocess(model, preprocess).normalise
    found = [gate_image(clip, gate, normalise) for clip in family.full_clips(model, "image", inputs, None)]
    starts = np.cumsum([0] + [len(root) for _, root in found])
    shown = [root + int(start) for (_, root), start in zip(found, starts, strict=False)]
    return [clip for clip, _ in found], torch.cat(shown) if shown else torch.zeros(0, dtype=torch.long)


def gate_image(clip: Clip, gate: ImageGate, normalise: Normalise) -> tuple[Clip, Tensor]:
    """One image, whole, behind the gate; and int64 [cells], the cell that stands for each."""
    h, w = clip.gate.keep.shape[1:]
    cells = clip.rows.view(h * w, -1, clip.rows.shape[-1])  # the patches of a cell together
    scale = torch.tensor(normalise.std or (1.0, 1.0, 1.0), device=cells.device) / normalise.rescale
    levels = cells.float().unflatten(-1, (3, -1)) * scale.view(3, 1)
    root = gate.repeats(levels.view(h, w, -1)).flatten()
    keep = root == torch.arange(h * w, device=root.device)
    map_ = replace(clip.gate, keep=keep.view(1, h, w).cpu().numpy())
    return replace(clip, rows=cells[keep].flatten(0, 1), gate=map_), root.cpu()


def encode_images(family: Family, model: Any, clips: Sequence[Clip], shown: Tensor, wants: frozenset[str]) -> Features:
    """The encoder on the kept cells alone, as if the others did not exist; a row's size counts what it stands for."""
    features = family.encode_clips(model, list(clips), wants)
    features.size = torch.bincount(shown, minlength=len(shown)).float()[features.index.cpu()]
    features.layout.shown = shown
    return features
