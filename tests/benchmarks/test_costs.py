"""README's table of what reading costs has the figures of the files, and no row for a file that is not there."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import costs

GATE = """Some Chip, one thread, load 1.5; least of 5 runs, CPU time
vtest.avi, 100 frames at 448 x 448, cells of 14 px

gate                kept  median ms   p95 ms
grt                0.067      0.554    0.617
grt:motion=dis     0.064      5.093    5.518
"""
PASS = """Some Chip, one core, load 2.0; CPU time
grt, 448 x 448, cells of 14 px

clip           size  frames  decode ms  resize ms  gate ms  frames/s  gate share   kept
a.avi       768x576     795       0.71       0.15     0.37       809       29.9%  0.081
b.mp4      1280x720   1,500       0.77       0.26     0.36     1,721       25.8%  0.008

a.avi: resident 317 MiB
"""
PIPELINE = """Some Chip, 1 thread, Python 3.11.7, torch 2.13.0+cpu; 2 cores, load 1.6 at the beginning

clip         fps  frames   kept  plain ms  read ms  decode   gate  prepare   wall    CPU   path  target
vtest.avi     10     300  12.1%      0.51     3.38    1.03   0.92     1.17   4.10   6.71   2.42    1.35

ms are CPU time
"""
MEMORY = """Some Chip, 1 thread, Python 3.11.7, torch 2.13.0+cpu; 2 cores, load 1.6 at the beginning


1 minutes of 1280x720 at 10 fps (600 frames): resident 753 MiB with the model, +325 at most while it is read and encoded

60 minutes of 1280x720 at 10 fps (36,000 frames): resident 753 MiB with the model, +1,325 at most while it is read
"""


def test_rows_are_those_of_the_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(costs, "MEASURED", tmp_path)
    assert len(costs.markdown().splitlines()) == 2
    files = {"gate_cost": GATE, "gate_pass": PASS, "pipeline": PIPELINE, "pipeline_memory": MEMORY}
    for name, text in files.items():
        (tmp_path / f"{name}.txt").write_text(text)
    _, _, gate, passed, reading, memory = costs.markdown().splitlines()
    assert "one 448x448 frame | 0.55 ms | Some Chip, one thread, load 1.5 | `python -m benchmarks.gate_cost" in gate
    assert "`a.avi` (768x576) 809 frames/s, 29.9 % of it the gate; `b.mp4` (1280x720) 1,721 frames/s" in passed
    assert "| Some Chip, one core, load 2.0 | `python -m benchmarks.gate_pass a.avi b.mp4` |" in passed
    assert "`vtest.avi` at 10 fps 4.10 (target 1.35), 2.42 with" in reading
    assert "| 1 min 325 MiB, 60 min 1,325 MiB | Some Chip, 1 thread, 2 cores, load 1.6 |" in memory
    assert "--minutes 1 60` |" in memory
