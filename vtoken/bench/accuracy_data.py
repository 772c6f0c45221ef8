"""Clips with questions, whatever they come from: DenseQA rendered from seeds, its files, or DIVE."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Question:
    """A question with its answer.

    Attributes:
        task: what kind of question it is; scores are told apart by it.
        text: the user's words.
        answer: what is right.
        time: seconds it is about, or None.
        held: whether what it asks for was on screen unchanged for a while before; None where nobody knows.
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
