"""The benchmarks of bounded streams and of watches: what they ask is what the script of a clip says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import vtoken
from benchmarks import stream_past, stream_watch
from vtoken.reference import data
from vtoken.reference.world import FPS, FRAMES


def test_questions_are_about_what_a_panel_shows_and_have_its_age() -> None:
    for seed in range(5):
        for panel in data.clip(seed, "validation").script.panels:
            for text, symbol, age in stream_past.asked(panel):
                time = FRAMES / FPS - age
                assert text.endswith(f"at {time:.1f} seconds?") and panel.colour in text
                assert {panel.symbol(int(f)) for f in (np.floor(time * FPS), np.ceil(time * FPS))} == {symbol}


@pytest.mark.slow
def test_a_bounded_stream_forgets_what_is_old(tmp_path: Path) -> None:
    found = stream_past.measure(2, [128], tmp_path / "state.jsonl")
    assert len(found) == 2 * len(stream_past.ways([128]))
    share = {(r["way"], r["plan"]): np.mean([ok for _, ok in r["right"]]) for r in found if r["clip"] == 0}
    assert share["fifo", "none"] < share[stream_past.WHOLE, "none"]
    assert stream_past.measure(2, [128], tmp_path / "state.jsonl") == found  # read, not asked again
    assert stream_past.table(found, [128]).count("\n| `") == len(stream_past.ways([128]))


def test_the_frame_of_the_turn_is_the_first_one_behind_it() -> None:
    for clip in stream_watch.clips(20):
        mover = clip.script.mover
        assert mover is not None
        turn = stream_watch.turn_of(mover)
        assert (turn is not None) == mover.turns()
        if turn is not None:
            i = round(turn * FPS) - mover.start
            before, after = mover.path[i - 1] - mover.path[i - 2], mover.path[i] - mover.path[i - 1]
            assert before * after < 0


def test_hits_and_false_alarms() -> None:
    seen = stream_watch.Seen
    assert seen(2.0, 2.5, 9, 1).hit and not seen(2.0, 2.5, 9, 1).false
    assert seen(2.0, 1.5, 9, 1).false and seen(None, 1.5, 9, 1).false
    assert not seen(2.0, None, 9, 1).hit and not seen(None, None, 9, 1).false


@pytest.mark.slow
def test_a_turn_is_seen() -> None:
    model, words = vtoken.load("reference", "cpu")
    clip = next(c for c in stream_watch.clips(5) if stream_watch.turn_of(c.script.mover) is not None)  # type: ignore[arg-type]
    found = {way: stream_watch.watch(model, words, clip, *how) for way, how in list(stream_watch.WAYS.items())[:2]}
    assert all(s.hit for s in found.values())
    every, gated = found.values()
    assert gated.asked < every.asked
    assert stream_watch.table({w: [s] for w, s in found.items()}).count("1 of 1") == 2
