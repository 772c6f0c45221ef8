"""LLaVA-1.5 and Video-LLaVA, whose rows are the patches; the families that pool them are in ``pooled``."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vtoken.data.frames import GateMap, Grid
from vtoken.encoders import Encoded
from vtoken.encoders import clip as encoder
from vtoken.encoders.carry import Carry
from vtoken.encoders.compat import has_cls
from vtoken.encoders.packed import Thinning
from vtoken.encoders.taps import collect
from vtoken.errors import UnsupportedError
from vtoken.families.chunks import Early, Run, encode_in_chunks
from vtoken.families.clips import (
    adapt,
    gate_signals,
    gated,
    held_steps,
    kept_index,
    layout_of,
    thinned,
)
from vtoken.families.compat import base, device_of, dtype_of
from vtoken.families.family import PIXELS, Family
from vtoken.families.features import Clip, Features
from vtoken.families.layout import Layout
from vtoken.families.rows import video_layout
from vtoken.families.runs import all_kept, expand_repeated
from vtoken.methods.gate import Gate
from vtoken.methods.pathway import Pathway
from vtoken.video.preprocess import Preprocessor
from vtoken.video.processors import read_processor


@dataclass(frozen=True)
class Llava(Family):
    """LLaVA-1.5: each image is one square grid; several images of a prompt may be the frames of a video."""

    preset: str = "llava-1.5"

    def preprocess(self, model: Any, given: Preprocessor | None = None) -> Preprocessor:
        vision = model.config.vision_config
        if given is None:
            siglip = "siglip" in vision.model_type
            side = (vision.image_size, vision.image_size)
            given = read_processor("llava-onevision" if siglip else self.preset, size=side)
            given = given if siglip else replace(given, crop=side)
        return adapt(given, vision.patch_size)

    def tower(self, model: Any, modality: str) -> Any:
        """The vision tower that a modality goes through."""
        return base(model).vision_tower

    def layer(self, model: Any) -> int | list[int]:
        """Hidden states of the tower that the projector reads."""
        return model.config.vision_feature_layer

    def encode(self, model: Any, modality: str, inputs: dict[str, Any], wants: frozenset[str]) -> Features:
        tower, layer = self.tower(model, modality), self.layer(model)
        wants = self.available(tower, wants)
        if not wants:
            return super().encode(model, modality, inputs, wants)
        last = layer if isinstance(layer, int) else max(layer, key=lambda n: n % 1000)
        with collect(tower, wants, last) as found:
            features = super().encode(model, modality, inputs, wants)
        for name, value in found.items():
            flat = value.view(len(value), -1)
            rows = self.scatter_patches(model, modality, inputs, features.layout, flat)
            features.signals[name] = rows.view(len(rows), *value.shape[1:])
        return features

    def scatter_patches(
        self, model: Any, modality: str, inputs: dict[str, Any], layout: Layout, signal: Tensor
    ) -> Tensor:
        """Rows [R, d] of a signal from its patches [P, d]; structural rows are 0."""
        out = signal.new_zeros(len(layout.structural), signal.shape[1])
        out[~layout.structural] = signal[-int((~layout.structural).sum()) :]
        return out

    def clips(
        self,
        model: Any,
        inputs: dict[str, Any],
        gate: Gate | None,
        fps: float | None,
        given: Preprocessor | None,
        pathways: Sequence[Pathway] = (),
    ) -> list[Clip]:
        preprocess = self.preprocess(model, given)
        out = []
        for frames in self.frames(model, inputs):
            spacing = 1 / fps if fps else None
            grid, gate_map, pts, seconds, signals = gated(frames, None, spacing, gate, preprocess, pathways)
            rows = encoder.patches_of(frames, preprocess.patch, gate_map.keep.reshape(len(frames), -1))
            out.append(Clip(rows, grid, gate_map, pts, seconds, signals=signals))
        return out

    def prompt(self, model: Any, tokenizer: Any, clip: Clip) -> tuple[list[int], list[int] | Tensor, dict[str, Any]]:
        token = getattr(model.config, f"{self.clip_modality}_token_id")
        return [token], torch.full((self.count(model, clip),), token), {}

    def pathway_rows(
        self, model: Any, modality: str, inputs: dict[str, Any], clips: list[Clip], features: Features
    ) -> dict[str, Tensor]:
        out = {}
        for name, value in super().pathway_rows(model, modality, inputs, clips, features).items():
            flat = value.float().clamp(max=1e9).reshape(len(value), -1)  # inf * 0 is nan where cells pool
            rows = self.scatter_patches(model, modality, inputs, features.layout, flat)
            out[name] = rows.view(len(rows), *value.shape[1:])
        return out

    def count(self, model: Any, clip: Clip) -> int:
        """Placeholders of a clip with nothing dropped."""
        return clip.gate.keep.size

    def frames(self, model: Any, inputs: dict[str, Any]) -> list[Tensor]:
        """Frames [T, 3, H, W] of every clip: here, the images of each prompt."""
        pixels = next(inputs[n] for n in PIXELS["image"] if inputs.get(n) is not None)
        rows = self.placeholders(model, "image", inputs["input_ids"], inputs).sum(1)
        return [f for f in pixels.split((rows * len(pixels) // rows.sum()).tolist()) if len(f)]

    def full_clips(self, model: Any, modality: str, inputs: dict[str, Any], fps: float | None) -> list[Clip]:
        side, step = model.config.vision_config.patch_size, 1 / fps if fps else math.nan
        out = []
        for image in (one for frames in self.frames(model, inputs) for one in frames.split(1)):
            height, width = image.shape[2:]
            gate = GateMap.full(1, height // side, width // side)
            rows = encoder.patches_of(image, side, gate.keep)
            out.append(Clip(rows, Grid(height, width, side, 1), gate, np.zeros(1), step))
        return out

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
        out = self._encoded(model, clips, wants, thin, reuse, hold, carry)
        out, clips = (out, all_kept(clips)) if reuse else (expand_repeated(clips, out), clips)
        keeps = [c.gate.keep for c in clips]
        index = kept_index([c.gate.sent for c in clips])
        index, size, own = thinned(out, index, *gate_signals(clips, out.x.device))
        layout = layout_of(clips)
        # one item an image, as the model sees them
        layout.seconds = [c.seconds / len(c.gate.keep) for c in clips for _ in c.gate.keep]
        layout.lengths = [k[0].size for k in keeps for _ in k]
        x = base(model).multi_modal_projector(out.x)
        return Features(x, index, layout, size, own | out.signals, sum(int(k.sum()) for k in keeps))

    def _encoded(
        self,
        model: Any,
        clips: list[Clip],
        wants: frozenset[str],
        thin: Thinning | None,
        reuse: bool,
        hold: bool,
        carry: Carry | None,
    ) -> Encoded:
        """Hidden states and signals of the kept patches of all clips (of all with ``reuse``), before the projector."""
        run, signals = self._runner(model, wants, thin, reuse, hold)
        if reuse or thin is not None or carry is not None:
            return run(clips, carry if hold else None)
        return encode_in_chunks(run, clips, hold, signals)

    def early(self, model: Any, wants: frozenset[str], hold: bool) -> Early | None:
        run, signals = self._runner(model, wants, None, False, hold)
        return None if hold and signals else Early(run, hold, device_of(self.tower(model, self.clip_modality)))

    def _runner(
        self, model: Any, wants: frozenset[str], thin: Thinning | None, reuse: bool, hold: bool
    ) -> tuple[Run, bool]:
        """The encoder on the kept patches of some clips, and whether signals of it are wanted."""
        tower = self.tower(model, self.clip_modality)
        if has_cls(tower) != (model.config.vision_feature_select_strategy == "default"):
            raise UnsupportedError(
                f"{self.title}: patches can leave only where features come without a CLS row, and this config has "
                f"vision_feature_select_strategy={model.config.vision_feature_select_strategy!r}"
            )
        wants, layer = self.available(tower, wants), self.layer(model)

        def run(some: Sequence[Clip], before: Carry | None = None) -> Encoded:
            keep = np.concatenate([c.gate.keep.reshape(len(c.gate.keep), -1) for c in some])
            rows = torch.cat([c.values(device_of(tower), dtype_of(tower)) for c in some])
            steps, reference = held_steps(some, hold, reuse), None
            if reuse:
                return encoder.encode_reuse(tower, rows, keep, layer, wants)
            if steps is not None:  # frames of all clips count on
                starts = np.cumsum([0] + [len(s) for s in steps])
                reference = np.concatenate([s.reshape(len(s), -1) + a for s, a in zip(steps, starts, strict=False)])
            return encoder.encode(tower, rows, keep, layer, wants, thin=thin, reference=reference, carry=before)

        return run, bool(wants)


@dataclass(frozen=True)
class VideoLlava(Llava):
    """Video-LLaVA: frames keep their CLS token, which is structural here."""

    preset: str = "video-llava"

    def tower(self, model: Any, modality: str) -> Any:
        return base(model).video_tower if modality == "video" else base(model).image_tower

    def layout(self, model: Any, modality: str, inputs: dict[str, Any], lengths: list[int]) -> Layout:
        if modality == "image":
            return super().layout(model, modality, inputs, lengths)
        frames = inputs["pixel_values_videos"].shape[1]
        return video_layout([frames * n for n in lengths[::frames]], frames, cls=True)
