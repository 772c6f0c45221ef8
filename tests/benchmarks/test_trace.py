"""What the trace counts, and the bounds that the package keeps."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from typing import Any

import pytest

from benchmarks import trace
from benchmarks.imports import PACKAGE
from vtoken.data.budget import Budget

MEASURE = (
    "import json; from benchmarks.trace import measure; print(json.dumps({k: v.files for k, v in measure().items()}))"
)


def test_functions_count_by_file_and_crossings_by_caller() -> None:
    from vtoken.methods.plan import Plan

    with trace.tracing() as found:
        Plan.parse("divprune", keep=0.5)
    assert {"methods/plan.py", "methods/registry.py", "data/budget.py"} <= set(found.files)
    assert "parse" in {name.rpartition(".")[2] for name in found.functions["methods/plan.py"]}
    assert found.crossings["methods/plan.py", "methods/registry.py"] > 0
    assert all(origin != target for origin, target in found.crossings)


def test_calls_of_a_thread_count() -> None:
    with trace.tracing() as found:
        thread = threading.Thread(target=lambda: str(Budget(keep=0.5)))
        thread.start()
        thread.join()
    assert found.files == ["data/budget.py"]


MADE = """
from dataclasses import dataclass

def mark(what): return what

@mark
@dataclass
class Point:
    x: int
    def twice(self): return 2 * self.x
"""


def test_generated_code_and_imports_do_not_count() -> None:
    module: dict[str, Any] = {"__name__": __name__}
    with trace.tracing() as imported:
        exec(compile(MADE, str(PACKAGE / "made.py"), "exec"), module)  # as an import does
        point = module["Point"](3)
    assert imported.files == []
    with trace.tracing() as called:
        point.twice()
    assert called.files == ["made.py"]


@pytest.fixture(scope="module")
def files() -> dict[str, list[str]]:
    """Files that each entry enters in a fresh process."""
    command = [sys.executable, "-c", MEASURE]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=PACKAGE.parent, check=True)
    return json.loads(ended.stdout)


@pytest.mark.slow
def test_the_route_of_a_question(files: dict[str, list[str]]) -> None:
    for entered in files.values():
        assert {"pruners/divprune.py", "tokenizers/motion.py", "data/tokens.py"} <= set(entered)
    assert "qa/api.py" in files["ask"] and "qa/api.py" not in files["generate"]


@pytest.mark.slow
@pytest.mark.parametrize("entry", trace.MOST)
@pytest.mark.xfail(reason="the engine is not yet short enough; see python -m benchmarks.trace", strict=False)
def test_one_entry_enters_few_files(files: dict[str, list[str]], entry: str) -> None:
    assert len(files[entry]) <= trace.MOST[entry]
