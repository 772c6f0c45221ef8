"""Families that need a few lines beyond the base: square towers with pooled tokens, tiles, unusual grids."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from vtoken.encoders.taps import collect
from vtoken.families.compat import base
from vtoken.families.family import Family
from vtoken.families.features import Features
from vtoken.families.layout import Layout, square


@dataclass(frozen=True)
class Square(Family):
    """InternVL, Gemma3 and PaliGemma: square images whose tokens are square blocks of patches, in raster order."""

    def tower(self, model: Any) -> nn.Module:
        """The vision tower."""
        return base(model).vision_tower

    def tokens(self, model: Any, features: Features) -> int:
        """Tokens of one image or tile."""
        return features.layout.lengths[0]

    def encode(self, model: Any, modality: str, inputs: dict[str, Any], wants: frozenset[str]) -> Features:
        wants = self.offered(wants)
        if not wants:
            return super().encode(model, modality, inputs, wants)
        with collect(self.tower(model), wants) as found:
            features = super().encode(model, modality, inputs, wants)
        side = square(self.tokens(model, features))[1]
        tiles = len(features.x) // side**2
        for name, value in found.items():
            rows = _blocks(value.reshape(len(value), -1), tiles, side)
            features.signals[name] = rows.reshape(len(rows), *value.shape[1:]).to(value.dtype)
        return features


@dataclass(frozen=True)
class Idefics(Square):
    """Idefics3 and SmolVLM: one entry a sample holds all its tiles; each tile counts as a time step."""

    def tower(self, model: Any) -> nn.Module:
        return base(model).vision_model

    def tokens(self, model: Any, features: Features) -> int:
        return base(model).image_seq_len

    def layout(self, model: Any, modality: str, inputs: dict[str, Any], lengths: list[int]) -> Layout:
        tile = base(model).image_seq_len
        plain = Layout.of_grids([(n // tile, *square(tile)[1:]) for n in lengths])
        plain.lengths = lengths
        return plain


@dataclass(frozen=True)
class Mistral(Family):
    """Mistral3: images keep their shape; rows follow from their sizes."""

    def layout(self, model: Any, modality: str, inputs: dict[str, Any], lengths: list[int]) -> Layout:
        config: Any = model.config
        side = config.vision_config.patch_size * config.spatial_merge_size
        sizes = inputs["image_sizes"].tolist()
        return Layout.of_grids([(1, int(h) // side, int(w) // side) for h, w in sizes])


def _blocks(signal: Tensor, tiles: int, side: int) -> Tensor:
    """Mean of every token's block of patches: [tiles * patches, d] -> [tiles * side**2, d]."""
    patches = square(len(signal) // tiles)[1]
    grid = signal.float().view(tiles, patches, patches, -1).permute(0, 3, 1, 2)
    return nn.functional.avg_pool2d(grid, patches // side).flatten(2).transpose(1, 2).flatten(0, 1)
