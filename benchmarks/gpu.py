"""Every figure that needs a GPU, in one command, with a table at the end.

    make gpu                                  # the same as
    python -m benchmarks.gpu --out docs/benchmarks

Three parts: the fused operations beside the limits of the card and the time to first token, stage by stage
(`benchmarks.kernels`), and the encoder on part of the cells (`benchmarks.encoder`). Where there is no GPU it says
so in one line and ends with status 2.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from rich import box
from rich.console import Group
from rich.table import Table

from vtoken.bench import machine
from vtoken.bench.kernels.run import check_device
from vtoken.bench.kernels.table import as_text
from vtoken.errors import InputError
from vtoken.kernels.warm import warm_up
from vtoken.output.console import terminal
from vtoken.output.files import folder, write_text

NAME = "gpu.txt"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", help="cuda or cuda:0 (default cuda)")
    parser.add_argument("--out", type=Path, default=Path("docs/benchmarks"), help="where the figures are written")
    parser.add_argument("--quick", action="store_true", help="small sizes, for a first look")
    args = parser.parse_args()
    if not torch.cuda.is_available():
        print(f"make gpu: torch {torch.__version__} sees no GPU here, so nothing was measured", file=sys.stderr)
        return 2
    try:
        check_device(args.device)
        out = folder(args.out)
    except InputError as error:
        print(f"make gpu: {error}", file=sys.stderr)
        return 2
    fallen = warm_up(args.device)
    kernels = ["--device", args.device, "--out", str(out), *(["--quick"] if args.quick else [])]
    failed = ["kernels"] if _run("kernels", kernels)[0] else []
    code, encoder = _run("encoder", ["--device", args.device])
    failed += ["encoder"] if code not in (0, 1) else []  # 1: measured, and a target is missed
    rows = json.loads((out / "kernels_cuda.json").read_text()) if not failed else {}
    table = summary(rows, encoder, fallen, failed)
    caption = f"{machine.describe(args.device)}; python -m benchmarks.gpu"
    terminal().print(table)
    write_text(out / NAME, f"{caption}\n\n{as_text([Group(table)])}\n{encoder}")
    return 1 if failed else 0


def _run(name: str, options: list[str]) -> tuple[int, str]:
    """Run a benchmark, showing what it prints: its status and its text."""
    command = [sys.executable, "-m", f"benchmarks.{name}", *options]
    lines = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout or ():
            print(line, end="", flush=True)
            lines.append(line)
    return process.returncode, "".join(lines)


def summary(found: dict[str, Any], encoder: str, fallen: list[str], failed: list[str]) -> Table:
    """What matters of all parts: one line a figure.

    Args:
        found: what ``benchmarks.kernels`` wrote.
        encoder: what ``benchmarks.encoder`` printed.
        fallen: Triton kernels that fell back to plain torch.
        failed: parts that did not run to their end.
    """
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for head in ("figure", "of", "value"):
        table.add_column(head)
    for row in found.get("end_to_end", []):
        stages = ", ".join(f"{stage} {ms:,.1f}" for stage, ms in row["milliseconds"].items())
        table.add_row("first token", f"{row['model']}, {row['plan']}", f"{row['first_token_ms']:,.1f} ms ({stages})")
    for line in encoder.splitlines():
        words = line.split()
        if words and words[-1] in ("pass", "FAIL"):
            name, _, stock, pattern, _, *shares, verdict = words
            table.add_row(
                "encoder at 50, 25, 10 %", f"{name}, {pattern}", f"{', '.join(shares)} of {stock} ms; {verdict}"
            )
    for row in found.get("rows", []):
        table.add_row("operation", row["op"], f"{row['ms']:,.3f} ms, {row['share']:.0%} of the limit")
    table.add_row("Triton", "kernels that fell back", ", ".join(fallen) or "none")
    table.add_row("parts", "that failed", ", ".join(failed) or "none")
    return table


if __name__ == "__main__":
    sys.exit(main())
