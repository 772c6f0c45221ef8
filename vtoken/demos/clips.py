"""Clips of the page: uploads that may be read, and rendered samples with questions."""

from __future__ import annotations

import filecmp
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path

import numpy as np

from vtoken.demos.settings import Settings
from vtoken.errors import InputError
from vtoken.qa.limits import check_size, file_within
from vtoken.reference.synthetic import SyntheticClip, Truth, render
from vtoken.video.write import write_video


def allowed(video: str | None, root: Path, settings: Settings) -> Path:
    """The file of a visitor, if it lies in the page's folder and is not too large.

    Raises:
        InputError: no clip, a path of the server, or a file above the limit.
    """
    if not video:
        raise InputError("there is no clip yet; upload one, record one, or take a sample")
    path = file_within(video, [root])
    if path is None:
        raise InputError("this clip is not among the uploads; upload it again")
    check_size(path, settings.max_upload, "page")
    return path


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
