"""Every unusable source or argument gives an error of ours that names it and says what to do."""

from __future__ import annotations

import importlib.util

import av
import numpy as np
import pytest
import torch
from PIL import Image

from vtoken.errors import InputError, MissingExtraError, VideoError
from vtoken.reference.synthetic import render
from vtoken.video import VideoWarning, open_video
from vtoken.video.write import write_video


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return write_video(tmp_path_factory.mktemp("bad") / "clip.mp4", render("objects", 3, 10, (64, 96)))


def remux(source, target, **options):
    with av.open(str(source)) as read, av.open(str(target), "w", options=options) as written:
        stream = written.add_stream_from_template(read.streams.video[0])
        for packet in read.demux(read.streams.video[0]):
            if packet.dts is not None:
                packet.stream = stream
                written.mux(packet)
    return target


def cut(path, share):
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    return path


@pytest.mark.parametrize("backend", ["auto", "opencv", "decord"])
@pytest.mark.parametrize("kind", ["missing", "empty", "text", "truncated", "audio", "folder", "url"])
def test_files_that_are_no_video(tmp_path, clip, kind, backend):
    if backend == "decord":
        pytest.importorskip("decord")
    path = tmp_path / "input.mp4"
    if kind == "empty":
        path.touch()
    elif kind == "text":
        path.write_text("not a video\n" * 200)
    elif kind == "truncated":
        path.write_bytes(clip.read_bytes()[:3000])
    elif kind == "audio":
        with av.open(str(path), "w") as container:
            stream = container.add_stream("aac", rate=16_000)
            for i in range(8):
                frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
                frame.rate, frame.pts = 16_000, 1024 * i
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
    elif kind == "folder":
        path.mkdir()
    source = "https://example.org/input.mp4" if kind == "url" else path
    words = {
        "missing": "no such file.*check",
        "empty": "0 bytes.*again",
        "text": "not a video.*check",
        "truncated": "not a video.*complete",
        "audio": "no video stream, only audio.*give",
        "folder": "no image in it; give",
        "url": "download it first",
    }
    with pytest.raises(VideoError, match=rf"input\.mp4.*{words[kind]}"):
        open_video(source, backend=backend)


def test_no_frame_can_be_decoded(tmp_path, clip):
    data = bytearray(clip.read_bytes())
    start = data.index(b"mdat") + 4
    size = int.from_bytes(data[start - 8 : start - 4], "big") - 8
    data[start : start + size] = b"\xff" * size
    path = tmp_path / "noise.mp4"
    path.write_bytes(data)
    with pytest.raises(VideoError, match=r"noise\.mp4.*no frame that can be decoded"):
        open_video(path)


def test_container_with_a_stream_and_zero_frames(tmp_path):
    path = tmp_path / "zero.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width = stream.height = 64
        container.start_encoding()
    with pytest.raises(VideoError, match=r"zero\.mp4"):
        open_video(path)


@pytest.mark.parametrize("name", ["cut.mp4", "cut.mkv"])
def test_cut_off_midway_gives_a_part_and_a_warning(tmp_path, clip, name):
    options = {"movflags": "faststart"} if name.endswith("mp4") else {}
    path = cut(remux(clip, tmp_path / name, **options), 0.6)
    reader = open_video(path)
    with pytest.warns(VideoWarning, match=rf"{name}: \d+ frames were read.* of 3\.00 s"):
        read = sum(len(frames) for frames in reader)
    assert 3 <= read < 30


@pytest.mark.parametrize("fps", [0, -1, -0.5, float("nan"), float("inf"), "fast", "30", None, True, [1]])
def test_fps(clip, fps):
    with pytest.raises(InputError, match="fps=.*above 0; or give 'native'"):
        open_video(clip, fps=fps)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"start": 3.0}, r"clip\.mp4: start=3 is past the end; the clip lasts 3\.00 s"),
        ({"start": -1}, "start=-1 must be .* at least 0"),
        ({"start": "0:42"}, "start='0:42' must be"),
        ({"start": 2, "end": 2}, "end=2 must be greater than start=2"),
        ({"start": 2, "end": 1}, "end=1 must be greater"),
        ({"end": 0}, "end=0 must be greater"),
        ({"end": float("nan")}, "end=nan must be"),
        ({"backend": "ffms"}, "backend='ffms' is unknown; known are auto, pyav, opencv, decord, torchcodec"),
        ({"chunk": 0}, "chunk=0"),
        ({"chunk": 2.5}, "chunk=2.5"),
        ({"native_fps": 3}, "native_fps=3 is for folders"),
    ],
)
def test_arguments(clip, options, words):
    with pytest.raises(InputError, match=words):
        open_video(clip, **options)


