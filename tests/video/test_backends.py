"""Backends that would be silently wrong are refused with the reason, on files that show each fault."""

from __future__ import annotations

import numpy as np
import pytest

from tests.video.made import film, level, remux, sampled, which
from vtoken.errors import VideoError
from vtoken.video import VideoReader, check, open_video, opencv
from vtoken.video.probe import probe
from vtoken.video.source import Picture

TIMES = [i / 25 for i in range(30)]


def usable(backend):
    if backend != "opencv":
        pytest.importorskip(backend, exc_type=(ImportError, RuntimeError, OSError))
    return backend


def test_opencv_and_interlaced_mpeg2(tmp_path):
    path = film(tmp_path / "fields.ts", TIMES, codec="mpeg2video", unit=25, rate=25, options={"flags": "+ildct+ilme"})
    assert [which(f.rgb(i), 30) for f in open_video(path) for i in range(len(f))] == list(range(30))
    with pytest.raises(VideoError, match=r"fields\.ts: OpenCV gives black frames for interlaced video; use .*pyav"):
        open_video(path, backend="opencv")


@pytest.mark.parametrize(("name", "transfer"), [("PQ", 16), ("HLG", 18)])
def test_high_dynamic_range_is_named_and_opencv_refused(tmp_path, name, transfer):
    colours = {"color_trc": transfer, "color_primaries": 9, "colorspace": 9}
    path = film(tmp_path / "hdr.mp4", TIMES, colours=colours)
    with open_video(path) as reader:
        frames = next(iter(reader))
    assert any(name in note and "tone mapping" in note for note in reader.notes)
    assert [which(frames.rgb(i), 30) for i in range(30)] == list(range(30))  # the levels as stored
    with pytest.raises(VideoError, match=rf"OpenCV changes the colours of high dynamic range \({name}\)"):
        open_video(path, backend="opencv")
    if pytest.importorskip("decord"):
        assert len(sampled(path, backend="decord")) == 30


@pytest.mark.parametrize("name", ["clip.ts", "clip.mpg"])
@pytest.mark.parametrize("backend", ["decord", "torchcodec"])
def test_transport_and_program_streams(tmp_path, name, backend):
    path = film(tmp_path / name, TIMES, codec="mpeg2video", unit=25, rate=25)
    with pytest.raises(VideoError, match=f"{usable(backend)} reads wrong frames or times in mpeg"):
        open_video(path, backend=backend)
    assert sampled(path, backend="opencv") == pytest.approx(TIMES, abs=1e-3)


def test_avi_with_b_frames(tmp_path):
    path = film(tmp_path / "b.avi", TIMES, codec="mpeg4", unit=25, rate=25, options={"bf": "2", "qmax": "2"})
    assert [which(f.rgb(i), 30) for f in open_video(path) for i in range(len(f))] == list(range(30))
    for backend in ("opencv", "decord"):
        with open_video(path, backend=usable(backend)) as reader:
            assert [which(f.rgb(i), 30) for f in reader for i in range(len(f))] == list(range(30))
    with pytest.raises(VideoError, match="torchcodec reads wrong frames or times in avi"):
        open_video(path, backend=usable("torchcodec"))


@pytest.mark.parametrize("backend", ["opencv", "decord", "torchcodec"])
@pytest.mark.parametrize("name", ["clip.mp4", "clip.mkv"])
def test_what_is_right_is_read(tmp_path, name, backend):
    times = [0.0, 0.1, 0.15, 0.4, 0.41, 0.9, 1.0, 1.5, 1.6, 1.65]
    path = remux(film(tmp_path / "first.mp4", times), tmp_path / name)
    with open_video(path, backend=usable(backend)) as reader:
        found = [(float(t), which(f.rgb(i), 10)) for f in reader for i, t in enumerate(f.pts)]
    assert [n for _, n in found] == list(range(10))
    assert [t for t, _ in found] == pytest.approx(times, abs=1e-3)


def shifted(clip, frames=0, seconds=0.0, levels=0, size=None):
    def pictures(given, start=0.0):
        for i in range(20):
            grey = np.full((*(size or clip.size), 3), level(i + frames), np.uint8)
            yield Picture(i / 25 + seconds, lambda grey=grey: grey + np.uint8(levels))

    return pictures


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ({"frames": 1}, "frame 0 of other is not that of the file"),
        ({"seconds": 2.0}, r"other says that frame 0 is at 2\.000 s, it is at 0\.000 s"),
        ({"levels": 20}, r"levels differ by (19|20|21) of 255"),
        ({"size": (32, 64)}, "frames of other are 64x32, not 32x32"),
    ],
)
def test_every_kind_of_difference_is_found(tmp_path, fault, words):
    clip = probe(str(film(tmp_path / "a.mp4", TIMES)))
    check.agree("other", shifted(clip), clip)
    with pytest.raises(VideoError, match=words):
        check.agree("other", shifted(clip, **fault), clip)


def rates(path, **options):
    """Times and pictures of a file at a third of its rate."""
    with open_video(path, fps=8, start=0.2, **options) as reader:
        chunks = list(reader)
    return [(t, f.rgb(i), f.plane(i)) for f in chunks for i, t in enumerate(f.pts)]


def test_opencv_converts_the_frames_that_the_rate_takes(tmp_path, monkeypatch):
    path, converted, own = film(tmp_path / "a.mp4", TIMES), [], opencv._is_taken
    with open_video(path, fps=8, start=0.2, backend="opencv") as reader:
        monkeypatch.setattr(
            opencv, "_is_taken", lambda shown, clip: converted.append(own(shown, clip)) or converted[-1]
        )
        taken = [t for frames in reader for t in frames.pts]
    assert sum(converted) == len(taken) == 8 and len(converted) == 30
    assert taken == pytest.approx([t for t, _, _ in rates(path)])


@pytest.mark.parametrize("known", [set(), {0}, {200, 333}, None])
def test_what_was_foreseen_wrongly_is_decoded_again(tmp_path, monkeypatch, known):
    path = film(tmp_path / "a.mp4", TIMES)
    wanted = rates(path, backend="opencv", chunk=3)
    monkeypatch.setattr(VideoReader, "_foreseen", lambda self: known)
    for (time, rgb, luma), (t, own, y) in zip(wanted, rates(path, backend="opencv", chunk=3), strict=True):
        assert time == t and np.array_equal(rgb, own) and np.array_equal(luma, y)
