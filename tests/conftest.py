"""Shared fixtures. The ``slow`` marker and the summary of what did not run are in ``evidence.py``."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest
import torch

pytest_plugins = ["tests.evidence"]

if not torch.cuda.is_available():  # Triton reads it when it is first imported, which many libraries do
    os.environ.setdefault("TRITON_INTERPRET", "1")

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT / "tests" / "data"

# time says nothing about a property: machines are shared
hypothesis.settings.register_profile("vtoken", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("vtoken")


@pytest.fixture(scope="session")
def street() -> Path:
    """A street camera, 42 frames of 768x576 at 10 a second; tests/data/README.md says where it comes from."""
    return DATA / "clips" / "street.avi"


@pytest.fixture(scope="session")
def clips() -> Path:
    """The folder of real clips that are too large for the repository."""
    folder = Path(os.environ.get("VTOKEN_TEST_VIDEOS", ROOT.parent / "shared" / "videos"))
    if not folder.is_dir():
        pytest.skip(f"large clips: {folder} is missing; set VTOKEN_TEST_VIDEOS")
    return folder


@pytest.fixture(scope="session")
def golden() -> Path:
    """The folder of official outputs."""
    return Path(os.environ.get("VTOKEN_TEST_GOLDEN", DATA / "golden"))


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
