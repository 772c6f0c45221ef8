"""What a container does not know, knows of something else, or has lost."""

from __future__ import annotations

import warnings
from fractions import Fraction

import av
import numpy as np
import pytest

from tests.video.made import film, level, remux, sampled, which
from vtoken.errors import VideoError
from vtoken.video import VideoWarning, open_video

TIMES = [i / 30 for i in range(48)]


def shown(source, **options):
    """(time, number) of every frame that a reader gives."""
    with open_video(source, **options) as reader:
        return [(float(t), which(f.rgb(i), 48)) for f in reader for i, t in enumerate(f.pts)]


def joined(folder, name, first, second):
    path = folder / name
    path.write_bytes(first.read_bytes() + second.read_bytes())
    return path


@pytest.mark.parametrize("name", ["clip.mp4", "clip.mkv", "clip.ts", "clip.flv"])
def test_sound_longer_than_the_picture(tmp_path, name):
    path = film(tmp_path / "clip.mp4", TIMES, sound=6.0)
    path = path if name == "clip.mp4" else remux(path, tmp_path / name)
    with open_video(path, fps=10, max_frames=8) as reader:
        assert reader.duration == pytest.approx(1.6, abs=0.04)
        assert reader.expected == 8
    assert sampled(path, fps=10, max_frames=8) == pytest.approx(np.arange(8) * 0.2, abs=0.02)


def test_a_length_that_no_header_knows(tmp_path):
    path = film(tmp_path / "raw.h264", TIMES, container="h264", unit=30)
    with open_video(path) as reader:
        assert reader.duration == pytest.approx(1.6, abs=0.01) and reader.native_fps == pytest.approx(30)
    assert [n for _, n in shown(path)] == list(range(48))
    assert len(sampled(path, max_frames=5)) == 5
    assert sampled(path, fps=10) == pytest.approx(np.arange(16) / 10, abs=1e-3)


def with_cover(path, video: bool):
    """A sound file with a cover picture larger than the video beside it, if there is one."""
    with av.open(str(path), "w") as file:
        sound = file.add_stream("aac", rate=8000, layout="mono")
        cover = file.add_stream("mjpeg", rate=1)
        cover.width = cover.height = 256
        cover.pix_fmt = "yuvj420p"
        cover.disposition = av.stream.Disposition.attached_pic.value
        film_stream = file.add_stream("libx264", rate=10) if video else None
        if film_stream is not None:
            film_stream.width = film_stream.height = 32
            film_stream.pix_fmt = "yuv420p"
        noise = np.random.default_rng(0).integers(0, 256, (256, 256, 3), dtype=np.uint8)
        frame = av.VideoFrame.from_ndarray(noise, "rgb24")
        frame.pts, frame.time_base = 0, Fraction(1)
        file.mux(cover.encode(frame))
        file.mux(cover.encode())
        if film_stream is not None:
            for i in range(10):
                frame = av.VideoFrame.from_ndarray(np.full((32, 32, 3), level(i), np.uint8), "rgb24")
                frame.pts = i
                file.mux(film_stream.encode(frame))
            file.mux(film_stream.encode())
        for i in range(8):
            block = av.AudioFrame.from_ndarray(np.zeros((1, 1000), np.float32), "fltp", "mono")
            block.sample_rate, block.pts = 8000, i * 1000
            file.mux(sound.encode(block))
        file.mux(sound.encode())
    return path


def test_a_song_with_a_cover_is_no_video(tmp_path):
    with pytest.raises(VideoError, match=r"song\.mp4: the file has no video stream, only audio with a cover picture"):
        open_video(with_cover(tmp_path / "song.mp4", video=False))


def test_a_cover_beside_a_video_is_left_out(tmp_path):
    path = with_cover(tmp_path / "clip.mp4", video=True)
    with open_video(path) as reader:
        assert reader.size == (32, 32)
        assert not any("video streams" in note for note in reader.notes)
    assert [n for _, n in shown(path)] == list(range(10))
    assert [n for _, n in shown(path, backend="opencv")] == list(range(10))


