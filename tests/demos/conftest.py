"""A page on a small random model, and clips to ask about; skipped where Gradio is missing."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("gradio", reason="the page needs Gradio: pip install 'vtoken[demo]'")

from vtoken.bench.models import byte_tokenizer, random_model
from vtoken.demos.app import Server, serving
from vtoken.demos.runner import Runner
from vtoken.demos.settings import Settings
from vtoken.families.geometry import geometry
from vtoken.qa.load import load
from vtoken.reference.synthetic import render
from vtoken.video.write import write_video

FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
FLAGS += ["--disable-component-update", "--disable-sync"]
FLAGS += ["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    random_model(geometry("qwen2.5-vl-3b")).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def loaded(checkpoint: Path) -> tuple[Any, Any]:
    """The page's model once more, for the public API to be asked the same."""
    return load(str(checkpoint))


@pytest.fixture(scope="session")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_video(tmp_path_factory.mktemp("clips") / "my clip.mp4", render("slides", 2.0, 10.0, (112, 168)))


@pytest.fixture(scope="session")
def long_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_video(tmp_path_factory.mktemp("clips") / "long.mp4", render("objects", 30.0, 10.0, (112, 168)))


@pytest.fixture(scope="session")
def settings(checkpoint: Path) -> Settings:
    return Settings(model=str(checkpoint), port=0, max_seconds=20.0, max_upload=2.0, max_tokens=20_000)


@pytest.fixture(scope="session")
def server(settings: Settings) -> Iterator[Server]:
    with serving(settings) as made:
        yield made


@pytest.fixture
def runner(settings: Settings, tmp_path: Path) -> Runner:
    return Runner(settings, tmp_path)


@pytest.fixture
def upload(runner: Runner, clip: Path) -> Path:
    """The clip where the page finds uploads."""
    target = runner.root / "0123abcd" / clip.name
    target.parent.mkdir()
    target.write_bytes(clip.read_bytes())
    return target


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    api = pytest.importorskip("playwright.sync_api", reason="needs Playwright: pip install playwright")
    known = ("chromium", "chromium-browser", "google-chrome")
    found = os.environ.get("CHROMIUM") or next((p for n in known if (p := shutil.which(n))), None)
    if found is None:
        pytest.skip("needs Chromium: apt-get install chromium, or set CHROMIUM to its path")
    with api.sync_playwright() as playwright:
        made = playwright.chromium.launch(executable_path=found, args=FLAGS)
        yield made
        made.close()


@pytest.fixture
def shots(tmp_path: Path) -> Path:
    folder = Path(os.environ.get("VTOKEN_SCREENSHOTS", tmp_path))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture
def visit(browser: Any, server: Server) -> Iterator[Any]:
    from tests.demos.visit import Visit

    made = Visit(browser, server)
    yield made
    made.close()
