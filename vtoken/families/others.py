"""Families that need a few lines beyond the base: square towers with pooled tokens, tiles, unusual grids."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vtoken.encoders.taps import collect
from vtoken.families.compat import base
from vtoken.families.family import Family
from vtoken.families.features import Clip, Features
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
class InternVL(Square):
    """InternVL: the tiles of an image are one run of placeholders; each tile counts as a time step."""

    def items(
        self, modality: str, layout: Layout, sample: Tensor, column: Tensor, ids: Tensor, clips: list[Clip] | None
    ) -> list[int]:
        return _runs(sample, column).diff().tolist()


@dataclass(frozen=True)
class Idefics(Square):
    """Idefics3 and SmolVLM: one entry a sample holds all its tiles; each tile counts as a time step."""

    def items(
        self, modality: str, layout: Layout, sample: Tensor, column: Tensor, ids: Tensor, clips: list[Clip] | None
    ) -> list[int]:
        """Each run is a tile behind its name; an image ends with the tile that has the name of its sample's last."""
        runs = _runs(sample, column)
        first = runs[:-1]
        owner, before = sample[first], column[first] - 1
        name = torch.where(before >= 0, ids[owner, before.clamp(min=0)], -1)
        last = torch.cat([owner[1:] != owner[:-1], owner.new_ones(1, dtype=torch.bool)])
        whole = torch.zeros(len(ids), dtype=name.dtype, device=name.device)
        whole[owner[last]] = name[last]
        ends = runs[1:][name == whole[owner]]
        return torch.cat([runs[:1], ends]).diff().tolist()

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
class PerceptionLM(Family):
    """Perception-LM: an image is one to many square tiles, which are one item; so is a video with its frames.

    Pixels come as [visuals, tiles, 3, H, W] with one placeholder a row, and the features as [all tiles, rows, D].
    Videos go through the function for images.
    """

    def features(self, model: Any, modality: str, inputs: dict[str, Any]) -> Any:
        pixels = inputs["pixel_values" if modality == "image" else "pixel_values_videos"]
        return super().features(model, "image", {"pixel_values": pixels})

    def layout(self, model: Any, modality: str, inputs: dict[str, Any], lengths: list[int]) -> Layout:
        pixels = inputs["pixel_values" if modality == "image" else "pixel_values_videos"]
        return Layout.of_grids([(pixels.shape[1], *square(lengths[0])[1:])] * len(pixels))


@dataclass(frozen=True)
class Mistral(Family):
    """Mistral3: images keep their shape; rows follow from their sizes."""

    def layout(self, model: Any, modality: str, inputs: dict[str, Any], lengths: list[int]) -> Layout:
        config: Any = model.config
        side = config.vision_config.patch_size * config.spatial_merge_size
        sizes = inputs["image_sizes"].tolist()
        return Layout.of_grids([(1, int(h) // side, int(w) // side) for h, w in sizes])


def _runs(sample: Tensor, column: Tensor) -> Tensor:
    """int64 [runs + 1]: where runs of neighbouring columns begin among the rows, and the number of rows."""
    breaks = (sample[1:] != sample[:-1]) | (column[1:] != column[:-1] + 1)
    starts = breaks.nonzero().squeeze(1) + 1
    ends = torch.tensor([0, len(sample)], device=sample.device)
    return torch.cat([ends[:1], starts, ends[1:]])


def _blocks(signal: Tensor, tiles: int, side: int) -> Tensor:
    """Mean of every token's block of patches: [tiles * patches, d] -> [tiles * side**2, d]."""
    patches = square(len(signal) // tiles)[1]
    grid = signal.float().view(tiles, patches, patches, -1).permute(0, 3, 1, 2)
    return nn.functional.avg_pool2d(grid, patches // side).flatten(2).transpose(1, 2).flatten(0, 1)
