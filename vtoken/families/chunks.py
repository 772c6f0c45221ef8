"""Encoding a clip in chunks of time steps: memory of the encoder is bounded by a chunk, however long the clip is.

Attention of the encoders never leaves a time step, so the chunks give what one run gives, up to the rounding of sums.
With hold a step reads keys of earlier ones: ``Carry`` hands them on, as it does in a stream.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields, replace

import numpy as np
import torch
from torch import Tensor

from vtoken.data.frames import GateMap
from vtoken.data.report import Report
from vtoken.encoders import Encoded
from vtoken.encoders.carry import Carry
from vtoken.encoders.dense import last_kept
from vtoken.families.features import Clip
from vtoken.output.heap import give_back

PATCHES = 1 << 13  # kept patches that the encoder takes at once
BLOCK = 48 << 20  # bytes; memory of more than 32 MiB goes back to the system when it is freed
KEYS = 64  # with hold a step reads the keys of its whole frame; so many weigh as much as one patch

Run = Callable[[Sequence[Clip], Carry | None], Encoded]


def encode_in_chunks(run: Run, clips: Sequence[Clip], hold: bool, signals: bool) -> Encoded:
    """What ``run`` gives of all clips at once, from as many runs as keep each below ``PATCHES``.

    Clips that are small enough together stay together. A clip whose cells return to contents older than the last one
    (recall), or whose signals are wanted with hold, is not cut.

    Args:
        run: encodes clips, or one chunk of a clip behind what earlier chunks carried.
        hold: skipped cells are held.
        signals: attention or keys of the encoder are wanted.
    """
    weights = [0 if c.encoded else int(_weights(c, hold).sum()) for c in clips]
    if sum(weights) <= PATCHES and not any(c.encoded for c in clips):
        return run(clips, None)
    parts = []
    for clip, weight in zip(clips, weights, strict=True):
        if clip.encoded is not None:
            parts.append(clip.encoded)
            continue
        whole = weight <= PATCHES or (hold and (signals or not _last_seen(clip.gate)))
        carry = Carry() if hold and not whole else None
        for chunk in (clip,) if whole else cut(clip, PATCHES, hold):
            parts.append(run([chunk], carry))
    return join_encoded(parts)


class Early:
    """Encodes a clip while it is read, in the chunks of ``encode_in_chunks``; pixels that were encoded are freed.

    Args:
        run: as in ``encode_in_chunks``.
        hold: skipped cells are held.
        device: where it runs, for timing.
    """

    def __init__(self, run: Run, hold: bool, device: torch.device) -> None:
        self._run, self._hold, self._device = run, hold, device
        self._carry = Carry() if hold else None
        self._waiting: list[Clip] = []
        self._weight = self._first = 0
        self._x, self._signals = _Rows(), dict[str, _Rows]()

    @torch.no_grad()
    def push(self, part: Clip, report: Report) -> None:
        """Take the next time steps and encode what fills a chunk, timed in the report.

        Args:
            part: references of its gate count from the clip's first step, and none is older than what its place showed
                when it was last kept.
        """
        own = np.maximum(part.gate.reference - self._first, -1).astype(part.gate.reference.dtype)
        self._waiting.append(replace(part, gate=replace(part.gate, reference=own)))
        self._weight += int(_weights(part, self._hold).sum())
        if self._weight > PATCHES:
            *full, rest = cut(_joined(self._waiting), PATCHES, self._hold)
            self._waiting, self._weight = [rest], int(_weights(rest, self._hold).sum())
            for chunk in full:
                self._first += len(chunk.gate.keep)
                self._encode(chunk, report)

    @torch.no_grad()
    def finish(self, report: Report) -> tuple[Tensor, Encoded | None]:
        """The pixel rows that are left, and what was encoded: all or nothing, as a short clip is one chunk."""
        rest = _joined(self._waiting)
        if not self._first:
            return rest.rows, None
        self._waiting = []
        self._encode(rest, report)
        signals = {name: parts.drained() for name, parts in self._signals.items()}
        out = Encoded(self._x.drained(), signals)
        give_back()
        return rest.rows[:0].clone(), out

    def _encode(self, chunk: Clip, report: Report) -> None:
        with report.stage("encode", self._device):
            out = self._run([chunk], self._carry)
        self._x.add(out.x)
        for name, value in out.signals.items():
            self._signals.setdefault(name, _Rows()).add(value)


def join_encoded(parts: Sequence[Encoded]) -> Encoded:
    """Consecutive chunks, or clips, as one."""
    if len(parts) == 1:
        return parts[0]
    names = parts[0].signals
    return Encoded(
        torch.cat([p.x for p in parts]), {name: torch.cat([p.signals[name] for p in parts]) for name in names}
    )


class _Rows:
    """Rows that come in parts. They wait in blocks, whose memory the system gets back when they are joined."""

    def __init__(self) -> None:
        self._blocks: list[Tensor] = []
        self._parts: list[Tensor] = []

    def add(self, part: Tensor) -> None:
        self._parts.append(part)
        if sum(p.nbytes for p in self._parts) > BLOCK:
            self._close()

    def _close(self) -> None:
        self._blocks.append(torch.cat(self._parts))
        self._parts.clear()

    def drained(self) -> Tensor:
        """All rows; each block is freed as soon as it was copied."""
        if self._parts:
            self._close()
        out = self._blocks[0].new_empty(sum(map(len, self._blocks)), *self._blocks[0].shape[1:])
        start = 0
        while self._blocks:
            block = self._blocks.pop(0)
            out[start : start + len(block)] = block
            start += len(block)
            del block
        return out


def _joined(parts: Sequence[Clip]) -> Clip:
    """Neighbouring parts as one; only rows and gate."""
    gate = GateMap.concatenate([p.gate for p in parts])
    return replace(parts[0], rows=torch.cat([p.rows for p in parts]), gate=gate)


def _weights(clip: Clip, hold: bool) -> np.ndarray:
    """int64 [T], how much of a chunk each time step takes, in patches."""
    kept = clip.gate.keep.reshape(len(clip.gate.keep), -1).sum(1)
    patches = len(clip.rows) // max(1, int(kept.sum()))  # of a cell
    return kept * patches + (kept > 0) * (clip.grid.cells * patches // KEYS if hold else 0)


def cut(clip: Clip, most: int, hold: bool = False) -> Iterator[Clip]:
    """Consecutive time steps of a clip, whose kept cells have at most so many rows together; a step is never cut.

    With hold what they read counts too. References of a chunk count from its first step; -1 is anything before it.
    """
    rows, weights = _weights(clip, False), _weights(clip, hold)
    first = 0
    while first < len(rows):
        behind = np.cumsum(weights[first:])
        last = first + max(1, int(np.searchsorted(behind, most, side="right")))
        begin, end = int(rows[:first].sum()), int(rows[:last].sum())
        gate = GateMap(*(getattr(clip.gate, f.name)[first:last] for f in fields(GateMap)))
        reference = np.maximum(gate.reference - first, -1).astype(gate.reference.dtype)
        yield replace(clip, rows=clip.rows[begin:end], gate=replace(gate, reference=reference))
        first = last


def _last_seen(gate: GateMap) -> bool:
    """Whether every cell repeats what its place showed when it was last kept."""
    return bool((gate.reference == last_kept(gate.keep)).all())
