"""`make gpu`: one line where there is no GPU, and the table at its end."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from rich.console import Group

from benchmarks import gpu
from vtoken.bench.kernels.case import Setting
from vtoken.bench.kernels.run import Request, run
from vtoken.bench.kernels.table import as_text

ROOT = Path(__file__).parents[2]


@pytest.mark.skipif(torch.cuda.is_available(), reason="not applicable: a GPU is there")
def test_without_a_gpu_it_says_so_in_one_line(tmp_path):
    command = [sys.executable, "-m", "benchmarks.gpu", "--out", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 2 and done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert "no GPU" in line and not (tmp_path / "out").exists()


def test_the_table_has_every_part():
    found = run(Request(Setting("cpu", quick=True), ("cls_attention", "end_to_end")))
    encoder = "siglip             1       100  random         1.010    0.520    0.280    0.130   pass\nno figure\n"
    text = as_text([Group(gpu.summary(found, encoder, ["held.held_attention"], []))])
    lines = text.splitlines()
    assert sum(line.startswith("first token") for line in lines) == 8
    assert any("qwen3-vl-4b, grt:hold=off" in line and "prefill" in line for line in lines)
    assert any("siglip, random" in line and "0.520, 0.280, 0.130 of 100 ms; pass" in line for line in lines)
    assert any("cls_attention" in line and "of the limit" in line for line in lines)
    assert any("fell back" in line and "held.held_attention" in line for line in lines)
