"""The command: SIGTERM while it is busy, its exit code and what it leaves behind; and the videos that it keeps."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import torch

from tests.serve.conftest import ask, message
from vtoken.cli import main as cli
from vtoken.serve.media import Source
from vtoken.serve.store import Store

LONG = "Which symbols does the red panel show in order?"


def command(*words: str) -> list[str]:
    return [sys.executable, "-m", "vtoken", "serve", "--port", "0", "--device", "cpu", *words]


def started(*words: str) -> subprocess.Popen[str]:
    """Also where a shell has started it in the background, which lets it ignore Ctrl+C."""
    quiet = partial(signal.signal, signal.SIGINT, signal.SIG_IGN)
    return subprocess.Popen(
        command(*words), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=quiet
    )


def url_of(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line.startswith("vtoken serve: http://"), line
    return line.split()[2]


def test_answers_in_flight_end_before_the_process_does(data: str) -> None:
    """Streams are whole, answers are JSON, and whoever comes later is not answered."""
    with started("--queue", "40") as process:
        try:
            url = url_of(process)
            folders = set(Path(tempfile.gettempdir()).glob("vtoken-serve-*"))

            def one(i: int) -> str:
                client = openai.OpenAI(base_url=f"{url}/v1", api_key="x", max_retries=0, timeout=300)
                made = ask(client, data, LONG, kwargs={"vtoken": "none", "fps": 16}, stream=bool(i % 2))
                if not i % 2:
                    return made.choices[0].message.content
                chunks = list(made)
                assert chunks[-1].choices[0].finish_reason == "stop"
                return "".join(c.choices[0].delta.content or "" for c in chunks)

            with ThreadPoolExecutor(8) as pool:
                jobs = [pool.submit(one, i) for i in range(8)]
                while "vtoken_requests_present 8.0" not in (text := httpx.get(f"{url}/metrics").text):
                    assert not all(job.done() for job in jobs), text
                process.send_signal(signal.SIGTERM)
                found = {job.result() for job in jobs}
            assert len(found) == 1 and len(found.pop().split()) > 3
            assert process.wait(120) == 0
            with pytest.raises(httpx.ConnectError):
                httpx.get(f"{url}/health")
            assert len(set(Path(tempfile.gettempdir()).glob("vtoken-serve-*")) & folders) < len(folders)
            assert process.stderr is not None and "Traceback" not in process.stderr.read()
        finally:
            process.kill()


def test_a_grace_that_ends_refuses_what_waits(data: str) -> None:
    with started("--grace", "0.01") as process:
        try:
            url = url_of(process)
            body = {"model": "reference", "messages": [message(data, LONG)]}
            body["mm_processor_kwargs"] = {"vtoken": "none", "fps": 16}

            def one(_: int) -> httpx.Response:
                return httpx.post(f"{url}/v1/chat/completions", json=body, timeout=300)

            with ThreadPoolExecutor(12) as pool:
                jobs = [pool.submit(one, i) for i in range(12)]
                while "vtoken_requests_present 12.0" not in httpx.get(f"{url}/metrics").text:
                    assert not all(job.done() for job in jobs)
                process.send_signal(signal.SIGTERM)
                found = [job.result() for job in jobs]
            assert {r.status_code for r in found} <= {200, 503} and any(r.status_code == 503 for r in found)
            assert all("shutting down" in r.json()["error"]["message"] for r in found if r.status_code == 503)
            assert process.wait(60) == 0
        finally:
            process.kill()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--queue", "-1"], "--queue"),
        (["--max-upload", "0"], "--max-upload"),
        (["--port", "99999"], "--port"),
        (["--allow-folder", "/nowhere/at/all"], "--allow-folder"),
        (["--plan", "nothing"], "unknown method"),
        (["--model", "/nowhere/at/all"], "/nowhere/at/all"),
    ],
)
def test_wrong_flags_are_one_line(words: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["serve", "--port", "0", *words]) == 2
    err = capsys.readouterr().err.strip()
    assert told in err and "\n" not in err and err.startswith("vtoken: error: ")


def test_a_taken_port_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert cli.main(["serve", "--port", str(port)]) == 2
    assert f"--port={port}" in capsys.readouterr().err


def test_kept_videos_have_a_number_an_age_and_a_size(tmp_path: Path) -> None:
    now = [0.0]
    store = Store(2, 100.0, 1000, clock=lambda: now[0])

    numbers = iter(range(99))

    def use(name: str, size: int = 0) -> Path:
        folder = tmp_path / f"request-{next(numbers)}"
        folder.mkdir()
        with store.using([Source("video", folder / "clip", name, True)], folder) as kept:
            if size:
                features: Any = type("Features", (), {"x": torch.zeros(size, dtype=torch.uint8), "signals": {}})()
                kept.memory._features[(0, frozenset(), False)] = features, 0.0
            return kept.folder

    first, second = use("a"), use("b")
    again = use("a")
    assert again == first and len(list(tmp_path.iterdir())) == 2  # the copy of the second request is gone
    third = use("c")
    assert not second.exists() and first.exists() and third.exists() and len(store) == 2
    now[0] = 101.0
    use("c")
    assert not first.exists() and len(store) == 1
    use("d", size=2000)
    assert len(store) == 0 and not list(tmp_path.iterdir())
