"""Episodes: two hands, three objects, and a goal that is shown early and briefly."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from vtoken.errors import InputError
from vtoken.reference.world import BACKGROUNDS, COLOURS, SHAPES
from vtoken.thinkjepa.hands import camera, skeleton
from vtoken.thinkjepa.hands.layout import EARLY, FLASH, FPS, FRAMES, HAND, NOW, PLACES, SESSION, SPAN, SPLITS, STRIDE
from vtoken.thinkjepa.hands.motion import Motion, moved
from vtoken.thinkjepa.hands.render import View, draw
from vtoken.thinkjepa.hands.scene import Scene

ROW, TRAYS = ((-0.24, 0.0, 0.24), -0.07), ((-0.36, 0.10), (0.0, 0.24), (0.36, 0.10))  # metres: x and z
LAMPS = np.array([[-0.38, 0.0, -0.30], [0.0, 0.0, -0.30], [0.38, 0.0, -0.30]])


@dataclass(frozen=True, eq=False)
class Episode:
    """14 seconds at 8 frames a second, 112x112 pixels, drawn when asked for.

    Attributes:
        goal: index of the object, 0 (left) to 2 (right).
        points: float32 [T, 52, 3], metres in the world, y up, in the order of ``layout.POINTS``.
        extrinsics: float32 [T, 4, 4], world to camera.
        intrinsics: float32 [3, 3].
        group: what a split must not cut through: episodes at one table.
    """

    seed: int
    split: str
    goal: int
    points: np.ndarray
    extrinsics: np.ndarray
    intrinsics: np.ndarray
    group: str
    scene: Scene
    fps: float = FPS

    def __len__(self) -> int:
        return FRAMES

    @cached_property
    def frames(self) -> np.ndarray:
        """uint8 RGB [T, 112, 112, 3]."""
        return self.drawn(range(FRAMES))

    def drawn(self, index: range | list[int]) -> np.ndarray:
        """uint8 RGB [n, 112, 112, 3] of some frames alone."""
        view = View(self.scene, self.points, self.extrinsics, self.intrinsics, self.goal, self.seed)
        return draw(view, index)

    def sparse(self) -> tuple[np.ndarray, np.ndarray]:
        """The long context: uint8 [12, 112, 112, 3] and float64 seconds [12], all before the future begins."""
        index = list(range(0, NOW, STRIDE))
        return self.drawn(index), np.array(index) / self.fps


def episode(seed: int, split: str = "train", goal: int | None = None) -> Episode:
    """The episode of a seed; seeds of the splits never overlap.

    Args:
        seed: 0, 1, 2 ... within the split, below 2**32.
        split: "train", "validation" or "test".
        goal: 0, 1 or 2 in place of the drawn one, with all else the same: up to the end of the past window the
            frames differ where the marker is lit alone.

    Raises:
        InputError: an unknown split or goal, or a seed outside of it.
    """
    if split not in SPLITS:
        raise InputError(f"split={split!r} is unknown; known are {', '.join(SPLITS)}")
    if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)) or not 0 <= seed < SPAN:
        raise InputError(f"seed={seed!r} must be a whole number from 0 to {SPAN - 1}")
    if goal is not None and goal not in range(3):
        raise InputError(f"goal={goal!r} must be 0, 1 or 2")
    key = (SPLITS.index(split), int(seed))
    drawn = int(np.random.default_rng((*key, 0)).integers(3))
    goal = drawn if goal is None else int(goal)
    r = np.random.default_rng((*key, 1))
    table = np.random.default_rng((key[0], key[1] // SESSION, 2))
    objects, trays, lamps = _arranged(r)
    motion = moved(np.random.default_rng((*key, 3)), objects, trays, goal)
    hands = [skeleton.points(motion.wrists[side], motion.grips[side], bool(side)) for side in (0, 1)]
    paths = _carried(objects, trays, goal, motion, hands[1])
    first = int(r.integers(*EARLY))
    scene = Scene(
        shapes=tuple(str(s) for s in r.permutation(SHAPES)[:3]),
        colours=tuple(str(c) for c in r.permutation(list(COLOURS))[:3]),
        paths=paths,
        trays=trays,
        lamps=lamps,
        flash=(first, first + FLASH, str(r.choice(list(COLOURS)))),
        background=(str(table.choice(BACKGROUNDS)), int(table.integers(1 << 30))),
        tones=(int(table.integers(20, 50)), int(table.integers(190, 230))),
        noise=int(r.choice((0, 3, 6))),
    )
    points = np.concatenate(hands, 1).astype(np.float32)
    pose = camera.extrinsics(np.random.default_rng((*key, 4)))
    group = f"{split}/table-{int(seed) // SESSION:05d}"
    return Episode(int(seed), split, goal, points, pose, camera.intrinsics(), group, scene)


def _carried(objects: np.ndarray, trays: np.ndarray, goal: int, motion: Motion, hand: np.ndarray) -> np.ndarray:
    """Where the objects are, float64 [T, 3, 3]: one moves with the fingers that hold it."""
    paths = np.repeat(objects[None], FRAMES, 0)
    hold = hand[motion.taken : motion.left + 1, [HAND.index("ThumbTip"), HAND.index("IndexFingerTip")]].mean(1)
    share = np.linspace(0, 1, len(hold))[:, None]
    offset = (1 - share) * (objects[goal] - hold[0]) + share * (trays[goal] - hold[-1])
    paths[motion.taken : motion.left + 1, goal] = hold + offset
    paths[motion.left + 1 :, goal] = trays[goal]
    return paths


def _arranged(r: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Places of objects, trays and lamps, float64 [3, 3] each, metres."""
    shift = r.uniform(-0.06, 0.06), r.uniform(-0.03, 0.03)
    objects = np.array([[x + shift[0], 0.015, ROW[1] + shift[1]] for x in ROW[0]])
    objects[:, [0, 2]] += r.uniform(-1, 1, (3, 2)) * (0.03, 0.03)
    trays = np.array([[x, 0.015, z] for x, z in TRAYS])
    trays[:, [0, 2]] += r.uniform(-0.015, 0.015, (3, 2))
    lamps = LAMPS + 0.4 * (objects - [(x, 0.015, ROW[1]) for x in ROW[0]])
    return objects, trays, lamps


assert len(PLACES) == len(TRAYS) == len(ROW[0])
