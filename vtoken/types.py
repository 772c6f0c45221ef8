"""The data that flows through vtoken: Frames -> GateMap -> Tokens, cut to a Budget and told by a Report."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from vtoken.errors import InputError


@dataclass(frozen=True)
class Grid:
    """How a model family cuts a video into cells: one cell is one token of the language model.

    Attributes:
        height, width: frame size in pixels after resizing.
        cell: side of a cell in pixels (14 for CLIP/14, 28 for Qwen2.5-VL, 32 for Qwen3-VL).
        frames: frames in one time step (2 for Qwen-VL, else 1).
    """

    height: int
    width: int
    cell: int
    frames: int = 1

    @property
    def rows(self) -> int:
        return self.height // self.cell

    @property
    def columns(self) -> int:
        return self.width // self.cell

    @property
    def cells(self) -> int:
        return self.rows * self.columns

    def steps(self, frames: int) -> int:
        """Time steps of a clip; the last one is filled by repeating the last frame."""
        return -(-frames // self.frames)


class Frames:
    """Consecutive frames of a clip with their presentation times.

    Attributes:
        pts: float64 [T], seconds.
        luma: uint8 [T, H, W], the Y plane of the decoder where it gives one.
        pixels: uint8 [T, H, W, 3] RGB, converted when first asked for.
        source: file name or description, for messages.
    """

    def __init__(
        self,
        pixels: np.ndarray | None,
        pts: np.ndarray,
        source: str = "array",
        *,
        luma: np.ndarray | None = None,
        convert: Callable[[int], np.ndarray] | None = None,
    ) -> None:
        if pixels is None and (luma is None or convert is None):
            raise InputError("Frames needs pixels, or luma with a convert function")
        self._pixels, self._luma, self._convert = pixels, luma, convert
        self.pts = np.asarray(pts, dtype=np.float64)
        self.source = source

    def __len__(self) -> int:
        return len(self.pts)

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        shape = (self._pixels if self._pixels is not None else self._luma).shape  # type: ignore[union-attr]
        return shape[1], shape[2]

    @property
    def pixels(self) -> np.ndarray:
        if self._pixels is None:
            self._pixels = np.stack([self._convert(i) for i in range(len(self))])  # type: ignore[misc]
        return self._pixels

    @property
    def luma(self) -> np.ndarray:
        if self._luma is None:
            # BT.601, as the gate's thresholds were set on decoder luma
            weights = np.array([0.299, 0.587, 0.114], dtype=np.float32)
            self._luma = np.rint(self.pixels @ weights).astype(np.uint8)
        return self._luma

    def rgb(self, index: int) -> np.ndarray:
        """One frame as uint8 [H, W, 3]; converts that frame alone."""
        return self._convert(index) if self._pixels is None else self._pixels[index]  # type: ignore[misc]


@dataclass
class GateMap:
    """Which cells of a clip are new, and which earlier cell each other one repeats.

    Attributes:
        keep: bool [T, h, w], cells that are encoded and sent.
        reference: int32 [T, h, w], the time step whose cell this one repeats (its own where kept).
        scene: int32 [T], number of the scene of each step.
        score: float32 [T, h, w], change against the reference; inf where the whole step is refreshed.
        forced: bool [T, h, w], cells kept whatever the score says (time anchors, forced refresh).
    """

    keep: np.ndarray
    reference: np.ndarray
    scene: np.ndarray
    score: np.ndarray
    forced: np.ndarray

    @property
    def kept(self) -> float:
        """Share of the cells that are kept."""
        return float(self.keep.mean()) if self.keep.size else 0.0

    @classmethod
    def full(cls, steps: int, rows: int, columns: int) -> GateMap:
        """The map of no gate at all: every cell kept."""
        shape = (steps, rows, columns)
        reference = np.broadcast_to(np.arange(steps, dtype=np.int32)[:, None, None], shape).copy()
        return cls(
            np.ones(shape, bool),
            reference,
            np.zeros(steps, np.int32),
            np.full(shape, np.inf, np.float32),
            np.zeros(shape, bool),
        )

    @classmethod
    def concatenate(cls, parts: Sequence[GateMap]) -> GateMap:
        """Join the maps of consecutive chunks; references and scenes already count from the clip's start."""
        names = ("keep", "reference", "scene", "score", "forced")
        return cls(*(np.concatenate([getattr(p, n) for p in parts]) for n in names))

    def runs(self) -> np.ndarray:
        """int32 [T, h, w]: for a kept cell, how many time steps it stands for; 0 for a skipped one."""
        steps, h, w = self.keep.shape
        count = np.zeros((steps, h, w), np.int32)
        place = np.broadcast_to(np.arange(h * w).reshape(h, w), self.keep.shape)
        np.add.at(count.reshape(steps, h * w), (self.reference.ravel(), place.ravel()), 1)
        return count


