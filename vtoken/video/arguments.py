"""Checks of the arguments of ``open_video``."""

from __future__ import annotations

import math
from numbers import Real
from typing import Any

import numpy as np

from vtoken.errors import InputError


def whole_of(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 1:
        raise InputError(f"{name}={value!r} must be a whole number of frames, at least 1")


def fps_of(fps: Any) -> float | None:
    if isinstance(fps, str) and fps == "native":
        return None
    return positive_of("fps", fps, "; or give 'native' for every frame")


def positive_of(name: str, value: Any, extra: str = "") -> float:
    good = isinstance(value, Real) and not isinstance(value, bool)
    if not good or not math.isfinite(value) or value <= 0:
        raise InputError(f"{name}={value!r} must be a finite number of frames per second above 0{extra}")
    return float(value)


def second_of(name: str, value: Any, default: float) -> float:
    if value is None:
        return default
    good = isinstance(value, Real) and not isinstance(value, bool)
    if not good or not math.isfinite(value) or value < 0:
        raise InputError(f"{name}={value!r} must be a finite number of seconds, at least 0")
    return float(value)
