"""The published forms that the benchmark measures against give what the fast methods give."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from benchmarks.published import loops as published
from vtoken.bench import made
from vtoken.data.budget import Budget
from vtoken.methods import registry

ROOT = Path(__file__).resolve().parents[2]
FRAMES, SIDE, WIDTH = 16, 6, 256
PRUNERS = ("divprune", "kcenter", "todre", "cdpruner", "mmtok", "vispruner")
# options under which the methods follow the published counts
MERGERS = {
    "dpc_knn": {},
    "sparsevlm_merge": {},
    "prumerge": {"exact": True},
    "holitom": {"exact": True},
    "fastvid": {"exact": True},
    "prunevid": {"exact": True},
    "dycoke": {"exact": True},
}


def outliers(score: Tensor) -> int:
    """PruMerge's count: the share above Q3 + 1.5 IQR, rounded down as published."""
    low, high = score.double().quantile(torch.tensor([0.25, 0.75], dtype=torch.float64))
    return int(len(score) * (int((score > high + 1.5 * (high - low)).sum()) / len(score)))


def both(name: str, seed: int) -> tuple[Tensor, Tensor]:
    """Features of what remains: by our method and by the published form, rows sorted by their first feature."""
    tokens, context = made.clip(FRAMES, SIDE, WIDTH, seed)
    assert context.text is not None
    k = len(tokens) // 4
    method = registry.build(name, **MERGERS.get(name, {}))
    ours = method.reduce(tokens, Budget(keep=0.25) if method.needs_budget else None, context).x
    extra = {"outliers": outliers} if name == "prumerge" else {}
    theirs = published.LOOPS[name].run(tokens, k, context.text[0], **extra)
    theirs = theirs if theirs.is_floating_point() else tokens.x[theirs]
    return tuple(x[x[:, 0].argsort()] for x in (ours, theirs))  # type: ignore[return-value]


def test_every_loop_is_tested() -> None:
    assert set(published.LOOPS) == {*PRUNERS, *MERGERS}
    assert set(published.NONE) <= {*registry.names("pruner"), *registry.names("merger")} - set(published.LOOPS)


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("name", [*PRUNERS, *MERGERS])
def test_ours_equals_the_published_form(name: str, seed: int) -> None:
    ours, theirs = both(name, seed)
    assert ours.shape == theirs.shape
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_the_benchmark_runs(tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    words = ["--sizes", "576", "--widths", "32", "--methods", "divprune", "cls", "pool", "--json", str(rows)]
    told = subprocess.run(
        [sys.executable, "-m", "benchmarks.reducers", *words],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert told.returncode == 0, told.stderr
    found = {row["method"]: row for row in map(json.loads, rows.read_text().splitlines())}
    assert [found[name]["form"] for name in ("divprune", "cls", "pool")] == ["loop", "same", "none"]
    assert all(row["left"] == 144 and row["ours"]["cpu"] > 0 for row in found.values())
    assert found["divprune"]["loop"]["cpu"] > 0 and found["pool"]["loop"] is None
    assert "D = 32" in told.stdout and "divprune" in told.stdout


@pytest.mark.parametrize("frames", [1, 3])
def test_a_made_clip_has_what_every_method_reads(frames: int) -> None:
    tokens, context = made.clip(frames, 6, 32)
    given = {*tokens.signals, "text"}
    for kind in ("pruner", "merger"):
        assert {n: m for n in registry.names(kind) if (m := registry.get(n).missing(given))} == {}
    assert context.text is not None and not any(v.isnan().any() for v in tokens.signals.values())
