"""Real clips through every backend, generated files with odd properties, and frames in memory."""

from __future__ import annotations

import dataclasses
import weakref

import numpy as np
import pytest

import vtoken.video.pyav as pyav
from vtoken.data.frames import Frames
from vtoken.errors import VideoError
from vtoken.reference.synthetic import SyntheticClip, Truth, render
from vtoken.video import VideoWarning, open_video
from vtoken.video.write import _rotated, write_video

COUNTS = {
    "vtest.avi": 795,
    "cv_box.mp4": 455,
    "tree.avi": 68,
    "tc_av1_video.mkv": 125,
    "tc_h264_10bits.mp4": 30,
    "tc_h265_video.mp4": 10,
    "decord_unordered.mov": 4,
    "decord_video_0.mov": 3,
    "skv_bigbuckbunny.mp4": 132,
    "skv_scene_cuts.mp4": 250,
    "syn_slides.mp4": 1500,
}


def times(reader) -> list[float]:
    return [float(t) for frames in reader for t in frames.pts]


def flat(height: int, width: int, length: int = 3, fps: float = 10.0) -> SyntheticClip:
    """Grey frames of any size, one level brighter each."""
    return SyntheticClip(
        "flat", fps, (height, width), length, Truth(), lambda i: np.full((height, width, 3), 90 + 4 * i, np.uint8)
    )


@pytest.mark.parametrize("name", COUNTS)
def test_pyav_reads_every_frame_in_order(clips, name):
    with open_video(clips / name) as reader:
        read = times(reader)
    assert len(read) == COUNTS[name]
    assert all(b > a for a, b in zip(read, read[1:], strict=False))
    assert reader.duration == pytest.approx(read[-1], abs=0.25)


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["opencv", "decord"])
@pytest.mark.parametrize(
    "name", ["cv_box.mp4", "tree.avi", "tc_h264_10bits.mp4", "tc_h265_video.mp4", "skv_scene_cuts.mp4"]
)
def test_backends_agree_frame_by_frame(clips, name, backend):
    if backend == "decord":
        pytest.importorskip("decord")
    count = 0
    truth, other = open_video(clips / name, chunk=16), open_video(clips / name, backend=backend, chunk=16)
    for a, b in zip(truth, other, strict=True):
        np.testing.assert_allclose(a.pts, b.pts, atol=1e-6)
        for i in range(0, len(a), 5):
            # 10 bit is brought to 8 by dithering, each library in its own way
            limit = 4 if "10bits" in name else 1.5
            assert np.abs(a.rgb(i).astype(np.int16) - b.rgb(i)).mean() < limit, (count, i)
        count += len(a)
    assert count == COUNTS[name]


@pytest.mark.slow
@pytest.mark.parametrize("fps", [3.3, 10])
def test_backends_sample_alike(clips, fps):
    pytest.importorskip("decord")
    for name in ("cv_box.mp4", "tree.avi"):
        reads = [
            times(open_video(clips / name, fps=fps, start=1.5, end=7, backend=b)) for b in ("pyav", "opencv", "decord")
        ]
        np.testing.assert_allclose(reads[0], reads[1], atol=1e-6)
        np.testing.assert_allclose(reads[0], reads[2], atol=1e-6)
        assert reads[0][0] >= 1.5 and reads[0][-1] < 7


def test_variable_rate_is_sampled_by_time_not_by_index(clips):
    """tree.avi: header 15 fps, real 2.3; by index / fps the last frame would be at 4.5 s."""
    read = times(open_video(clips / "tree.avi", fps=1))
    assert read[-1] == pytest.approx(29, abs=0.6)
    assert 25 <= len(read) <= 30
    assert all(abs(t - round(t)) < 0.5 for t in read)


@pytest.mark.parametrize("fps", ["native", 4])
def test_a_jump_to_start_gives_what_sequential_reading_gives(clips, fps):
    whole = [
        (t, f.luma[i])
        for f in open_video(clips / "syn_slides.mp4", fps="native")
        for i, t in enumerate(f.pts)
        if 40 <= t < 43
    ]
    part = [
        (t, f.luma[i])
        for f in open_video(clips / "syn_slides.mp4", fps=fps, start=40, end=43)
        for i, t in enumerate(f.pts)
    ]
    assert len(part) == (75 if fps == "native" else 12)
    lookup = dict(whole)
    for time, luma in part:
        assert np.array_equal(lookup[time], luma)


