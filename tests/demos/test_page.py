"""The page as programs see it: the same figures as the public API, every visitor its own, errors that can be read."""

from __future__ import annotations

import signal
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError

import vtoken
from vtoken.demos import choices
from vtoken.demos.app import Server
from vtoken.families import FAMILIES
from vtoken.methods.registry import names

QUESTION = "What is on the slide?"


@pytest.fixture(scope="module")
def client(server: Server) -> Client:
    return Client(server.url, verbose=False)


def asked(client: Client, clip: Path, **options: Any) -> dict[str, Any]:
    options = {"question": QUESTION, "max_new_tokens": 4} | options
    return client.predict(video=handle_file(str(clip)), api_name="/ask", **options)


def untimed(report: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in report.items() if name not in ("milliseconds", "total_ms", "peak_bytes")}


@pytest.mark.parametrize(
    "options",
    [
        {"fps": 5.0, "plan": "none"},
        {"fps": 10.0, "plan": "grt"},
        {"fps": 10.0, "plan": "grt | divprune", "keep": 0.2},
        {"fps": 4.0, "plan": "evs", "tokens": 20},
        {"fps": 10.0, "plan": "grt | divprune", "per_second": 8.0, "start": 0.5, "end": 1.5},
    ],
)
def test_the_page_gives_what_the_public_api_gives(
    client: Client, loaded: tuple[Any, Any], clip: Path, options: dict[str, Any]
) -> None:
    answer = vtoken.ask(*loaded, clip, QUESTION, max_frames=1024, max_new_tokens=4, **options)
    found = asked(client, clip, **options)
    assert found["answer"] == answer.text
    assert untimed(found["report"]) == untimed(answer.report.to_dict())
    assert found["report"]["milliseconds"].keys() == answer.report.milliseconds.keys()
    assert found["times"] == answer.clip.times.tolist()
    assert sum(s * answer.clip.grid.cells for s in found["share"]) == pytest.approx(answer.report.tokens)


def test_a_length_that_nobody_gives_is_the_checkpoint_s_own(client: Client, server: Server, clip: Path) -> None:
    config = server.runner.models.get(server.runner.settings.model)[0].generation_config
    config.max_new_tokens = 3
    try:
        own = asked(client, clip, max_new_tokens=None)
        assert own["options"]["max_new_tokens"] == 3
        assert asked(client, clip, max_new_tokens=5)["answer"] != own["answer"]
    finally:
        config.max_new_tokens = None


def test_two_visitors_get_their_own_answers(server: Server, loaded: tuple[Any, Any], clip: Path) -> None:
    plans: list[dict[str, Any]] = [
        {"plan": "none", "fps": 10.0},
        {"plan": "grt | divprune", "keep": 0.1, "fps": 10.0},
    ]
    clients = [Client(server.url, verbose=False) for _ in plans]
    with ThreadPoolExecutor(4) as pool:
        jobs = [pool.submit(asked, c, clip, **p) for _ in range(2) for c, p in zip(clients, plans, strict=True)]
        found = [job.result() for job in jobs]
    for i, one in enumerate(found):
        alone = vtoken.ask(*loaded, clip, QUESTION, max_new_tokens=4, max_frames=1024, **plans[i % 2])
        assert untimed(one["report"]) == untimed(alone.report.to_dict())
        assert one["answer"] == alone.text


def test_the_methods_are_those_of_the_registry(client: Client) -> None:
    listed = client.predict(api_name="/plans")
    offered = {name for _, name, _ in listed}
    assert offered <= {*names()} | {"none"} and {"grt", "divprune", "evs", "none"} <= offered
    assert all(text for _, _, text in listed)
    assert offered == {*choices.gates(FAMILIES["qwen2_5_vl"]), *choices.reducers(FAMILIES["qwen2_5_vl"])}


def test_only_two_endpoints_are_offered(client: Client) -> None:
    assert set(client.view_api(return_format="dict", print_info=False)["named_endpoints"]) == {"/ask", "/plans"}


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"question": " "}, "there is no question"),
        ({"plan": "nothing"}, "unknown method 'nothing'"),
        ({"plan": "divprune"}, "needs a budget"),
        ({"plan": "grt", "keep": 0.5}, "no stage of plan"),
        ({"plan": "evs", "keep": 2.0}, "keep=2"),
        ({"fps": 0.0}, "fps=0"),
        ({"question": "why? " * 1000}, "5,000 characters"),
        ({"max_new_tokens": 5000}, "from 1 to 1024"),
        ({"start": 1.0, "end": 0.5}, "is empty"),
    ],
)
def test_a_wrong_choice_is_told_in_words(client: Client, clip: Path, change: dict[str, Any], told: str) -> None:
    with pytest.raises(AppError, match=told):
        asked(client, clip, **change)


