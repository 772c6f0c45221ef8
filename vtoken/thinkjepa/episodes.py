"""Episodes by split: the synthetic hand set, or a folder in EgoDex's form, on one clock of 8 frames a second."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from vtoken.errors import InputError
from vtoken.thinkjepa.recipe import CLIP, CLIPS, FPS, NOW, PAST, SPLITS, Recipe

SHARES = {"train": 0.8, "validation": 0.1, "test": 0.1}


class Timeline:
    """An episode at ``FPS``: frame i of the clock is the recorded frame nearest to i / FPS seconds.

    Args:
        episode: with ``points`` [T, N, 3], ``fps``, and ``frames`` [T, H, W, 3] or ``drawn(indices)``.
    """

    def __init__(self, episode: Any) -> None:
        self.episode = episode
        self.index = np.array(clock(len(episode.points), float(episode.fps)))

    def frames(self, which: range) -> np.ndarray:
        """uint8 [n, H, W, 3] of some frames of the clock; no others are drawn."""
        chosen = [int(self.index[i]) for i in which]
        return self.episode.drawn(chosen) if hasattr(self.episode, "drawn") else self.episode.frames[chosen]


def clock(frames: int, fps: float) -> list[int]:
    """Recorded frames that the clock shows, as long as the recording lasts."""
    out: list[int] = []
    while (nearest := round(len(out) * fps / FPS)) < frames:
        out.append(nearest)
    return out


def source(recipe: Recipe) -> tuple[dict[str, list[Callable[[], Any]]], int]:
    """Loaders of the episodes of each split, and how many clips of eight frames all of them have.

    Raises:
        InputError: no folder, no episodes, or one that is too short.
    """
    if recipe.data == "hands":
        from vtoken.thinkjepa.hands import episode

        return {s: [partial(episode, i, s) for i in range(recipe.episodes.get(s, 0))] for s in SPLITS}, CLIPS
    from vtoken.thinkjepa.hands import egodex

    episodes = egodex.read(Path(recipe.data))
    clips = CLIPS
    for e in episodes:
        long = len(clock(len(e.points), float(e.fps)))
        if long < NOW + CLIP:
            raise InputError(
                f"{e.group}: an episode of {long / FPS:.1f} s; at least {(NOW + CLIP) / FPS:g} s are needed, "
                f"{PAST / FPS:g} s of long context, then past and future of a second each"
            )
        clips = min(clips, (long - PAST) // CLIP)
    where = split_groups([e.group for e in episodes])
    return {s: [partial(_same, e) for e, w in zip(episodes, where, strict=True) if w == s] for s in SPLITS}, clips


def split_groups(groups: Sequence[str], seed: int = 42) -> list[str]:
    """The split of each episode; those of one group (the parent folder) stay together.

    Groups are ordered by a hash, so that a further group moves no other one far, and dealt out by number of episodes.

    Raises:
        InputError: fewer groups than splits.
    """
    names = sorted(set(groups), key=lambda g: hashlib.sha256(f"{seed}/{g}".encode()).digest())
    if len(names) < len(SPLITS):
        raise InputError(f"{len(names)} groups of episodes cannot be split in {len(SPLITS)}; give more folders")
    sizes, out, done = {g: list(groups).count(g) for g in names}, {}, 0
    for i, g in enumerate(names):
        share = done / len(groups)
        wanted = "train" if share < SHARES["train"] else "validation" if share < 1 - SHARES["test"] else "test"
        left = len(names) - i
        out[g] = SPLITS[-left] if left < len(SPLITS) and SPLITS[-left] not in out.values() else wanted
        done += sizes[g]
    return [out[g] for g in groups]


def _same(episode: Any) -> Any:
    return episode
