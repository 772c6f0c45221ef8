"""Sampling over rendered clips: the same content gives the same frames in every container, and limits hold."""

from __future__ import annotations

import math
import tempfile
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from tests.video.made import film, remux, sampled
from vtoken.video import open_video
from vtoken.video.choice import Choice, count, fit, millisecond, spacing

COMMON = [Fraction(r) for r in (1, 5, 10, 12, 16, 24, 25, 30, 48, 50, 60)] + [
    Fraction(30000, 1001),
    Fraction(24000, 1001),
    Fraction(60000, 1001),
]


@st.composite
def constant(draw):
    rate = draw(st.sampled_from(COMMON))
    return rate, [float(i / rate) for i in range(draw(st.integers(1, 40)))]


@st.composite
def variable(draw):
    """Bursts, still stretches and jitter, in ms."""
    gaps = draw(st.lists(st.one_of(st.sampled_from([16, 17, 33, 34, 40]), st.integers(5, 900)), max_size=39))
    return None, (np.cumsum([0, *gaps]) / 1000).tolist()


ASKED = st.one_of(st.just("native"), st.sampled_from([0.5, 1, 2, 4, 7, 10, 15, 24, 29.97, 30, 60]), st.floats(0.2, 70))
slow = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@pytest.fixture(scope="module")
def folder():
    with tempfile.TemporaryDirectory() as path:
        yield Path(path)


def everywhere(folder, rate, times, direct):
    """The same content as MP4, Matroska, MPEG-TS and, where the rate is constant, as an array."""
    unit = 1000 if rate is None else rate.numerator * (1000 if rate.denominator == 1 else 1)
    options = {"unit": unit, "rate": rate or 30, "options": {"preset": "ultrafast", "bf": "2"}}
    made = {"mp4": film(folder / "clip.mp4", times, **options)}
    for name in ("mkv", "ts"):
        path = folder / f"clip.{name}"
        made[name] = film(path, times, **options) if direct else remux(made["mp4"], path)
    if rate is not None:
        made["array"] = np.zeros((len(times), 4, 4, 3), np.uint8)
    return made


@slow
@given(
    clip=st.one_of(constant(), variable()),
    fps=ASKED,
    start=st.none() | st.sampled_from([0.5, 1.0]),
    length=st.none() | st.sampled_from([0.4, 1.0, 2.5]),
    most=st.none() | st.integers(1, 12),
    direct=st.booleans(),
)
def test_the_same_content_gives_the_same_times_in_every_container(folder, clip, fps, start, length, most, direct):
    rate, times = clip
    assume(start is None or (len(times) > 1 and start < times[-1]))
    part = {"fps": fps, "start": start, "max_frames": most}
    part["end"] = None if length is None else (start or 0.0) + length
    found = {}
    for name, source in everywhere(folder, rate, times, direct).items():
        own = {"native_fps": float(rate)} if name == "array" else {}  # type: ignore[arg-type]
        found[name] = sampled(source, **part, **own)
        assert most is None or len(found[name]) <= most
    for name, read in found.items():
        assert read == pytest.approx(found["mp4"], abs=1.1e-3), (name, found)
    if fps == "native" and most is None and start is None and length is None:
        assert found["mp4"] == pytest.approx(times, abs=1.1e-3)


rising = st.lists(st.integers(0, 700), min_size=1, max_size=60).map(lambda gaps: (np.cumsum(gaps) / 1000).tolist())


@settings(deadline=None)
@given(times=rising, fps=st.floats(0.1, 80), start=st.floats(0, 3), native=st.none() | st.floats(1, 60))
def test_never_more_frames_than_times_of_the_grid(times, fps, start, native):
    n = count(times, fps, start, math.inf, native)
    inside = [t for t in times if millisecond(t) >= millisecond(start)]
    if not inside:
        assert n == 1
        return
    gap = inside[-1] - inside[-2] if len(inside) > 1 else 1 / (native or math.inf)
    assert 1 <= n <= min(len(inside), max(1, math.ceil((inside[-1] + gap - start) * fps + 1e-6)))


@settings(deadline=None)
@given(times=rising, fps=st.none() | st.floats(0.1, 80), most=st.integers(1, 20), native=st.none() | st.floats(1, 60))
def test_a_limit_holds_and_takes_no_more_than_it_must(times, fps, most, native):
    free = count(times, fps, 0.0, math.inf, native)
    lower = fit(times, fps, 0.0, math.inf, native, most)
    held = count(times, lower, 0.0, math.inf, native)
    assert held <= most
    if free <= most:
        assert lower == fps


@settings(deadline=None)
@given(rate=st.sampled_from(COMMON), frames=st.integers(2, 80), most=st.integers(1, 20))
def test_a_constant_rate_fills_the_limit(rate, frames, most):
    times = [float(i / rate) for i in range(frames)]
    lower = fit(times, None, 0.0, math.inf, float(rate), most)
    assert count(times, lower, 0.0, math.inf, float(rate)) == min(most, frames)