def test_end_past_the_end_is_the_end(clip):
    assert sum(len(frames) for frames in open_video(clip, end=1e6)) == 30


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (5, "source=5 .int. is no video; give a file"),
        ("", "source=''"),
        (None, "NoneType"),
        (np.zeros((2, 4, 4, 3), np.float32), r"dtype float32; give uint8.*x \* 255"),
        (torch.zeros(2, 4, 4, 3, dtype=torch.bfloat16), r"dtype torch.bfloat16; give uint8"),
        (np.zeros((2, 3, 4, 4), np.uint8), r"shape \(2, 3, 4, 4\).*channels last.*moveaxis\(x, 1, -1\)"),
        (np.zeros((4, 4, 3), np.uint8), r"shape \(4, 4, 3\); give \[T, H, W, 3\]"),
        (np.zeros((2, 4, 4, 4), np.uint8), r"shape \(2, 4, 4, 4\)"),
        (np.zeros((2, 0, 4, 3), np.uint8), r"shape \(2, 0, 4, 3\)"),
        ([np.zeros((4, 4), np.uint8)], r"frame 0 has shape \(4, 4\); give \[H, W, 3\]"),
        ([3], "frame 0 is a int"),
        ([Image.new("F", (4, 4))], "floats"),
    ],
)
def test_sources_of_a_wrong_kind(source, words):
    with pytest.raises(InputError, match=words):
        open_video(source)


@pytest.mark.parametrize("source", [[], np.zeros((0, 4, 4, 3), np.uint8)])
def test_no_frames(source):
    with pytest.raises(VideoError, match="0 frames; give at least one"):
        open_video(source)


def test_pictures_of_two_sizes():
    with pytest.raises(VideoError, match="frame 1 is 6x4, the first one is 5x4"):
        list(open_video([np.zeros((4, 5, 3), np.uint8), np.zeros((4, 6, 3), np.uint8)]))


def test_an_image_that_is_none(tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "1.png")
    (tmp_path / "2.png").write_text("text")
    with pytest.raises(VideoError, match=r"2\.png: not an image"):
        list(open_video(tmp_path))


@pytest.mark.parametrize("rate", [0, -1, float("nan"), "x"])
def test_native_fps(rate):
    with pytest.raises(InputError, match="native_fps="):
        open_video(np.zeros((2, 4, 4, 3), np.uint8), native_fps=rate)


def test_backends_say_what_they_cannot_read(clips):
    with pytest.raises(VideoError, match="tc_av1_video.mkv: OpenCV .* use backend='pyav'"):
        list(open_video(clips / "tc_av1_video.mkv", backend="opencv"))
    pytest.importorskip("decord")
    with pytest.raises(VideoError, match="tc_av1_video.mkv: decord cannot open .* use backend='pyav'"):
        list(open_video(clips / "tc_av1_video.mkv", backend="decord"))


def test_torchcodec_reads_or_names_its_extra(clip):
    """Where torchcodec imports, it must agree with PyAV; elsewhere the error names the extra."""
    try:
        importlib.import_module("torchcodec.decoders")
        usable = True
    except (ImportError, OSError, RuntimeError):
        usable = False
    if not usable:
        with pytest.raises(MissingExtraError, match=r"torchcodec.*pip install 'vtoken\[torchcodec\]'"):
            open_video(clip, backend="torchcodec")
        return
    for a, b in zip(open_video(clip), open_video(clip, backend="torchcodec"), strict=True):
        np.testing.assert_allclose(a.pts, b.pts, atol=1e-6)
        assert np.abs(a.pixels.astype(np.int16) - b.pixels).mean() < 1.5


def test_nothing_half_written(tmp_path):
    clip = render("cut", 10, 10, (32, 32))

    def broken(index):
        if index == 95:  # packets are in the file by then
            raise RuntimeError("drawing failed")
        return clip.draw(index)

    import dataclasses

    with pytest.raises(RuntimeError, match="drawing failed"):
        write_video(tmp_path / "a.mp4", dataclasses.replace(clip, draw=broken))
    assert list(tmp_path.iterdir()) == []
