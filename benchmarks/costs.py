"""README's table of what reading costs, from the files that the benchmarks wrote: one figure for one command."""

from __future__ import annotations

import re
from pathlib import Path

MEASURED = Path(__file__).resolve().parent.parent / "docs" / "benchmarks"


def markdown() -> str:
    """The table; a row for every file that is there."""
    rows = [row for row in (_gate(), _pass(), _reading(), _memory()) if row is not None]
    return "\n".join(["| what | figure | hardware | command |", "|---|---|---|---|", *rows])


def _read(name: str) -> list[str]:
    path = MEASURED / name
    return path.read_text(encoding="utf-8").splitlines() if path.is_file() else []


def _row(what: str, figure: str, hardware: str, command: str) -> str:
    return f"| {what} | {figure} | {hardware} | `python -m benchmarks.{command}` |"


def _hardware(line: str) -> str:
    """Without the software: the part of a first line that names the machine and how busy it was."""
    parts = re.split(r"[,;] ", line)
    return ", ".join(p.removesuffix(" at the beginning") for p in parts if not re.match(r"(Python|torch|CPU|least)", p))


def _gate() -> str | None:
    lines = _read("gate_cost.txt")
    if not lines:
        return None
    median = next(line.split()[2] for line in lines if line.startswith("grt "))
    size = re.sub(r".* frames at (\d+) x (\d+).*", r"\1x\2", lines[1])
    what = f"gate and reference update, one {size} frame"
    return _row(what, f"{float(median):.2f} ms", _hardware(lines[0]), "gate_cost vtest.avi")


def _pass() -> str | None:
    lines = _read("gate_pass.txt")
    if not lines:
        return None
    first = next(i for i, line in enumerate(lines) if line.startswith("clip ")) + 1
    rows = [line.split() for line in lines[first : lines.index("", first)]]
    found = [f"`{r[0]}` ({r[1]}) {r[6]} frames/s, {r[7].rstrip('%')} % of it the gate" for r in rows]
    clips = " ".join(r[0] for r in rows)
    return _row("decode + resize + gate, one core", "; ".join(found), _hardware(lines[0]), f"gate_pass {clips}")


def _reading() -> str | None:
    lines = _read("pipeline.txt")
    if not lines:
        return None
    first = next(i for i, line in enumerate(lines) if line.startswith("clip ")) + 1
    rows = [line.split() for line in lines[first : lines.index("", first)]]
    found = [f"`{r[0]}` at {r[1]} fps {r[9]} (target {r[12]}), {r[11]} with a processor for each thread" for r in rows]
    what = "time of reading for Qwen2.5-VL, of decoding alone"
    return _row(what, "; ".join(found), _hardware(lines[0]), "pipeline --only reading ask")


def _memory() -> str | None:
    lines = _read("pipeline_memory.txt")
    if not lines:
        return None
    found = [m for line in lines if (m := re.match(r"([\d.]+) minutes of .*?, \+([\d,]+) at most", line))]
    if not found:
        return None
    figure = ", ".join(f"{m[1]} min {m[2]} MiB" for m in found)
    what = "memory above the model, 1280x720 at 10 fps read and encoded with `grt`"
    lengths = " ".join(m[1] for m in found)
    return _row(what, figure, _hardware(lines[0]), f"pipeline --only memory --minutes {lengths}")
