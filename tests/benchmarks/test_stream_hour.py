"""The stream of an hour, for a few seconds."""

from __future__ import annotations

import pytest

from benchmarks import stream_hour


@pytest.mark.slow
def test_a_short_stream_is_measured() -> None:
    found = stream_hour.measure("slides", 20 / 60, 256, "fifo")
    assert len(found["rows"]) == stream_hour.TENTHS and found["computed"] < found["cells"] == 40 * 66
    assert found["evicted"] > 0 and found["cached"] < 256 + 200
    told = stream_hour.told(found)
    assert "an answer at the end" in told and len(told.splitlines()) == 8


def test_frames_come_at_their_rate_and_minutes_differ() -> None:
    drawing = [0.0]
    seen = list(stream_hour.frames("slides", 1.05, drawing))
    assert [t for t, _ in seen] == [i / stream_hour.FPS for i in range(252)] and drawing[0] > 0
    assert (seen[0][1] != seen[240][1]).any()
