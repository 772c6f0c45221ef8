"""Tokens: a ragged batch of visual tokens whose features, positions and signals always move together."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from vtoken.errors import InputError
from vtoken.kernels.merge import Merge


@dataclass
class Tokens:
    """A packed, ragged batch of visual tokens with everything that belongs to each.

    Attributes:
        x: [N, D] features.
        position: int32 [N, 3], (t, h, w) in the grid of the language model's tokens.
        time: float32 [N], seconds.
        size: float32 [N], how many source cells the token represents.
        source: int64 [C], for every source cell the row of the token that represents it, -1 if dropped.
        batch: int64 [B + 1], offsets of the samples in the rows.
        signals: row-aligned tensors [N, ...], such as ``cls_attention`` or ``deepstack.0``.

    Raises:
        InputError: tensors of different length, or offsets that do not rise from 0 to N.
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
        if self.position.shape != (n, 3):
            raise InputError(f"Tokens.position must be [{n}, 3], got {list(self.position.shape)}")
        ends = self.ends
        if not ends or ends[0] != 0 or ends[-1] != n or any(b < a for a, b in zip(ends, ends[1:], strict=False)):
            raise InputError(f"Tokens.batch must rise from 0 to {n}, got {ends}")

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
            torch.zeros(n, device=device, dtype=torch.float32) if time is None else time,
            torch.ones(n, device=device, dtype=torch.float32),
            torch.arange(n, device=device),
            torch.tensor([0, n], device=device),
            signals,
        )

    def __len__(self) -> int:
        return len(self.x)

    @property
    def ends(self) -> list[int]:
        """The offsets of ``batch`` as numbers, read from the device once."""
        known = self.__dict__.get("_ends")
        if known is None or known[0] is not self.batch:
            known = self.__dict__["_ends"] = (self.batch, self.batch.tolist())
        return known[1]

    @property
    def samples(self) -> int:
        return len(self.batch) - 1

    @property
    def sample_of(self) -> Tensor:
        """int64 [N], the sample of each row."""
        numbers = torch.arange(self.samples, device=self.batch.device)
        return torch.repeat_interleave(numbers, self.batch.diff(), output_size=len(self))

    def sample(self, b: int) -> Tokens:
        """The tokens of one sample, as a batch of one that shares memory; source cells keep their numbers."""
        start, stop = self.ends[b : b + 2]
        inside = (self.source >= start) & (self.source < stop)
        return _unchecked(
            [0, stop - start],
            self.x[start:stop],
            self.position[start:stop],
            self.time[start:stop],
            self.size[start:stop],
            torch.where(inside, self.source - start, -1),
            torch.tensor([0, stop - start], device=self.batch.device),
            {name: value[start:stop] for name, value in self.signals.items()},
        )

    def part(self, index: Tensor) -> Tokens:
        """``take`` of rows that are known to be different rows of the only sample; no device is waited for."""
        ends = [0, len(index)]
        return self._rows(index, torch.tensor(ends, device=self.batch.device), ends)

    def on_cpu(self, signals: Collection[str] = ()) -> Tokens:
        """A copy on the CPU without features and source cells, and with some signals; itself where it is there."""
        if self.x.device.type == "cpu":
            return self
        return _unchecked(
            self.ends,
            torch.empty(len(self), 0),
            self.position.cpu(),
            self.time.cpu(),
            self.size.cpu(),
            torch.arange(0),
            torch.tensor(self.ends),
            {name: value.cpu() for name, value in self.signals.items() if name in signals},
        )

    def take(self, index: Tensor) -> Tokens:
        """Keep the rows of ``index`` (int64 [k], samples in order) and drop the others, signals included.

        Raises:
            InputError: the index is no list of different rows, or mixes samples.
        """
        if index.dtype not in (torch.int64, torch.int32) or index.dim() != 1:
            raise InputError(f"take: index must be int64 [k], got {index.dtype} {list(index.shape)}")
        n = len(self)
        inside = index.clamp(0, max(n - 1, 0))
        owner = self.sample_of[inside] if n else inside
        times = torch.zeros(n, dtype=torch.long, device=index.device).index_add_(0, inside, torch.ones_like(inside))
        wrong = [(inside != index).any(), (times > 1).any(), (owner.diff() < 0).any()]
        outside, twice, mixed = torch.stack(wrong).tolist() if n else [len(index) > 0, False, False]
        if outside:
            raise InputError(f"take: index outside 0..{n - 1}")
        if twice:
            raise InputError("take: a row is taken twice; one token cannot have two places")
        if mixed:
            raise InputError("take: rows of one sample must stay together, samples in their order")
        return self._rows(index, _offsets(owner, self.samples))

    def merge(self, group: Tensor, weight: Tensor | None = None) -> Tokens:
        """Fuse rows with the same number in ``group`` (int64 [N], -1 drops the row).

        Numbers run from 0 without gaps, and samples keep their order. Features and floating signals become the
        size-weighted mean, summed in float32; position, time and integer signals come from the heaviest member (the
        first among equals); sizes add up. A token that stays alone keeps its features bit for bit.

        Args:
            group: see above.
            weight: float32 [N], how much of each row goes into the fused features (``x`` and ``deepstack.*``); the
                member of the largest weight is then the heaviest. By default its share of the group's size.

        Raises:
            InputError: a number is missing, joins two samples or breaks their order, a size is not above 0, or the
                weights have another shape.
        """
        if weight is not None and weight.shape != group.shape:
            raise InputError(f"merge: weight must be {list(group.shape)}, got {list(weight.shape)}")
        if group.dtype != torch.int64 or group.shape != (len(self),):
            raise InputError(f"merge: group must be int64 [{len(self)}], got {group.dtype} {list(group.shape)}")
        count = int(group.max()) + 1 if group.numel() else 0
        members = (group >= 0).nonzero().squeeze(1)
        target, sample = group[members], self.sample_of[members]
        owner = torch.full((count,), -1, dtype=torch.long, device=group.device)
        owner[target] = sample
        joined = (owner < 0).any() | (owner[target] != sample).any()
        wrong = torch.stack([joined, (owner.diff() < 0).any(), (self.size[members] <= 0).any()]).tolist()
        if wrong[0]:
            raise InputError("merge: group numbers must be 0..K-1 and must not join two samples")
        if wrong[1]:
            raise InputError("merge: group numbers must rise with the samples")
        if wrong[2]:
            raise InputError("merge: every size must be above 0")
        fold = Merge(group, self.size.float(), ordered=True, weight=None if weight is None else weight.float())
        features = [n for n in self.signals if weight is None or n.startswith("deepstack.")]
        others = [n for n in self.signals if n not in features]
        stacks, rest = [self.signals[n] for n in features], [self.signals[n] for n in others]
        if weight is None:  # one share for everything, so all at once
            x, position, time, *merged = fold.all([self.x, self.position, self.time, *stacks], gather=(1, 2))
        else:
            x, *merged = fold.all([self.x, *stacks], by_weight=True)
            position, time, *rest = fold.all([self.position, self.time, *rest], gather=(0, 1))
            merged += rest
        done = dict(zip(features + others, merged, strict=True))
        moved = torch.cat([group, group.new_full((1,), -1)])[self.source]  # source -1 reads the last slot
        signals = {n: done[n] for n in self.signals}
        return Tokens(x, position, time, fold.size.to(self.size.dtype), moved, _offsets(owner, self.samples), signals)

    def _rows(self, index: Tensor, batch: Tensor, ends: list[int] | None = None) -> Tokens:
        inverse = torch.full((len(self) + 1,), -1, dtype=torch.long, device=self.x.device)
        inverse[index] = torch.arange(len(index), device=self.x.device)
        signals = {name: value[index] for name, value in self.signals.items()}
        return _unchecked(
            ends or batch.tolist(),
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


def _unchecked(ends: list[int], *fields: Any) -> Tokens:
    """Tokens that need no check, because they are rows of checked ones."""
    made = object.__new__(Tokens)
    made.__dict__.update(zip(Tokens.__dataclass_fields__, fields, strict=True))
    made.__dict__["_ends"] = made.batch, ends
    return made


def _offsets(owner: Tensor, samples: int) -> Tensor:
    count = torch.zeros(samples, dtype=torch.long, device=owner.device).index_add_(0, owner, torch.ones_like(owner))
    return torch.cat([count.new_zeros(1), count.cumsum(0)])
