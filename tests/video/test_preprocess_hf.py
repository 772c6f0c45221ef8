"""Equality with the real Hugging Face processors, in a process of its own, where torchvision can be had."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def test_equals_the_hugging_face_processors():
    folder = os.environ.get("VTOKEN_TEST_TORCHVISION")
    if folder is None and importlib.util.find_spec("torchvision") is None:
        pytest.skip("torchvision is not installed; name a folder that holds it in VTOKEN_TEST_TORCHVISION")
    script = Path(__file__).with_name("hf_cases.py")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run([sys.executable, str(script), "compare"], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    results = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert len(results) == 26
    wrong = [r for r in results if not r["same"] or r["within"] < 0.999]
    assert not wrong
