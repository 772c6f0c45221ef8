"""Clips with known truth, drawn frame by frame: the same arguments give the same pixels, and no clip is held whole."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np

from vtoken.data.frames import Frames, Grid
from vtoken.errors import InputError

Box = tuple[int, int, int, int]  # left, top, right, bottom in pixels, right and bottom exclusive


@dataclass
class Truth:
    """What happens in a clip, frame by frame.

    Attributes:
        changed: for each frame, boxes outside of which it equals the frame before (the whole frame for the first).
        boxes: for each frame, the boxes of the moving objects ("objects") or of the cursor ("slides").
        cuts: seconds at which a new scene begins, the first one not counted.
        shift: for each frame, (dx, dy) by which the content moved since the frame before, in pixels ("pan").
        level: for each frame, its brightness from 0 to 1 ("fade").
        sigma: standard deviation of the noise in levels before clipping ("noise").
    """

    changed: list[list[Box]] = field(default_factory=list)
    boxes: list[list[Box]] = field(default_factory=list)
    cuts: list[float] = field(default_factory=list)
    shift: list[tuple[int, int]] = field(default_factory=list)
    level: list[float] = field(default_factory=list)
    sigma: float = 0.0

    def cells(self, index: int, size: tuple[int, int], grid: Grid) -> np.ndarray:
        """bool [rows, columns]: cells of a grid that a changed box of this frame touches, for frames of ``size``."""
        mask = np.zeros((grid.rows, grid.columns), bool)
        down, across = grid.height / size[0] / grid.cell, grid.width / size[1] / grid.cell
        for left, top, right, bottom in self.changed[index]:
            rows = slice(int(top * down), math.ceil(bottom * down))
            mask[rows, int(left * across) : math.ceil(right * across)] = True
        return mask


@dataclass(frozen=True)
class SyntheticClip:
    """A clip that is drawn when read.

    Attributes:
        name: the scene.
        fps: frames per second; frame i is shown at i / fps.
        size: (height, width) in pixels.
        length: number of frames.
        truth: what happens when.
        draw: frame index -> uint8 RGB [H, W, 3].
    """

    name: str
    fps: float
    size: tuple[int, int]
    length: int
    truth: Truth
    draw: Callable[[int], np.ndarray]

    def __len__(self) -> int:
        return self.length

    @property
    def seconds(self) -> float:
        return self.length / self.fps

    def frames(self) -> Iterator[np.ndarray]:
        """Every frame in order, uint8 RGB [H, W, 3]."""
        return (self.draw(index) for index in range(self.length))

    def chunks(self, chunk: int = 32) -> Iterator[Frames]:
        """The clip as ``open_video`` would give it, without encoding."""
        for first in range(0, self.length, chunk):
            indices = range(first, min(first + chunk, self.length))
            pixels = np.stack([self.draw(index) for index in indices])
            yield Frames(pixels, np.array(indices) / self.fps, self.name)


def render(
    name: str, seconds: float = 10.0, fps: float = 30.0, size: tuple[int, int] = (360, 640), seed: int = 0
) -> SyntheticClip:
    """A clip of one scene.

    Args:
        name: "slides" (lecture with builds, a cursor and a chart), "objects" (shapes that bounce before a still
            background), "pan" (camera over a still picture), "fade" (one picture to black, another from black),
            "cut" (a new picture every two seconds) or "noise" (a still picture under sensor noise).
        size: (height, width), at least 16x16.

    Raises:
        InputError: an unknown name, or a length, rate or size that gives no frame.
    """
    if name not in SCENES:
        raise InputError(f"scene {name!r} is unknown; known are {', '.join(SCENES)}")
    if not (seconds > 0 and fps > 0 and math.isfinite(seconds * fps)):
        raise InputError(f"seconds={seconds!r} and fps={fps!r} must be finite and above 0")
    if min(size) < 16:
        raise InputError(f"size={size} must be at least (16, 16) pixels")
    length = max(1, round(seconds * fps))
    truth, draw = SCENES[name](length, fps, size, seed)
    truth.changed[0] = [_whole(size)]
    return SyntheticClip(name, fps, size, length, truth, draw)


Scene = tuple[Truth, Callable[[int], np.ndarray]]


def _whole(size: tuple[int, int]) -> Box:
    return (0, 0, size[1], size[0])


def _picture(size: tuple[int, int], seed: int) -> np.ndarray:
    """A still picture with soft shades, hard edges and fine texture."""
    import cv2

    rng, (height, width) = np.random.default_rng(seed), size
    soft = rng.integers(40, 216, (height // 48 + 2, width // 48 + 2, 3), dtype=np.uint8)
    picture = cv2.resize(soft, (width, height), interpolation=cv2.INTER_CUBIC)
    for _ in range(12):
        x, y = int(rng.integers(width)), int(rng.integers(height))
        w, h = int(rng.integers(8, max(9, width // 4))), int(rng.integers(8, max(9, height // 4)))
        colour = tuple(int(c) for c in rng.integers(20, 236, 3))
        cv2.rectangle(picture, (x, y), (x + w, y + h), colour, -1)
    grain = rng.integers(-10, 11, (height, width, 1))
    return np.clip(picture.astype(np.int16) + grain, 0, 255).astype(np.uint8)


def _bounce(position: int, room: int) -> int:
    """Back and forth between 0 and ``room``, one pixel a step."""
    if room <= 0:
        return 0
    place = position % (2 * room)
    return min(place, 2 * room - place)


def _objects(length: int, fps: float, size: tuple[int, int], seed: int) -> Scene:
    import cv2

    rng, (height, width) = np.random.default_rng(seed + 1), size
    background, side = _picture(size, seed), max(6, min(size) // 8)
    shapes = [
        (
            int(rng.integers(10_000)),
            int(rng.integers(10_000)),
            30 * (k + 2),
            22 * (k + 1),
            rng.integers(0, 256, 3).tolist(),
        )
        for k in range(3)
    ]  # start x, start y, speed x and y in pixels a second, colour

    def place(index: int) -> list[Box]:
        boxes = []
        for x, y, vx, vy, _ in shapes:
            left = _bounce(x + round(vx * index / fps), width - side)
            top = _bounce(y + round(vy * index / fps), height - side)
            boxes.append((left, top, left + side, top + side))
        return boxes

    def draw(index: int) -> np.ndarray:
        frame = background.copy()
        for k, (left, top, right, bottom) in enumerate(place(index)):
            colour = shapes[k][4]
            if k == 1:
                cv2.circle(frame, (left + side // 2, top + side // 2), (side - 1) // 2, colour, -1)
            else:
                frame[top:bottom, left:right] = colour
        return frame

    boxes = [place(index) for index in range(length)]
    changed: list[list[Box]] = [[]]
    changed += [_moved(a, b) for a, b in zip(boxes, boxes[1:], strict=False)]
    return Truth(changed, boxes), draw


def _moved(before: list[Box], after: list[Box]) -> list[Box]:
    return [box for a, b in zip(before, after, strict=True) if a != b for box in (a, b)]


def _pan(length: int, fps: float, size: tuple[int, int], seed: int) -> Scene:
    room, step = max(64, size[1]), max(1, round(90 / fps))
    canvas = _picture((size[0] + room // 4, size[1] + room), seed)

    def place(index: int) -> tuple[int, int]:
        return _bounce(index * step, room), _bounce(index * step // 4, room // 4)

    def draw(index: int) -> np.ndarray:
        x, y = place(index)
        return canvas[y : y + size[0], x : x + size[1]].copy()

    places = [place(index) for index in range(length)]
    shift = [(0, 0)] + [(a[0] - b[0], a[1] - b[1]) for a, b in zip(places, places[1:], strict=False)]
    return Truth([[_whole(size)] if s != (0, 0) else [] for s in shift], shift=shift), draw


def _fade(length: int, fps: float, size: tuple[int, int], seed: int) -> Scene:
    first, second = _picture(size, seed), _picture(size, seed + 1)

    def level(index: int) -> float:  # a third still, a third down and up again, a third still
        place = (index + 0.5) / length * 3 - 1
        return 1.0 if not 0 < place < 1 else abs(1 - 2 * place)

    def draw(index: int) -> np.ndarray:
        picture = first if index + 0.5 < length / 2 else second
        return np.rint(picture * level(index)).astype(np.uint8)

    levels = [level(index) for index in range(length)]
    half = next((i for i in range(length) if i + 0.5 >= length / 2), length)
    changed = [[_whole(size)] if i and (levels[i] != levels[i - 1] or i == half) else [] for i in range(length)]
    return Truth(changed, level=levels), draw


def _cut(length: int, fps: float, size: tuple[int, int], seed: int) -> Scene:
    hold = max(1, round(2 * fps))

    @lru_cache(maxsize=2)
    def picture(scene: int) -> np.ndarray:
        return _picture(size, seed + scene)

    def draw(index: int) -> np.ndarray:
        return picture(index // hold).copy()

    changed = [[_whole(size)] if index % hold == 0 else [] for index in range(length)]
    return Truth(changed, cuts=[index / fps for index in range(hold, length, hold)]), draw


def _noise(length: int, fps: float, size: tuple[int, int], seed: int) -> Scene:
    picture, sigma = _picture(size, seed).astype(np.float32), 4.0

    def draw(index: int) -> np.ndarray:
        grain = np.random.default_rng((seed, index)).standard_normal(picture.shape, dtype=np.float32)
        return np.clip(np.rint(picture + sigma * grain), 0, 255).astype(np.uint8)

    return Truth([[_whole(size)] for _ in range(length)], sigma=sigma), draw


def _slides(length: int, fps: float, size: tuple[int, int], seed: int) -> Scene:
    from vtoken.reference.slides import Deck

    deck = Deck(size, seed)
    shown = [deck.state(index / fps) for index in range(length)]
    boxes = [[deck.cursor_box(state)] for state in shown]
    changed: list[list[Box]] = [[]]
    for before, after in zip(shown, shown[1:], strict=False):
        changed.append(deck.changed(before, after))
    cuts = [i / fps for i in range(1, length) if shown[i].slide != shown[i - 1].slide]
    return Truth(changed, boxes, cuts), lambda index: deck.draw(shown[index])


SCENES: dict[str, Callable[[int, float, tuple[int, int], int], Scene]] = {
    "slides": _slides,
    "objects": _objects,
    "pan": _pan,
    "fade": _fade,
    "cut": _cut,
    "noise": _noise,
}
