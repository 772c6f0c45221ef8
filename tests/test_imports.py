"""Imports point one way, and `import vtoken` stays light. The rules themselves are in benchmarks/imports.py."""

from __future__ import annotations

import subprocess
import sys

import pytest

from benchmarks.imports import LEVEL, PACKAGE, all_upward, circles, graph, modules, part, top_modules, upward

HEAVY = (
    "transformers",
    "triton",
    "gradio",
    "av",
    "cv2",
    "decord",
    "torchcodec",
    "matplotlib",
    "flash_attn",
    "PIL",
    "rich",
)


def test_every_module_has_a_level():
    parts = {part(m) for m in modules()} - {""}
    assert parts <= LEVEL.keys(), "give a new module or subpackage its place in LEVELS"


def test_imports_point_one_way():
    assert all_upward() == []


def test_no_circles():
    assert circles(graph()) == []


def test_the_check_sees_every_circle():
    found = circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"e", "a"}, "e": {"d"}, "f": set()})
    assert sorted(sorted(c) for c in found) == [["a", "b", "c"], ["d", "e"]]


@pytest.mark.parametrize(
    "source",
    [
        "from vtoken.engine.wrap import wrap",
        "import vtoken.families.qwen",
        "def f():\n    from vtoken.families import base",
        "from ..qa import api",
        "from .. import cli",
        "from vtoken.mergers.pool import Pool",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from vtoken.engine.encode import Rows",
    ],
)
def test_the_check_sees_an_import_that_points_up(source):
    assert upward("vtoken.pruners.evs", source, False)
    assert not upward("vtoken.pruners.evs", "from vtoken.data.tokens import Tokens\nfrom .cls import CLS", False)


def test_four_modules_lie_at_the_top_of_the_package():
    assert top_modules() == {"__init__.py", "errors.py", "version.py", "__main__.py"}


@pytest.mark.parametrize("statement", ["import vtoken", "import vtoken.data.frames, vtoken.methods.reducer"])
def test_import_is_light(statement):
    code = f"{statement}\nimport sys\nprint(*[m for m in {HEAVY!r} if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=PACKAGE.parent, check=True)
    assert out.stdout.strip() == ""


def test_listing_the_methods_imports_no_decoder_and_no_model_library():
    heavy = f"[m for m in {HEAVY!r} if m in sys.modules]"
    code = f"import sys\nfrom vtoken.methods import registry\nregistry.names()\nprint(*{heavy})"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=PACKAGE.parent, check=True)
    assert not set(out.stdout.split()) & {"transformers", "triton", "gradio", "av", "decord", "torchcodec"}
