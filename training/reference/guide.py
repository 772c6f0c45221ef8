"""Where a reader should look for an answer, or for the letter before: cells and frames, to guide attention."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from training.reference.labels import GRID, cell_of
from vtoken.reference.questions import Question
from vtoken.reference.world import FPS, FRAMES, Panel, Script

NEAR = 4  # frames around the time asked
HEADS = 3  # attention heads that are guided


def targets(script: Script, question: Question, frames: np.ndarray, near: int = NEAR) -> list[np.ndarray | None]:
    """For every word of the answer the cells that tell it: bool [1 or HEADS, steps, 4, 4] each.

    None where no place does. Heads are told apart where two things are compared.

    Args:
        frames: numbers of the sampled frames [2 * steps].
        near: frames around the time asked that count.
    """
    words = question.answer.split()
    text = question.text.replace("?", "").replace(",", "").split()
    panel = next((p for p in script.panels if f"the {p.colour} panel" in question.text), None)
    if panel is not None and "comes" in text:
        return [_joined([_panel(panel, question, word, frames, near) for word in (text[-3], text[-1], words[0])])]
    if panel is not None:
        return [_joined([_panel(panel, question, word, frames, near)]) for word in words]
    if question.task == "count":
        return [_joined([np.asarray(flashes(script, question, frames).any(0))])]
    if question.task == "motion":
        return [_joined([_mover(script, text, frames)])]
    named = {*text, question.answer}
    back = question.text.endswith("comes back?")
    if "scene" in text:
        things = [script.things[0 if back else 1]]
    elif "colour" in text:
        things = [t for t in script.things if t.shape in named]
    else:
        things = [t for t in script.things if t.colour in named]
    out = _empty(frames)
    for thing in things:
        for i, frame in enumerate(frames[1::2]):
            if thing in script.visible(int(frame)):
                out[(i, *cell_of(thing.x, thing.y))] = True
    return [_joined([out])]


def _joined(parts: Sequence[np.ndarray | None]) -> np.ndarray | None:
    found = [p for p in parts if p is not None and p.any()]
    return np.stack(found) if len(found) == len(parts) else None


def _empty(frames: np.ndarray) -> np.ndarray:
    return np.zeros((len(frames) // 2, GRID, GRID), bool)


def _panel(panel: Panel, question: Question, word: str, frames: np.ndarray, near: int) -> np.ndarray:
    i = panel.symbols.index(word)
    spans = [(panel.starts[i], panel.ends()[i])]
    if question.time is not None:
        middle, (a, b) = round(question.time * FPS), spans[0]
        gap = int(np.abs(frames - middle).min())
        spans = [(max(a, middle - max(near, gap)), min(b, middle + max(near, gap) + 1))]
    out = _empty(frames)
    for i, frame in enumerate(frames):
        if any(a <= frame < b for a, b in spans):
            out[(i // 2, *cell_of(*panel.at(int(frames[i // 2 * 2]))))] = True
    return out


def flashes(script: Script, question: Question, frames: np.ndarray) -> np.ndarray:
    """Cells that show each of the flashes that a question counts: bool [flashes, steps, 4, 4]."""
    half = FRAMES // 2
    low, high = half if "second" in question.text else 0, half if "first" in question.text else FRAMES
    found = [_empty(frames)[None][:0]]
    for a, b, _ in script.lamp.flashes if script.lamp is not None else ():
        if low <= a < high:
            out = _empty(frames)
            for i, frame in enumerate(frames):
                if script.lamp is not None and a <= frame < b:
                    out[(i // 2, *cell_of(script.lamp.x, script.lamp.y))] = True
            found.append(out[None])
    return np.concatenate(found)


def _mover(script: Script, text: list[str], frames: np.ndarray) -> np.ndarray | None:
    mover = script.mover
    seen = [i for i, f in enumerate(frames) if mover is not None and mover.at(int(f)) is not None]
    if mover is None or not seen:
        return None
    if "first" in text:
        seen = seen[:4]
    elif "last" in text or "end" in text:
        seen = seen[-4:]
    out = _empty(frames)
    for i in seen:
        place = mover.at(int(frames[i // 2 * 2 + 1])) or mover.at(int(frames[i]))
        if place is not None:
            out[(i // 2, *cell_of(*place))] = True
    return out


def earlier(script: Script, frames: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Cells of panels that have shown another letter, and where that letter was.

    Returns:
        int64 [n], numbers of the cells, and bool [n, cells], the cells up to it that show the letter before.
    """
    steps = len(frames) // 2
    at, goals = [], []
    for panel in script.panels:
        letters = [panel.symbol(int(f)) for f in frames]
        cells = [k * GRID * GRID + _flat(panel, int(frames[2 * k])) for k in range(steps)]
        for k in range(steps):
            seen = list(dict.fromkeys(letters[: 2 * k + 2]))  # no letter comes twice
            if len(seen) > 1:
                goal = np.zeros(steps * GRID * GRID, bool)
                goal[[cells[j] for j in range(k + 1) if seen[-2] in letters[2 * j : 2 * j + 2]]] = True
                at.append(cells[k])
                goals.append(goal)
    return np.array(at, np.int64), np.array(goals, bool).reshape(len(at), steps * GRID * GRID)


def _flat(panel: Panel, frame: int) -> int:
    row, column = cell_of(*panel.at(frame))
    return row * GRID + column
