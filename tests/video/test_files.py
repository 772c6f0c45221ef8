"""What may be opened: files as what they are, addresses only when asked, nothing that names other files."""

from __future__ import annotations

import contextlib
import functools
import http.server
import os
import shutil
import threading

import pytest

from tests.video.made import film, sampled
from vtoken.errors import InputError, MissingFileError, VideoError
from vtoken.video import open_video

TIMES = [i / 10 for i in range(10)]


@pytest.fixture(scope="module")
def secret(tmp_path_factory):
    return film(tmp_path_factory.mktemp("private") / "secret.ts", TIMES)


def lists(secret) -> dict[str, str]:
    return {
        "hls": f"#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2.0,\n{secret}\n#EXT-X-ENDLIST\n",
        "marked hls": f"\ufeff#EXTM3U\n#EXTINF:2.0,\n{secret}\n",
        "concat": f"ffconcat version 1.0\nfile {secret}\n",
        "dash": f'<?xml version="1.0"?>\n<MPD><Period><BaseURL>{secret}</BaseURL></Period></MPD>',
        "sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\n",
        "text": "a plain text that FFmpeg draws as a picture\n" * 20,
    }


@pytest.mark.parametrize("backend", ["pyav", "opencv"])
@pytest.mark.parametrize("kind", ["hls", "marked hls", "concat", "dash", "sdp", "text"])
@pytest.mark.parametrize("name", ["clip.mp4", "clip.ts", "clip.m3u8", "clip.mpd", "clip.txt", "clip"])
def test_a_file_that_names_others_is_refused(tmp_path, secret, kind, name, backend):
    (tmp_path / name).write_text(lists(secret)[kind], encoding="utf-8")
    with pytest.raises(VideoError, match=name):
        open_video(tmp_path / name, backend=backend)


@pytest.mark.parametrize(
    "source",
    [
        "concat:a.ts|b.ts",
        "data:video/mp4;base64,AAAA",
        "file:a.ts",
        "subfile,,start,0,end,0,,:a.ts",
        "pipe:0",
        "a%03d.png",
    ],
)
def test_protocols_are_file_names(tmp_path, secret, source, monkeypatch):
    """Where there is no such file it is missing; where there is one it is that file."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(secret, "a.ts")
    with pytest.raises(MissingFileError, match="no such file; check the spelling"):
        open_video(source)


@pytest.mark.parametrize("name", ["concat:a.ts|b.ts", "00:12 talk.ts", "http:x.ts"])
@pytest.mark.parametrize("backend", ["pyav", "opencv"])
def test_a_relative_name_with_a_colon_is_a_file(tmp_path, secret, name, backend, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copy(secret, name)
    assert sampled(name, backend=backend) == pytest.approx(TIMES, abs=1e-4)


def test_a_missing_file_is_a_file_not_found(tmp_path):
    for source in (tmp_path / "no.mp4", str(tmp_path / "no.png"), [tmp_path / "no.png"]):
        with pytest.raises(FileNotFoundError) as caught:
            open_video(source)
        assert isinstance(caught.value, VideoError) and "no such file" in str(caught.value)


@pytest.mark.parametrize("address", ["http://127.0.0.1:9/a.mp4", "rtsp://127.0.0.1:9/a", "ftp://127.0.0.1/a.mp4"])
def test_an_address_is_not_opened_by_itself(address):
    with pytest.raises(MissingFileError, match="network=True"):
        open_video(address)


def test_a_pipe_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe.mp4")
    for source in (tmp_path / "pipe.mp4", "/dev/zero"):
        with pytest.raises(VideoError, match="no video file"):
            open_video(source)


@contextlib.contextmanager
def served(folder):
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=folder)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_addresses_when_asked_and_no_local_file_through_them(tmp_path, secret):
    shutil.copy(secret, tmp_path / "a.ts")
    (tmp_path / "good.m3u8").write_text("#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:1.0,\na.ts\n#EXT-X-ENDLIST\n")
    (tmp_path / "bad.m3u8").write_text(f"#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:1.0,\n{secret}\n#EXT-X-ENDLIST\n")
    (tmp_path / "worse.m3u8").write_text(
        f"#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:1.0,\nfile://{secret}\n#EXT-X-ENDLIST\n"
    )
    with served(tmp_path) as root:
        for name in ("a.ts?key=1", "good.m3u8"):
            with open_video(f"{root}/{name}", network=True, fps=5, max_frames=3) as reader:
                found = [float(t) for frames in reader for t in frames.pts]
                assert reader.source == name.split("?")[0] and reader.expected is None
            assert len(found) == 3 and found[0] == 0.0
        for name in ("bad.m3u8", "worse.m3u8", "none.ts"):
            with pytest.raises(VideoError, match=name):
                open_video(f"{root}/{name}", network=True)
        with pytest.raises(InputError, match="reads files only"):
            open_video(f"{root}/a.ts", network=True, backend="opencv")
    with pytest.raises(InputError, match="give a file by its path"):
        open_video(f"file://{secret}", network=True)


def test_a_file_too_short_to_be_known_by_its_content_is_what_its_name_says(tmp_path):
    path = film(tmp_path / "two.ts", [0, 1 / 16], unit=16000, rate=16)
    assert sampled(path) == pytest.approx([0, 1 / 16], abs=1e-4)
