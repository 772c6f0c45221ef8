"""The run behind `vtoken bench kernels`: measure, print, write."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Group

from vtoken.bench import machine
from vtoken.bench.kernels import attention, merging, selection
from vtoken.bench.kernels.case import Case, Setting
from vtoken.bench.kernels.limits import Limits, measure_limits
from vtoken.bench.kernels.row import Row, measure_case
from vtoken.bench.kernels.table import as_text, render
from vtoken.errors import InputError
from vtoken.output.console import terminal
from vtoken.output.files import folder, write_text
from vtoken.output.progress import progress

CASES: dict[str, Callable[[Setting], Case]] = {
    "adjacent_cosine": merging.steps,
    "kcenter": selection.centres,
    "greedy_coverage": selection.coverage,
    "greedy_dpp": selection.volume,
    "dpc_knn": selection.clusters,
    "bipartite_match": merging.matching,
    "merge_tokens": merging.merging,
    "match_and_merge": merging.match_and_merge,
    "received_attention": attention.received,
    "cls_attention": attention.cls,
    "varlen_attention": attention.varlen,
}
END_TO_END = "end_to_end"


@dataclass(frozen=True)
class Request:
    """What the command line asks for; ``ops`` empty is everything, ``clock`` is wall or cpu."""

    setting: Setting
    ops: tuple[str, ...] = ()
    threads: int | None = None
    clock: str = "wall"
    out: Path | None = None
    profile: bool = False
    command: str = "vtoken bench kernels"

    def check(self) -> None:
        """Raises InputError: an unknown operation, no such device, or no thread."""
        known = [*CASES, END_TO_END]
        if strange := [op for op in self.ops if op not in known]:
            raise InputError(f"--op {', '.join(strange)}: no such operation; known: {', '.join(known)}")
        if self.threads is not None and self.threads < 1:
            raise InputError(f"--threads={self.threads} must be at least 1")
        check_device(self.setting.device)


def check_device(device: str) -> None:
    """Raises InputError: a device that is not there."""
    kind, _, number = device.partition(":")
    if kind not in ("cpu", "cuda") or number and not (kind == "cuda" and number.isdigit()):
        raise InputError(f"--device {device}: must be cpu, cuda or cuda:0")
    if kind == "cuda" and not torch.cuda.is_available():
        raise InputError(f"--device {device}: torch {torch.__version__} sees no GPU here; use --device cpu")
    if number and int(number) >= torch.cuda.device_count():
        raise InputError(f"--device {device}: there are {torch.cuda.device_count()} GPUs, counted from 0")


def run(request: Request) -> dict[str, Any]:
    """Measure, print, and write ``kernels.json`` and ``kernels.txt`` (or ``kernels_cuda``, ``_profile``) to ``out``.

    Returns:
        what goes into the JSON file: machine, limits, rows, and the profile or the end-to-end rows where asked for.

    Raises:
        InputError: see ``Request.check``, or ``out`` cannot be written.
    """
    request.check()
    out = folder(request.out) if request.out else None
    if request.threads:
        torch.set_num_threads(request.threads)
    if request.setting.cuda:
        torch.cuda.set_device(torch.device(request.setting.device))
    name = "kernels_profile" if request.profile else "kernels_cuda" if request.setting.cuda else "kernels"
    found, parts = _profiled(request) if request.profile else _measured(request)
    found = {"command": request.command, "machine": machine.describe(request.setting.device)} | found
    console = terminal()
    for part in parts:
        console.print(part)
    if out:
        write_text(out / f"{name}.json", json.dumps(found, indent=1, ensure_ascii=False) + "\n")
        write_text(out / f"{name}.txt", f"$ {request.command}\n\n{as_text(parts)}")
    return found


def _measured(request: Request) -> tuple[dict[str, Any], list[Group]]:
    setting, ops = request.setting, request.ops or tuple(CASES)
    ends = END_TO_END in request.ops or not request.ops and setting.cuda
    ops = tuple(op for op in ops if op != END_TO_END)
    found: dict[str, Any] = {"clock": request.clock}
    parts = []
    if ops:
        rows, limits = _rows(request, ops)
        captions = [f"{machine.describe(setting.device)}; {request.clock} time, smallest of several runs"]
        parts.append(render(rows, [*captions, limits.describe(), *LEGEND]))
        found["limits"] = {"copy": limits.copy} | {str(t).removeprefix("torch."): r for t, r in limits.product.items()}
        found["rows"] = [row.to_dict() for row in rows]
    if ends:
        from vtoken.bench.kernels.end_to_end import measure_end_to_end

        table, found["end_to_end"] = measure_end_to_end(setting)
        parts.append(table)
    return found, parts


def _rows(request: Request, ops: Sequence[str]) -> tuple[list[Row], Limits]:
    rows = []
    with torch.inference_mode(), progress(len(ops) + 1, "operations") as advance:
        advance(0, "limits")
        limits = measure_limits(request.setting, request.clock)
        advance(1, "limits")
        for op in ops:
            advance(0, op)
            rows.append(measure_case(CASES[op](request.setting), request.setting, limits, request.clock))
            advance(1, op)
    return rows, limits


LEGEND = (
    "of limit: the least time by the cost model (bytes at the copy's rate, or FLOP at the product's) over the time",
    "plain, published: how many times slower they are; ~ where a part of their time was scaled; MiB: extra at the peak",
)


def _profiled(request: Request) -> tuple[dict[str, Any], list[Group]]:
    from vtoken.bench.kernels.profile import profile

    table, found = profile(request.setting)
    return {"profile": found}, [table]


def names(text: Sequence[str] | None) -> tuple[str, ...]:
    """Operations of repeated or comma-separated options, each once."""
    return tuple(dict.fromkeys(n.strip() for part in text or () for n in part.split(",") if n.strip()))
