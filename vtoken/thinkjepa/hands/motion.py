"""Where both wrists go: neutral moves, a start that is the same for every goal, then reach, grasp, carry, retreat."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vtoken.thinkjepa.hands.layout import FRAMES, NOW, PAST
from vtoken.thinkjepa.hands.skeleton import ELBOWS, REACH

FORK = NOW - 1  # last frame at which all goals look the same
RESTS = ((-0.20, 0.05, 0.23), (0.20, 0.05, 0.23))  # metres, about which the hands rest
ROOM = (0.13, 0.03, 0.085)  # how far from there
HOVER = 0.055  # of the wrist above what it holds
LIFT = 0.07  # highest point of the carrying arc
OPEN, CLOSED = 0.15, 0.85


@dataclass(frozen=True)
class Motion:
    """Both hands, left first, and the object that is carried.

    Attributes:
        wrists: float64 [2, T, 3], metres.
        grips: float64 [2, T], 0 open to 1 closed.
        taken, left: first frame at which the object moves with the hand, and first at which it lies again.
    """

    wrists: np.ndarray
    grips: np.ndarray
    taken: int
    left: int


def quintic(start: np.ndarray, end: Sequence[float] | np.ndarray, frames: float, at: np.ndarray) -> np.ndarray:
    """The path of least jerk from a moving start to rest (Flash and Hogan 1985).

    Args:
        start: float [3, 3]: position, velocity and acceleration at frame 0, by frames.
        end: position [3] after ``frames``.
        at: frames [n] for which it is wanted; held outside of 0 to ``frames``.

    Returns:
        float64 [n, 3, 3]: position, velocity and acceleration.
    """
    p, v, a = (np.asarray(x, np.float64) for x in start)
    d = float(frames)
    v, a, gap = v * d, a * d * d, np.asarray(end, np.float64) - p
    gap, speed, pull = gap - v - a / 2, -v - a, -a
    c = [p, v, a / 2, 10 * gap - 4 * speed + pull / 2, -15 * gap + 7 * speed - pull, 6 * gap - 3 * speed + pull / 2]
    t = np.clip(np.asarray(at, np.float64) / d, 0, 1)[:, None]
    moving = ((np.asarray(at) >= 0) & (np.asarray(at) <= d))[:, None]
    place = sum(k * t**i for i, k in enumerate(c))
    rate = sum(i * k * t ** (i - 1) for i, k in enumerate(c) if i) / d * moving
    turn = sum(i * (i - 1) * k * t ** (i - 2) for i, k in enumerate(c) if i > 1) / d / d * moving
    return np.stack([np.asarray(place), np.asarray(rate), np.asarray(turn)], 1)


def moved(rng: np.random.Generator, objects: np.ndarray, places: np.ndarray, goal: int) -> Motion:
    """Draw the motion of an episode. ``rng`` is used alike for every goal, so goals differ after ``FORK`` alone.

    Args:
        objects, places: float [3, 3], metres: where the objects lie and where each is brought to.
    """
    start = int(rng.integers(42, 45))  # both hands set out, towards the middle of the objects
    reach = start + int(rng.integers(24, 29))
    taken, left = reach + 3, reach + 3 + int(rng.integers(16, 20))
    end = left + 3 + int(rng.integers(9, 13))
    wrists, grips = np.empty((2, FRAMES, 3)), np.empty((2, FRAMES))
    clock = np.arange(FRAMES)
    for side in (0, 1):
        rest = _rests(rng, side)
        path = _neutral(rng, rest, clock)
        common = _stand(side, objects.mean(0), rest[-1])
        path[start : FORK + 1] = quintic(_still(rest[-1]), common, reach - start, clock[start : FORK + 1] - start)[:, 0]
        state = quintic(_still(rest[-1]), common, reach - start, np.array([FORK - start]))[0]
        target, place = _stand(side, objects[goal], rest[-1]), _stand(side, places[goal], rest[-1])
        path[FORK:reach] = quintic(state, target, reach - FORK, clock[FORK:reach] - FORK)[:, 0]
        path[reach:taken] = target
        path[taken:] = quintic(_still(target), place, left - taken, clock[taken:] - taken)[:, 0]
        path[taken : left + 1, 1] += LIFT * np.sin(np.pi * np.linspace(0, 1, left + 1 - taken)) ** 2
        back = place + np.array([0.02 * (2 * side - 1), 0.05, 0.05])
        path[left + 3 :] = quintic(_still(place), back, end - left - 3, clock[left + 3 :] - left - 3)[:, 0]
        wrists[side] = path + _sway(rng, clock)
        grips[side] = _grip(side, clock, taken, left)
    return Motion(wrists, grips, taken, left)


def _still(place: np.ndarray) -> np.ndarray:
    return np.stack([place, np.zeros(3), np.zeros(3)])


def _rests(rng: np.random.Generator, side: int) -> np.ndarray:
    """Four places to rest at, float64 [4, 3]."""
    return np.array(RESTS[side]) + rng.uniform(-1, 1, (4, 3)) * ROOM


def _neutral(rng: np.random.Generator, rest: np.ndarray, clock: np.ndarray) -> np.ndarray:
    """From rest to rest until PAST, then still."""
    path = np.repeat(rest[:1], len(clock), 0)
    for i, begin in enumerate((2, 14, 26)):
        first, long = begin + int(rng.integers(0, 3)), int(rng.integers(7, 11))
        path[first:] = quintic(_still(rest[i]), rest[i + 1], long, clock[first:] - first)[:, 0]
        assert first + long < PAST
    return path


def _stand(side: int, thing: np.ndarray, rest: np.ndarray) -> np.ndarray:
    """Where a wrist stands to hold a thing (right hand), or to steady it from the side (left hand)."""
    if side == 0:
        beside = thing + np.array([-0.10, 0.04, 0.13])
        return rest + 0.75 * (beside - rest)
    away = thing - np.array(ELBOWS[1])
    away[1] = 0
    return thing - REACH * away / np.linalg.norm(away) + np.array([0, HOVER, 0])


def _grip(side: int, clock: np.ndarray, taken: int, left: int) -> np.ndarray:
    most = CLOSED if side else 0.4
    held = np.clip((clock - taken + 4) / 4, 0, 1) - np.clip((clock - left) / 3, 0, 1)
    return OPEN + (most - OPEN) * held


def _sway(rng: np.random.Generator, clock: np.ndarray) -> np.ndarray:
    """A tremor of a few millimetres."""
    rate, phase = rng.uniform(0.2, 0.7, (2, 3)), rng.uniform(0, 2 * np.pi, (2, 3))
    return 0.002 * np.sin(clock[:, None, None] * rate + phase).sum(1)