def test_errors_of_files_name_the_file_and_no_folder_of_the_server(
    client: Client, server: Server, tmp_path: Path, long_clip: Path
) -> None:
    text, empty = tmp_path / "notes of today.mp4", tmp_path / "empty.mp4"
    text.write_text("no video " * 100)
    empty.write_bytes(b"")
    for path, told in ((text, "notes of today.mp4"), (empty, "empty.mp4"), (long_clip, "20 s at most")):
        with pytest.raises(AppError) as caught:
            asked(client, path)
        assert told in str(caught.value)
        assert str(server.runner.root) not in str(caught.value) and "Traceback" not in str(caught.value)
    assert asked(client, long_clip, end=2.0)["report"]["tokens"] > 0


def test_a_file_above_the_limit_is_refused(client: Client, tmp_path: Path) -> None:
    big = tmp_path / "big.mp4"
    big.write_bytes(bytes(3 * 2**20))
    with pytest.raises(Exception, match=r"(?i)size|large"):
        asked(client, big)


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("/etc/hostname", ""),
        ("http://127.0.0.1:9/a.mp4", "fetches no addresses"),
        ("https://example.com/a.mp4", "fetches no addresses"),
    ],
)
def test_no_path_of_the_server_and_no_address_is_opened(server: Server, path: str, reason: str) -> None:
    names_ = {d["api_name"]: d["id"] for d in httpx.get(f"{server.url}config").json()["dependencies"]}
    data = [{"path": path, "meta": {"_type": "gradio.FileData"}}, QUESTION, 2.0, "grt", None, None, None, None, None, 4]
    body = {"data": data, "fn_index": names_["ask"], "session_hash": "someone"}
    httpx.post(f"{server.url}gradio_api/queue/join", json=body).raise_for_status()
    told = ""
    with httpx.stream("GET", f"{server.url}gradio_api/queue/data?session_hash=someone", timeout=30) as stream:
        for line in stream.iter_lines():
            told += line
            if "process_completed" in line:
                break
    assert '"success":false' in told and '"answer"' not in told
    assert "Traceback" not in told and reason in told


def test_the_page_listens_on_this_machine_alone_and_removes_its_files(
    settings: Any, clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vtoken.demos.app import serving

    with serving(settings) as made:
        assert made.url.startswith("http://127.0.0.1:") and made.public is None
        root = made.runner.root
        asked(Client(made.url, verbose=False), clip)
        assert any(root.rglob("*.mp4"))
    assert not root.exists()


def test_a_taken_port_is_told(server: Server, settings: Any) -> None:
    import dataclasses

    from vtoken.demos.app import serving

    port = int(server.url.rstrip("/").rpartition(":")[2])
    with pytest.raises(vtoken.InputError, match=f"--port={port}"), serving(dataclasses.replace(settings, port=port)):
        pass


def test_the_command_serves_and_cleans_up(checkpoint: Path) -> None:
    """Also where a shell has started it in the background, which lets it ignore Ctrl+C."""
    command = [sys.executable, "-m", "vtoken", "demo", "--model", str(checkpoint), "--port", "0", "--allow-models"]
    quiet = partial(signal.signal, signal.SIGINT, signal.SIG_IGN)
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, preexec_fn=quiet) as process:
        try:
            assert process.stdout is not None
            assert "Ctrl+C" in process.stdout.readline()
            url = process.stdout.readline().split()[-1]  # the last line
            page = httpx.get(url, timeout=60).text
            assert "vtoken" in page and "fonts.googleapis" not in page
            labels = [c["props"].get("label") for c in httpx.get(f"{url}config", timeout=60).json()["components"]]
            assert "Another checkpoint (hub id)" in labels
            before = set(Path(tempfile.gettempdir()).glob("vtoken-demo-*"))
            process.send_signal(signal.SIGTERM)
            process.wait(60)
            assert len(set(Path(tempfile.gettempdir()).glob("vtoken-demo-*"))) < len(before)
        finally:
            process.kill()