def test_luma_is_the_decoders_plane_and_rgb_is_lazy(clips):
    import av

    frames = next(iter(open_video(clips / "decord_unordered.mov")))  # 50 pixels wide, lines of 128 bytes
    with av.open(str(clips / "decord_unordered.mov")) as container:
        decoded = list(container.decode(video=0))
    for i, frame in enumerate(decoded):
        assert np.array_equal(frames.luma[i], frame.to_ndarray(format="yuv420p")[:50, :50])
        assert np.array_equal(frames.rgb(i), frame.to_ndarray(format="rgb24"))
    assert frames._pixels is None
    assert frames.pixels.shape == (4, 50, 50, 3)


@pytest.mark.parametrize("name", ["tc_h264_10bits.mp4", "tree.avi", "skv_scene_cuts.mp4"])
def test_luma_of_other_pixel_formats_is_the_picture(clips, name):
    """10 bit, RGB (cinepak) and 4:4:4: the plane follows the grey of the converted frame."""
    frames = next(iter(open_video(clips / name)))
    grey = Frames(frames.pixels, frames.pts).luma.astype(float)
    plane = frames.luma.astype(float)
    assert np.abs(plane - grey).mean() < 1.5


@pytest.mark.parametrize("kind", ["yuyv422", "gray", "nv12", "bgr24", "rgb565le"])
def test_luma_of_packed_and_grey_formats(tmp_path, kind):
    import av

    drawn = render("objects", 0.2, 10, (48, 66), seed=3)
    with av.open(str(tmp_path / "raw.nut"), "w") as container:
        stream = container.add_stream("rawvideo", rate=10)
        stream.height, stream.width, stream.pix_fmt = 48, 66, kind
        for i, pixels in enumerate(drawn.frames()):
            frame = av.VideoFrame.from_ndarray(pixels, "rgb24").reformat(format=kind)
            frame.pts = i
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    frames = next(iter(open_video(tmp_path / "raw.nut")))
    grey = Frames(frames.pixels, frames.pts).luma.astype(float)
    limited = 16 + grey * 219 / 255
    gap = min(np.abs(frames.luma - grey).mean(), np.abs(frames.luma - limited).mean())
    assert frames.luma.shape == (2, 48, 66) and gap < 2.5


def test_luma_of_10_bit_is_its_upper_8_bits(clips):
    import av

    frames = next(iter(open_video(clips / "tc_h264_10bits.mp4")))
    with av.open(str(clips / "tc_h264_10bits.mp4")) as container:
        frame = next(container.decode(video=0))
    plane = frame.planes[0]
    deep = np.frombuffer(memoryview(plane), np.uint16).reshape(frame.height, -1)[:, : frame.width]
    assert np.abs(frames.luma[0] - deep / 4).max() <= 1


def test_broken_midway_gives_the_rest_and_says_how_much(clips):
    with pytest.warns(VideoWarning, match=r"49 frames were read .*promises 50.* damaged packet"):
        reader = open_video(clips / "decord_corrupted.mp4")
        assert len(times(reader)) == 49
    assert any("damaged" in note for note in reader.notes)


def test_one_broken_slice_costs_no_frame_but_a_note(clips):
    reader = open_video(clips / "cv_box.mp4")
    assert len(times(reader)) == 455
    assert any("promises 456" in note for note in reader.notes)
    assert any("decoding order" in note for note in reader.notes)


@pytest.mark.parametrize("rotation", [90, 180, 270])
def test_rotation_turns_luma_and_rgb(tmp_path, rotation):
    clip = render("objects", 0.5, 10, (64, 96), seed=1)
    plain = next(iter(open_video(write_video(tmp_path / "plain.mp4", clip))))
    path = tmp_path / "turned.mp4"  # the same packets, so that equality is exact
    path.write_bytes(_rotated((tmp_path / "plain.mp4").read_bytes(), rotation))
    turns = -rotation // 90
    for backend in ("pyav", "opencv"):
        reader = open_video(path, backend=backend)
        frames = next(iter(reader))
        assert reader.size == frames.size == ((96, 64) if rotation % 180 else (64, 96))
        assert np.abs(frames.rgb(2).astype(np.int16) - np.rot90(plain.rgb(2), turns)).mean() < 1.5
        if backend == "pyav":
            assert np.array_equal(frames.luma[2], np.rot90(plain.luma[2], turns))


def test_variable_times_are_kept_exactly(tmp_path):
    given = [0.0, 0.02, 0.2, 0.25, 0.9, 1.0, 3.0]
    path = write_video(tmp_path / "vfr.mp4", flat(32, 32, len(given)), times=given)
    np.testing.assert_allclose(times(open_video(path)), given, atol=1e-4)
    np.testing.assert_allclose(times(open_video(path, fps=1)), [0.0, 1.0, 3.0], atol=1e-4)


