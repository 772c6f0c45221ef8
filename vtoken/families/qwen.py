"""Qwen2-VL, Qwen2.5-VL, Qwen3-VL, Qwen3.5 and the families built like them: GLM-4V and VideoLLaMA3."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vtoken.data.frames import GateMap, Grid
from vtoken.encoders import Encoded
from vtoken.encoders import qwen as encoder
from vtoken.encoders.carry import Carry
from vtoken.encoders.packed import Thinning
from vtoken.encoders.taps import collect, merge_cells
from vtoken.families.chunks import Early, Run, encode_in_chunks
from vtoken.families.clips import adapt, gate_signals, gated, held_steps, kept_index, layout_of, thinned
from vtoken.families.compat import base, device_of, dtype_of, outputs
from vtoken.families.family import Family
from vtoken.families.features import Clip, Features, Picture, Pictures
from vtoken.families.layout import Layout
from vtoken.families.runs import all_kept, expand_repeated
from vtoken.methods.gate import Gate
from vtoken.methods.pathway import Pathway
from vtoken.video.preprocess import Preprocessor
from vtoken.video.processors import read_processor

SECONDS = ("second_per_grid_ts", "video_second_per_grid")  # of Qwen2.5-VL and of Qwen2.5-Omni
GRIDS = ("pixel_values", "pixel_values_videos", "image_grid_thw", "video_grid_thw", *SECONDS)


@dataclass(frozen=True)
class Qwen(Family):
    """One row is a cell of 2x2 patches, for videos of two frames; grids come with the inputs.

    Attributes:
        seconds: the input that says how long a time step of every video is; None where the model takes none.
    """

    drops: tuple[str, ...] = GRIDS
    any_size: bool = True
    preset: str = "qwen2.5-vl"
    seconds: str | None = None

    def preprocess(self, model: Any, given: Preprocessor | None = None) -> Preprocessor:
        vision = model.config.vision_config
        return adapt(
            given or read_processor(self.preset),
            vision.patch_size,
            vision.spatial_merge_size,
            vision.temporal_patch_size,
        )

    def encode(self, model: Any, modality: str, inputs: dict[str, Any], wants: frozenset[str]) -> Features:
        wants = self.offered(wants)
        if not wants:
            return super().encode(model, modality, inputs, wants)
        with collect(base(model).visual, wants) as found:
            features = super().encode(model, modality, inputs, wants)
        features.signals.update(found)
        return features

    def clips(
        self,
        model: Any,
        inputs: dict[str, Any],
        gate: Gate | None,
        fps: float | None,
        given: Preprocessor | None,
        pathways: Sequence[Pathway] = (),
    ) -> list[Clip]:
        preprocess, merge = self.preprocess(model, given), base(model).visual.spatial_merge_size
        grids = inputs["video_grid_thw"]
        per_step = step_seconds(inputs)
        out = []
        for i, rows in enumerate(inputs["pixel_values_videos"].split(grids.prod(-1).tolist())):
            step = float(per_step[i]) if per_step is not None else None
            spacing = step / preprocess.temporal if step else 1 / fps if fps else None
            grid, gate_map, pts, seconds, signals = gated(rows, grids[i], spacing, gate, preprocess, pathways)
            kept = torch.from_numpy(gate_map.keep.ravel()).to(rows.device)
            kept_rows = rows.view(len(kept), merge**2, -1)[kept].flatten(0, 1)
            out.append(Clip(kept_rows, grid, gate_map, pts, seconds, signals=signals))
        return out

    def prompt(self, model: Any, tokenizer: Any, clip: Clip) -> tuple[list[int], list[int] | Tensor, dict[str, Any]]:
        video, merge = model.config.video_token_id, base(model).visual.spatial_merge_size
        steps, h, w = clip.gate.keep.shape
        extra: dict[str, Any] = {"video_grid_thw": torch.tensor([[steps, h * merge, w * merge]])}
        if self.seconds is not None:
            extra[self.seconds] = torch.tensor([clip.step])
        return [video], torch.full((clip.gate.keep.size,), video), extra

    def images(self, model: Any, processor: Any, pictures: list[Any]) -> Pictures | None:
        if not pictures:
            return None
        made = self.read_images(processor, pictures)
        token, merge = model.config.image_token_id, model.base_model.visual.spatial_merge_size
        counts = (made["image_grid_thw"].prod(-1) // merge**2).tolist()
        return Pictures([Picture([token], [token] * n) for n in counts], made)

    def full_clips(self, model: Any, modality: str, inputs: dict[str, Any], fps: float | None) -> list[Clip]:
        vision = model.config.vision_config
        merge, frames = vision.spatial_merge_size, self.frames_per_step(model) if modality == "video" else 1
        rows = inputs["pixel_values" if modality == "image" else "pixel_values_videos"]
        grids = inputs[f"{modality}_grid_thw"].tolist()
        per_step = step_seconds(inputs) if modality == "video" else None
        fps = fps if modality == "video" else None  # images have no length
        out, side = [], vision.patch_size
        for i, ((t, h, w), own) in enumerate(zip(grids, rows.split([t * h * w for t, h, w in grids]), strict=True)):
            step = float(per_step[i]) if per_step is not None else frames / fps if fps else math.nan
            pts = np.arange(t * frames) * step / frames
            grid = Grid(h * side, w * side, side * merge, frames)
            out.append(Clip(own, grid, GateMap.full(t, h // merge, w // merge), pts, t * step))
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
        run, tapped = self._runner(model, wants, thin, reuse, hold)
        if reuse:
            out, clips = run(clips, None), all_kept(clips)
        elif thin is not None or carry is not None:
            out = expand_repeated(clips, run(clips, carry if hold else None))
        else:
            out = expand_repeated(clips, encode_in_chunks(run, clips, hold, tapped))
        index = kept_index([c.gate.sent for c in clips])
        encoded = sum(int(c.gate.keep.sum()) for c in clips)
        index, size, signals = thinned(out, index, *gate_signals(clips, out.x.device))
        return Features(out.x, index, layout_of(clips), size, signals | out.signals, encoded)

    def early(self, model: Any, wants: frozenset[str], hold: bool) -> Early | None:
        run, signals = self._runner(model, wants, None, False, hold)
        return None if hold and signals else Early(run, hold, device_of(base(model).visual))

    def _runner(
        self, model: Any, wants: frozenset[str], thin: Thinning | None, reuse: bool, hold: bool
    ) -> tuple[Run, bool]:
        """The encoder on the kept patches of some clips, and whether signals of it are wanted."""
        visual = base(model).visual
        merge = visual.spatial_merge_size
        wants = self.available(visual, wants)

        def run(some: Sequence[Clip], before: Carry | None = None) -> Encoded:
            keeps = [c.gate.keep for c in some]
            grids = torch.tensor([[k.shape[0], k.shape[1] * merge, k.shape[2] * merge] for k in keeps])
            rows = torch.cat([c.values(device_of(visual), dtype_of(visual)) for c in some])
            grids, steps = grids.to(rows.device), held_steps(some, hold, reuse)
            if reuse:
                return encoder.encode_reuse(visual, rows, grids, keeps, wants)
            return encoder.encode(visual, rows, grids, keeps, wants, thin, steps, before)

        return run, bool(wants)

    def frames_per_step(self, model: Any) -> int:
        return getattr(model.config.vision_config, "temporal_patch_size", 1)

    def layout(self, model: Any, modality: str, inputs: dict[str, Any], lengths: list[int]) -> Layout:
        merge = base(model).visual.spatial_merge_size
        return grid_layout(inputs, modality, [merge] * len(lengths))


@dataclass(frozen=True)
class Omni(Qwen):
    """The thinker of Qwen2.5-Omni: Qwen2.5-VL with sound, which vtoken leaves as it is."""

    sound: tuple[str, ...] = ("input_features", "feature_attention_mask", "audio_feature_lengths", "use_audio_in_video")
    seconds: str | None = "video_second_per_grid"


@dataclass(frozen=True)
class Qwen3(Qwen):
    """Qwen3-VL adds DeepStack: further rows for the first layers of the language model, pruned with the tokens."""

    preset: str = "qwen3-vl"

    def prompt(self, model: Any, tokenizer: Any, clip: Clip) -> tuple[list[int], list[int] | Tensor, dict[str, Any]]:
        return _stamped(model, tokenizer, clip, super().prompt(model, tokenizer, clip)[2])

    def encode(self, model: Any, modality: str, inputs: dict[str, Any], wants: frozenset[str]) -> Features:
        features = super().encode(model, modality, inputs, wants)
        for i, level in enumerate(features.output.deepstack_features):
            rows = level if isinstance(level, Tensor) else torch.cat(list(level))
            features.signals[f"deepstack.{i}"] = rows
        return features

    def pack(self, modality: str, features: Features, parts: list[Tensor]) -> Any:
        levels = [name for name in features.signals if name.startswith("deepstack.")]
        lengths = [len(p) for p in parts]
        stacks = [[d for d in features.signals[name].split(lengths) if len(d)] for name in levels]
        empty = [features.signals[name][:0] for name in levels]
        present: Any = [p for p in parts if len(p)] or parts[:1]
        deep: Any = [s or [e] for s, e in zip(stacks, empty, strict=True)]
        return outputs(present, deep)


@dataclass(frozen=True)
class Qwen35(Qwen):
    """Qwen3.5 writes the time before every step, as Qwen3-VL does, and has no DeepStack."""

    preset: str = "qwen3-vl"

    def prompt(self, model: Any, tokenizer: Any, clip: Clip) -> tuple[list[int], list[int] | Tensor, dict[str, Any]]:
        return _stamped(model, tokenizer, clip, super().prompt(model, tokenizer, clip)[2])


@dataclass(frozen=True)
class Glm4v(Qwen):
    """GLM-4V marks video rows with the image token; the token types distinguish them."""

    any_size: bool = False

    def placeholders(self, model: Any, modality: str, input_ids: Tensor, inputs: dict[str, Any]) -> Tensor:
        image = input_ids == model.config.image_token_id
        types = inputs.get("mm_token_type_ids")
        if types is None:
            return image if (modality == "video") == (inputs.get("pixel_values_videos") is not None) else image & False
        return image & (types == (2 if modality == "video" else 1))


@dataclass(frozen=True)
class VideoLlama3(Qwen):
    """VideoLLaMA3 merges each item by its own factor and drops still rows itself (``video_compression_mask``)."""

    any_size: bool = False
    drops: tuple[str, ...] = (*GRIDS, "image_merge_sizes", "video_merge_sizes", "video_compression_mask")

    def layout(self, model: Any, modality: str, inputs: dict[str, Any], lengths: list[int]) -> Layout:
        return grid_layout(inputs, modality, inputs[f"{modality}_merge_sizes"].tolist())

    def encode(self, model: Any, modality: str, inputs: dict[str, Any], wants: frozenset[str]) -> Features:
        with collect(base(model).vision_model, self.offered(wants)) as found:
            features = Family.encode(self, model, modality, inputs, wants)
        merges = inputs[f"{modality}_merge_sizes"].tolist()
        patches = [n * m * m for n, m in zip(features.layout.lengths, merges, strict=True)]
        for name, value in found.items():
            parts = zip(value.split(patches), merges, strict=True)
            features.signals[name] = torch.cat([merge_cells({name: v}, m * m)[name] for v, m in parts])
        mask = inputs.get("video_compression_mask")
        return features if modality == "image" or mask is None else _kept(features, mask)


def _kept(features: Features, mask: Tensor) -> Features:
    """The rows that VideoLLaMA3's own compression leaves, bool [R]."""
    kept, plain = mask.cpu(), features.layout
    owner = torch.repeat_interleave(torch.arange(len(plain.lengths)), torch.tensor(plain.lengths))
    layout = Layout(
        torch.bincount(owner[kept], minlength=len(plain.lengths)).tolist(),
        plain.position[kept],
        plain.structural[kept],
        plain.line[kept],
        plain.time[kept],
        plain.seconds,
    )
    n = int(kept.sum())
    signals = {name: value[mask] for name, value in features.signals.items()}
    return Features(
        features.x[mask], torch.arange(n), layout, torch.ones(n, dtype=torch.float32), signals, n, features.output
    )


