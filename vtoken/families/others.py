"""Families that need a line or two beyond the base: tiles, unusual grids."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from vtoken.families.base import Family, Layout, square


@dataclass(frozen=True)
class Idefics(Family):
    """Idefics3 and SmolVLM: one entry a sample holds all its tiles; each tile counts as a time step."""

    def layout(self, model: nn.Module, modality: str, inputs: dict[str, Any], lengths: list[int]) -> Layout:
        tile = model.base_model.image_seq_len
        plain = Layout.of_grids([(n // tile, *square(tile)[1:]) for n in lengths])
        plain.lengths = lengths
        return plain


@dataclass(frozen=True)
class Mistral(Family):
    """Mistral3: images keep their shape; rows follow from their sizes."""

    def layout(self, model: nn.Module, modality: str, inputs: dict[str, Any], lengths: list[int]) -> Layout:
        base = model.base_model
        side = base.config.vision_config.patch_size * base.config.spatial_merge_size
        sizes = inputs["image_sizes"].tolist()
        return Layout.of_grids([(1, int(h) // side, int(w) // side) for h, w in sizes])
