"""What was kept, for the player: a picture a time step, the state of every cell, kept share, scene cuts."""

from __future__ import annotations

import base64
import math
from pathlib import Path
from typing import Any

import numpy as np

from vtoken.data.report import CellState
from vtoken.qa.api import Answer
from vtoken.video import open_video

PICTURES = 480  # most pictures of one clip
WIDTH = 448  # pixels, at most


def overlay(path: Path, answer: Answer, start: float | None, end: float | None) -> dict[str, Any]:
    """The player's value: plain numbers, base64 arrays and JPEG pictures.

    ``states`` is uint8 [T, h, w] by ``CellState``; ``reference`` int32 [T, gate rows, gate columns], the step whose
    cell each repeats; ``times`` and ``share`` (kept cells of all) have one entry a step; ``cuts`` are seconds.
    ``every`` is how many steps apart the pictures are.
    """
    states, clip = answer.cell_state, answer.clip
    every = max(1, math.ceil(len(states) / PICTURES))
    shown = clip.times[::every]
    scenes = np.flatnonzero(np.diff(clip.gate.scene)) + 1
    return {
        "name": path.name,
        "plan": answer.report.plan,
        "images": _pictures(path, shown, start, end, _shape(clip)),
        "every": every,
        "times": [round(float(t), 4) for t in clip.times],
        "end": round(float(clip.pts[0] + clip.seconds), 4),
        "shape": list(states.shape),
        "states": _pack(states.astype(np.uint8)),
        "gate": list(clip.gate.keep.shape[1:]),
        "reference": _pack(clip.gate.reference.astype("<i4")),
        "share": [round(float(s), 6) for s in (states == CellState.KEPT).mean((1, 2))],
        "cuts": [round(float(clip.times[i]), 4) for i in scenes],
        "counts": {state.name.lower(): int((states == state).sum()) for state in CellState},
    }


def _pack(values: np.ndarray) -> str:
    return base64.b64encode(np.ascontiguousarray(values).tobytes()).decode()


def _shape(clip: Any) -> float | None:
    """Width by height of what the model sees, where that is the centre of the frame only."""
    return clip.grid.width / clip.grid.height if clip.crop else None


def _pictures(path: Path, times: np.ndarray, start: float | None, end: float | None, aspect: float | None) -> list[str]:
    """JPEG data URLs of the frames at exact times."""
    found: list[str] = []
    with open_video(path, start=start, end=end) as reader:
        for frames in reader:
            for i, time in enumerate(frames.pts):
                if len(found) < len(times) and time >= times[len(found)] - 1e-6:
                    found.append(jpeg(_centre(frames.rgb(i), aspect)))
            if len(found) == len(times):
                break
    return found


def _centre(picture: np.ndarray, aspect: float | None) -> np.ndarray:
    if aspect is None:
        return picture
    height, width = picture.shape[:2]
    tall, wide = min(height, round(width / aspect)), min(width, round(height * aspect))
    top, left = (height - tall) // 2, (width - wide) // 2
    return picture[top : top + tall, left : left + wide]


def jpeg(picture: np.ndarray, width: int = WIDTH) -> str:
    """A picture uint8 [H, W, 3] as a data URL, at most ``width`` pixels wide."""
    import cv2

    tall, wide = picture.shape[:2]
    if wide > width:
        picture = cv2.resize(picture, (width, max(1, round(tall * width / wide))), interpolation=cv2.INTER_AREA)
    done, data = cv2.imencode(".jpg", picture[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 82])
    assert done
    return "data:image/jpeg;base64," + base64.b64encode(data.tobytes()).decode()
