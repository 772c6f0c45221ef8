"""Sampling by time against a brute-force oracle in exact fractions, and repair of broken clocks."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vtoken.errors import VideoError
from vtoken.video.source import Clip, Picture
from vtoken.video.timeline import DEPTH, sample, steady


def clip(**facts) -> Clip:
    return Clip(path="", name="clip", size=(2, 2), **facts)


def pictures(times):
    return [Picture(t, lambda: np.zeros((2, 2, 3), np.uint8)) for t in times]


def sampled(times, fps, start=0.0, end=math.inf, native=None):
    timed = zip(times, pictures(times), strict=True)
    return [time for time, _ in sample(timed, clip(native_fps=native), fps, start, end)]


def oracle(ticks: list[int], fps: Fraction, start: int, end: int | None) -> list[int]:
    """Ticks of 1/1000 s; every grid time takes the nearest frame of [start, end), the earlier of two."""
    inside = [t for t in ticks if t >= start and (end is None or t < end)]
    if not inside:
        return [max(t for t in ticks if t < start)]
    last = Fraction(inside[-1] + (inside[-1] - inside[-2] if len(inside) > 1 else 0))
    limit = last if end is None else min(last, Fraction(end))
    chosen, i = set(), 0
    while True:
        grid = start + i * 1000 / fps
        if grid >= limit and i:
            return sorted(chosen)
        chosen.add(min(inside, key=lambda t: (abs(t - grid), t)))
        i += 1


@settings(deadline=None)
@given(
    gaps=st.lists(st.integers(10, 400), min_size=0, max_size=40),
    fps=st.sampled_from([Fraction(1, 3), Fraction(1), Fraction(5, 2), Fraction(8), Fraction(24), Fraction(50)]),
    start=st.integers(0, 3000),
    length=st.none() | st.integers(1, 4000),
)
def test_grid_equals_brute_force(gaps, fps, start, length):
    ticks = np.cumsum([0, *gaps]).tolist()
    end = None if length is None else start + length
    stop = math.inf if end is None else end / 1000
    if start > ticks[-1]:
        start = ticks[-1]
        stop = math.inf if end is None else max(stop, start / 1000 + 0.001)
        end = None if end is None else round(stop * 1000)
    got = sampled([t / 1000 for t in ticks], float(fps), start / 1000, stop)
    assert [round(t * 1000) for t in got] == oracle(ticks, fps, start, end)


@settings(deadline=None)
@given(
    count=st.integers(1, 80),
    native=st.sampled_from([2.3, 10.0, 23.976, 29.97, 30.0, 60.0]),
    factor=st.floats(1.0, 5.0),
    jitter=st.integers(0, 1),
)
def test_rate_at_or_above_native_takes_every_frame_once(count, native, factor, jitter):
    times = [round(i / native, 3 if jitter else 9) for i in range(count)]
    assert sampled(times, native * factor, native=native) == times
    assert sampled(times, None, native=native) == times


@pytest.mark.parametrize(("native", "fps", "step"), [(30, 10, 3), (10, 5, 2), (25, 5, 5), (60, 30, 2), (30, 1, 30)])
def test_constant_rate_is_divided_evenly(native, fps, step):
    times = [i / native for i in range(91)]
    assert sampled(times, fps, native=native) == times[::step]


def test_end_is_exclusive_and_start_inclusive():
    times = [i / 10 for i in range(50)]
    assert sampled(times, 10, 1.0, 2.0, native=10) == times[10:20]
    assert sampled(times, 5, 1.0, 2.0, native=10) == times[10:20:2]


def test_between_two_frames_the_one_on_the_screen_is_given():
    assert sampled([0.0, 10.0], 1, 3.0, 5.0) == [0.0]
    with pytest.raises(VideoError, match="start=12 is past the last frame"):
        sampled([0.0, 10.0], 1, 12.0)


def test_times_in_decoding_order_are_sorted_and_pictures_stay():
    shuffled = pictures([0.0, 0.3, 0.2, 0.4, 0.1, 0.7, 0.6, 0.8, 0.5])
    facts = clip(native_fps=10.0)
    out = list(steady(shuffled, facts))
    assert [time for time, _ in out] == pytest.approx(np.arange(9) / 10)
    assert [picture for _, picture in out] == shuffled
    assert "decoding order" in facts.notes[0]


def test_missing_times_continue_by_the_average_duration():
    facts = clip(native_fps=10.0)
    out = [time for time, _ in steady(pictures([0.0, None, None, 0.3, None]), facts)]
    assert out == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4])
    assert "no time" in facts.notes[0]
    unknown = [time for time, _ in steady(pictures([0.0, 0.5, None]), clip())]
    assert unknown == pytest.approx([0.0, 0.5, 1.0])


def test_a_clock_that_jumps_back_goes_on():
    facts = clip(native_fps=10.0)
    out = [time for time, _ in steady(pictures([100 + i / 10 for i in range(30)] + [i / 10 for i in range(30)]), facts)]
    facts.origin = 100.0
    assert np.diff(out) == pytest.approx(np.full(59, 0.1))
    assert "jumps back" in facts.notes[0]


@settings(deadline=None)
@given(st.lists(st.none() | st.floats(0, 100), max_size=60))
def test_times_never_go_back_and_no_picture_is_lost(times):
    held = pictures(times)
    out = list(steady(held, clip(native_fps=25.0)))
    assert [picture for _, picture in out] == held
    assert all(b >= a for (a, _), (b, _) in zip(out, out[1:], strict=False))


def test_few_pictures_are_held_back():
    taken = []

    def source():
        for picture in pictures([i / 10 for i in range(100)]):
            taken.append(picture)
            yield picture

    stream = steady(source(), clip(native_fps=10.0))
    for given_out in range(1, 50):
        next(stream)
        assert len(taken) <= given_out + DEPTH
