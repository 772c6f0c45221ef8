"""Pictures of a DenseQA clip: the same seed gives the same pixels."""

from __future__ import annotations

from functools import lru_cache

import cv2
import numpy as np

from vtoken.reference.world import COLOURS, SIZE, Lamp, Panel, Script

SHIFT = 4  # fractional bits of OpenCV's drawing coordinates


def background(kind: str, seed: int) -> np.ndarray:
    """uint8 [112, 112, 3] in muted tones, so that coloured things stand out."""
    r = np.random.default_rng(seed)
    tint = r.integers(-10, 11, 3)
    level = int(r.integers(70, 150))
    y, x = np.mgrid[0:SIZE, 0:SIZE]
    if kind == "texture":
        grey = _smooth(r.integers(-35, 36, (9, 9)).astype(float)) + level
        grey = grey + r.integers(-6, 7, (SIZE, SIZE))
    elif kind == "gradient":
        a, b = r.uniform(-0.5, 0.5, 2)
        grey = level + a * (x - SIZE / 2) + b * (y - SIZE / 2)
    elif kind == "checks":
        side = int(r.integers(6, 14))
        grey = level + 22.0 * (((x + seed % 7) // side + y // side) % 2)
    else:
        grey = np.full((SIZE, SIZE), float(r.integers(205, 236)))
        grey[: int(r.integers(8, 16))] -= 70
        for row in range(22, SIZE - 6, int(r.integers(8, 13))):
            start = int(r.integers(4, 20))
            grey[row : row + 2, start : start + int(r.integers(30, 90))] -= 60
    return np.clip(grey[..., None] + tint, 0, 255).astype(np.uint8)


def _smooth(coarse: np.ndarray) -> np.ndarray:
    """Bilinear, in numpy: the same on every machine."""
    old, new = np.arange(len(coarse)), np.linspace(0, len(coarse) - 1, SIZE)
    rows = np.stack([np.interp(new, old, line) for line in coarse])
    return np.stack([np.interp(new, old, line) for line in rows.T]).T


class Painter:
    """Draws frames of one script; backgrounds and noise are made once."""

    def __init__(self, script: Script) -> None:
        self.script = script
        self.grounds = [background(kind, seed) for kind, seed in script.backgrounds]
        self.noise: np.ndarray | None = None
        self.key = script.backgrounds[0][1]
        if script.noise:
            r = np.random.default_rng(self.key)
            self.noise = r.integers(-script.noise, script.noise + 1, (SIZE + 48, SIZE + 48, 3), dtype=np.int16)

    def frame(self, index: int) -> np.ndarray:
        """uint8 RGB [112, 112, 3] of frame ``index`` at 16 frames a second."""
        s = self.script
        image = self.grounds[s.scene(index)].copy()
        for thing in s.visible(index):
            draw_shape(image, thing.shape, COLOURS[thing.colour], thing.x, thing.y, 9.5)
        if s.lamp is not None:
            draw_lamp(image, s.lamp, index)
        for panel in s.panels:
            draw_panel(image, panel, index)
        if s.mover is not None and (place := s.mover.at(index)) is not None:
            draw_shape(image, s.mover.shape, COLOURS[s.mover.colour], *place, 9.5)
        if s.blocks:
            image = coarse(image)
        if self.noise is not None:
            a, b = (index * 29 + self.key) % 47, (index * 17 + self.key // 64) % 43
            noisy = image + self.noise[a : a + SIZE, b : b + SIZE]
            image = np.clip(noisy, 0, 255).astype(np.uint8)
        return image


def draw_panel(image: np.ndarray, panel: Panel, index: int) -> None:
    x, y = panel.at(index)
    half = panel.size / 2
    corners = np.array([[x - half, y - half], [x + half, y - half], [x + half, y + half], [x - half, y + half]])
    _fill(image, corners, COLOURS[panel.colour])
    light = panel.colour in ("yellow", "cyan", "green")
    _write(image, panel.symbol(index), x, y, panel.size, (20, 20, 20) if light else (250, 250, 250))


def draw_lamp(image: np.ndarray, lamp: Lamp, index: int) -> None:
    colour = lamp.colour(index)
    scale = 1 << SHIFT
    centre = (round((lamp.x - 0.5) * scale), round((lamp.y - 0.5) * scale))
    cv2.circle(image, centre, 7 * scale, (15, 15, 15), -1, cv2.LINE_AA, SHIFT)
    if colour is not None:
        cv2.circle(image, centre, round(5.5 * scale), COLOURS[colour], -1, cv2.LINE_AA, SHIFT)


def draw_shape(image: np.ndarray, shape: str, colour: tuple[int, int, int], x: float, y: float, radius: float) -> None:
    if shape == "circle":
        scale = 1 << SHIFT
        centre = (round((x - 0.5) * scale), round((y - 0.5) * scale))
        cv2.circle(image, centre, round(radius * scale), colour, -1, cv2.LINE_AA, SHIFT)
        return
    _fill(image, np.array([x, y]) + radius * _outline(shape), colour)


@lru_cache
def _outline(shape: str) -> np.ndarray:
    """Corners on the unit circle's scale, float [n, 2]."""
    if shape == "square":
        return np.array([[-0.85, -0.85], [0.85, -0.85], [0.85, 0.85], [-0.85, 0.85]])
    if shape == "triangle":
        return np.array([[0.0, -1.0], [0.95, 0.8], [-0.95, 0.8]])
    if shape == "cross":
        a, b = 0.32, 1.0
        return np.array(
            [[-a, -b], [a, -b], [a, -a], [b, -a], [b, a], [a, a], [a, b], [-a, b], [-a, a], [-b, a], [-b, -a], [-a, -a]]
        )
    angles = np.arange(10) * np.pi / 5 - np.pi / 2
    lengths = np.where(np.arange(10) % 2, 0.42, 1.1)
    return np.stack([np.cos(angles) * lengths, np.sin(angles) * lengths], 1)


def _fill(image: np.ndarray, corners: np.ndarray, colour: tuple[int, int, int]) -> None:
    points = np.round((corners - 0.5) * (1 << SHIFT)).astype(np.int32)
    cv2.fillPoly(image, [points[:, None]], colour, cv2.LINE_AA, SHIFT)


@lru_cache(maxsize=512)
def _glyph(symbol: str, size: int) -> np.ndarray:
    """Coverage 0..1, float32 [size, size], drawn at four times the size."""
    font, big = cv2.FONT_HERSHEY_SIMPLEX, size * 4
    canvas = np.zeros((big, big), np.uint8)
    scale = big / 40
    (wide, tall), _ = cv2.getTextSize(symbol, font, scale, 14)
    cv2.putText(canvas, symbol, ((big - wide) // 2, (big + tall) // 2), font, scale, 255, 14, cv2.LINE_8)
    return canvas.reshape(size, 4, size, 4).mean((1, 3)).astype(np.float32) / 255


def _write(image: np.ndarray, symbol: str, x: float, y: float, size: int, colour: tuple[int, int, int]) -> None:
    glyph = _glyph(symbol, size)
    left, top = round(x - size / 2), round(y - size / 2)
    a, b = max(0, -top), max(0, -left)
    part = image[max(0, top) : top + size, max(0, left) : left + size]
    alpha = glyph[a : a + part.shape[0], b : b + part.shape[1], None]
    part[:] = (part * (1 - alpha) + np.array(colour, np.float32) * alpha + 0.5).astype(np.uint8)


def coarse(image: np.ndarray) -> np.ndarray:
    """Chroma averaged over 4x4 blocks and luma in steps of 12, in whole numbers."""
    wide = image.astype(np.int32)
    luma = (wide[..., 0] * 77 + wide[..., 1] * 150 + wide[..., 2] * 29) >> 8
    chroma = wide - luma[..., None]
    n = SIZE // 4
    means = chroma.reshape(n, 4, n, 4, 3).sum((1, 3)) // 16
    chroma = means.repeat(4, 0).repeat(4, 1)
    return np.clip((luma // 12 * 12 + 6)[..., None] + chroma, 0, 255).astype(np.uint8)
