"""Encoding a clip in chunks of time steps: memory of the encoder is bounded by a chunk, however long the clip is.

Attention of the encoders never leaves a time step, so the chunks give what one run gives, up to the rounding of sums.
With hold a step reads keys of earlier ones: ``Carry`` hands them on, as it does in a stream.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields, replace

import numpy as np
import torch

from vtoken.data.frames import GateMap
from vtoken.encoders import Encoded
from vtoken.encoders.carry import Carry
from vtoken.encoders.dense import last_kept
from vtoken.families.features import Clip

PATCHES = 1 << 14  # kept patches that the encoder takes at once

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
    if sum(len(c.rows) for c in clips) <= PATCHES:
        return run(clips, None)
    parts = []
    for clip in clips:
        whole = len(clip.rows) <= PATCHES or (hold and (signals or not _last_seen(clip.gate)))
        carry = Carry() if hold and not whole else None
        for chunk in (clip,) if whole else cut(clip, PATCHES):
            parts.append(run([chunk], carry))
    names = parts[0].signals
    return Encoded(
        torch.cat([p.x for p in parts]), {name: torch.cat([p.signals[name] for p in parts]) for name in names}
    )


def cut(clip: Clip, most: int) -> Iterator[Clip]:
    """Consecutive time steps of a clip, whose kept cells have at most so many rows together; a step is never cut.

    References of a chunk count from its first step; -1 is anything before it.
    """
    kept = clip.gate.keep.reshape(len(clip.gate.keep), -1).sum(1)
    rows = kept * (len(clip.rows) // max(1, int(kept.sum())))
    first = 0
    while first < len(rows):
        behind = np.cumsum(rows[first:])
        last = first + max(1, int(np.searchsorted(behind, most, side="right")))
        begin, end = int(rows[:first].sum()), int(rows[:last].sum())
        gate = GateMap(*(getattr(clip.gate, f.name)[first:last] for f in fields(GateMap)))
        reference = np.maximum(gate.reference - first, -1).astype(gate.reference.dtype)
        yield replace(clip, rows=clip.rows[begin:end], gate=replace(gate, reference=reference))
        first = last


def _last_seen(gate: GateMap) -> bool:
    """Whether every cell repeats what its place showed when it was last kept."""
    return bool((gate.reference == last_kept(gate.keep)).all())
