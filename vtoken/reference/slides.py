"""A lecture: slides whose bullets and chart bars appear one by one, under a cursor that moves and rests."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

SLIDE_SECONDS, BUILD_SECONDS, BUILDS = 8.0, 1.5, 5
TITLES = ("Vision tokens", "Motion gate", "Patch budget", "Frame rate", "Results")
WORDS = ("static", "patch", "token", "frame", "reference", "budget", "encoder", "scene", "cut", "pan", "merge", "keep")

Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class State:
    """What is on the screen: slide, how many of its parts have appeared, place of the cursor's tip."""

    slide: int
    built: int
    cursor: tuple[int, int]


class Deck:
    """Slides of one size; (height, width) in pixels."""

    def __init__(self, size: tuple[int, int], seed: int) -> None:
        self.size, self.seed = size, seed
        self.side = max(6, size[0] // 24)  # of the cursor
        self.page = lru_cache(maxsize=4)(self._page)

    def state(self, time: float) -> State:
        slide = int(time / SLIDE_SECONDS + 1e-9)
        built = min(BUILDS, 1 + int((time - slide * SLIDE_SECONDS) / BUILD_SECONDS + 1e-9))
        moving = int(time / 2 + 1e-9) // 2 + min(1.0, (time / 2 + 1e-9) % 2)  # two seconds moving, two at rest
        height, width = self.size
        x = (0.5 + 0.4 * math.sin(1.7 * moving + self.seed)) * (width - self.side)
        y = (0.5 + 0.4 * math.cos(2.3 * moving + self.seed)) * (height - self.side)
        return State(slide, built, (int(x), int(y)))

    def cursor_box(self, state: State) -> Box:
        x, y = state.cursor
        return (x, y, x + self.side, y + self.side)

    def part_box(self, part: int, slide: int) -> Box:
        """Where a part of a slide appears: a line of text, or a bar of every third slide's chart."""
        height, width = self.size
        if slide % 3 == 2:
            left = width // 10 + part * width * 8 // (10 * BUILDS)
            return (left, height // 4, left + width // (2 * BUILDS), height * 9 // 10)
        top = height // 4 + part * height * 13 // (20 * BUILDS)
        return (width // 12, top, width * 11 // 12, top + height * 13 // (20 * BUILDS))

    def changed(self, before: State, after: State) -> list[Box]:
        """Boxes outside of which two states look the same."""
        if before.slide != after.slide:
            return [(0, 0, self.size[1], self.size[0])]
        boxes = [self.part_box(part, after.slide) for part in range(before.built, after.built)]
        if before.cursor != after.cursor:
            boxes += [self.cursor_box(before), self.cursor_box(after)]
        return boxes

    def draw(self, state: State) -> np.ndarray:
        import cv2

        frame = self.page(state.slide, state.built).copy()
        left, top, right, bottom = self.cursor_box(state)
        tip = np.array(
            [[0, 0], [0, self.side - 1], [self.side // 3, 2 * self.side // 3], [2 * self.side // 3, self.side // 2]]
        )
        patch = np.ascontiguousarray(frame[top:bottom, left:right])
        cv2.fillPoly(patch, [tip.astype(np.int32)], (30, 30, 30))
        frame[top:bottom, left:right] = patch
        return frame

    def _page(self, slide: int, built: int) -> np.ndarray:
        import cv2

        height, width = self.size
        rng = np.random.default_rng((self.seed, slide))
        page = np.full((height, width, 3), (250, 250, 246), np.uint8)
        page[: height // 6] = rng.integers(30, 120, 3)
        scale = height / 400
        cv2.putText(
            page, f"{slide + 1}  {TITLES[slide % len(TITLES)]}", (width // 24, height // 8), 0, scale, (255,) * 3, 2
        )
        for part in range(BUILDS):  # every part is drawn from the generator, shown or not
            words, tall, colour = rng.choice(WORDS, 4), rng.uniform(0.2, 1.0), rng.integers(40, 200, 3)
            if part >= built:
                continue
            left, top, right, bottom = self.part_box(part, slide)
            box = np.ascontiguousarray(page[top:bottom, left:right])  # drawing stops at the edge of the box
            if slide % 3 == 2:
                box[int((1 - tall) * len(box)) :] = colour
            else:
                cv2.putText(box, "- " + " ".join(words), (2, len(box) * 2 // 3), 0, scale * 0.7, (40, 40, 40), 1)
            page[top:bottom, left:right] = box
        return page
