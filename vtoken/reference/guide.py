"""Where a reader should look for an answer: cells and frames, to guide attention in training."""

from __future__ import annotations

import numpy as np

from vtoken.reference.labels import GRID, cell_of
from vtoken.reference.questions import Question
from vtoken.reference.world import FPS, FRAMES, Panel, Script

NEAR = 4  # frames around the time asked


def targets(script: Script, question: Question, frames: np.ndarray) -> list[np.ndarray | None]:
    """For every word of the answer the cells that tell it: bool [steps, 4, 4] each, None where no place does.

    Args:
        frames: numbers of the sampled frames [2 * steps].
    """
    words = question.answer.split()
    text = question.text.replace("?", "").replace(",", "").split()
    panel = next((p for p in script.panels if f"the {p.colour} panel" in question.text), None)
    if panel is not None:
        return [_panel(panel, question, text, word, frames) for word in words]
    if question.task == "count":
        return [_lamp(script, text, frames)]
    if question.task == "motion":
        return [_mover(script, text, frames)]
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
    return [out if out.any() else None]


def _empty(frames: np.ndarray) -> np.ndarray:
    return np.zeros((len(frames) // 2, GRID, GRID), bool)


def _panel(panel: Panel, question: Question, text: list[str], word: str, frames: np.ndarray) -> np.ndarray | None:
    if question.task == "count":
        spans = [(0, FRAMES)]
    else:
        symbols = [word] if "comes" not in text else [s for s in panel.symbols if s in text[-3:]]
        spans = [(panel.starts[i], panel.ends()[i]) for i in map(panel.symbols.index, symbols)]
    if question.time is not None:
        middle, (a, b) = round(question.time * FPS), spans[0]
        gap = int(np.abs(frames - middle).min())
        spans = [(max(a, middle - max(NEAR, gap)), min(b, middle + max(NEAR, gap) + 1))]
    out = _empty(frames)
    for i, frame in enumerate(frames):
        if any(a <= frame < b for a, b in spans):
            out[(i // 2, *cell_of(*panel.at(int(frames[i // 2 * 2]))))] = True
    return out if out.any() else None


def _lamp(script: Script, text: list[str], frames: np.ndarray) -> np.ndarray | None:
    low = FRAMES // 2 if "second" in text else 0
    high = FRAMES // 2 if "first" in text else FRAMES
    out = _empty(frames)
    for i, frame in enumerate(frames):
        if script.lamp is not None and low <= frame < high and script.lamp.colour(int(frame)) is not None:
            out[(i // 2, *cell_of(script.lamp.x, script.lamp.y))] = True
    return out if out.any() else None


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
