"""Pictures of an episode, with DenseQA's shapes and lamps: the same seed gives the same pixels."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import cv2
import numpy as np

from vtoken.reference.render import SHIFT, background, draw_lamp, draw_shape
from vtoken.reference.world import COLOURS, Lamp
from vtoken.thinkjepa.hands.camera import project
from vtoken.thinkjepa.hands.layout import ELBOW, FINGERS, HAND, SIZE, WRIST
from vtoken.thinkjepa.hands.scene import Scene

GLOVES = ((66, 44, 34), (244, 208, 182))  # left and right
EDGE = ((30, 20, 16), (150, 108, 86))
LEVEL, CONTRAST = 112, 0.5  # of the table: DenseQA's grounds, with their light evened out
RADIUS = 8.5  # of an object, pixels
TRAY = 0.06  # half a side, metres
_CHAINS = [[HAND.index(f"{finger}{joint}") for joint in joints] for finger, joints in FINGERS.items()]
_PALM = [WRIST, *(chain[i] for chain in _CHAINS for i in (0, 1))]


class View(NamedTuple):
    """What a picture of an episode shows; see ``Episode``."""

    scene: Scene
    points: np.ndarray
    extrinsics: np.ndarray
    intrinsics: np.ndarray
    goal: int
    seed: int


def draw(view: View, index: Iterable[int]) -> np.ndarray:
    """uint8 RGB [n, 112, 112, 3] of the frames in ``index``."""
    scene = view.scene
    ground = _table(background(*scene.background))
    noise = None
    if scene.noise:
        r = np.random.default_rng(scene.background[1])
        noise = r.integers(-scene.noise, scene.noise + 1, (SIZE + 48, SIZE + 48, 3), dtype=np.int16)
    out = []
    for i in index:
        image = _frame(view, int(i), ground.copy())
        if noise is not None:
            a, b = (i * 29 + view.seed) % 47, (i * 17 + view.seed // 64) % 43
            image = np.clip(image + noise[a : a + SIZE, b : b + SIZE], 0, 255).astype(np.uint8)
        out.append(image)
    return np.stack(out)


def _table(ground: np.ndarray) -> np.ndarray:
    return np.clip(LEVEL + CONTRAST * (ground - ground.mean()), 0, 255).astype(np.uint8)


def _frame(view: View, i: int, image: np.ndarray) -> np.ndarray:
    scene, pose, lens = view.scene, view.extrinsics[i], view.intrinsics
    square = TRAY * np.array([[-1, 0, -1], [1, 0, -1], [1, 0, 1], [-1, 0, 1]])
    for tray, colour in zip(scene.trays, scene.colours, strict=True):
        corners = _fixed(project(tray + square, pose, lens))
        cv2.polylines(image, [corners], True, COLOURS[colour], 2, cv2.LINE_AA, SHIFT)
    for k, (x, y) in enumerate(project(scene.lamps, pose, lens)):
        draw_lamp(image, Lamp(x, y, (scene.flash,) if k == view.goal else ()), i)
    hands = view.points[i].astype(np.float64).reshape(2, -1, 3)
    shadow = np.zeros(image.shape[:2], np.uint8)
    for hand in hands:
        _shade(shadow, project(_long(hand) * (1, 0, 1), pose, lens))
    image = (image * (1 - shadow[..., None] / 255 * 0.2)).astype(np.uint8)
    for k, (x, y) in enumerate(project(scene.paths[i], pose, lens)):
        draw_shape(image, scene.shapes[k], COLOURS[scene.colours[k]], x, y, RADIUS)
    for side, hand in enumerate(hands):
        _hand(image, project(_long(hand), pose, lens), side, scene.tones[side])
    return image


def _long(hand: np.ndarray) -> np.ndarray:
    """Points of a hand with the arm drawn out beyond the elbow, towards the edge of the picture."""
    out = hand.copy()
    out[ELBOW] += 0.6 * (hand[ELBOW] - hand[WRIST])
    return out


def _fixed(pixels: np.ndarray) -> np.ndarray:
    """OpenCV's fixed-point coordinates, int32 [n, 1, 2]."""
    return np.round((pixels - 0.5) * (1 << SHIFT)).astype(np.int32)[:, None]


def _shade(mask: np.ndarray, pixels: np.ndarray) -> None:
    cv2.polylines(mask, [_fixed(pixels[[ELBOW, WRIST]])], False, 255, 11, cv2.LINE_AA, SHIFT)
    cv2.fillConvexPoly(mask, cv2.convexHull(_fixed(pixels[:ELBOW])), 255, cv2.LINE_AA, SHIFT)


def _hand(image: np.ndarray, pixels: np.ndarray, side: int, tone: int) -> None:
    arm = _fixed(np.stack([pixels[ELBOW], pixels[WRIST] * 0.9 + pixels[ELBOW] * 0.1]))
    cv2.polylines(image, [arm], False, (tone, tone, tone + 12), 12, cv2.LINE_AA, SHIFT)
    fingers = [_fixed(pixels[chain[-4:]]) for chain in _CHAINS]
    palm = cv2.convexHull(_fixed(pixels[_PALM]))
    for colour, wide in ((EDGE[side], 6), (GLOVES[side], 4)):
        cv2.polylines(image, fingers, False, colour, wide, cv2.LINE_AA, SHIFT)
        cv2.polylines(image, [palm], True, colour, wide, cv2.LINE_AA, SHIFT)
        cv2.fillPoly(image, [palm], colour, cv2.LINE_AA, SHIFT)
