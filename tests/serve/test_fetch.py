"""Addresses: which hosts are opened, that redirects are checked again, and limits of what they give."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.serve.conftest import ask
from vtoken.serve import fetch as fetching
from vtoken.serve.errors import Refused
from vtoken.serve.fetch import fetch, is_public
from vtoken.serve.server import serving
from vtoken.serve.settings import Settings


@pytest.fixture
def site(panels: Path) -> Iterator[tuple[str, list[str]]]:
    """A web server on this machine, and the paths that it was asked for."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            if self.path.startswith("/to/"):
                self.send_response(302)
                self.send_header("Location", self.path.removeprefix("/to/"))
                self.end_headers()
                return
            if self.path == "/endless":
                self.send_response(200)
                self.end_headers()
                while True:
                    self.wfile.write(bytes(2**16))
            found = panels.read_bytes() if self.path.startswith("/clip") else b""
            self.send_response(200 if found else 404)
            self.send_header("Content-Length", str(len(found) * (2 if self.path.endswith("cut") else 1)))
            self.end_headers()
            self.wfile.write(found)

        def log_message(self, *given: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"127.0.0.1:{server.server_address[1]}", asked
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(
    "address",
    ["127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1", "0.0.0.0", "224.0.0.1"]
    + ["255.255.255.255", "::1", "::", "fe80::1", "fe80::1%eth0", "fc00::1", "ff02::1", "::ffff:127.0.0.1"]
    + ["::ffff:10.0.0.1", "64:ff9b::7f00:1", "2002:7f00:1::", "2001:0:7f00:1::", "::127.0.0.1", "198.18.0.1"],
)
def test_addresses_that_are_not_public(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize("address", ["8.8.8.8", "93.184.216.34", "2606:4700:4700::1111", "::ffff:8.8.8.8"])
def test_addresses_that_are(address: str) -> None:
    assert is_public(address)


def test_a_named_host_is_fetched_and_any_other_only_where_public(site: tuple[str, list[str]], tmp_path: Path) -> None:
    host, asked = site
    target = tmp_path / "clip"
    fetch(f"http://{host}/clip.mp4?x=1", target, ["127.0.0.1"], 2**20)
    assert target.stat().st_size > 1000 and asked == ["/clip.mp4?x=1"]
    port = host.partition(":")[2]
    private = ["127.0.0.1", "localhost", "127.1", "2130706433", "0x7f000001", "[::1]", "[::ffff:127.0.0.1]"]
    for name in private:
        with pytest.raises(Refused, match="not public|no such host"):
            fetch(f"http://{name}:{port}/clip.mp4", target, ["*"], 2**20)
    with pytest.raises(Refused, match="does not fetch from this host"):
        fetch(f"http://localhost:{port}/clip.mp4", target, ["127.0.0.1"], 2**20)
    with pytest.raises(Refused, match="fetches no addresses"):
        fetch(f"http://{host}/clip.mp4", target, [], 2**20)
    assert len(asked) == 1


def test_redirects_are_checked_again(site: tuple[str, list[str]], tmp_path: Path) -> None:
    host, asked = site
    fetch(f"http://{host}/to/http://{host}/clip.mp4", tmp_path / "a", ["127.0.0.1"], 2**20)
    assert asked[-1] == "/clip.mp4"
    port = host.partition(":")[2]
    for there in (
        f"http://localhost:{port}/clip.mp4",
        "file:///etc/passwd",
        "ftp://127.0.0.1/a",
        "http://u:p@127.0.0.1/",
    ):
        with pytest.raises(Refused):
            fetch(f"http://{host}/to/{there}", tmp_path / "b", ["127.0.0.1"], 2**20)
    assert not (tmp_path / "b").exists() and not any("clip" in path and "to" not in path for path in asked[2:])
    with pytest.raises(Refused, match="redirects"):
        fetch(f"http://{host}/to//to//to//to//to//to//to//clip", tmp_path / "b", ["127.0.0.1"], 2**20)


def test_the_address_that_was_checked_is_the_one_that_is_opened(
    site: tuple[str, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name that is public when it is looked up and private afterwards."""
    answers = iter(["93.184.216.34", "127.0.0.1", "127.0.0.1"])
    entry = (socket.AF_INET, socket.SOCK_STREAM, 6, "")
    monkeypatch.setattr(socket, "getaddrinfo", lambda host, port, **_: [(*entry, (next(answers), port))])
    opened: list[Any] = []

    def connect(address: Any, *_: Any) -> Any:
        opened.append(address)
        raise OSError("no route")

    monkeypatch.setattr(fetching.socket, "create_connection", connect)
    with pytest.raises(Refused, match="cannot be fetched"):
        fetch("http://rebind.example/clip.mp4", tmp_path / "a", ["*"], 2**20)
    assert opened == [("93.184.216.34", 80)] and not site[1]


@pytest.mark.parametrize(
    ("path", "told"),
    [("missing", "status 404"), ("clip-cut", "cut off"), ("endless", "more than the limit"), ("clip large", "blanks")],
)
def test_what_cannot_be_fetched_is_told(site: tuple[str, list[str]], tmp_path: Path, path: str, told: str) -> None:
    with pytest.raises(Refused, match=told):
        fetch(f"http://{site[0]}/{path}", tmp_path / "a", ["127.0.0.1"], 2**20)


def test_a_file_above_the_limit_is_not_begun(site: tuple[str, list[str]], tmp_path: Path) -> None:
    with pytest.raises(Refused, match="above the limit") as refused:
        fetch(f"http://{site[0]}/clip.mp4", tmp_path / "a", ["127.0.0.1"], 100)
    assert refused.value.status == 413 and not (tmp_path / "a").exists()


def test_the_server_answers_about_an_address(site: tuple[str, list[str]], data: str) -> None:
    import openai

    with serving(Settings(port=0, device="cpu", hosts=("127.0.0.1",))) as made:
        client = openai.OpenAI(base_url=f"{made.url}/v1", api_key="x", max_retries=0)
        one, two = ask(client, f"http://{site[0]}/clip.mp4"), ask(client, data)
        assert one.choices[0].message.content == two.choices[0].message.content and two.vtoken["reused"]
        with pytest.raises(openai.BadRequestError, match="does not fetch"):
            ask(client, "http://example.com/clip.mp4")
        assert not list(made.service.answering.root.glob("request-*/.*"))
