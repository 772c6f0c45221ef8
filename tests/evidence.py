"""Nothing is skipped silently: a run ends with every reason, and in CI a reason that is not expected fails it.

Continuous integration installs all extras, and the golden vectors and a real clip are in the repository. It may lack
what ``ABSENT`` lists, and nothing else. Reasons of tests that do not apply to a case start with "not applicable".
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest

ABSENT = {
    "not applicable": "a combination that does not exist",
    "large clips": "clips of several megabytes; VTOKEN_TEST_VIDEOS names their folder",
    "needs a GPU": "an accelerator",
    "torchvision": "cannot be installed beside the CPU build of torch",
    "torchao": "optional",
    "Playwright": "browser tests have a job of their own, make test-demo",
    "Chromium": "browser tests have a job of their own, make test-demo",
}
HOW = {"slow": "`make test-all` runs them", "browser": "`make test-demo` runs them"}
DESELECTED = "vtoken_deselected"
deselected: Counter[str] = Counter()


def reasons(reports: Sequence[Any]) -> Counter[str]:
    """How many tests (or files) were skipped, by reason."""
    return Counter(r.longrepr[2].removeprefix("Skipped: ") for r in reports if isinstance(r.longrepr, tuple))


def unexpected(found: Counter[str]) -> list[str]:
    """Reasons that a run in CI must not have."""
    return [reason for reason in found if not any(mark in reason for mark in ABSENT)]


def in_ci() -> bool:
    return os.environ.get("CI", "").lower() in ("1", "true")


def pytest_deselected(items: Sequence[pytest.Item]) -> None:
    for item in items:
        if not item.config.option.keyword:  # what -k leaves out was chosen by hand
            deselected.update(name for name in HOW if item.get_closest_marker(name))


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Every worker of pytest-xdist selects alike, so the counts of one are those of all."""
    deselected.update(Counter(getattr(node, "workeroutput", {}).get(DESELECTED, {})) - deselected)


def pytest_sessionfinish(session: pytest.Session) -> None:
    if hasattr(session.config, "workeroutput"):  # a worker: hand the counts to the process that reports
        session.config.workeroutput[DESELECTED] = dict(deselected)
        return
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if in_ci() and reporter and unexpected(reasons(reporter.stats.get("skipped", []))) and session.exitstatus == 0:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: Any) -> None:
    found = reasons(terminalreporter.stats.get("skipped", []))
    if not found and not deselected:
        return
    terminalreporter.section("not run")
    for reason, count in found.most_common():
        terminalreporter.line(f"{count:5d}  skipped, {reason}")
    for name, count in deselected.items():
        terminalreporter.line(f"{count:5d}  not selected, {name}: {HOW[name]}")
    if in_ci() and (wrong := unexpected(found)):
        terminalreporter.line(f"CI must not skip these: {'; '.join(wrong)}", red=True)
