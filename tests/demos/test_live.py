"""The Live tab without a browser: a clip at its own pace and frames of a webcam are watched, asked about and ended."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.demos.runs import values
from vtoken.demos import views
from vtoken.demos.live import CLIP, WAITING, WEBCAM, Frames, Lives
from vtoken.demos.runner import Runner
from vtoken.qa.stream.report import StreamReport


def watched(lives: Lives, session: str, given: dict[str, Any], **options: Any) -> list[dict[str, Any]]:
    options = {"tokens": 64, "policy": "fifo"} | options
    return list(lives.watch(session, given, CLIP, options["tokens"], options["policy"]))


def reading() -> list[threading.Thread]:
    return [t for t in threading.enumerate() if t.name.startswith("vtoken")]


@pytest.fixture
def lives(runner: Runner) -> Any:
    made = Lives(runner, 1)
    yield made
    for session in list(made._open):
        made.close(session)


def test_a_clip_is_watched_to_its_end_and_asked_about(lives: Lives, upload: Path) -> None:
    found = watched(lives, "a", values(upload))
    assert not any(update.get("live_notice") for update in found)
    assert "The source has ended" in found[-1]["live_state"] and "polyline" in found[-1]["live_state"]
    session = lives.get("a")
    assert session is not None and session.stream.report.computed > 0
    (told,) = lives.ask("a", "What happens?")
    assert [m["role"] for m in told["live_chat"]] == ["user", "assistant"]
    assert told["live_chat"][1]["content"].startswith("1.9 s: ")
    lives.close("a")
    assert len(lives) == 0 and not reading()


def test_a_webcam_is_watched_while_it_is_asked(lives: Lives, upload: Path) -> None:
    updates = lives.watch("a", values(upload), WEBCAM, 64, "fifo")
    next(updates)
    next(updates)
    frame = np.zeros((112, 168, 3), np.uint8)
    deadline = time.monotonic() + 60
    while lives.get("a").stream.report.computed == 0 and time.monotonic() < deadline:  # type: ignore[union-attr]
        frame = frame + np.uint8(1)
        lives.push("a", frame)
        time.sleep(0.05)
    assert "Watching." in next(updates)["live_state"]
    (told,) = lives.ask("a", "What is it?")
    assert len(told["live_chat"]) == 2
    lives.close("a")
    assert "Press Watch to begin anew" in list(updates)[-1]["live_state"] and not lives.get("a")
    assert not reading()


def test_a_page_that_is_closed_ends_its_stream(lives: Lives, upload: Path) -> None:
    updates = lives.watch("a", values(upload), CLIP, 64, "fifo")
    next(updates)
    next(updates)
    updates.close()
    assert len(lives) == 0 and not reading()


def test_watching_anew_ends_what_was_watched(lives: Lives, upload: Path) -> None:
    watched(lives, "a", values(upload))
    first = lives.get("a")
    watched(lives, "a", values(upload))
    assert lives.get("a") is not first and len(lives) == 1
    with pytest.raises(Exception, match="closed"):
        first.stream.ask("What?")  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("change", "options", "told"),
    [
        ({}, {"tokens": 3}, "tokens=3 must be"),
        ({}, {"policy": "nothing"}, "nothing"),
        ({"written": "cdpruner:keep=0.5"}, {}, "question"),
        ({"video": None}, {}, "clip"),
        ({"fps": 0}, {}, "fps=0"),
    ],
)
def test_what_cannot_be_watched(
    lives: Lives, upload: Path, change: dict[str, Any], options: dict[str, Any], told: str
) -> None:
    found = watched(lives, "a", values(upload) | change, **options)
    assert told in found[-1]["live_notice"] and len(lives) == 0 and not reading()


def test_a_page_watches_for_few_visitors_at_a_time(lives: Lives, upload: Path) -> None:
    watched(lives, "a", values(upload))
    assert "1 visitor watches live already" in watched(lives, "b", values(upload))[-1]["live_notice"]
    assert "press Watch first" in next(lives.ask("b", "What?"))["live_notice"]
    lives.push("b", np.zeros((8, 8, 3), np.uint8))  # nothing to push to
    lives.close("a")
    assert "ended" in watched(lives, "b", values(upload))[-1]["live_state"]


def test_late_frames_are_thrown_away() -> None:
    frames = Frames()
    for level in range(WAITING + 3):
        frames.put(np.full((2, 2, 3), level, np.uint8))
    frames.end()
    found = list(frames)
    assert [int(f[0, 0, 0]) for _, f in found] == [4, 5, 6] and frames.dropped == 4
    assert [t for t, _ in found] == sorted(t for t, _ in found)


def test_figures_and_curves_of_a_stream() -> None:
    report = StreamReport(
        plan="grt <b>", policy="fifo", seconds=12.5, cells=1000, computed=120, cached=64, nbytes=2**21
    )
    looks = [(float(i), 10 * i, 0.1 * i, 2**20 * i) for i in range(6)]
    told = views.live(report, looks)
    assert "grt &lt;b&gt;" in told and "12.5 s" in told and "of 1,000 visual tokens" in told and "2.0 MiB" in told
    assert "tokens a second, at most 10" in told and "lag, s, at most 0.5" in told and "memory, MiB, at most 5" in told
    assert views.curve("x", []) and views.curve("x", [(0.0, 0.0), (1.0, 0.0)])
