"""Images behind `pixelprune`: cells that are left of rendered pages, screens and pictures, and the encoder's time.

    python -m benchmarks.images

Pages and screens are drawn here, pictures are frames of the rendered scenes. "JPEG" is the same image after JPEG at
quality 90, whose noise leaves few cells equal. Times are CPU time of one thread with a random Qwen2.5-VL encoder; PSNR
is of the image in which each skipped cell shows what stands for it.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from typing import Any

import cv2
import numpy as np
import torch

from vtoken import families
from vtoken.bench import machine
from vtoken.bench.models import MEDIUM, random_model
from vtoken.data.frames import Frames, GateMap
from vtoken.families.features import Clip
from vtoken.families.geometry import geometry
from vtoken.families.images import encode_images, gate_image
from vtoken.methods.registry import build
from vtoken.reference.synthetic import render
from vtoken.video.processors import read_processor

WORDS = (
    "The",
    "encoder",
    "sees",
    "only",
    "the",
    "cells",
    "of",
    "a",
    "page",
    "that",
    "differ",
    "from",
    "others",
    "today",
)
THRESHOLDS = (0.0, 2.0, 8.0)


def page(height: int = 1092, width: int = 840, seed: int = 0) -> np.ndarray:
    """A page of text with a heading, paragraphs and a table."""
    rng, image = np.random.default_rng(seed), np.full((height, width, 3), 255, np.uint8)
    cv2.putText(image, "Quarterly report", (80, 110), cv2.FONT_HERSHEY_DUPLEX, 1.2, (20, 20, 20), 2, cv2.LINE_AA)
    y = 170
    for lines in (6, 5):
        for _ in range(lines):
            text = " ".join(rng.choice(WORDS, 9))
            cv2.putText(image, text, (80, y), cv2.FONT_HERSHEY_SIMPLEX, 0.5, (40, 40, 40), 1, cv2.LINE_AA)
            y += 26
        y += 30
    for row in range(6):
        cv2.line(image, (80, y + 34 * row), (760, y + 34 * row), (120, 120, 120), 1)
        for column in range(4):
            value = f"{rng.integers(10, 9999):,}"
            place = (100 + 170 * column, y + 34 * row + 24)
            cv2.putText(image, value, place, cv2.FONT_HERSHEY_SIMPLEX, 0.5, (40, 40, 40), 1, cv2.LINE_AA)
    return image


def screen(height: int = 728, width: int = 1288, seed: int = 0) -> np.ndarray:
    """A window with a title bar, a list at the left, buttons and a few lines of text."""
    rng, image = np.random.default_rng(seed), np.full((height, width, 3), 245, np.uint8)
    image[:48], image[48:, :230] = (40, 60, 110), (225, 228, 235)
    for i in range(9):
        cv2.putText(
            image, f"Item {i + 1}", (40, 100 + 44 * i), cv2.FONT_HERSHEY_SIMPLEX, 0.55, (60, 60, 60), 1, cv2.LINE_AA
        )
    for i in range(4):
        cv2.rectangle(image, (270 + 170 * i, 80), (410 + 170 * i, 120), (70, 110, 200), -1)
        cv2.putText(
            image, WORDS[i + 1], (285 + 170 * i, 106), cv2.FONT_HERSHEY_SIMPLEX, 0.55, (255, 255, 255), 1, cv2.LINE_AA
        )
    for i in range(6):
        text = " ".join(rng.choice(WORDS, 8))
        cv2.putText(image, text, (270, 180 + 30 * i), cv2.FONT_HERSHEY_SIMPLEX, 0.55, (40, 40, 40), 1, cv2.LINE_AA)
    return image


def images() -> Iterator[tuple[str, np.ndarray]]:
    """Name and uint8 RGB of every image, in sizes that the processor does not change."""
    slide = list(render("slides", 4.0, 2.0, (728, 1288)).frames())[-1]
    for name, image in (("page", page()), ("screen", screen()), ("slide", slide)):
        yield name, image
        coded = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 90])[1]
        yield f"{name}, JPEG", np.ascontiguousarray(cv2.imdecode(coded, cv2.IMREAD_COLOR)[..., ::-1])
    yield "camera noise", next(iter(render("noise", 1.0, 1.0, (728, 1288)).frames()))


def whole(image: np.ndarray, preprocess: Any) -> Clip:
    grid = preprocess.grid(*image.shape[:2], 1)
    rows = preprocess.pixel_values(Frames(image[None], np.zeros(1)), grid)
    return Clip(rows, grid, GateMap.full(1, grid.rows, grid.columns), np.zeros(1), float("nan"))


def psnr(rows: torch.Tensor, root: torch.Tensor, cells: int, preprocess: Any) -> float:
    """Decibels of the levels between the rows of all cells and those that stand for them."""
    each = preprocess.normalise.back(rows.unflatten(1, (3, -1))).view(cells, -1).float()
    error = float((each - each[root]).square().mean())
    return float("inf") if error == 0 else 10 * np.log10(255**2 / error)


def seconds(work: Any) -> float:
    begun = time.process_time()
    work()
    return time.process_time() - begun


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args()
    torch.set_num_threads(1)
    model, preprocess = random_model(geometry("qwen2.5-vl-3b"), MEDIUM), read_processor("qwen2.5-vl", max_pixels=10**7)
    family = families.of(model)
    print(f"{machine.describe()}\n")
    widths = {"size": 10, "cells": 7, "threshold": 11, "kept": 8, "PSNR dB": 9, "gate ms": 9, "encoder": 9}
    print("image".ljust(14) + "".join(name.rjust(width) for name, width in widths.items()))
    for name, image in images():
        clip = whole(image, preprocess)
        cells, shape = clip.gate.keep.size, f"{clip.grid.width}x{clip.grid.height}"
        stock = min(seconds(lambda: family.encode_clips(model, [clip], frozenset())) for _ in range(2))  # noqa: B023
        for threshold in THRESHOLDS:
            gate = build("pixelprune", threshold=threshold)
            spent = min(seconds(lambda: gate_image(clip, gate, preprocess.normalise)) for _ in range(3))  # noqa: B023
            left, root = gate_image(clip, gate, preprocess.normalise)  # type: ignore[arg-type]
            ours = min(seconds(lambda: encode_images(family, model, [left], root, frozenset())) for _ in range(2))  # noqa: B023
            print(
                f"{name:<14}{shape:>10}{cells:>7,}{threshold:>11g}{left.gate.kept:>8.1%}"
                f"{psnr(clip.rows, root, cells, preprocess):>9.1f}{spent * 1e3:>9.0f}{ours / stock:>9.2f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