@settings(deadline=None)
@given(
    clip=constant(),
    fps=st.floats(0.2, 70),
    shift=st.sampled_from([0.0, 1.4, 10.0667]),
    ticks=st.sampled_from([1000, 90_000]),
)
def test_rounded_clocks_choose_nearly_the_same_frames(clip, fps, shift, ticks):
    """A clip that starts late in a container of milliseconds: each frame within one of the exact choice."""
    rate, times = clip
    stamps = [round((t + shift) * ticks) / ticks for t in times]
    rough = [t - stamps[0] for t in stamps]

    def taken(read):
        choice, found = Choice(fps, 0.0, math.inf, float(rate)), []
        for i, t in enumerate(read):
            if choice.push(t):
                found.append(i - 1)
        return found + [len(read) - 1] * choice.finish()

    exact, other = taken(times), taken(rough)
    assert abs(len(exact) - len(other)) <= 1
    assert all(abs(a - b) <= 1 for a, b in zip(exact, other, strict=False))
    if fps >= float(rate) * (1 + 1e-9):
        assert exact == other == list(range(len(times)))


@settings(deadline=None)
@given(rate=st.sampled_from(COMMON), factor=st.floats(1.0001, 1.05))
def test_a_rate_just_above_the_clips_own_takes_every_frame_of_a_rounded_clock(rate, factor):
    times = [round(i * 1000 / rate) / 1000 for i in range(400)]
    assert count(times, float(rate) * factor, 0.0, math.inf, float(rate)) == 400


def test_an_average_rate_is_no_local_rate(folder):
    """One second at 60 fps, nine seconds still, one second at 60: 30 a second means 30 in each of the two."""
    times = [*(i / 60 for i in range(60)), *(10 + i / 60 for i in range(60))]
    for name, source in everywhere(folder, None, times, False).items():
        read = np.array(sampled(source, fps=30))
        assert len(read[read < 2]) == 31 and len(read[read >= 9]) == 30, name  # the 31st stands for the still stretch
        assert np.diff(read[read < 0.97]) == pytest.approx(1 / 30, abs=0.01)


def test_a_frame_at_a_boundary_is_in_the_same_part_in_every_container(folder):
    times = [i / 30 for i in range(40)]
    for source in everywhere(folder, Fraction(30), times, True).values():
        own = {"native_fps": 30} if isinstance(source, np.ndarray) else {}
        assert len(sampled(source, start=31 / 30, end=36 / 30, **own)) == 5
        assert sampled(source, start=1.0333, end=1.2, **own)[0] == pytest.approx(31 / 30, abs=1e-3)


def test_the_lowered_rate_is_told(folder):
    path = film(folder / "a.mp4", [i / 30 for i in range(40)])
    with open_video(path, max_frames=8) as reader:
        assert any(note.startswith("frame cap: max_frames=8 lowers fps=30 to 6") for note in reader.notes)
        assert reader.fps == pytest.approx(6, rel=1e-3)


@pytest.mark.parametrize(
    ("pts", "fps", "native", "right"),
    [
        ([0, 0.5, 1.0], 2.0, 30.0, 0.5),
        ([0, 0.48, 1.0], 2.0, 25.0, 0.5),  # the nearest frames of 25 a second
        ([0, 0.1], 12.0, 10.0, 0.1),  # asked for more than there is
        ([0, 0.04, 0.08], None, 25.0, 0.04),
        ([0, 0.033, 0.067, 0.1], None, 30.0, 1 / 30),  # a clock of whole milliseconds
        ([i / 24 for i in range(13)], None, 24.375, 1 / 24),  # the average of 12 / 24 + 1 / 30 s
        ([0], 2.0, 30.0, 0.5),
        ([0], None, None, 1.0),
        ([0, 1.0, 5.0], 4.0, 30.0, 2.5),  # variable: no grid describes it
    ],
)
def test_spacing_is_that_of_the_sampling(pts, fps, native, right):
    assert spacing(pts, fps, 0.0, native) == pytest.approx(right)


@pytest.mark.parametrize(("frames", "fps"), [(4, 2.0), (3, 1.0), (5, 2.0), (7, 0.5), (1, 4.0)])
@pytest.mark.parametrize("preset", ["qwen2.5-vl", "qwen3-vl"])
def test_a_step_of_an_odd_clip_is_as_long_as_the_others(frames, fps, preset):
    from vtoken.data.report import Report
    from vtoken.methods.plan import Plan
    from vtoken.qa.read import Sampling, read_clip
    from vtoken.video.processors import read_processor

    pixels = np.zeros((frames, 64, 64, 3), np.uint8)
    clip = read_clip(pixels, read_processor(preset), Plan(), Report(), Sampling("native", native_fps=fps))
    assert clip.step == pytest.approx(2 / fps)  # temporal_patch_size / fps, as the processors have it
    assert clip.seconds == pytest.approx(frames / fps)
