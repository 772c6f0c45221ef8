"""What several tests of the page ask for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import vtoken
from vtoken.demos.handlers import CONTROLS
from vtoken.demos.records import Run


def values(clip: Path, **changes: Any) -> dict[str, Any]:
    """The controls as the page starts with them."""
    start = {"video": str(clip), "question": "What is it?", "start": 0, "end": None, "fps": 10.0, "gate": "grt"}
    start |= {"reducer": "none", "kind": "keep", "amount": 0.25, "threshold": 0, "written": "", "new_tokens": 4}
    start |= {"remember": False, "max_pixels": 0, "per_frame_pixels": 0, "pixels": "stock"}
    assert set(start) == set(CONTROLS)
    return start | changes


def run_of(loaded: tuple[Any, Any], clip: Path, **options: Any) -> Run:
    options = {"fps": 10.0, "plan": "grt", "max_new_tokens": 4} | options
    answer = vtoken.ask(*loaded, clip, "What is it?", **options)
    return Run("m", clip.name, "What is it?", options, answer, float(options["fps"]))


def last(updates: Any) -> dict[str, Any]:
    """Every part's last value."""
    found: dict[str, Any] = {}
    for update in updates:
        found |= update
    return found
