"""Imports point one way, and `import vtoken` stays light."""

from __future__ import annotations

import ast
import graphlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "vtoken"

# lowest first; a folder imports from itself and from lower levels, late imports included
LEVELS = [
    ["version"],
    ["errors"],
    ["output"],
    ["kernels"],
    ["data"],
    ["video"],
    ["reference"],
    ["encoders"],
    ["methods"],
    ["tokenizers", "thinners", "pruners", "mergers", "inside", "pathways"],
    ["families"],
    ["engine"],
    ["qa"],
    ["thinkjepa"],
    ["bench"],
    ["demos"],
    ["cli"],
    ["__main__"],
]
LEVEL = {name: i for i, level in enumerate(LEVELS) for name in level}
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


def modules() -> dict[str, Path]:
    """Dotted name of every module of the package."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imported(name: str, source: str, is_package: bool, top_level: bool) -> Iterator[str]:
    """Modules of vtoken that a module imports, by full name; ``top_level`` only those that run when it is imported."""
    tree = ast.parse(source)
    nodes = [n for s in tree.body for n in _run_at_import(s)] if top_level else ast.walk(tree)
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (a.name for a in node.names if a.name.split(".")[0] == "vtoken")
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = name.split(".")[: len(name.split(".")) - node.level + is_package]
                base = ".".join([*above, *filter(None, [base])])
            if base.split(".")[0] == "vtoken":
                yield from (f"{base}.{a.name}" for a in node.names)


def _run_at_import(node: ast.AST) -> Iterator[ast.AST]:
    for_types = isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
    if for_types or isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
        return
    yield node
    for child in ast.iter_child_nodes(node):
        yield from _run_at_import(child)


def part(module: str) -> str:
    """``vtoken.pruners.evs`` -> ``pruners``; the package itself is ``""``."""
    return module.split(".")[1] if "." in module else ""


def upward(name: str, source: str, is_package: bool) -> list[str]:
    """Imports of a module that point to a higher level, or to another folder of its own."""
    own = part(name)
    if own not in LEVEL:
        return []  # the package's own names are lazy
    found = []
    for target in imported(name, source, is_package, top_level=False):
        other = part(target)
        if other in LEVEL and other != own and LEVEL[other] >= LEVEL[own]:
            found.append(f"{name} imports {target}")
    return found


def test_every_module_has_a_level():
    parts = {part(m) for m in modules()} - {""}
    assert parts <= LEVEL.keys(), "give a new module or subpackage its place in LEVELS"


def test_imports_point_one_way():
    found = []
    for name, path in modules().items():
        found += upward(name, path.read_text(encoding="utf-8"), path.name == "__init__.py")
    assert not found, "\n".join(found)


def test_no_circles():
    known = modules()
    graph = {}
    for name, path in known.items():
        targets = imported(name, path.read_text(encoding="utf-8"), path.name == "__init__.py", top_level=False)
        graph[name] = {t if t in known else t.rpartition(".")[0] for t in targets} & known.keys() - {name}
    list(graphlib.TopologicalSorter(graph).static_order())  # raises CycleError, which names the circle


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
    assert {p.name for p in PACKAGE.glob("*.py")} == {"__init__.py", "errors.py", "version.py", "__main__.py"}


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
