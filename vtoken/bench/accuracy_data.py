"""Clips with questions, whatever they come from: DenseQA rendered from seeds, its files, or DIVE."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from vtoken.errors import InputError


@dataclass(frozen=True)
class Question:
    """A question with its answer.

    Attributes:
        task: what kind of question it is; scores are listed by it.
        text: the user's words.
        answer: what is right.
        time: seconds it is about, or None.
        held: whether what it asks for was on screen unchanged for a while before; None where unknown.
    """

    task: str
    text: str
    answer: str
    time: float | None = None
    held: bool | None = None


@dataclass(frozen=True)
class Clip:
    """A video and the questions about it.

    Attributes:
        name: what results call it; no two clips of a data set share it.
        source: gives what ``open_video`` takes; called when the clip's turn comes.
        questions: in their order.
        native_fps: rate of a source that is an array, else None.
    """

    name: str
    source: Callable[[], Any]
    questions: tuple[Question, ...]
    native_fps: float | None = None


@dataclass(frozen=True)
class Data:
    """A data set.

    Attributes:
        name: in reports, and in results so that those of two data sets never mix.
        clips: in their order.
        tasks: names of the tasks in the order of the table.
        dense: the tasks that need many frames; empty where that is not known.
        score: the metric that counts as right: "exact", or "f1" where answers are long texts.
        new_tokens: longest answer, in tokens.
    """

    name: str
    clips: list[Clip]
    tasks: tuple[str, ...]
    dense: tuple[str, ...] = ()
    score: str = "exact"
    new_tokens: int = 24


def rendered(split: str = "test", clips: int = 40, first: int = 0) -> Data:
    """DenseQA drawn from its seeds ``first`` to ``first + clips - 1``: nothing is read from disk.

    Raises:
        InputError: an unknown split, a seed outside of it, or no clips.
    """
    from vtoken.reference import data
    from vtoken.reference.questions import DENSE

    if clips < 1:
        raise InputError(f"clips={clips} must be at least 1")
    made = []
    for seed in range(first, first + clips):
        clip = data.clip(seed, split)
        source = partial(_pixels, seed, split)  # drawn when its turn comes, and not kept
        made.append(Clip(f"{split}-{seed:06d}", source, _asked(data.questions(clip)), clip.fps))
    return Data(f"DenseQA {split}", made, data.TASKS, DENSE)


def written(folder: str | Path, clips: int | None = None) -> Data:
    """DenseQA as files: what `vtoken bench make-data` wrote, or its first clips.

    Raises:
        InputError: no such data set in the folder, a damaged index, or a missing video.
    """
    from vtoken.reference import data
    from vtoken.reference.questions import DENSE

    samples = data.read_dataset(folder)[:clips]
    made = [Clip(s.video.name, partial(str, s.video), _asked(s.questions)) for s in samples]
    return Data(f"DenseQA files {Path(folder).resolve().name}", made, data.TASKS, DENSE)


def _pixels(seed: int, split: str) -> Any:
    from vtoken.reference import data

    return data.clip(seed, split).pixels


def _asked(questions: Sequence[Any]) -> tuple[Question, ...]:
    return tuple(Question(q.task, q.text, q.answer, q.time, q.held) for q in questions)
