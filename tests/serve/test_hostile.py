"""What strangers may send: wrong fields, files of the machine, private addresses, bodies too large or too slow."""

from __future__ import annotations

import base64
import io
import json
import socket
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from PIL import Image

from tests.serve.conftest import ask, message
from vtoken.serve.server import Server, serving
from vtoken.serve.settings import Settings

TINY = "data:video/mp4;base64," + base64.b64encode(b"no video " * 30).decode()


def picture(form: str, size: tuple[int, int] = (8, 8)) -> str:
    out = io.BytesIO()
    Image.new("RGB", size).save(out, form)
    return f"data:image/{form.lower()};base64,{base64.b64encode(out.getvalue()).decode()}"


def refusal(server: Server, body: Any, **options: Any) -> tuple[int, str]:
    """Status and message of a request that is refused; the answer has OpenAI's form and no path of the machine."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    answer = httpx.post(f"{server.url}/v1/chat/completions", content=content, timeout=60, **options)
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"} and answer.status_code >= 400
    told = error["message"]
    assert told and str(server.service.answering.root) not in told and "Traceback" not in told and len(told) < 1200
    return answer.status_code, told


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"messages": []}, "last message"),
        ({"messages": [{"role": "user", "content": "hi"}], "chat_id": "new"}, "needs a video"),
        ({"messages": [message(TINY)], "chat_id": "x"}, "first question"),
        ({"messages": [{"role": "system", "content": "x"}, {"role": "user", "content": "x"}], "chat_id": "x"}, "first"),
        ({"messages": [{"role": "user", "content": "x"}] * 2, "chat_id": "new"}, "remembers the turns"),
        ({"messages": [{"role": "user", "content": "x"}], "chat_id": "x", "mm_processor_kwargs": {"fps": 1}}, "keeps"),
        ({"messages": [message(TINY)], "chat_id": "new"}, "not a video"),
        ({"messages": [message(TINY)], "chat_id": 3}, "chat_id"),
        ({"messages": [message(TINY), {"role": "assistant", "content": "x"}]}, "last message"),
        ({"messages": [message(TINY, " ")]}, "no question"),
        ({"messages": [message(TINY, "why? " * 20_000)]}, "characters"),
        ({"messages": [message(TINY), message(TINY)]}, "first message of the user"),
        ({"messages": [message(TINY)] * 1001}, "1000 at most"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages.0.role"),
        ({"messages": [{"role": "user", "content": [{"type": "video_url"}]}]}, "type video_url"),
        ({"messages": [{"role": "user", "content": [{"type": "input_audio"}]}]}, "type"),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": 3}]}]}, "valid string"),
        ({"messages": [message(TINY)], "n": 2}, "n=2"),
        ({"messages": [message(TINY)], "logprobs": True}, "logprobs"),
        ({"messages": [message(TINY)], "logit_bias": {"1": 5}}, "logit_bias"),
        ({"messages": [message(TINY)], "nonsense": 1}, "nonsense"),
        ({"messages": [message(TINY)], "temperature": -1}, "temperature"),
        ({"messages": [message(TINY)], "top_p": 0}, "top_p"),
        ({"messages": [message(TINY)], "seed": 2**70}, "seed"),
        ({"messages": [message(TINY)], "stop": [""]}, "stop"),
        ({"messages": [message(TINY)], "max_tokens": 0}, "from 1 to"),
        ({"messages": [message(TINY)], "max_tokens": 10**9}, "from 1 to"),
        ({"messages": [message(TINY)], "max_tokens": "many"}, "max_tokens"),
        ({"messages": [message(TINY)], "stream": "yes"}, "stream"),
        ({"messages": [message(TINY)], "mm_processor_kwargs": {"vtoken": "nothing"}}, "unknown method"),
        ({"messages": [message(TINY)], "mm_processor_kwargs": {"vtoken": "divprune"}}, "needs a budget"),
        ({"messages": [message(TINY)], "mm_processor_kwargs": {"keep": 2.0, "vtoken": "evs"}}, "keep=2"),
        ({"messages": [message(TINY)], "mm_processor_kwargs": {"size": 3}}, "mm_processor_kwargs.size"),
        ({"messages": [message(TINY)], "mm_processor_kwargs": {"fps": 0}}, "fps=0"),
        ({"messages": [message(TINY)], "mm_processor_kwargs": {"fps": 2, "num_frames": 3}}, "one of them"),
        ({"messages": [message(TINY)], "media_io_kwargs": {"video": {"num_frames": 10**9}}}, "num_frames"),
        ({"messages": [message(TINY)]}, "not a video"),
    ],
)
def test_wrong_fields_are_told_in_words(server: Server, change: dict[str, Any], told: str) -> None:
    status, text = refusal(server, {"model": "reference"} | change)
    assert status == 400 and told in text


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"{",
        b"null",
        b'{"model": "reference"',
        b"[" * 50_000,
        b'{"a":' * 50_000,
        b"\xff\xfe\x00",
        b"1" * 9999,
    ]
    + [b'{"model": "\\ud800", "messages": []}', b'{"model": NaN, "messages": []}'],
)
def test_bodies_that_are_no_json_object(server: Server, body: bytes) -> None:
    assert refusal(server, body)[0] == 400


@pytest.mark.parametrize(
    "url",
    [
        "file:///etc/passwd",
        "file:///etc/../etc/hostname",
        "file://localhost/etc/passwd",
        "file://elsewhere/etc/passwd",
        "FILE:///etc/passwd",
        "file:///proc/self/environ",
        "/etc/passwd",
        "etc/passwd",
        "http://127.0.0.1:9/a.mp4",
        "https://example.com/a.mp4",
        "ftp://example.com/a.mp4",
        "rtsp://127.0.0.1/a",
        "concat:/etc/passwd|/etc/hosts",
        "data:text/plain;base64,AAAA",
        "data:video/mp4,AAAA",
        "data:video/mp4;base64,",
        "data:video/mp4;base64,%%%%",
        "data:video/mp4;base64,\u00e4\u00e4",
        "data:image/png;base64,AAAA",
        "",
        "x" * 10_000,
        "file:///" + "a" * 5000,
        "file:///%00",
        "file://[::1",
    ],
)
def test_no_path_of_the_machine_and_no_address_is_opened(server: Server, url: str) -> None:
    status, told = refusal(server, {"model": "reference", "messages": [message(url)]})
    assert status == 400 and "root:" not in told


def test_files_leave_the_allowed_folder_by_no_link_and_no_dots(server: Server, folder: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside.mp4"
    outside.write_bytes(b"secret")
    (folder / "link.mp4").symlink_to(outside)
    (folder / "fifo.mp4").unlink(missing_ok=True)
    missing = refusal(server, {"model": "reference", "messages": [message(f"file://{folder}/missing.mp4")]})[1]
    for name in ("link.mp4", "../outside.mp4", "%2e%2e/outside.mp4", ".", f"..{tmp_path}/outside.mp4"):
        status, told = refusal(server, {"model": "reference", "messages": [message(f"file://{folder}/{name}")]})
        assert status == 400 and told.split(": no file")[1] == missing.split(": no file")[1]


@pytest.mark.parametrize(
    "head", [b"#EXTM3U\n#EXTINF:2.0,\n/etc/passwd\n", b"ffconcat version 1.0\nfile '/etc/passwd'\n"]
)
def test_lists_that_name_other_files_are_refused(server: Server, head: bytes) -> None:
    url = "data:video/mp4;base64," + base64.b64encode(head).decode()
    assert "names other files" in refusal(server, {"model": "reference", "messages": [message(url)]})[1]


def test_pictures_of_odd_forms_are_refused(server: Server, data: str) -> None:
    large = io.BytesIO()
    Image.new("1", (9000, 9000)).save(large, "PNG")
    bomb = "data:image/png;base64," + base64.b64encode(large.getvalue()).decode()
    script = "data:image/eps;base64," + base64.b64encode(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n").decode()
    for url, told in ((bomb, "pixels"), (script, "cannot be read"), (picture("PPM"), "cannot be read")):
        body = message(data)
        body["content"].insert(0, {"type": "image_url", "image_url": {"url": url}})
        status, text = refusal(server, {"model": "reference", "messages": [body]})
        assert status == 400 and told in text


def test_limits_of_size_seconds_frames_and_tokens(
    server: Server, client: openai.OpenAI, folder: Path, data: str
) -> None:
    from vtoken.reference.synthetic import render
    from vtoken.video.write import write_video

    big = "data:video/mp4;base64," + "A" * (2 * 2**20)
    assert refusal(server, {"model": "reference", "messages": [message(big)]})[0] == 413
    assert refusal(server, b" " * 4 * 2**20)[0] == 413
    (folder / "big.mp4").write_bytes(bytes(2 * 2**20))
    assert (
        "1 MB at most" in refusal(server, {"model": "reference", "messages": [message(f"file://{folder}/big.mp4")]})[1]
    )
    long = write_video(folder / "long.mp4", render("slides", 30.0, 4.0, (112, 112)))
    body = {"model": "reference", "messages": [message(f"file://{long}")]}
    assert "20 s at most" in refusal(server, body)[1]
    part = ask(client, f"file://{long}", kwargs={"end": 5.0, "fps": 2, "vtoken": "none"})
    assert len(part.vtoken["report"]["frames"][0]) == 10
    capped = ask(client, f"file://{long}", kwargs={"end": 15.0, "max_frames": 8, "vtoken": "none"})
    assert len(capped.vtoken["report"]["frames"][0]) <= 8
    assert any("frame cap" in note for note in capped.vtoken["report"]["notes"])
    tight = Settings(port=0, device="cpu", max_tokens=63)
    with serving(tight) as other:  # 4 seconds at 2 frames a second are 4 steps of 16 cells
        status, told = refusal(other, {"model": "reference", "messages": [message(data)]})
        assert status == 400 and "make 64 visual tokens" in told and "--max-tokens" in told


def test_a_client_that_does_not_send_its_body_loses_its_place(server: Server, client: openai.OpenAI, data: str) -> None:
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), 30) as slow:
        slow.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n{")
        assert ask(client, data).choices  # others do not wait for it
        assert b" 408 " in slow.makefile("rb").readline()
    assert server.service.desk.taken == 0


def test_a_client_that_does_not_read_holds_nobody_up(server: Server, client: openai.OpenAI, data: str) -> None:
    host, port = server.url.removeprefix("http://").split(":")
    slow = socket.socket()
    slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
    slow.connect((host, int(port)))
    with slow:
        body = json.dumps({"model": "reference", "stream": True, "messages": [message(data)]}).encode()
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode()
        slow.sendall(head + body)
        assert ask(client, data).choices


def test_the_key_is_asked_for(data: str) -> None:
    with serving(Settings(port=0, device="cpu", api_key="s\u00e9cret")) as made:
        for header in (
            {},
            {"Authorization": "Bearer wrong"},
            {"Authorization": "s\u00e9cret".encode()},
            {"Authorization": "Bearer"},
        ):
            body = {"model": "reference", "messages": [message(data)]}
            status, told = refusal(made, body, headers=header)
            assert status == 401 and "API key" in told
            assert httpx.get(f"{made.url}/v1/models", headers=header).status_code == 401
        assert httpx.get(f"{made.url}/health").status_code == 200
        good = {"Authorization": "Bearer s\u00e9cret".encode()}
        assert httpx.get(f"{made.url}/v1/models", headers=good).json()["data"][0]["id"] == "reference"