def test_several_video_streams_are_named(tmp_path):
    path = tmp_path / "two.mkv"
    with av.open(str(path), "w") as file:
        streams = [file.add_stream("libx264", rate=10) for _ in range(2)]
        for stream, side in zip(streams, (32, 64), strict=True):
            stream.width = stream.height = side
            stream.pix_fmt = "yuv420p"
        for i in range(10):
            for stream in streams:
                frame = av.VideoFrame.from_ndarray(np.full((stream.height,) * 2 + (3,), level(i), np.uint8), "rgb24")
                frame.pts = i
                file.mux(stream.encode(frame))
        for stream in streams:
            file.mux(stream.encode())
    with open_video(path) as reader:
        side = reader.size[0]
        assert any(f"2 video streams; number {side // 64} ({side}x{side}) is read" in note for note in reader.notes)
    assert [n for _, n in shown(path)] == list(range(10))


def test_pixels_that_are_not_square_are_told(tmp_path):
    path = film(tmp_path / "wide.mp4", TIMES[:5], sample_aspect_ratio=Fraction(16, 15))
    with open_video(path) as reader:
        assert any("sample aspect ratio 16:15" in n and "show 34x32" in n for n in reader.notes)


@pytest.mark.parametrize("share", [0.7, 0.8, 0.9, 0.95])
@pytest.mark.parametrize("name", ["cut.mp4", "cut.mkv", "cut.ts", "cut.flv"])
def test_a_cut_file_keeps_the_frames_that_the_decoder_holds_back(tmp_path, name, share):
    """Packets that are whole, decoded one by one without threads, are the truth."""
    path = remux(
        film(tmp_path / "whole.mp4", TIMES), tmp_path / name, {"movflags": "faststart"} if "mp4" in name else {}
    )
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    with av.open(str(path)) as file:
        stream, right = file.streams.video[0], []
        stream.thread_type = "NONE"
        for packet in file.demux(stream):
            try:
                right += [which(frame.to_ndarray(format="rgb24"), 48) for frame in packet.decode()]
            except av.error.InvalidDataError:
                continue
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", VideoWarning)
        found = shown(path)
    assert [n for _, n in found] == right == list(range(len(right)))
    assert [t for t, _ in found] == pytest.approx(TIMES[: len(right)], abs=1e-3)


@pytest.mark.parametrize("length", [12, 30, 48])
def test_joined_transport_streams_are_one_clip(tmp_path, length):
    one = film(tmp_path / "one.ts", TIMES[:length])
    path = joined(tmp_path, "both.ts", one, one)
    whole = shown(path)
    assert [n for _, n in whole] == [*range(length), *range(length)]
    assert np.diff([t for t, _ in whole]) == pytest.approx(1 / 30, abs=1e-3)
    with open_video(path) as reader:
        assert reader.duration == pytest.approx(2 * length / 30, abs=0.01)
    start = (length + 5) / 30
    part = shown(path, start=start)
    assert part == whole[length + 5 :]
    assert shown(path, start=start, fps=10)[0] == part[0]
    assert len(shown(path, max_frames=7)) == 7


def test_a_frame_that_begins_behind_the_length_of_the_header_can_be_reached(tmp_path):
    """MP4 adds up durations in decoding order; with B-frames and a variable rate the last frame may lie behind."""
    times = [0.0, 0.1, 0.2, 0.3, 0.4, 2.0, 4.0, 4.1, 4.2, 6.5]
    path = film(tmp_path / "late.mp4", times)
    with av.open(str(path)) as file:
        stream = file.streams.video[0]
        assert float(stream.duration * stream.time_base) < 6.5, "the file does not test what it should"
    with open_video(path) as reader:
        assert reader.duration > 6.5
    assert shown(path, start=6.4) == [(pytest.approx(6.5), 9)]


def test_a_fragmented_file_promises_no_frames(tmp_path):
    path = remux(
        film(tmp_path / "a.mp4", TIMES, options={"g": "12"}), tmp_path / "b.mp4", {"movflags": "frag_keyframe"}
    )
    with open_video(path) as reader:
        assert [which(f.rgb(i), 48) for f in reader for i in range(len(f))] == list(range(48))
        assert not any("promises" in note for note in reader.notes)


@pytest.mark.parametrize("times", [[0.0], [0.0, 0.5, 1.3], [i / 5 for i in range(5)]])
def test_a_whole_file_of_a_slow_or_variable_rate_is_not_called_cut_off(tmp_path, times):
    for name in ("a.mp4", "a.mkv"):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            path = film(tmp_path / name, times)
            assert sampled(path) == pytest.approx(times, abs=1e-3)
