"""What every cell of a clip shows, for training: dense labels of the vision tower and of the language model."""

from __future__ import annotations

import numpy as np

from vtoken.reference.world import CELL, COLOURS, SHAPES, SIZE, SYMBOLS, Script

GRID = SIZE // CELL
TONES = tuple(COLOURS)
WAYS = ("left", "right", "up", "down")
# classes by label; 0 is "nothing" where a cell can be empty
VISION = {
    "symbol_a": 1 + len(SYMBOLS),
    "symbol_b": 1 + len(SYMBOLS),
    "panel": 1 + len(TONES),
    "shape": 1 + len(SHAPES),
    "tone": 1 + len(TONES),
    "moving": 2,
    "way": 1 + len(WAYS),
    "lamp_a": 2 + len(TONES),
    "lamp_b": 2 + len(TONES),
    "row": GRID,
    "column": GRID,
}
STEPS = 33  # half-frame-pair bins of the clip's time
LANGUAGE = {
    "time": STEPS,
    "previous": 2 + len(SYMBOLS),
    "new": 2,  # another letter than one step before
    "shown": 10,
    "lit": 8,
    "way_first": 1 + len(WAYS),
    "turned": 3,
}
IGNORE = -100


def vision_labels(script: Script, frames: np.ndarray) -> dict[str, np.ndarray]:
    """int64 [steps, 4, 4] by name for frame numbers [2 * steps]: what has its centre in a cell."""
    steps = len(frames) // 2
    out = {name: np.zeros((steps, GRID, GRID), np.int64) for name in VISION}
    out["row"] += np.arange(GRID)[:, None]
    out["column"] += np.arange(GRID)[None]
    for k in range(steps):
        a, b = int(frames[2 * k]), int(frames[2 * k + 1])
        for panel in script.panels:
            cell = (k, *cell_of(*panel.at(a)))
            out["symbol_a"][cell] = 1 + SYMBOLS.index(panel.symbol(a))
            out["symbol_b"][cell] = 1 + SYMBOLS.index(panel.symbol(b))
            out["panel"][cell] = 1 + TONES.index(panel.colour)
        for thing in script.visible(b):
            cell = (k, *cell_of(thing.x, thing.y))
            out["shape"][cell] = 1 + SHAPES.index(thing.shape)
            out["tone"][cell] = 1 + TONES.index(thing.colour)
        if script.lamp is not None:
            cell = (k, *cell_of(script.lamp.x, script.lamp.y))
            for name, frame in (("lamp_a", a), ("lamp_b", b)):
                colour = script.lamp.colour(frame)
                out[name][cell] = 1 if colour is None else 2 + TONES.index(colour)
        if script.mover is not None:
            first, last = script.mover.at(a), script.mover.at(b)
            place = last or first
            if place is not None:
                cell = (k, *cell_of(*place))
                out["moving"][cell] = 1
                out["shape"][cell] = 1 + SHAPES.index(script.mover.shape)
                out["tone"][cell] = 1 + TONES.index(script.mover.colour)
            if place is not None and first is not None and last is not None:
                out["way"][cell] = 1 + WAYS.index(script.mover.way(sum(last) - sum(first)))
    return out


def language_labels(script: Script, frames: np.ndarray, vision: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """int64 [steps, 4, 4] by name: what a reader of the sampled frames up to here can know at this cell."""
    steps = len(frames) // 2
    out = {name: np.full((steps, GRID, GRID), IGNORE, np.int64) for name in LANGUAGE}
    middle = frames.reshape(-1, 2).mean(1)
    out["time"][:] = np.round(middle / 2).astype(int)[:, None, None].clip(0, STEPS - 1)
    for panel in script.panels:
        seen: list[str] = []
        for k in range(steps):
            known = len(seen)
            for frame in frames[2 * k : 2 * k + 2]:
                if not seen or seen[-1] != panel.symbol(int(frame)):
                    seen.append(panel.symbol(int(frame)))
            cell = (k, *cell_of(*panel.at(int(frames[2 * k]))))
            out["previous"][cell] = 1 + SYMBOLS.index(seen[-2]) if len(seen) > 1 else 0
            out["new"][cell] = int(len(seen) > known)
            out["shown"][cell] = len(seen)
    if script.lamp is not None:
        cell = cell_of(script.lamp.x, script.lamp.y)
        colours: set[str] = set()
        for k in range(steps):
            colours |= {c for f in frames[2 * k : 2 * k + 2] if (c := script.lamp.colour(int(f))) is not None}
            out["lit"][(k, *cell)] = len(colours)
    ways = vision["way"].reshape(steps, -1).max(1)
    seen_ways = [int(w) for w in ways]
    for k in range(steps):
        so_far = [w for w in seen_ways[: k + 1] if w]
        where = np.argwhere(vision["moving"][k])
        if len(where) and so_far:
            out["way_first"][(k, *where[0])] = so_far[0]
            out["turned"][(k, *where[0])] = 1 + int(len(set(so_far)) > 1)
    return out


def cell_of(x: float, y: float) -> tuple[int, int]:
    return min(max(int(y // CELL), 0), GRID - 1), min(max(int(x // CELL), 0), GRID - 1)
