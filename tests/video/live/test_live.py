"""Live sources: a sender that stalls, dies and comes back; files at their pace; iterators; the clock."""

from __future__ import annotations

import os
import threading
import time
import traceback
from pathlib import Path

import numpy as np
import pytest

from tests.video.live.sender import FPS, GOP, Part, Sender, encoded
from vtoken.errors import InputError, MissingExtraError, MissingFileError, VideoError
from vtoken.video.live import Gap, Moment, open_live
from vtoken.video.live import live as live_module
from vtoken.video.live.address import hidden
from vtoken.video.live.clock import HostClock, Ticks

STREET = Path("tests/data/clips/street.avi")


def number(moment: Moment) -> int:
    """Which frame of ``encoded`` it is."""
    return round((float(moment.frame.mean()) - 20) / 2)


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ts")
    return encoded(folder / "a.ts", 60), encoded(folder / "b.ts", 40, size=(64, 96), first=900.0)


@pytest.mark.slow
def test_a_sender_that_stalls_dies_and_comes_back(clips, monkeypatch):
    """Three connections: one stalls, one joins in mid-picture and dies, one comes after a pause in another size."""
    monkeypatch.setattr(live_module, "FIRST", 0.1)
    long, other = clips
    sender = Sender(
        [
            Part(long, 2.4, stop=0.5, then="stall"),
            Part(long, 2.4, start=0.55),
            Part(other, 1.6, rest=0.8),
        ]
    )
    items, connected = [], []
    with open_live(sender.address, timeout=(5.0, 1.0), queue=500, patience=3.0) as live:
        with pytest.raises(VideoError, match="tried again for 3 s"):
            for item in live:
                items.append(item)
                connected.append(live.connected)
        counters = live.counters
    sender.close()
    gaps = [i for i in items if isinstance(i, Gap)]
    times = [i.time for i in items if isinstance(i, Moment)]
    assert [g.reason.rpartition(": ")[2] for g in gaps] == ["no data for 1 s", "the sender closed the stream"]
    assert gaps[0].seconds > 1.0 and gaps[1].seconds > 0.8
    assert all(b > a for a, b in zip(times, times[1:], strict=False)) and times[0] == 0.0
    first, second, third = ([i for i in p if isinstance(i, Moment)] for p in parts_of(items))
    assert np.abs(np.array([number(m) for m in first]) - np.arange(len(first))).max() <= 1 and len(first) > 20
    assert abs(number(second[0]) - 4 * GOP) <= 1, "frames before the key frame came through"
    assert number(third[0]) == 0 and len(third) > 30
    assert {m.frame.shape for m in first + second + third} == {(48, 64, 3)}
    assert counters.resized == len(third) and "96x64" in live.notes[0]
    assert counters.reconnects >= 3 and counters.gaps == 2
    assert counters.dropped == 0 and counters.delivered == len(times) == counters.seen
    assert not live.connected and all(connected[:20])


def parts_of(items):
    """The items between gaps."""
    parts = [[]]
    for item in items:
        if isinstance(item, Gap):
            parts.append([])
        else:
            parts[-1].append(item)
    return parts


def test_nobody_there():
    with pytest.raises(VideoError, match="Connection refused"):
        list(open_live("tcp://127.0.0.1:9"))


def test_an_address_reaches_no_file(tmp_path):
    for url in (f"file://{tmp_path}/a.ts", "concat://a.ts", "data://x", "subfile://a"):
        with pytest.raises(InputError, match="is not opened"):
            open_live(url)


def test_a_playlist_is_no_file(tmp_path):
    """A file that is given by its path is opened as video only, also here."""
    path = tmp_path / "list.m3u8"
    path.write_text(f"#EXTM3U\n#EXTINF:4,\n{STREET.absolute()}\n")
    with pytest.raises(VideoError, match="playlist"):
        open_live(path)


def test_a_file_at_its_own_pace_drops_the_oldest():
    with open_live(STREET, queue=3) as live:
        first = live.take()
        assert isinstance(first, Moment) and first.time == 0
        while not live._done:  # nothing is taken: all but the newest three go
            time.sleep(0.02)
        rest = list(live)
        counters = live.counters
    assert [round(m.time, 1) for m in rest] == [3.9, 4.0, 4.1]
    assert counters.dropped == counters.seen - 4 and counters.delivered == 4
    assert counters.lag > 0


def test_a_file_as_fast_as_it_is_used_drops_nothing():
    with open_live(STREET, realtime=False, queue=2) as live:
        items = list(live)
        assert live.counters.dropped == 0
    assert len(items) == live.counters.seen == 42
    assert items[0].frame.dtype == np.uint8 and items[0].frame.shape[2] == 3


def test_a_rate():
    with open_live(STREET, realtime=False, fps=2) as live:
        times = [item.time for item in live]
        assert live.counters.skipped == live.counters.seen - len(times)
    np.testing.assert_allclose(times, np.arange(9) / 2, atol=0.06)


def test_an_iterator_keeps_its_times_and_waits():
    made = []

    def frames():
        for i in range(20):
            made.append(i)
            yield 100 + i / 10, np.full((4, 6, 3), i, np.uint8)

    with open_live(frames(), queue=2) as live:
        first = live.take()
        time.sleep(0.1)
        assert len(made) <= 5, "it ran ahead of the queue"
        rest = list(live)
    assert first.time == 0 and [round(m.time * 10) for m in rest] == list(range(1, 20))
    assert [m.frame[0, 0, 0] for m in rest] == list(range(1, 20))