@pytest.mark.parametrize("size", [(1, 1), (2, 2), (17, 33), (1, 64)])
@pytest.mark.parametrize("length", [1, 3])
def test_tiny_and_odd_sizes(tmp_path, size, length):
    path = write_video(tmp_path / "tiny.mp4", flat(*size, length))
    for backend in ("pyav", "opencv"):
        frames = next(iter(open_video(path, backend=backend)))
        assert frames.pixels.shape == (length, *size, 3) and frames.luma.shape == (length, *size)
        assert abs(int(frames.pixels[-1].mean()) - (90 + 4 * (length - 1))) <= 4


def test_two_video_streams_the_best_is_read(tmp_path):
    import av

    path = tmp_path / "two.mkv"
    noise = np.random.default_rng(0).integers(0, 256, (20, 128, 128, 3), dtype=np.uint8)
    with av.open(str(path), "w") as container:
        streams = []
        for side in (32, 128):
            stream = container.add_stream("libx264", rate=10)
            stream.width = stream.height = side
            stream.pix_fmt = "yuv420p"
            streams.append(stream)
        for i in range(20):
            for stream in streams if i < 2 else streams[1:]:
                frame = av.VideoFrame.from_ndarray(noise[i, : stream.height, : stream.width].copy(), "rgb24")
                frame.pts = i
                container.mux(stream.encode(frame))
        for stream in streams:
            container.mux(stream.encode(None))
    with av.open(str(path)) as container:
        best = container.streams.best("video")
        assert best.index == 1, "the file does not test what it should"
    reader = open_video(path)
    assert reader.size == (128, 128) and len(times(reader)) == 20
    with pytest.raises(VideoError, match="best video stream is number 1"):
        times(open_video(path, backend="opencv"))


def test_live_frames_are_bounded_by_the_chunk(tmp_path, monkeypatch):
    path = write_video(
        tmp_path / "long.mp4",
        dataclasses.replace(flat(32, 48), length=900, draw=lambda i: np.full((32, 48, 3), i % 200, np.uint8)),
    )
    alive: weakref.WeakSet = weakref.WeakSet()
    make = pyav._picture

    def counted(*arguments):
        picture = make(*arguments)
        alive.add(picture.rgb)
        return picture

    monkeypatch.setattr(pyav, "_picture", counted)
    most, read = 0, 0
    for frames in open_video(path, chunk=16):
        most, read = max(most, len(alive)), read + len(frames)
    assert read == 900
    assert 16 <= most <= 2 * 16 + 12  # this chunk, the one before, and the frames that wait for their times


def test_large_frames_make_short_chunks(tmp_path, monkeypatch):
    monkeypatch.setattr("vtoken.video.reader.CHUNK_BYTES", 4 * 3 * 32 * 48)
    reader = open_video(write_video(tmp_path / "a.mp4", flat(32, 48, 10)))
    assert [len(frames) for frames in reader] == [4, 4, 2]


def test_every_pass_reads_anew_and_close_ends_it(tmp_path):
    reader = open_video(write_video(tmp_path / "a.mp4", flat(32, 48, 10)), chunk=4)
    assert times(reader) == times(reader) == pytest.approx(np.arange(10) / 10)
    running = iter(reader)
    next(running)
    reader.close()
    assert list(running) == []
    with pytest.raises(VideoError, match="closed"):
        iter(reader)


def test_rate_above_native_leaves_a_note(tmp_path):
    reader = open_video(write_video(tmp_path / "a.mp4", flat(32, 48, 10)), fps=60)
    assert times(reader) == pytest.approx(np.arange(10) / 10)
    assert "above the clip's own 10.00" in reader.notes[0]


def test_a_recording_without_a_length_is_measured(tmp_path):
    """What a browser records: the header is written before the end is known."""
    import av

    clip, path = render("objects", 2.5, 20.0, (64, 96)), tmp_path / "recording.webm"
    with av.open(str(path), "w", format="webm", options={"live": "1"}) as container:
        stream = container.add_stream("libvpx", rate=20)
        stream.height, stream.width, stream.pix_fmt = 64, 96, "yuv420p"
        for pixels in clip.frames():
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode(None))
    with av.open(str(path)) as container:
        assert not container.duration and not container.streams.video[0].duration
    with open_video(path, fps=4) as reader:
        assert reader.duration == pytest.approx(2.5, abs=0.06)
        assert len(times(reader)) == 10
