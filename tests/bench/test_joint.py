"""Plans, weights and caches together: losses are differences to the whole model, and what does not run says why."""

from __future__ import annotations

from pathlib import Path

import pytest

from vtoken.bench import accuracy_data, joint
from vtoken.cli import main as cli


@pytest.fixture(scope="module")
def cells() -> list[joint.Cell]:
    data = accuracy_data.rendered("test", 1)
    plans = ["none", "divprune:keep=0.1", "grt"]
    return joint.measure(data, "reference", plans, ["float"], ["dynamic", "fp8"], 4.0)


def test_losses_are_counted_from_the_whole_model(cells: list[joint.Cell]) -> None:
    at = {(c.plan, c.cache): c for c in cells}
    full, cut = at["none", "dynamic"], at["divprune:keep=0.1", "dynamic"]
    assert full.accuracy is not None and cut.accuracy is not None and full.loss == 0 == full.alone
    assert cut.loss == cut.alone == full.accuracy - cut.accuracy and cut.tokens < full.tokens / 5


def test_a_cache_that_a_held_prompt_cannot_have_says_so(cells: list[joint.Cell]) -> None:
    at = {(c.plan, c.cache): c for c in cells}
    assert at["none", "fp8"].accuracy is not None, at["none", "fp8"].why
    assert at["divprune:keep=0.1", "fp8"].loss is not None
    refused = at["grt", "fp8"]
    assert refused.accuracy is None and "hold" in refused.why and refused.loss is None
    assert "does not run" in joint.markdown(cells, "x", 1, 4.0)


def test_a_second_run_asks_only_what_is_left(cells: list[joint.Cell], tmp_path: Path) -> None:
    data, seen = accuracy_data.rendered("test", 1), []
    plans, caches = ["none", "divprune:keep=0.1"], ["dynamic", "fp8"]
    whole = joint.measure(data, "no such model", plans, ["float"], caches, 4.0, cells, seen.append)
    assert whole == [c for c in cells if c.plan != "grt"] and not seen
    part = [c for c in cells if (c.plan, c.cache) != ("none", "fp8")]
    again = joint.measure(data, "reference", plans, ["float"], caches, 4.0, part, seen.append)
    assert [(c.plan, c.cache, c.accuracy) for c in again] == [(c.plan, c.cache, c.accuracy) for c in whole]
    assert len(seen) == 1


@pytest.mark.parametrize(("flag", "value"), [("--weights", "int3"), ("--caches", "paper")])
def test_unknown_kinds_are_told(flag: str, value: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["bench", "joint", flag, value, "--out", str(tmp_path)]) == 2
    assert value in capsys.readouterr().err
