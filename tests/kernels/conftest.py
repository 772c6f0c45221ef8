"""The three implementations of an operation, each test with all of them: reference, plain torch and Triton.

Without a GPU the Triton twins run in Triton's interpreter, which tests/conftest.py switches on; these tests carry the
marker ``slow``.
"""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import Any

import pytest
import torch

FOLDER = Path(__file__).parent


@pytest.hookimpl(tryfirst=True)  # before pytest selects by marker
def pytest_collection_modifyitems(items: list[Any]) -> None:
    """Programs that Triton interprets are slow; compiled for a GPU they are not."""
    for item in items if not torch.cuda.is_available() else ():
        values = item.callspec.params if hasattr(item, "callspec") else {}
        if item.path.parent == FOLDER and ("triton" in item.fixturenames or values.get("backend") == "triton"):
            item.add_marker("slow")


@pytest.fixture
def device() -> torch.device:
    """Where the operations are tested: the GPU where there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture(params=["reference", "torch", "triton"])
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Name of the implementation; the last two run by the public function, which follows ``VTOKEN_KERNELS``."""
    if request.param == "triton":
        _needs_triton()
    if request.param != "reference":
        monkeypatch.setenv("VTOKEN_KERNELS", request.param)
    return request.param


@pytest.fixture
def triton(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests of the Triton twin alone."""
    _needs_triton()
    monkeypatch.setenv("VTOKEN_KERNELS", "triton")


def _needs_triton() -> None:
    if importlib.util.find_spec("triton") is None:
        pytest.skip("Triton is not installed; pip install 'vtoken[kernels]'")
    if not torch.cuda.is_available() and os.environ.get("TRITON_INTERPRET") != "1":
        pytest.skip("no GPU, and TRITON_INTERPRET is set to something else than 1")
