"""The ``slow`` marker by folder and by model family, and what a run says at its end of tests that did not run.

A run ends with the reason of everything that did not run; in CI a reason that is not expected fails it.

Continuous integration installs all extras, and the golden vectors and a real clip are in the repository. It may lack
what ``ABSENT`` lists, and nothing else. Reasons of tests that do not apply to a case start with "not applicable".
"""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

TESTS = Path(__file__).resolve().parent
FIRST = {"llava", "llava_onevision", "qwen2_5_vl", "qwen3_vl"}  # families of the fast suite; the others are slow
OMNI = "qwen2_5_omni_thinker"
SLOW = {"bench", "benchmarks", "demos", "serve", "thinkjepa", "training"}  # folders whose tests all carry the marker
ABSENT = {
    "not applicable": "a combination that does not exist",
    "large clips": "clips of several megabytes; VTOKEN_TEST_VIDEOS names their folder",
    "needs a GPU": "an accelerator",
    "torchvision": "cannot be installed beside the CPU build of torch",
    "torchcodec": "needs the shared libraries of FFmpeg, which a fresh machine lacks",
    "torchao": "optional",
    "needs Ray": "large, for one engine of vtoken batch; its test passes where the extra ray is installed",
    "Playwright": "browser tests have a job of their own, make test-demo",
    "Chromium": "browser tests have a job of their own, make test-demo",
}
HOW = {"slow": "`make test-all` runs them", "browser": "`make test-demo` runs them"}
DESELECTED = "vtoken_deselected"
deselected: Counter[str] = Counter()
folders: set[str] = set()  # whose tests were not collected, because all of them are slow


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Folders of slow tests are not even imported where none of them can be chosen: the page alone takes seconds."""
    if collection_path.parent == TESTS and collection_path.name in SLOW and without_slow(config):
        folders.add(collection_path.name)
        return True
    return None


@pytest.hookimpl(tryfirst=True)  # before pytest selects by marker
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.parent.parent == TESTS and item.path.parent.name in SLOW:
            item.add_marker("slow")
    for item in of_other_families(items):
        item.add_marker("slow")
    for item in items:
        if OMNI in words(item) and not knows_omni():
            item.add_marker(
                pytest.mark.skip(reason="not applicable: Qwen2.5-Omni is built otherwise in this transformers")
            )


def words(item: pytest.Item) -> set[str]:
    """The parameters of a test that are strings; arrays among the others cannot be compared with ``in``."""
    params = getattr(getattr(item, "callspec", None), "params", {})
    return {value for value in params.values() if isinstance(value, str)}


def knows_omni() -> bool:
    """Whether the installed transformers builds Qwen2.5-Omni as other families: an encoder within ``model.model``."""
    from transformers.models.qwen2_5_omni import modeling_qwen2_5_omni as omni

    return hasattr(omni, "Qwen2_5OmniThinkerModel")


def of_other_families(items: Sequence[pytest.Item]) -> list[pytest.Item]:
    """Tests of one model family outside of ``FIRST``, where the same function runs a family of ``FIRST`` too."""
    families = getattr(sys.modules.get("tests.families.tiny"), "FAMILIES", {})
    other, first = [], set()
    for item in items:
        names = words(item) & set(families)
        function = (item.path, getattr(item, "originalname", item.name))
        if names & FIRST:
            first.add(function)
        elif names:
            other.append((function, item))
    return [item for function, item in other if function in first]


def reasons(reports: Sequence[Any]) -> Counter[str]:
    """How many tests (or files) were skipped, by reason."""
    return Counter(r.longrepr[2].removeprefix("Skipped: ") for r in reports if isinstance(r.longrepr, tuple))


def unexpected(found: Counter[str]) -> list[str]:
    """Reasons that a run in CI must not have."""
    return [reason for reason in found if not any(mark in reason for mark in ABSENT)]


def in_ci() -> bool:
    return os.environ.get("CI", "").lower() in ("1", "true")


def without_slow(config: pytest.Config) -> bool:
    """Whether the run leaves the slow tests out."""
    return "not slow" in (config.option.markexpr or "")


def pytest_deselected(items: Sequence[pytest.Item]) -> None:
    for item in items:
        if not item.config.option.keyword:  # what -k leaves out was chosen by hand
            deselected.update(name for name in HOW if item.get_closest_marker(name))


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Every worker of pytest-xdist selects alike, so the counts of one are those of all."""
    counts, names = getattr(node, "workeroutput", {}).get(DESELECTED, ({}, []))
    deselected.update(Counter(counts) - deselected)
    folders.update(names)


def pytest_sessionfinish(session: pytest.Session) -> None:
    output = getattr(session.config, "workeroutput", None)
    if output is not None:  # a worker: hand the counts to the process that reports
        output[DESELECTED] = (dict(deselected), sorted(folders))
        return
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if in_ci() and reporter and unexpected(reasons(reporter.stats.get("skipped", []))) and session.exitstatus == 0:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: Any) -> None:
    found = reasons(terminalreporter.stats.get("skipped", []))
    if not (found or deselected or folders):
        return
    terminalreporter.section("not run")
    for reason, count in found.most_common():
        terminalreporter.line(f"{count:5d}  skipped, {reason}")
    for name, count in deselected.items():
        terminalreporter.line(f"{count:5d}  not selected, {name}: {HOW[name]}")
    if folders:
        terminalreporter.line(f"  all of  tests/{', tests/'.join(sorted(folders))}, slow: {HOW['slow']}")
    if in_ci() and (wrong := unexpected(found)):
        terminalreporter.line(f"CI must not skip these: {'; '.join(wrong)}", red=True)
