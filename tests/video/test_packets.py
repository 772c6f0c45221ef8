"""Running totals of packets: equal sums of packet sizes, with B-frames, behind a seek, and in damaged files."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import numpy as np
import pytest

from tests.video.made import film
from vtoken.data.frames import Frames
from vtoken.video import open_video, packets
from vtoken.video.packets import SURELY, PacketTotals, pictures_in

TIMES = [i / 25 for i in range(60)]
UNIT = packets.EMPTY["h264"].together  # bytes that are 1 in H.264


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    """No size comes often, so that nothing is an empty picture and all bytes count."""
    monkeypatch.setattr(packets, "OFTEN", 10**9)


def read(path: Path, **options: Any) -> Frames:
    with open_video(path, chunk=10_000, **options) as reader:
        reader.follow_packets()
        (frames,) = reader
    assert frames.sent is None or frames.sent.shape == (len(frames), 3)
    return frames


def moving(path: Path, container: dict[str, str] | None = None, **options: Any) -> Path:
    """Noise that moves, which encoders send as P and B pictures."""
    rng = np.random.default_rng(0)
    wide = rng.integers(0, 255, (64, 200, 3), np.uint8).repeat(2, 0)[:64].repeat(2, 1)
    with av.open(str(path), "w", options=container or {}) as file:
        stream: Any = file.add_stream("libx264", rate=25, options={"bf": "3", "g": "250"} | options)
        stream.width = stream.height = 64
        for i in range(len(TIMES)):
            picture = np.ascontiguousarray(wide[:, 2 * i : 2 * i + 64])
            file.mux(stream.encode(av.VideoFrame.from_ndarray(picture, "rgb24")))
        file.mux(stream.encode(None))
    return path


def sizes(path: Path) -> list[tuple[int, int, bool]]:
    """Time, bytes and kind of the packets, in decoding order."""
    with av.open(str(path)) as file:
        return [(p.pts, p.size, p.is_keyframe) for p in file.demux(file.streams.video[0]) if p.size]  # type: ignore[misc]


@pytest.mark.parametrize("ending", ["mp4", "mkv"])
def test_totals_are_the_sums_of_the_packets_in_order_of_presentation(tmp_path: Path, plain: None, ending: str) -> None:
    path = moving(tmp_path / f"moving.{ending}")
    sent = sizes(path)
    assert [time for time, *_ in sent] != sorted(time for time, *_ in sent), "no B-frames"
    found = read(path).sent
    assert found is not None
    wanted = [size for _, size, _ in sorted(sent)][1:]
    assert np.allclose(np.diff(found[:, 0]) * UNIT, wanted)
    ahead = {time: sum(s for t, s, _ in sent[:i] if t > time) for i, (time, *_) in enumerate(sent)}
    assert np.allclose(found[:, 1] * UNIT, [ahead[time] for time in sorted(ahead)]) and found[:, 1].any()
    assert found[0, 0] >= SURELY  # the key frame


def test_frames_that_are_not_sampled_count(tmp_path: Path, plain: None) -> None:
    path = moving(tmp_path / "moving.mp4")
    every, some = read(path), read(path, fps=5)
    assert every.sent is not None and some.sent is not None
    assert np.array_equal(some.sent, every.sent[np.searchsorted(every.pts, some.pts - 1e-6)])


def test_a_seek_changes_no_difference(tmp_path: Path, plain: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vtoken.video.pyav.SEEK_FROM", 0.5)
    path = moving(tmp_path / "moving.mp4", g="12", bf="2")
    whole, part = read(path), read(path, start=1.2)
    assert whole.sent is not None and part.sent is not None
    later = whole.pts >= 1.2 - 1e-6
    assert np.allclose(np.diff(part.sent[:, 0]), np.diff(whole.sent[later, 0]))
    assert part.sent[0, 0] < whole.sent[later][0, 0], "there was no seek"


@pytest.mark.filterwarnings("ignore::vtoken.video.source.VideoWarning")
@pytest.mark.parametrize("ending", ["mp4", "mkv", "ts"])
@pytest.mark.parametrize("kind", ["zeros", "cut"])
def test_totals_of_damaged_files_are_right_or_larger(tmp_path: Path, plain: None, kind: str, ending: str) -> None:
    options = {"movflags": "+frag_keyframe+empty_moov"} if ending == "mp4" else {}
    path = moving(tmp_path / f"moving.{ending}", container=options, g="20")
    whole, data = read(path), bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 300] = bytes(300)
    path.write_bytes(data if kind == "zeros" else data[:middle])
    hurt = read(path)
    assert whole.sent is not None and hurt.sent is not None and 10 < len(hurt) <= len(whole)
    at = np.searchsorted(whole.pts, hurt.pts - 1e-3)
    added, wanted = np.diff(hurt.sent[:, 0]), np.diff(whole.sent[at, 0])
    right = np.isclose(added, wanted)
    assert right.sum() >= len(right) - 3 and ((added > wanted) | right).sum() >= len(right) - 1
    assert (added > 0).all()


@pytest.mark.filterwarnings("ignore::vtoken.video.source.VideoWarning")
def test_a_file_with_a_damaged_packet(clips: Path) -> None:
    found = read(clips / "decord_corrupted.mp4").sent
    assert found is not None and (np.diff(found[:, 0]) >= 0).all()


def test_frames_without_times_and_other_sources_have_no_totals(tmp_path: Path) -> None:
    raw = film(tmp_path / "raw.h264", TIMES[:10], container="h264", options={"bf": "0"})
    assert read(raw).sent is None
    path = film(tmp_path / "film.mp4", TIMES[:10])
    assert read(path, backend="opencv").sent is None
    assert read(np.zeros((3, 32, 32, 3), np.uint8)).sent is None  # type: ignore[arg-type]
    with open_video(path) as reader:
        assert next(iter(reader)).sent is None, "nobody asked for it"


@pytest.mark.parametrize(
    ("codec", "options"),
    [
        ("libx264", {"crf": "30"}),
        ("libx265", {"crf": "28", "x265-params": "log-level=none"}),
        ("libvpx-vp9", {"crf": "32", "b": "0", "lag-in-frames": "16"}),
        ("libsvtav1", {"crf": "35"}),
        ("mpeg4", {"qscale": "5"}),
    ],
)
def test_empty_pictures_add_nothing_and_a_change_does(tmp_path: Path, codec: str, options: dict[str, str]) -> None:
    """A still picture, in which a square appears at frame 60."""
    if codec not in av.codecs_available:
        pytest.skip(f"not applicable: this FFmpeg has no {codec}")
    picture = np.random.default_rng(0).integers(60, 190, (12, 20, 3), np.uint8).repeat(16, 0).repeat(16, 1)
    path = tmp_path / "still.mkv"
    with av.open(str(path), "w") as file:
        stream: Any = file.add_stream(codec, rate=25, options=options)
        stream.height, stream.width, stream.pix_fmt = *picture.shape[:2], "yuv420p"
        for i in range(120):
            if i == 60:
                picture[100:116, 100:116] = 255 - picture[100:116, 100:116]
            file.mux(stream.encode(av.VideoFrame.from_ndarray(picture, "rgb24")))
        file.mux(stream.encode(None))
    found = read(path).sent
    assert found is not None
    added = np.diff(found[:, 0]) + found[1:, 1]  # since the frame before
    assert added[59] >= 1, "the change was not seen"
    assert (added[60:] < 1).mean() > 0.15


def superframe(*pictures: bytes) -> bytes:
    mark = bytes([0xC0 | 1 << 3 | len(pictures) - 1])
    return b"".join(pictures) + mark + b"".join(len(p).to_bytes(2, "little") for p in pictures) + mark


def obu(kind: int, data: bytes) -> bytes:
    size, out = len(data), b""
    while True:
        size, low = size >> 7, size & 127
        out += bytes([low | (128 if size else 0)])
        if not size:
            return bytes([kind << 3 | 2]) + out + data


class Bytes(bytes):
    @property
    def size(self) -> int:
        return len(self)


SHOWN, HIDDEN, AGAIN = b"\x10", b"\x00", b"\x80"


@pytest.mark.parametrize(
    ("codec", "data", "wanted"),
    [
        ("h264", b"\xc9" * 40, (40, [])),
        ("vp9", b"\x82" + bytes(41), (42, [])),
        ("vp9", superframe(bytes(300), bytes(20)), (20, [300])),
        ("vp9", b"\xc1", (1, [])),
        ("vp8", b"\x10" + bytes(9), (10, [])),
        ("vp8", b"\x00" + bytes(9), (None, [10])),
        ("libdav1d", obu(2, b"") + obu(6, SHOWN + bytes(18)), (19, [])),
        ("av1", obu(6, HIDDEN + bytes(199)) + obu(6, HIDDEN + bytes(9)) + obu(6, SHOWN + bytes(4)), (5, [200, 10])),
        ("av1", obu(3, HIDDEN + bytes(3)) + obu(4, bytes(96)) + obu(3, AGAIN), (1, [100])),
        ("av1", bytes([6 << 3]) + SHOWN + bytes(6), (7, [])),  # without a size: to the end
        ("av1", bytes([6 << 3 | 2, 0xFF]), (0, [])),  # cut off
    ],
)
def test_pictures_that_are_sent_and_not_shown(codec: str, data: bytes, wanted: tuple[Any, list[int]]) -> None:
    assert pictures_in(codec, Bytes(data)) == wanted  # type: ignore[arg-type]


def test_a_hidden_picture_counts_until_it_is_shown(plain: None) -> None:
    """AV1 shows the last picture sent first; a packet that shows one has its bytes."""
    totals = PacketTotals("libdav1d", 64, 64)

    def turn(at: int, data: bytes, key: bool = False) -> tuple[float, float]:
        packet: Any = Bytes(data)
        packet.pts, packet.is_keyframe = at, key
        totals.push(packet)
        frame: Any = SimpleNamespace(pts=at, key_frame=key)
        shown = totals.show(frame)
        assert shown is not None
        return shown

    start, _ = turn(0, obu(6, SHOWN + bytes(99)), key=True)
    big, small, leaf = obu(6, HIDDEN + bytes(499)), obu(6, HIDDEN + bytes(49)), obu(6, SHOWN + bytes(19))
    assert turn(1, big + small + leaf) == (start + 10, 275)  # a unit is two bytes
    assert turn(2, obu(3, AGAIN)) == (start + 10 + 25, 250)
    assert turn(3, leaf) == (start + 10 + 25 + 10, 250)
    assert turn(4, obu(3, AGAIN)) == (start + 10 + 25 + 10 + 250, 0)
    assert turn(5, obu(3, AGAIN))[0] >= start + SURELY  # nobody knows which
    assert totals.unknown()[0] >= start + 2 * SURELY