@dataclass
class Tokens:
    """A packed, ragged batch of visual tokens with everything that belongs to each.

    Attributes:
        x: [N, D] features.
        position: int32 [N, 3], (t, h, w) in the grid of the language model's tokens.
        time: float32 [N], seconds.
        size: float32 [N], how many source cells the token stands for.
        source: int64 [C], for every source cell the row of the token that stands for it, -1 if dropped.
        batch: int64 [B + 1], offsets of the samples in the rows.
        signals: row-aligned tensors [N, ...], such as ``cls_attention`` or ``deepstack.0``.
    """

    x: Tensor
    position: Tensor
    time: Tensor
    size: Tensor
    source: Tensor
    batch: Tensor
    signals: dict[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        n = len(self.x)
        rows = {"position": self.position, "time": self.time, "size": self.size}
        for name, value in (rows | self.signals).items():
            if len(value) != n:
                raise InputError(f"Tokens.{name} has {len(value)} rows, features have {n}")
        if int(self.batch[0]) != 0 or int(self.batch[-1]) != n:
            raise InputError(f"Tokens.batch must run from 0 to {n}, got {self.batch.tolist()}")

    @classmethod
    def of(cls, x: Tensor, position: Tensor | None = None, time: Tensor | None = None, **signals: Tensor) -> Tokens:
        """One sample's tokens from its features [N, D]; positions default to a single row (0, 0, i)."""
        n, device = len(x), x.device
        if position is None:
            position = torch.zeros(n, 3, dtype=torch.int32, device=device)
            position[:, 2] = torch.arange(n, device=device)
        return cls(
            x,
            position.to(torch.int32),
            torch.zeros(n, device=device) if time is None else time,
            torch.ones(n, device=device),
            torch.arange(n, device=device),
            torch.tensor([0, n], device=device),
            signals,
        )

    def __len__(self) -> int:
        return len(self.x)

    @property
    def samples(self) -> int:
        return len(self.batch) - 1

    @property
    def sample_of(self) -> Tensor:
        """int64 [N], the sample of each row."""
        return torch.repeat_interleave(torch.arange(self.samples, device=self.batch.device), self.batch.diff())

    def sample(self, b: int) -> Tokens:
        """The tokens of one sample, as a batch of one; source cells keep their numbers."""
        start, stop = int(self.batch[b]), int(self.batch[b + 1])
        rows = torch.arange(start, stop, device=self.x.device)
        part = self._rows(rows, torch.tensor([0, stop - start], device=self.batch.device))
        return part

    def take(self, index: Tensor) -> Tokens:
        """Keep the rows of ``index`` (int64 [k], samples in order) and drop the others, signals included."""
        if index.numel() and (int(index.min()) < 0 or int(index.max()) >= len(self)):
            raise InputError(f"take: index outside 0..{len(self) - 1}")
        owner = self.sample_of[index]
        if bool((owner.diff() < 0).any()):
            raise InputError("take: rows of one sample must stay together, samples in their order")
        return self._rows(index, _offsets(owner, self.samples))

    def merge(self, group: Tensor) -> Tokens:
        """Fuse rows with the same number in ``group`` (int64 [N], -1 drops the row).

        Numbers run from 0 without gaps, and samples keep their order. Features and floating signals become the
        size-weighted mean; position, time and integer signals come from the heaviest member (the first among
        equals); sizes add up.
        """
        kept = group >= 0
        count = int(group.max()) + 1 if group.numel() else 0
        target, members = group[kept], kept.nonzero().squeeze(1)
        owner = torch.full((count,), -1, dtype=torch.long, device=group.device)
        owner[target] = self.sample_of[members]
        if bool((owner < 0).any()) or bool((owner[target] != self.sample_of[members]).any()):
            raise InputError("merge: group numbers must be 0..K-1 and must not join two samples")
        weight = self.size[members].float()
        total = weight.new_zeros(count).index_add_(0, target, weight)
        heaviest = self._heaviest(target, members, weight, count)

        def mean(value: Tensor) -> Tensor:
            if not value.is_floating_point():
                return value[heaviest]
            flat = value[members].float() * weight.view(-1, *[1] * (value.dim() - 1))
            out = flat.new_zeros((count, *value.shape[1:])).index_add(0, target, flat)
            return (out / total.view(-1, *[1] * (value.dim() - 1))).to(value.dtype)

        moved = torch.where(self.source >= 0, group[self.source.clamp(min=0)], self.source)
        return Tokens(
            mean(self.x),
            self.position[heaviest],
            self.time[heaviest],
            total.to(self.size.dtype),
            moved,
            _offsets(owner, self.samples),
            {name: mean(value) for name, value in self.signals.items()},
        )

    @staticmethod
    def _heaviest(target: Tensor, members: Tensor, weight: Tensor, count: int) -> Tensor:
        best = weight.new_full((count,), -math.inf).scatter_reduce(0, target, weight, "amax")
        first = torch.where(weight == best[target], members, members.new_full((), torch.iinfo(torch.long).max))
        start = members.new_full((count,), torch.iinfo(torch.long).max)
        return start.scatter_reduce(0, target, first, "amin")

    def _rows(self, index: Tensor, batch: Tensor) -> Tokens:
        inverse = torch.full((len(self) + 1,), -1, dtype=torch.long, device=self.x.device)
        inverse[index] = torch.arange(len(index), device=self.x.device)
        signals = {name: value[index] for name, value in self.signals.items()}
        return Tokens(
            self.x[index],
            self.position[index],
            self.time[index],
            self.size[index],
            inverse[self.source],  # source -1 reads the last slot, which stays -1
            batch,
            signals,
        )

    def with_signals(self, **signals: Tensor) -> Tokens:
        """A copy with further row-aligned signals."""
        return replace(self, signals=self.signals | signals)


def _offsets(owner: Tensor, samples: int) -> Tensor:
    count = torch.bincount(owner, minlength=samples)
    return torch.cat([count.new_zeros(1), count.cumsum(0)])


@dataclass(frozen=True)
class Budget:
    """How many tokens are kept: exactly one of a share, a count, or a count per second.

    Attributes:
        keep: share of the tokens in (0, 1].
        tokens: tokens in all, at least 1.
        per_second: tokens for each second of video, above 0.
    """

    keep: float | None = None
    tokens: int | None = None
    per_second: float | None = None

    def __post_init__(self) -> None:
        given = {k: v for k, v in vars(self).items() if v is not None}
        if len(given) != 1:
            told = ", ".join(f"{k}={v}" for k, v in given.items()) or "none"
            raise InputError(f"a budget needs exactly one of keep, tokens and per_second; given: {told}")
        name, value = next(iter(given.items()))
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            raise InputError(f"{name}={value!r} is not a finite number")
        if name == "keep" and not 0 < value <= 1:
            raise InputError(f"keep={value} is the share of tokens kept and must be above 0 and at most 1")
        if name == "tokens" and (value != int(value) or value < 1):
            raise InputError(f"tokens={value} must be a whole number of at least 1")
        if name == "per_second" and value <= 0:
            raise InputError(f"per_second={value} must be above 0")

    @classmethod
    def given(cls, keep: float | None, tokens: int | None, per_second: float | None) -> Budget | None:
        """A budget from three optional arguments; None when none is given."""
        if keep is None and tokens is None and per_second is None:
            return None
        return cls(keep, tokens, per_second)

    def resolve(self, n: int, seconds: float) -> int:
        """Tokens to keep of ``n`` in a clip of ``seconds``: rounded half up, at least 1, at most n (0 for n = 0)."""
        if self.keep is not None:
            wanted = math.floor(self.keep * n + 0.5)
        elif self.tokens is not None:
            wanted = int(self.tokens)
        else:
            if not seconds > 0:
                raise InputError(
                    f"per_second={self.per_second} needs the length of the clip, which is unknown here; "
                    "give tokens= or keep=, or pass a video with its times"
                )
            wanted = math.floor(self.per_second * seconds + 0.5)  # type: ignore[operator]
        return min(n, max(1, wanted))

    def __str__(self) -> str:
        return next(f"{k}={v}" for k, v in vars(self).items() if v is not None)
