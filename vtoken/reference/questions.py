"""Questions about a DenseQA clip, with answers read off its script."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

from vtoken.reference.world import COLOURS, FPS, FRAMES, SHAPES, SYMBOLS, Mover, Panel, Script

TASKS = ("read", "transcribe", "order", "count", "motion", "scene")
DENSE = ("read", "transcribe", "order", "count", "motion")
WAYS = ("left", "right", "up", "down")
PLACES = ("left", "middle", "right", "top", "bottom")
NUMBERS = tuple("0123456789")
SETTLED = 6  # frames after which what is shown counts as held

WORLD = (
    "the reference model knows the rendered clips of DenseQA: panels that show symbols one after the other, a lamp "
    "that flashes, one moving shape, and still shapes of some colour"
)
EXAMPLES = ("How many times does the lamp flash?", "Which symbols does the red panel show in order?")
_ASKED = re.compile(
    "|".join(
        (
            r"Which symbols? does the \w+ panel show( in order| at \d+(\.\d+)? seconds)?",
            r"Which symbol follows \w+ in the \w+ panel",
            r"Which comes first in the \w+ panel, \w+ or \w+",
            r"How many times does the lamp flash( in the (first|second) half)?",
            r"Which way does the moving shape go at (first|last)",
            r"Does the moving shape turn back",
            r"Where does the moving shape end",
            r"What colour is the (\w+|still shape in the scene that comes back)",
            r"Which still shape is (\w+|in the scene (that comes back|shown once))",
        )
    ),
    re.IGNORECASE,
)


def knows(text: str) -> bool:
    """Whether a question is one of those that the reference model was trained on, whatever its symbols and colours."""
    return bool(_ASKED.fullmatch(" ".join(text.split()).rstrip("? ")))


@dataclass(frozen=True)
class Question:
    """One question.

    Attributes:
        task: one of ``TASKS``.
        text: the user's words.
        answer: the words expected, single words apart for transcriptions.
        time: seconds the question is about, or None for the whole clip.
        choices: every answer of this kind, empty for transcriptions.
        held: what is asked for was on screen unchanged for a while before the time asked.
    """

    task: str
    text: str
    answer: str
    time: float | None
    choices: tuple[str, ...]
    held: bool


def ask_all(script: Script, rng: np.random.Generator) -> list[Question]:
    """All questions for a clip, the tasks in the order of ``TASKS``."""
    out: list[Question] = []
    panels = script.panels
    for i in range(4):
        out.append(_read(panels[i % len(panels)], rng, late=i >= 2))
    out += [_transcribe(p) for p in panels]
    for i in range(4):
        panel = panels[i % len(panels)]
        out.append(_after(panel, rng) if i < 2 else _first(panel, rng))
    if script.lamp is not None:
        out += _flashes(script.lamp.flashes)
    if script.mover is not None:
        out += _motion(script.mover)
    return out + _scene(script, rng)


def _read(panel: Panel, rng: np.random.Generator, late: bool) -> Question:
    """``late`` prefers times at which the symbol has been there for a while, where there are some."""
    ends = panel.ends()
    spans = [(a + 1, b - 2) for a, b in zip(panel.starts, ends, strict=True)]
    if late:
        spans = [(a - 1 + SETTLED, b) for a, b in spans if b >= a - 1 + SETTLED] or spans
    a, b = spans[int(rng.integers(len(spans)))]
    frame = int(rng.integers(a, b + 1))
    index = int(np.searchsorted(panel.starts, frame, "right")) - 1
    time = round(frame / FPS, 1)
    text = f"Which symbol does the {panel.colour} panel show at {time:.1f} seconds?"
    held = frame - panel.starts[index] >= SETTLED
    return Question("read", text, panel.symbols[index], time, SYMBOLS, held)


def _transcribe(panel: Panel) -> Question:
    text = f"Which symbols does the {panel.colour} panel show in order?"
    return Question("transcribe", text, " ".join(panel.symbols), None, (), False)


def _after(panel: Panel, rng: np.random.Generator) -> Question:
    i = int(rng.integers(len(panel.symbols) - 1))
    text = f"Which symbol follows {panel.symbols[i]} in the {panel.colour} panel?"
    return Question("order", text, panel.symbols[i + 1], None, SYMBOLS, False)


def _first(panel: Panel, rng: np.random.Generator) -> Question:
    i, j = (int(k) for k in rng.permutation(len(panel.symbols))[:2])
    one, two = panel.symbols[i], panel.symbols[j]
    text = f"Which comes first in the {panel.colour} panel, {one} or {two}?"
    return Question("order", text, panel.symbols[min(i, j)], None, (one, two), False)


def _flashes(flashes: tuple[tuple[int, int, str], ...]) -> list[Question]:
    early = sum(a < FRAMES // 2 for a, _, _ in flashes)
    counts = {"": len(flashes), " in the first half": early, " in the second half": len(flashes) - early}
    return [Question("count", f"How many times does the lamp flash{w}?", str(n), None, NUMBERS, False)
            for w, n in counts.items()]  # fmt: skip


def _motion(mover: Mover) -> list[Question]:
    first, last = mover.path[1] - mover.path[0], mover.path[-1] - mover.path[-2]
    rows = (
        ("Which way does the moving shape go at first?", mover.way(first), WAYS),
        ("Which way does the moving shape go at last?", mover.way(last), WAYS),
        ("Does the moving shape turn back?", "yes" if mover.turns() else "no", ("yes", "no")),
        ("Where does the moving shape end?", mover.place(), PLACES),
    )
    return [Question("motion", text, answer, None, choices, False) for text, answer, choices in rows]


def _scene(script: Script, rng: np.random.Generator) -> list[Question]:
    names, out = tuple(COLOURS), []
    for thing in script.things:
        if rng.random() < 0.5:
            out.append((f"What colour is the {thing.shape}?", thing.colour, names))
        else:
            out.append((f"Which still shape is {thing.colour}?", thing.shape, SHAPES))
    if script.cuts:
        back, once = script.things
        out.append(("Which still shape is in the scene that comes back?", back.shape, SHAPES))
        out.append(("Which still shape is in the scene shown once?", once.shape, SHAPES))
        out.append(("What colour is the still shape in the scene that comes back?", back.colour, names))
    return [Question("scene", text, answer, None, choices, True) for text, answer, choices in out]


def ask_image(script: Script, frame: int) -> list[Question]:
    """All questions about one frame as a still image."""
    names = tuple(COLOURS)
    out = [
        Question("read", f"Which symbol does the {p.colour} panel show?", p.symbol(frame), None, SYMBOLS, True)
        for p in script.panels
    ]
    for thing in script.visible(frame):
        out.append(Question("scene", f"What colour is the {thing.shape}?", thing.colour, None, names, True))
        out.append(Question("scene", f"Which still shape is {thing.colour}?", thing.shape, None, SHAPES, True))
    return out
