"""A page on a small random model, and clips to ask about; skipped where Gradio is missing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("gradio", reason="the page needs Gradio: pip install 'vtoken[demo]'")

from vtoken.bench.geometry import geometry
from vtoken.bench.models import byte_tokenizer, random_model
from vtoken.demos.app import Server, serving
from vtoken.demos.runner import Runner
from vtoken.demos.settings import Settings
from vtoken.loading import load
from vtoken.video.synthetic import render
from vtoken.video.write import write_video


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
