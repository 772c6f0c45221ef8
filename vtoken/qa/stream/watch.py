"""Standing questions: asked only when something changed, answered by one forward, reported when the answer turns."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vtoken.errors import InputError

ASK = "Is it true now that {what}? Answer yes or no."
WORDS = {"yes": ("yes", "Yes", " yes", " Yes"), "no": ("no", "No", " no", " No")}


@dataclass(frozen=True)
class Event:
    """Something that a stream tells.

    Attributes:
        kind: "begins" or "ends" of what is watched, or "gap" of a source that was interrupted.
        time: seconds since the stream began.
        text: what is watched, or what the source says.
        probability: of a yes; nan for a gap.
        frames: (seconds, uint8 [H, W, 3]) of the latest sampled frames, the evidence.
    """

    kind: str
    time: float
    text: str
    probability: float = float("nan")
    frames: list[tuple[float, np.ndarray]] = field(default_factory=list, repr=False, compare=False)

    def __str__(self) -> str:
        if self.kind == "gap":
            return f"{self.time:8.1f} s  gap     {self.text}"
        return f"{self.time:8.1f} s  {self.kind:6s}  {self.text}  (p = {self.probability:.2f})"


@dataclass
class Watch:
    """A standing question.

    Attributes:
        what: a statement that may be true at some time, such as "the door is open", or a question with yes or no for an
            answer.
        every: least seconds between two asks.
        up, down: it begins at a probability of at least ``up``, and ends at one of at most ``down``.
        asks: asks in a row that must agree before it begins.
        changed: least share of cells that changed since the last ask, below which nothing is asked.
        true: whether it holds now.
        asked: how often the model was asked.

    Raises:
        InputError: an empty statement, or values out of range.
    """

    what: str
    every: float = 1.0
    up: float = 0.7
    down: float = 0.4
    asks: int = 2
    changed: float = 0.0
    true: bool = False
    asked: int = 0
    probability: float = float("nan")
    _in_a_row: int = 0
    _last: float = -np.inf
    _moved: float = 1.0

    def __post_init__(self) -> None:
        if not isinstance(self.what, str) or not self.what.strip():
            raise InputError(f"what={self.what!r} must be a statement, such as 'the door is open'")
        if not 0 <= self.down <= self.up <= 1:
            raise InputError(f"down={self.down} and up={self.up}: probabilities with down <= up")
        if self.every < 0 or self.asks < 1 or not 0 <= self.changed <= 1:
            raise InputError(
                f"every={self.every} seconds must be at least 0, asks={self.asks} at least 1, changed={self.changed} a "
                "share"
            )

    @property
    def question(self) -> str:
        """What the model is asked."""
        what = self.what.strip()
        return f"{what} Answer yes or no." if what.endswith("?") else ASK.format(what=what.rstrip("."))

    def moved(self, share: float) -> None:
        """Cells changed: their share of a chunk."""
        self._moved += share

    def due(self, now: float) -> bool:
        """Whether to ask: something changed since the last ask, or an answer waits for a second one."""
        if now - self._last < self.every:
            return False
        return self._in_a_row > 0 or self._moved > self.changed

    def told(self, now: float, probability: float) -> str | None:
        """Take an answer; "begins" or "ends" where it turns."""
        self.asked += 1
        self._last, self._moved, self.probability = now, 0.0, probability
        if self.true:
            self._in_a_row = 0
            if probability <= self.down:
                self.true = False
                return "ends"
            return None
        self._in_a_row = self._in_a_row + 1 if probability >= self.up else 0
        if self._in_a_row >= self.asks:
            self.true, self._in_a_row = True, 0
            return "begins"
        return None


def yes_and_no(tokenizer: Any) -> tuple[Tensor, Tensor]:
    """int64 [n], [m]: first ids of the ways to write yes and no.

    Raises:
        InputError: a tokenizer that begins both alike.
    """
    found = {
        name: {ids[0] for word in words if (ids := list(tokenizer(word, add_special_tokens=False)["input_ids"]))}
        for name, words in WORDS.items()
    }
    both = found["yes"] & found["no"]
    yes, no = sorted(found["yes"] - both), sorted(found["no"] - both)
    if not yes or not no:
        raise InputError("this tokenizer writes yes and no with the same first token; ask by stream.ask instead")
    return torch.tensor(yes), torch.tensor(no)


def probability_of_yes(logits: Tensor, words: tuple[Tensor, Tensor]) -> float:
    """P(yes) among yes and no, by the logits [V] of the first token of an answer."""
    p = logits.float().softmax(-1)
    yes, no = (float(p[w.to(p.device)].sum()) for w in words)
    return yes / (yes + no) if yes + no > 0 else 0.5