def test_time_never_runs_backwards_in_an_iterator():
    given = [(0.0, 0), (1.0, 1), (0.4, 2), (1.0, 3), (2.0, 4)]
    with open_live([(t, np.zeros((2, 2, 3), np.uint8)) for t, _ in given]) as live:
        times = [m.time for m in live]
    assert all(b > a for a, b in zip(times, times[1:], strict=False)) and times[-1] == 2.0


def test_an_error_of_the_source_has_its_own_traceback():
    def broken():
        yield 0.0, np.zeros((2, 2, 3), np.uint8)
        raise KeyError("the camera's own error")

    with open_live(broken()) as live:
        assert isinstance(live.take(), Moment)
        with pytest.raises(KeyError) as caught:
            live.take()
    assert any(f.name == "broken" for f in traceback.extract_tb(caught.value.__traceback__))


@pytest.mark.parametrize(
    ("item", "says"),
    [
        (5, "no item"),
        ((0.0, np.zeros((2, 2), np.uint8)), r"uint8 \[2, 2\]"),
        ((0.0, np.zeros((2, 2, 3))), "float64"),
        ((float("nan"), np.zeros((2, 2, 3), np.uint8)), "the time nan"),
    ],
)
def test_items_of_another_form(item, says):
    with pytest.raises(InputError, match=says):
        list(open_live(iter([item])))


def test_close_ends_the_thread():
    with open_live(STREET) as live:
        live.take()
    assert not live._thread.is_alive() and list(live) == []
    assert not any(t.name.startswith("vtoken street") for t in threading.enumerate())


def test_take_gives_up():
    def slow():
        time.sleep(0.5)
        yield 0.0, np.zeros((2, 2, 3), np.uint8)

    with open_live(slow()) as live:
        assert live.take(timeout=0.01) is None
        assert isinstance(live.take(), Moment)


@pytest.mark.parametrize(
    ("source", "error", "says"),
    [
        (True, InputError, "is no video"),
        (-1, InputError, "numbered from 0"),
        ("no/such.mp4", MissingFileError, "no such file"),
        ("gopher://x/y", InputError, "is not opened"),
    ],
)
def test_sources_that_are_none(source, error, says):
    with pytest.raises(error, match=says):
        open_live(source)


@pytest.mark.parametrize("options", [{"fps": 0}, {"queue": 0}, {"patience": -1}, {"fps": "fast"}])
def test_arguments(options):
    with pytest.raises(InputError, match=next(iter(options))):
        open_live(STREET, **options)


def test_screen_without_a_display(monkeypatch):
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.setitem(__import__("sys").modules, "mss", None)
    with pytest.raises(MissingExtraError, match=r"vtoken\[screen\]"):
        open_live("screen")


@pytest.mark.skipif(os.path.exists("/dev/video0"), reason="not applicable: this machine has a camera")
def test_no_camera():
    with pytest.raises(VideoError, match="cannot be opened"):
        list(open_live(0))


@pytest.mark.skipif(not os.path.exists("/dev/video0"), reason="not applicable: this machine has no camera")
def test_camera():
    with open_live("/dev/video0") as live:
        assert isinstance(live.take(timeout=10), Moment)


def test_a_password_is_not_told():
    assert hidden("rtsp://me:secret@cam/stream@1") == "rtsp://cam/stream@1"


def test_clock_follows_time_stamps_and_not_jitter():
    clock = HostClock()
    stamps = [clock.stamp(7 + i / 25, i / 25 + (0.2 if i % 3 else 0.0)) for i in range(50)]
    np.testing.assert_allclose([t for t, _ in stamps], np.arange(50) / 25, atol=1e-9)
    assert clock.anchored == 0 and not any(jump for _, jump in stamps)


@pytest.mark.parametrize("offset", [-500.0, 40.0])
def test_clock_after_a_jump(offset):
    clock = HostClock()
    for i in range(25):
        clock.stamp(i / 25, i / 25)
    at, jump = clock.stamp(1.0 + offset, 1.0)
    assert at == pytest.approx(1.0) and "jumped" in jump and clock.anchored == 1
    at, jump = clock.stamp(1.04 + offset, 1.04)
    assert at == pytest.approx(1.04) and not jump


def test_clock_that_drifts_is_set_anew_without_a_gap():
    """A camera whose clock is 10 % slow: no frame is more than a second from its arrival, and time does not go back."""
    clock, times = HostClock(), []
    for i in range(1000):
        at, jump = clock.stamp(i / 25 * 0.9, i / 25)
        assert abs(at - i / 25) <= 1.0 and not jump
        times.append(at)
    assert (np.diff(times) > 0).all() and clock.anchored == 3


def test_burst_of_old_frames():
    """A server sends what it has first, all at once: times pass in order, and the clock is set to their arrival."""
    clock, times = HostClock(), []
    for i in range(100):
        times.append(clock.stamp(i / 25, 0.001 * i)[0])
    assert (np.diff(times) > 0).all() and times[-1] < 1.2


def test_ticks():
    for rate, expected in ((5, 20), (12.5, 50), (100, 100), (None, 100)):
        ticks = Ticks(rate)
        assert sum(ticks.takes(i / FPS) for i in range(100)) == expected
