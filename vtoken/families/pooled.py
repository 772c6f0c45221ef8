"""LLaVA-NeXT, LLaVA-NeXT-Video and LLaVA-OneVision: tiles with newlines, and frames whose patches are pooled.

Newline rows are structural: one stays as long as a token of its line does.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vtoken.encoders.carry import Carry
from vtoken.encoders.packed import Thinning
from vtoken.encoders.pool import pool
from vtoken.errors import UnsupportedError
from vtoken.families.clips import kept_index, layout_of, scene_numbers
from vtoken.families.compat import base as base_of
from vtoken.families.compat import pack, tile_counts, weight_of
from vtoken.families.features import Clip, Features, Picture, Pictures
from vtoken.families.layout import Layout
from vtoken.families.llava import Llava
from vtoken.families.rows import anyres_layout, anyres_rows, join, video_layout
from vtoken.families.runs import all_kept, run_lengths


@dataclass(frozen=True)
class LlavaNext(Llava):
    """LLaVA-NeXT: a base tile, then the unpadded grid of tiles with a newline row after each line.

    LLaVA-NeXT-Video pools the patches of frames before the projector.
    """

    def layout(self, model: Any, modality: str, inputs: dict[str, Any], lengths: list[int]) -> Layout:
        if modality == "video":
            return video_layout(lengths, inputs["pixel_values_videos"].shape[1])
        return anyres_layout(model, inputs, lengths)

    def images(self, model: Any, processor: Any, pictures: list[Any]) -> Pictures | None:
        if not pictures:
            return None
        made, token = self.read_images(processor, pictures), model.config.image_token_id
        return Pictures([Picture([token], [token] * len(rows)) for rows in anyres_rows(model, made)], made)

    def scatter_patches(
        self, model: Any, modality: str, inputs: dict[str, Any], layout: Layout, signal: Tensor
    ) -> Tensor:
        vision = base_of(model).config.vision_config
        per_tile = (vision.image_size // vision.patch_size) ** 2
        tiles = signal.view(-1, per_tile, signal.shape[1])
        if modality == "video":
            rows = signal.new_zeros(len(layout.structural), signal.shape[1])
            rows[~layout.structural] = self.pooled(model, tiles).flatten(0, 1)
            return rows
        counts = tile_counts(model, inputs["image_sizes"], inputs.get("batch_num_images"))
        packed = pack(model, list(tiles.split(counts)), inputs["image_sizes"], signal.new_zeros(signal.shape[1]))
        return torch.cat(packed)

    def pooled(self, model: Any, x: Tensor) -> Tensor:
        """The stock pooling of frames [T, patches, d] -> [T, cells, d]."""
        resampler = base_of(model).vision_resampler
        if not isinstance(resampler.pool, nn.Conv2d):
            return resampler(x)
        side = math.isqrt(x.shape[1])
        square = x.transpose(1, 2).unflatten(2, (side, side))
        return nn.functional.avg_pool2d(square, resampler.pool.stride).flatten(2).transpose(1, 2)

    def frames(self, model: Any, inputs: dict[str, Any]) -> list[Tensor]:
        return list(inputs["pixel_values_videos"])

    def count(self, model: Any, clip: Clip) -> int:
        first = torch.zeros(1, clip.gate.keep[0].size, 1, dtype=torch.float32)
        return len(clip.gate.keep) * self.pooled(model, first).shape[1]

    def encode_clips(
        self,
        model: Any,
        clips: list[Clip],
        wants: frozenset[str],
        thin: Thinning | None = None,
        reuse: bool = False,
        hold: bool = False,
        carry: Carry | None = None,
    ) -> Features:
        if thin is not None:
            raise UnsupportedError(f"{self.title} pools its patches, so they cannot leave inside its encoder")
        patches = self._encoded(model, clips, wants, None, reuse, hold, carry)
        clips = all_kept(clips) if reuse else clips
        x, signals = patches.x, patches.signals
        base = base_of(model)
        before = not hasattr(base, "apply_pooling")  # NeXT-Video pools before its projector, OneVision after
        if not before:
            x = base.multi_modal_projector(x)
        starts = np.cumsum([0] + [int(c.gate.keep.sum()) for c in clips])
        rows, keeps, scores, sizes = [], [], [], []
        for clip, a, b in zip(clips, starts, starts[1:], strict=False):
            pooling = base.vision_resampler if before else base.apply_pooling
            if carry is None:
                pooled, keep = pool(x[a:b], clip.gate, pooling)
            else:
                pooled, keep = pool(*carry.joined(x[a:b], clip.gate), pooling)
                pooled, keep = pooled[keep.shape[1] :], keep[1:]  # the step in front is what was carried
            side = math.isqrt(keep.shape[1])
            rows.append(pooled)
            keeps.append(keep.reshape(len(keep), side, side))
            own = {n: self._pool_signal(model, v[a:b], clip) for n, v in signals.items()}
            scores.append(own | self._pool_seen(model, clip, keep))
            sizes.append(torch.from_numpy(run_lengths(keeps[-1])[keeps[-1]]).float())
        x = torch.cat(rows)
        if before:
            x = base.multi_modal_projector(x)
        joined = {n: torch.cat([s[n] for s in scores]).to(x.device) for n in scores[0]}
        joined["scene"] = scene_numbers(clips, keeps).to(x.device)
        share = int(starts[-1]) / sum(c.gate.keep.size for c in clips)
        encoded = round(share * sum(k.size for k in keeps))
        features = Features(x, kept_index(keeps), layout_of(clips, keeps), torch.cat(sizes), joined, encoded)
        return features if carry is not None else self.add_structural_rows(model, clips, keeps, features)

    def _pool_signal(self, model: Any, signal: Tensor, clip: Clip) -> Tensor:
        rows, _ = pool(signal.view(len(signal), -1).float(), clip.gate, partial(self.pooled, model))
        return rows.view(-1, *signal.shape[1:])

    def _pool_seen(self, model: Any, clip: Clip, keep: np.ndarray) -> dict[str, Tensor]:
        """Gate and pathway signals of the kept cells (bool [T, m]), pooled over all patches of the step."""
        out = {}
        for name, value in (clip.signals | {"motion": clip.gate.score}).items():
            patches = torch.from_numpy(value).float().clamp(max=1e9)  # inf * 0 is nan where cells pool
            patches = patches.reshape(len(keep), clip.grid.cells, -1)
            out[name] = self.pooled(model, patches)[torch.from_numpy(keep)].view(-1, *value.shape[3:])
        return out

    def add_structural_rows(
        self, model: Any, clips: list[Clip], keeps: list[np.ndarray], features: Features
    ) -> Features:
        """Add the structural rows of a video; NeXT-Video has none."""
        return features


@dataclass(frozen=True)
class LlavaOnevision(LlavaNext):
    """LLaVA-OneVision: images as LLaVA-NeXT; a video is pooled frames and one newline row at its end."""

    preset: str = "llava-onevision"

    def layout(self, model: Any, modality: str, inputs: dict[str, Any], lengths: list[int]) -> Layout:
        if modality == "image":
            return anyres_layout(model, inputs, lengths)
        return video_layout(lengths, inputs["pixel_values_videos"].shape[1], newline=True)

    def pooled(self, model: Any, x: Tensor) -> Tensor:
        return base_of(model).apply_pooling(x)

    def count(self, model: Any, clip: Clip) -> int:
        return super().count(model, clip) + 1

    def chunk(self, model: Any, tokenizer: Any, clip: Clip) -> list[int] | Tensor:
        return super().chunk(model, tokenizer, clip)[:-1]

    def ending(self, model: Any) -> tuple[list[int], Tensor | None]:
        return [model.config.video_token_id], weight_of(base_of(model), "image_newline")[None]

    def add_structural_rows(
        self, model: Any, clips: list[Clip], keeps: list[np.ndarray], features: Features
    ) -> Features:
        layout = join([video_layout([k.size + 1], len(k), newline=True) for k in keeps])
        cells = (~layout.structural).nonzero().squeeze(1)
        layout.time[cells], run = features.layout.time, features.layout.run
        assert run is not None
        layout.run = run.new_zeros(len(layout.time)).index_copy(0, cells, run)
        layout.seconds = features.layout.seconds
        index = torch.cat([cells[features.index], layout.structural.nonzero().squeeze(1)])
        order = index.argsort()

        def add(value: Tensor, row: Tensor) -> Tensor:
            rows = torch.cat([value, row.to(value).expand(len(keeps), *value.shape[1:])])
            return rows[order.to(rows.device)]

        signals = {n: add(v, v.new_zeros(v.shape[1:])) for n, v in features.signals.items()}
        x = add(features.x, weight_of(base_of(model), "image_newline"))
        return Features(
            x, index[order], layout, add(features.size, torch.ones((), dtype=torch.float32)), signals, features.encoded
        )
