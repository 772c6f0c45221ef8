"""Clips of the page: uploads that may be read, what is known of them, and rendered samples with questions."""

from __future__ import annotations

import filecmp
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path

import numpy as np

from vtoken.demos.settings import Settings
from vtoken.errors import InputError
from vtoken.reference.synthetic import SyntheticClip, Truth, render
from vtoken.video import open_video
from vtoken.video.write import write_video


@dataclass(frozen=True)
class Facts:
    """What is known of a clip: file name, seconds (None where the file does not say), frames a second, size."""

    name: str
    seconds: float | None
    fps: float
    size: tuple[int, int]

    def __str__(self) -> str:
        length = "length unknown" if self.seconds is None else f"{self.seconds:.1f} s"
        return f"{self.name} · {self.size[1]}×{self.size[0]} · {self.fps:.4g} frames/s · {length}"


def allowed(video: str | None, root: Path, settings: Settings) -> Path:
    """The file of a visitor, if it lies in the page's folder and is not too large.

    Raises:
        InputError: no clip, a path of the server, or a file above the limit.
    """
    if not video:
        raise InputError("there is no clip yet; upload one, record one, or take a sample")
    path = Path(video).resolve()
    if not path.is_relative_to(root.resolve()) or not path.is_file():
        raise InputError("this clip is not among the uploads; upload it again")
    size = path.stat().st_size / 2**20
    if size > settings.max_upload:
        raise InputError(
            f"{path.name} has {size:.0f} MB; this page takes {settings.max_upload:g} MB at most. Shorten it, or start "
            "the page with a larger --max-upload"
        )
    return path


def facts(path: Path) -> Facts:
    """Open a clip and tell what it is.

    Raises:
        VideoError: it cannot be read.
    """
    with open_video(path) as reader:
        return Facts(path.name, reader.duration, reader.native_fps or 30.0, reader.size)


def part(known: Facts, start: float | None, end: float | None, settings: Settings) -> dict[str, float | None]:
    """``start`` and ``end`` for ``vtoken.ask``; None at the ends of the clip.

    Raises:
        InputError: nothing between them, or more than the page reads.
    """
    first = start if start and start > 0 else None
    last = end if end and (known.seconds is None or end < known.seconds - 1e-3) else None
    if last is not None and last <= (first or 0.0):
        raise InputError(f"the part from {first or 0:g} s to {last:g} s is empty; move the end behind the start")
    stop = last if last is not None else known.seconds
    if stop is None:  # a recording without a length: read up to the limit
        last = stop = (first or 0.0) + settings.max_seconds
    if stop - (first or 0.0) > settings.max_seconds + 1e-6:
        raise InputError(
            f"this part of {known.name} lasts {stop - (first or 0):.0f} s; the page reads {settings.max_seconds:g} s "
            "at most. Trim it, or start the page with a larger --max-seconds"
        )
    return {"start": first, "end": last}


@dataclass(frozen=True)
class Sample:
    """A rendered clip.

    Attributes:
        name: file name without suffix.
        title: for the button.
        clip: makes the frames.
        questions: text and true answer, None where no answer is known.
        small: whether the reference model can answer them.
    """

    name: str
    title: str
    clip: Callable[[], SyntheticClip]
    questions: tuple[tuple[str, str | None], ...]
    small: bool = False

    def file(self, folder: Path) -> Path:
        """The clip as a file; written when first asked for."""
        path = folder / f"{self.name}.mp4"
        if not path.exists():
            folder.mkdir(parents=True, exist_ok=True)
            write_video(path, self.clip())
        return path

    def thumbnail(self) -> np.ndarray:
        """uint8 [H, W, 3], a frame in the middle."""
        clip = self.clip()
        return clip.draw(len(clip) // 2)


def _scene(name: str) -> Callable[[], SyntheticClip]:
    return lambda: render(name, 8.0, 16.0, (224, 392))


def _dense(seed: int) -> SyntheticClip:
    """A clip of the reference model's world, as its test set has them."""
    from vtoken.reference.render import Painter
    from vtoken.reference.world import FPS, FRAMES, SIZE, script

    painter = Painter(script(seed))
    return SyntheticClip(f"panels {seed}", float(FPS), (SIZE, SIZE), FRAMES, Truth(), painter.frame)


def _asked(seed: int) -> tuple[tuple[str, str | None], ...]:
    """One question of each kind that the clip has."""
    from vtoken.reference.questions import ask_all
    from vtoken.reference.world import script

    kinds = {q.task: (q.text, q.answer) for q in reversed(ask_all(script(seed), np.random.default_rng(seed)))}
    return tuple(kinds[task] for task in sorted(kinds))


# test seeds whose offered questions the reference model answers right with all tokens and under every preset
SEEDS = {
    "panels": 2199023255592,
    "panels-two": 2199023255596,
    "panels-cuts": 2199023255570,
    "panels-both": 2199023255623,
}


@lru_cache(maxsize=1)
def samples() -> dict[str, Sample]:
    """The gallery: what the reference model was made for first, then scenes that show the cost."""
    seen = ("Describe what happens.", None)
    titles = ("Panel and lamp", "Two panels", "Panel, cuts", "Two, cuts")
    made = [
        *(Sample(n, t, partial(_dense, s), _asked(s), True) for (n, s), t in zip(SEEDS.items(), titles, strict=True)),
        Sample("lecture", "Lecture", _scene("slides"), (("What is on the slide at 4 seconds?", None), seen)),
        Sample("street", "Still camera", _scene("objects"), (("How many shapes move?", "3"), seen)),
        Sample("cuts", "Hard cuts", _scene("cut"), (("How many scenes are there?", "4"), seen)),
        Sample("pan", "Camera pan", _scene("pan"), (("Which way does the camera move?", None), seen)),
    ]
    return {sample.name: sample for sample in made}


def sample_of(path: Path, folder: Path) -> Sample | None:
    """The sample that a file is a copy of."""
    sample = samples().get(path.stem)
    if sample is None:
        return None
    return sample if filecmp.cmp(path, sample.file(folder), shallow=False) else None
