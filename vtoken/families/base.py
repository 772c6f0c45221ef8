"""What vtoken must know of a model family: where its visual rows come from and what each row is.

The base class serves every family whose features are rows consumed in the order of the placeholders; a family with
newline rows, grids or an encoder that can run on some patches only overrides what differs.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vtoken.data.frames import GateMap, Grid
from vtoken.encoders.names import within
from vtoken.encoders.packed import Thinning
from vtoken.encoders.signals import attentions_of
from vtoken.errors import InputError, UnsupportedError
from vtoken.methods.registry import has

# signals of encoders without and with a CLS token
PATCHES = frozenset({"received_attention", "received_attention@*", "keys", "keys@*"})
CLS = PATCHES | {"cls_attention", "cls_attention@*", "cls_logits", "cls_logits@*"}
PIXELS = {"image": ("pixel_values", "pixel_values_images"), "video": ("pixel_values_videos",)}


@dataclass
class Layout:
    """What each placeholder row of one modality is.

    Attributes:
        lengths: rows of each item (image, tile group or video), in order.
        position: int32 [R, 3], (t, h, w); t counts on over the items.
        structural: bool [R], rows that are no visual content (newlines, a kept CLS token).
        line: int64 [R], rows of one line share a number; a structural row stays as long as its line has a token.
        time: float32 [R], seconds from the clip's start, nan where unknown.
        seconds: length of each item in seconds, nan where unknown.
        run: int32 [R], time steps that a row's token stands for, 0 where a gate left none; None without a gate.
    """

    lengths: list[int]
    position: Tensor
    structural: Tensor
    line: Tensor
    time: Tensor
    seconds: list[float]
    run: Tensor | None = None

    @classmethod
    def of_grids(cls, grids: list[tuple[int, int, int]], seconds_per_step: list[float] | None = None) -> Layout:
        """Items that are plain (t, h, w) grids in raster order."""
        per_step = seconds_per_step or [math.nan] * len(grids)
        parts, times, start = [], [], 0
        for (t, h, w), step in zip(grids, per_step, strict=True):
            cell = torch.cartesian_prod(torch.arange(t), torch.arange(h), torch.arange(w)).view(-1, 3)
            times.append(cell[:, 0] * step)
            parts.append(cell + torch.tensor([start, 0, 0]))
            start += t
        position = torch.cat(parts) if parts else torch.zeros(0, 3, dtype=torch.long)
        rows = len(position)
        return cls(
            [t * h * w for t, h, w in grids],
            position.to(torch.int32),
            torch.zeros(rows, dtype=torch.bool),
            torch.full((rows,), -1),
            torch.cat(times).float() if times else torch.zeros(0),
            [t * step for (t, _, _), step in zip(grids, per_step, strict=True)],
        )

    def timed(self, seconds_per_step: float) -> None:
        """Fill in the times of items whose length is unknown."""
        start = 0
        for i, n in enumerate(self.lengths):
            if n and math.isnan(self.seconds[i]):
                t = self.position[start : start + n, 0].float()
                t = t - t.min()
                self.time[start : start + n] = t * seconds_per_step
                self.seconds[i] = (float(t.max()) + 1) * seconds_per_step
            start += n


@dataclass
class Clip:
    """One video after the gate: the pixels of its kept cells and what the gate decided.

    Attributes:
        rows: pixel rows of the kept patches, in the layout of the family's encoder.
        grid: how the family cuts frames into cells.
        gate: which cells are kept, [T, h, w].
        pts: float64 [frames], seconds of every sampled frame.
        seconds: length of the clip, nan where unknown.
        crop: whether the grid covers the centre of the frame only, for overlays.
        signals: what pathways tell of every cell, [T, h, w, ...] by name.
    """

    rows: Tensor
    grid: Grid
    gate: GateMap
    pts: np.ndarray
    seconds: float
    crop: bool = False
    signals: dict[str, np.ndarray] = field(default_factory=dict)

    @property
    def times(self) -> np.ndarray:
        """float64 [T], seconds of the first frame of every time step."""
        return self.pts[:: self.grid.frames]


@dataclass(frozen=True)
class Picture:
    """One image in a prompt: the ids that a chat template writes for it, and those that take their place."""

    marks: list[int]
    ids: list[int]


@dataclass(frozen=True)
class Pictures:
    """Images of a prompt, and what the model needs of them: pixels and grids."""

    items: list[Picture]
    inputs: dict[str, Any]


@dataclass
class Features:
    """Visual rows of one modality after the encoder.

    Attributes:
        x: [K, D] rows that exist after encoding.
        index: int64 [K], the placeholder row of each.
        layout: what every placeholder row is.
        size: float32 [K], source cells each row stands for.
        signals: row-aligned tensors [K, ...].
        encoded: language-model tokens whose patches went through the encoder.
        output: the family's own output object, whose rows are replaced.
    """

    x: Tensor
    index: Tensor
    layout: Layout
    size: Tensor
    signals: dict[str, Tensor] = field(default_factory=dict)
    encoded: int = 0
    output: Any = None


@dataclass(frozen=True)
class Family:
    """A model family by its ``config.model_type``.

    Attributes:
        name: the model type.
        title: its usual name.
        gives: signals its encoder can give (see ``Method.needs``); ``keys@*`` stands for those of every layer.
        sparse: modalities whose encoder can run on the kept patches only.
        thins: modalities in whose encoder tokens can leave on the way.
        tensor: modalities whose feature container is one tensor instead of a list.
        drops: keyword arguments that describe pixels and must not reach the model after encoding.
        clip_modality: what a gated clip stands in for: "video", or "image" where frames go in as images.
        no_beams: modalities with which the stock model itself cannot beam search.
        prefix: whether text of the prompt attends to what follows it (a prefix language model).
    """

    name: str
    title: str
    gives: frozenset[str] = frozenset()
    sparse: frozenset[str] = frozenset()
    thins: frozenset[str] = frozenset()
    tensor: frozenset[str] = frozenset()
    drops: tuple[str, ...] = ()
    clip_modality: str = "video"
    no_beams: frozenset[str] = frozenset()
    prefix: bool = False

    def encode(self, model: Any, modality: str, inputs: dict[str, Any], wants: frozenset[str]) -> Features:
        """Run the stock encoder and name its rows."""
        out = self.features(model, modality, inputs)
        rows = self.rows(out.pooler_output)
        layout = self.layout(model, modality, inputs, self.lengths(out.pooler_output))
        n = len(rows)
        if n != len(layout.position):
            raise InputError(
                f"{self.title}: {n} {modality} features, {len(layout.position)} rows expected from the grid"
            )
        return Features(rows, torch.arange(n), layout, torch.ones(n), {}, int((~layout.structural).sum()), out)

    def offered(self, wants: frozenset[str]) -> frozenset[str]:
        """The wanted signals that its encoder can give."""
        return frozenset(name for name in wants if has(self.gives, name) and not name.endswith("@*"))

    def available(self, tower: Any, wants: frozenset[str]) -> frozenset[str]:
        """The wanted signals that this very tower can give: by its layers, and by its CLS token."""
        embeddings = getattr(getattr(tower, "vision_model", tower), "embeddings", None)
        wants = within(self.offered(wants), len(attentions_of(tower)))
        if hasattr(embeddings, "class_embedding") or hasattr(embeddings, "cls_token"):
            return wants
        return frozenset(name for name in wants if not name.startswith("cls_"))

    def features(self, model: Any, modality: str, inputs: dict[str, Any]) -> Any:
        """The stock ``get_image_features`` or ``get_video_features`` on the arguments that it takes."""
        function = getattr(model.base_model, f"get_{modality}_features")
        accepted = inspect.signature(function).parameters
        call = {k: v for k, v in inputs.items() if k in accepted and v is not None}
        return function(**call, return_dict=True)

    def rows(self, pooled: Any) -> Tensor:
        """All feature rows [R, D] of a list or tensor container."""
        return pooled.flatten(0, -2) if isinstance(pooled, Tensor) else torch.cat([p.flatten(0, -2) for p in pooled])

    def lengths(self, pooled: Any) -> list[int]:
        """Rows of each item."""
        return [p.shape[:-1].numel() for p in pooled]

    def layout(self, model: Any, modality: str, inputs: dict[str, Any], lengths: list[int]) -> Layout:
        """Square grids where the count is a square, else one line; families with more structure override this."""
        return Layout.of_grids([square(n) for n in lengths])

    def items(
        self, modality: str, layout: Layout, sample: Tensor, column: Tensor, clips: list[Clip] | None
    ) -> list[int]:
        """Placeholder rows of each image or video, in order; no method mixes two of them.

        Args:
            sample, column: int64 [R], place of every placeholder row.
            clips: what the rows show, where vtoken made clips of them: then a clip is an item.
        """
        if clips is None or modality != self.clip_modality:
            return layout.lengths
        steps = [len(c.gate.keep) for c in clips]
        ends = [0]
        for n in steps:  # lengths of frames join to those of their clip
            ends.append(ends[-1] + n)
        if len(layout.lengths) == len(clips):
            return layout.lengths
        return [sum(layout.lengths[a:b]) for a, b in zip(ends, ends[1:], strict=False)]

    def placeholders(self, model: Any, modality: str, input_ids: Tensor, inputs: dict[str, Any]) -> Tensor:
        """bool [B, N], where the rows of a modality go."""
        token = getattr(model.config, f"{modality}_token_id", None)
        if token is None:
            token = getattr(model.config, f"{modality}_token_index")
        return input_ids == token

    def pack(self, modality: str, features: Features, parts: list[Tensor]) -> Any:
        """The family's output object holding the kept rows, one entry a sample (samples without rows left out)."""
        from transformers.modeling_outputs import BaseModelOutputWithPooling

        present: Any = [p for p in parts if len(p)] or parts[:1]
        if modality not in self.tensor:
            return BaseModelOutputWithPooling(pooler_output=present)
        equal = len({len(p) for p in present}) == 1
        return BaseModelOutputWithPooling(pooler_output=torch.stack(present) if equal else torch.cat(present)[None])

    def preprocess(self, model: Any, given: Any = None) -> Any:
        """How frames become pixels for this model: ``given``, or the preset of the family, with the model's patches."""
        raise UnsupportedError(f"vtoken has no preprocessing for {self.title}; use what its own processor makes")

    def told(
        self, model: Any, modality: str, inputs: dict[str, Any], clips: list[Clip], features: Features
    ) -> dict[str, Tensor]:
        """What pathways tell of every row, where the stock encoder ran."""
        names = sorted(clips[0].signals) if clips else []
        cells = {n: torch.cat([torch.from_numpy(c.signals[n]).flatten(0, 2) for c in clips]) for n in names}
        return {n: v.to(features.x.device) for n, v in cells.items()}

    def clips(
        self,
        model: Any,
        inputs: dict[str, Any],
        gate: Any,
        fps: float | None,
        given: Any,
        pathways: Sequence[Any] = (),
    ) -> list[Clip]:
        """Gate the video that an ordinary processor made; only families with a sparse encoder can.

        Args:
            gate: None keeps every cell.
            pathways: that look at all frames; what they tell is in ``Clip.signals``.
            fps: sampling rate where the inputs do not tell it.
            given: the ``Preprocessor`` of the processor in use, or None for the family's preset.
        """
        raise UnsupportedError(f"{self.title} cannot skip patches before its encoder; 'evs' drops after it")

    def prompt(self, model: Any, tokenizer: Any, clip: Clip) -> tuple[list[int], list[int], dict[str, Any]]:
        """How a clip enters a prompt.

        Returns:
            ids that a chat template writes for one video, ids that take their place (one placeholder a row of the
            language model, nothing dropped yet), and further arguments of ``generate``.
        """
        raise UnsupportedError(f"vtoken does not know how {self.title} writes a video into its prompt")

    def images(self, model: Any, processor: Any, pictures: list[Any]) -> Pictures | None:
        """Images that are shown beside a clip; None for none.

        Args:
            pictures: PIL images in RGB.
        """
        if not pictures:
            return None
        raise UnsupportedError(
            f"vtoken.ask does not know how {self.title} takes images beside a video; call model.generate with what its "
            "own processor makes"
        )

    def frames_per_step(self, model: Any) -> int:
        """Frames in a time step of a video."""
        return 1

    def whole(self, model: Any, modality: str, inputs: dict[str, Any], fps: float | None) -> list[Clip]:
        """The images or videos that an ordinary processor made, as clips with every cell kept.

        Args:
            fps: sampling rate of videos where the inputs do not tell it.
        """
        raise UnsupportedError(
            f"tokens cannot leave inside the encoder of {self.title}; 'divprune' drops them after it"
        )

    def encode_clips(
        self, model: Any, clips: list[Clip], wants: frozenset[str], thin: Thinning | None = None, reuse: bool = False
    ) -> Features:
        """Run the encoder on the kept patches alone, with ``thin`` on fewer and fewer of them.

        Args:
            reuse: run it on all patches, of which the skipped take the embeddings of the last kept ones in their
                place (``Gate.apply``); not with ``thin``.
        """
        raise UnsupportedError(f"{self.title} cannot skip patches before its encoder; 'evs' drops after it")


def has_pixels(inputs: dict[str, Any], modality: str) -> bool:
    """Whether the inputs hold pixels of a modality."""
    return any(inputs.get(name) is not None for name in PIXELS[modality])


def square(n: int) -> tuple[int, int, int]:
    side = math.isqrt(n)
    return (1, side, side) if side * side == n else (1, 1, n)
