"""Clips that the small V-JEPA 2 learns from: episodes with hands, and DenseQA, both at 8 frames a second."""

from __future__ import annotations

import numpy as np

from vtoken.reference import data
from vtoken.thinkjepa import hands
from vtoken.thinkjepa.hands.inputs import normal, shrunk

EVERY = 2  # frames of DenseQA, which has 16 a second


class Pool:
    """A fixed set of clips, drawn once and held small."""

    def __init__(self, episodes: int, clips: int, seed: int = 0) -> None:
        """``episodes`` with hands and ``clips`` of DenseQA, of the training splits."""
        first = seed * 1_000_000
        self.videos = [shrunk(hands.episode(first + i).frames) for i in range(episodes)]
        for i in range(clips):
            one = data.clip(first + i, "train")
            self.videos.append(shrunk(np.stack([one.frame(k) for k in range(0, len(one), EVERY)])))
        self.episodes = episodes

    def batch(self, rng: np.random.Generator, size: int, frames: int) -> np.ndarray:
        """float32 [size, frames, 3, 64, 64]: windows, half of them with hands where there are both sorts."""
        both = 0 < self.episodes < len(self.videos)
        out = []
        for i in range(size):
            low, high = (0, self.episodes) if i % 2 == 0 else (self.episodes, len(self.videos))
            video = self.videos[int(rng.integers(low, high) if both else rng.integers(len(self.videos)))]
            start = int(rng.integers(len(video) - frames + 1))
            out.append(video[start : start + frames])
        return normal(np.stack(out))
