"""What happens in a clip of DenseQA: panels, a moving shape, a lamp, static shapes and scenes, drawn from a seed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

SIZE = 112  # pixels a side
CELL = 28
FPS = 16
FRAMES = 64
SYMBOLS = tuple("ACEFHJKLNPRTUXYZ")
COLOURS = {
    "red": (225, 45, 45),
    "green": (40, 180, 70),
    "blue": (50, 90, 230),
    "yellow": (240, 215, 40),
    "purple": (165, 60, 205),
    "cyan": (45, 210, 220),
}
SHAPES = ("circle", "square", "triangle", "star", "cross")
BACKGROUNDS = ("texture", "slide", "gradient", "checks")
SPLITS = ("train", "validation", "test")
SPAN = 1 << 40  # seeds of a split: [SPAN * index, SPAN * (index + 1))


@dataclass(frozen=True)
class Panel:
    """A coloured square with a symbol; ``starts[i]`` is the first frame of ``symbols[i]``."""

    colour: str
    size: int
    x: float  # centre at frame 0, pixels
    y: float
    dx: float  # pixels a frame
    dy: float
    starts: tuple[int, ...]
    symbols: tuple[str, ...]

    def at(self, frame: int) -> tuple[float, float]:
        return self.x + self.dx * frame, self.y + self.dy * frame

    def symbol(self, frame: int) -> str:
        return self.symbols[int(np.searchsorted(self.starts, frame, "right")) - 1]

    def ends(self) -> tuple[int, ...]:
        return (*self.starts[1:], FRAMES)


@dataclass(frozen=True)
class Mover:
    """A shape that crosses a lane; ``path[i]`` is its coordinate along the lane at frame ``start + i``."""

    shape: str
    colour: str
    horizontal: bool
    lane: float
    start: int
    path: tuple[float, ...]

    def at(self, frame: int) -> tuple[float, float] | None:
        i = frame - self.start
        if not 0 <= i < len(self.path):
            return None
        return (self.path[i], self.lane) if self.horizontal else (self.lane, self.path[i])

    def way(self, delta: float) -> str:
        names = ("left", "right") if self.horizontal else ("up", "down")
        return names[int(delta > 0)]

    def turns(self) -> bool:
        steps = np.sign(np.diff(self.path))
        return bool(steps[0] != steps[-1])

    def place(self) -> str:
        names = ("left", "middle", "right") if self.horizontal else ("top", "middle", "bottom")
        return names[int(np.digitize(self.path[-1], (SIZE / 3, SIZE * 2 / 3)))]


@dataclass(frozen=True)
class Lamp:
    """A small light; flashes are (first frame, frame after the last, colour), no colour twice."""

    x: float
    y: float
    flashes: tuple[tuple[int, int, str], ...]

    def colour(self, frame: int) -> str | None:
        return next((c for a, b, c in self.flashes if a <= frame < b), None)


@dataclass(frozen=True)
class Thing:
    """A static shape; ``scene`` is where it is seen, or None for the whole clip."""

    shape: str
    colour: str
    x: float
    y: float
    scene: int | None


@dataclass(frozen=True)
class Script:
    """A whole clip. ``cuts`` are the first frames of the scenes after the first; scenes alternate 0, 1, 0."""

    backgrounds: tuple[tuple[str, int], ...]  # kind and seed by scene
    cuts: tuple[int, ...]
    panels: tuple[Panel, ...]
    things: tuple[Thing, ...]
    mover: Mover | None
    lamp: Lamp | None
    noise: int  # amplitude in grey levels
    blocks: bool  # coarse chroma and luma, as strong compression leaves

    def scene(self, frame: int) -> int:
        return int(np.searchsorted(self.cuts, frame, "right")) % 2

    def visible(self, frame: int) -> list[Thing]:
        return [t for t in self.things if t.scene is None or t.scene == self.scene(frame)]


def script(seed: int, symbols: tuple[int, int] = (3, 8), panels: tuple[int, int] = (1, 2)) -> Script:
    """Draw a clip from a seed; ``symbols`` and ``panels`` are inclusive ranges, for the curriculum of training."""
    r = np.random.default_rng(seed)
    colours = [str(c) for c in r.permutation(list(COLOURS))]
    shapes = [str(s) for s in r.permutation(list(SHAPES))]
    moves, lit, scenes = r.random() < 0.6, r.random() < 0.6, r.random() < 0.5
    side, free = _lane(r) if moves else (-1, (0.0, 0.0, float(SIZE), float(SIZE)))
    taken: list[tuple[float, float, float]] = []
    panel = []
    for i in range(int(r.integers(panels[0], panels[1] + 1))):
        panel.append(_panel(r, colours[i], int(r.integers(symbols[0], symbols[1] + 1)), free, taken))
    cuts = (int(r.integers(20, 25)), int(r.integers(40, 45))) if scenes else ()
    spots = [_spot(r, 10.0, free, taken) for _ in range(2)]
    tones = [str(c) for c in r.permutation(list(COLOURS))]
    things = tuple(Thing(shapes[i], tones[i], *spots[i], i if scenes else None) for i in range(2))
    lamp = Lamp(*_spot(r, 7.0, free, taken), _flashes(r)) if lit else None
    mover = _mover(r, shapes[2], tones[2], side) if moves else None
    kinds = [str(k) for k in r.permutation(list(BACKGROUNDS))[:2]]
    grounds = tuple((k, int(r.integers(1 << 30))) for k in kinds[: 2 if scenes else 1])
    noise = int(r.choice((0, 0, 5, 10)))
    return Script(grounds, cuts, tuple(panel), things, mover, lamp, noise, bool(r.random() < 0.3))


def _lane(r: np.random.Generator) -> tuple[int, tuple[float, float, float, float]]:
    """A side of the picture for the moving shape, and the box that is left for everything else."""
    side = int(r.integers(4))
    box = [0.0, 0.0, float(SIZE), float(SIZE)]
    if side < 2:
        box[side] += CELL
    else:
        box[side] -= CELL
    return side, (box[0], box[1], box[2], box[3])


def _spot(
    r: np.random.Generator, radius: float, free: tuple[float, float, float, float], taken: list, reach: float = 0.0
) -> tuple[float, float]:
    """A place where nothing else is and no other centre shares its cell; (x, y), pixels, not aligned to anything."""
    edge = radius + reach
    for attempt in range(400):
        x, y = r.uniform(free[0] + edge, free[2] - edge), r.uniform(free[1] + edge, free[3] - edge)
        slack = 1.5 if attempt < 200 else -3.0
        apart = all(max(abs(x - a), abs(y - b)) > c + edge + slack for a, b, c in taken)
        alone = all((x // CELL, y // CELL) != (a // CELL, b // CELL) for a, b, _ in taken)
        if apart and alone:
            break
    taken.append((x, y, edge))
    return float(x), float(y)


def _panel(r: np.random.Generator, colour: str, n: int, free: tuple, taken: list) -> Panel:
    size = int(r.integers(26, 33))
    reach = float(r.uniform(2, 5)) if r.random() < 0.4 else 0.0
    x, y = _spot(r, size / 2, free, taken, reach)
    angle = r.uniform(0, 2 * np.pi)
    speed = 2 * reach / FRAMES
    dx, dy = float(np.cos(angle) * speed), float(np.sin(angle) * speed)
    symbols = tuple(str(s) for s in r.permutation(list(SYMBOLS))[:n])
    return Panel(colour, size, x - dx * FRAMES / 2, y - dy * FRAMES / 2, dx, dy, _starts(r, n), symbols)


def _starts(r: np.random.Generator, n: int, shortest: int = 5) -> tuple[int, ...]:
    """n first frames; every symbol stays for at least ``shortest`` frames."""
    slack = FRAMES - n * shortest
    cuts = np.sort(r.integers(0, slack + 1, n - 1))
    return (0, *(int(c) + shortest * (i + 1) for i, c in enumerate(cuts)))


def _flashes(r: np.random.Generator) -> tuple[tuple[int, int, str], ...]:
    """Up to five flashes of 4 or 5 frames with at least 3 dark frames between; none across the middle of the clip."""
    slots = [i for i in range(2, FRAMES - 6, 8) if not i < FRAMES // 2 < i + 6]
    n = int(r.integers(1, 6))
    chosen = np.sort(r.permutation(len(slots))[:n])
    tones = r.permutation(list(COLOURS))
    starts = [slots[i] + int(r.integers(0, 2)) for i in chosen]
    return tuple((a, a + int(r.integers(4, 6)), str(tones[k])) for k, a in enumerate(starts))


def _mover(r: np.random.Generator, shape: str, colour: str, side: int) -> Mover:
    low, high = 12.0, SIZE - 12.0
    n = int(r.integers(18, 33))
    towards = low if r.random() < 0.5 else high
    away = low + high - towards
    if r.random() < 0.5:  # straight
        marks = [away, towards if r.random() < 0.6 else SIZE / 2]
    else:  # to the wall and back
        marks = [float(r.choice((SIZE / 2, away))), towards, float(r.choice((SIZE / 2, away)))]
    marks = [m + float(r.uniform(-4, 4)) for m in marks]
    lengths = np.abs(np.diff(marks))
    where = np.concatenate([[0], np.cumsum(lengths)])
    path = np.interp(np.linspace(0, where[-1], n), where, marks)
    lane = 14 + float(r.uniform(-4, 4))
    lane = lane if side < 2 else SIZE - lane
    start = int(r.integers(1, FRAMES - n))
    return Mover(shape, colour, side in (1, 3), lane, start, tuple(float(p) for p in path))
