"""A server on the reference model, and a clip with questions that the model answers."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

import vtoken
from vtoken.demos.clips import samples
from vtoken.serve.server import Server, serving
from vtoken.serve.settings import Settings

QUESTION = "Which symbol does the red panel show at 3.4 seconds?"


@pytest.fixture(scope="session")
def reference() -> tuple[Any, Any]:
    """The served model once more, for the public API to be asked the same."""
    return vtoken.load("reference", device="cpu")


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What file: addresses may name."""
    return tmp_path_factory.mktemp("allowed")


@pytest.fixture(scope="session")
def panels(folder: Path) -> Path:
    return samples()["panels"].file(folder)


@pytest.fixture(scope="session")
def data(panels: Path) -> str:
    """The clip as a data: address."""
    return "data:video/mp4;base64," + base64.b64encode(panels.read_bytes()).decode()


@pytest.fixture(scope="session")
def server(folder: Path) -> Iterator[Server]:
    settings = Settings(
        port=0, device="cpu", folders=(folder,), max_upload=1.0, max_seconds=20.0, max_frames=128, body_seconds=5.0
    )
    with serving(settings) as made:
        yield made


@pytest.fixture(scope="session")
def client(server: Server) -> Any:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


def message(url: str, question: str = QUESTION, kind: str = "video") -> dict[str, Any]:
    """A message of the user with one video."""
    part = {"type": f"{kind}_url", f"{kind}_url": {"url": url}}
    return {"role": "user", "content": [part, {"type": "text", "text": question}]}


def ask(client: Any, url: str, question: str = QUESTION, **options: Any) -> Any:
    """One chat completion; ``kwargs`` are those of the processor."""
    kwargs = {"vtoken": "grt", "fps": 8} | options.pop("kwargs", {})
    extra = {"mm_processor_kwargs": kwargs} | options.pop("extra", {})
    options = {"model": "reference", "messages": [message(url, question)], "extra_body": extra} | options
    return client.chat.completions.create(**options)
