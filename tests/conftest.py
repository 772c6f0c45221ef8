"""Shared fixtures: folders of real clips and official outputs, and CPU threads that do not fight."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

if not torch.cuda.is_available():  # Triton reads it when it is first imported, which many libraries do
    os.environ.setdefault("TRITON_INTERPRET", "1")

ROOT = Path(__file__).resolve().parent.parent


def _folder(variable: str, default: str) -> Path:
    folder = Path(os.environ.get(variable, ROOT.parent / "shared" / default))
    if not folder.is_dir():
        pytest.skip(f"{folder} is missing; set {variable}")
    return folder


@pytest.fixture(scope="session")
def clips() -> Path:
    return _folder("VTOKEN_TEST_VIDEOS", "videos")


@pytest.fixture(scope="session")
def golden() -> Path:
    return _folder("VTOKEN_TEST_GOLDEN", "golden")


@pytest.fixture(autouse=True, scope="session")
def _few_threads() -> None:
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def random_numbers() -> None:
    """A test draws the same ones whatever ran before it."""
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def denormal_numbers() -> Iterator[None]:
    """Training switches them off for the whole thread; hypothesis needs them."""
    yield
    torch.set_flush_denormal(False)
