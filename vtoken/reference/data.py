"""DenseQA: clips with questions from a seed, in memory or as files that any model can be run on."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from vtoken.errors import InputError
from vtoken.output.files import write_text
from vtoken.output.progress import progress
from vtoken.reference.questions import TASKS, Question, ask_all
from vtoken.reference.render import Painter
from vtoken.reference.world import FPS, FRAMES, SIZE, SPAN, SPLITS, Script, script

__all__ = ["Clip", "Question", "Sample", "TASKS", "checksum", "clip", "frames", "questions"]
__all__ += ["read_dataset", "write_dataset"]
INDEX = "questions.jsonl"


@dataclass(frozen=True)
class Clip:
    """A clip of four seconds at 16 frames a second, 112x112 pixels, drawn when asked for."""

    seed: int
    split: str
    script: Script
    fps: float = float(FPS)

    def __len__(self) -> int:
        return FRAMES

    @property
    def seconds(self) -> float:
        return FRAMES / FPS

    @property
    def size(self) -> tuple[int, int]:
        """(height, width), pixels."""
        return SIZE, SIZE

    @cached_property
    def painter(self) -> Painter:
        return Painter(self.script)

    def frame(self, index: int) -> np.ndarray:
        """uint8 RGB [112, 112, 3]."""
        return self.painter.frame(index)

    def frames(self) -> Iterator[np.ndarray]:
        """Every frame in order."""
        return (self.frame(i) for i in range(FRAMES))

    @cached_property
    def pixels(self) -> np.ndarray:
        """uint8 RGB [64, 112, 112, 3]; ``vtoken.ask`` takes it with ``native_fps=16``."""
        return np.stack(list(self.frames()))


def clip(seed: int, split: str = "test") -> Clip:
    """The clip of a seed; seeds of the splits never overlap.

    Args:
        seed: 0, 1, 2 ... within the split, below 2**40.
        split: "train", "validation" or "test".

    Raises:
        InputError: an unknown split, or a seed outside of it.
    """
    return Clip(seed, split, script(_absolute(seed, split)))


def _absolute(seed: int, split: str) -> int:
    if split not in SPLITS:
        raise InputError(f"split={split!r} is unknown; known are {', '.join(SPLITS)}")
    if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)) or not 0 <= seed < SPAN:
        raise InputError(f"seed={seed!r} must be a whole number from 0 to {SPAN - 1}")
    return SPLITS.index(split) * SPAN + int(seed)


def questions(of: Clip) -> list[Question]:
    """All questions about a clip, always the same for a seed."""
    return ask_all(of.script, np.random.default_rng((_absolute(of.seed, of.split), 1)))


def frames(of: Clip, fps: float) -> tuple[np.ndarray, np.ndarray]:
    """A clip sub-sampled by time: at k / fps the frame that is on screen.

    Returns:
        uint8 RGB [n, 112, 112, 3] and float64 seconds [n].

    Raises:
        InputError: a rate that is not above 0.
    """
    if not fps > 0:
        raise InputError(f"fps={fps!r} must be above 0")
    wanted = np.arange(0, of.seconds - 1e-9, 1 / min(fps, of.fps))
    index = np.unique(np.floor(wanted * of.fps + 1e-6).astype(int))
    return np.stack([of.frame(int(i)) for i in index]), index / of.fps


def checksum(split: str, n: int) -> str:
    """SHA-256 over the first ``n`` clips of a split: every eighth picture and all questions with their answers."""
    digest = hashlib.sha256()
    for seed in range(n):
        one = clip(seed, split)
        for index in range(0, FRAMES, 8):
            digest.update(one.frame(index).tobytes())
        digest.update(json.dumps([asdict(q) for q in questions(one)], sort_keys=True).encode())
    return digest.hexdigest()


@dataclass(frozen=True)
class Sample:
    """One clip of a written data set: its video file and its questions."""

    video: Path
    seed: int
    split: str
    questions: list[Question]

    def reader(self, **options: Any) -> Any:
        """``vtoken.open_video`` on the file; options are passed on."""
        from vtoken.video import open_video

        return open_video(self.video, **options)


def write_dataset(folder: str | os.PathLike[str], split: str, clips: int, crf: int = 6) -> Path:
    """Write ``clips`` clips of a split as H.264 in MP4, and ``questions.jsonl`` with one line a clip.

    The index is written last, so a folder with an index is complete.

    Args:
        crf: x264's quality; 0 is lossless in luma, 6 looks the same.

    Raises:
        InputError: an unknown split, or no clips.
    """
    from vtoken.video.write import write_video

    if clips < 1:
        raise InputError(f"clips={clips} must be at least 1")
    folder = Path(folder)
    one = clip(0, split)
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    with progress(clips, "clips") as advance:
        for seed in range(clips):
            one = clip(seed, split)
            name = f"{split}-{seed:06d}.mp4"
            write_video(folder / name, one, crf=crf)  # type: ignore[arg-type]
            row = {"video": name, "seed": seed, "split": split, "questions": [asdict(q) for q in questions(one)]}
            lines.append(json.dumps(row))
            advance(1, name)
    write_text(folder / INDEX, "\n".join(lines) + "\n")
    return folder


def read_dataset(folder: str | os.PathLike[str]) -> list[Sample]:
    """What ``write_dataset`` wrote.

    Raises:
        InputError: no index, a line that cannot be read, or a video that is missing.
    """
    folder = Path(folder)
    index = folder / INDEX
    if not index.is_file():
        raise InputError(f"{folder}: no {INDEX}; write the data set first, or give its folder")
    out = []
    for number, line in enumerate(index.read_text(encoding="utf-8").splitlines(), 1):
        try:
            row = json.loads(line)
            asked = [Question(**(q | {"choices": tuple(q["choices"])})) for q in row["questions"]]
            sample = Sample(folder / row["video"], int(row["seed"]), str(row["split"]), asked)
        except (ValueError, TypeError, KeyError) as error:
            raise InputError(f"{index}, line {number}: not a DenseQA record ({error})") from error
        if not sample.video.is_file():
            raise InputError(f"{index}, line {number}: {sample.video.name} is missing; write the data set again")
        out.append(sample)
    return out