def _stamped(
    model: Any, tokenizer: Any, clip: Clip, extra: dict[str, Any]
) -> tuple[list[int], list[int] | Tensor, dict[str, Any]]:
    """Every time step after its time in words, between its own start and end marks."""
    c, (steps, h, w) = model.config, clip.gate.keep.shape
    last = np.minimum(np.arange(steps) * clip.grid.frames + clip.grid.frames - 1, len(clip.pts) - 1)
    middle = (clip.times + clip.pts[last]) / 2
    step = [c.vision_start_token_id, *[c.video_token_id] * (h * w), c.vision_end_token_id]
    ids = []
    for t in middle:
        ids += [*tokenizer(f"<{t:.1f} seconds>", add_special_tokens=False)["input_ids"], *step]
    return [c.video_token_id], ids, extra  # the template's own start and end marks stay around all steps


def grid_layout(inputs: dict[str, Any], modality: str, merges: list[int]) -> Layout:
    """Rows from ``image_grid_thw`` or ``video_grid_thw``, with seconds where the inputs hold them."""
    grids = inputs[f"{modality}_grid_thw"].tolist()
    given = step_seconds(inputs) if modality == "video" else None
    per_step = None if given is None else [float(s) for s in given]
    cells = [(int(t), int(h) // m, int(w) // m) for (t, h, w), m in zip(grids, merges, strict=True)]
    return Layout.of_grids(cells, per_step or [math.nan] * len(cells))


def step_seconds(inputs: dict[str, Any]) -> Any:
    """Seconds of a time step of every video, [videos]; None where the inputs do not hold them."""
    return next((inputs[name] for name in SECONDS if inputs.get(name) is not None), None)
