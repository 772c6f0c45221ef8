"""Memory and time of a step of a stream that never ends, under every policy: both curves must be flat.

python -m benchmarks.stream_memory                    # 10,000 steps a policy, on a tiny random model
python -m benchmarks.stream_memory --steps 1000 --policies fifo,pyramid
python -m benchmarks.stream_memory --out curves       # also writes text and plot, and goes on where it was stopped

Text stands for cells, so that the cost of the vision encoder is left out. The table has the bytes of the cache, the
resident memory of the process and the median CPU time of a step in each tenth of the run.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from vtoken.bench.machine import describe as machine
from vtoken.engine.memory.memory import Memory
from vtoken.engine.state.cache import nbytes, new_cache
from vtoken.engine.state.tail import as_argument
from vtoken.errors import require
from vtoken.families.compat import behind
from vtoken.output.console import terminal
from vtoken.output.files import folder, replacing

POLICIES = "none,fifo,random,pyramid,tar_van,proxy,value_norm,key_norm,recall"
TENTHS = 10
NAME = "stream_memory"

Row = tuple[int, int, int, float]  # bytes of the cache, in main memory, of the process; median CPU ms of a step


def model_of(seed: int = 0) -> Any:
    """A tiny random Qwen3-VL."""
    from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

    torch.manual_seed(seed)
    text = {
        "vocab_size": 64,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [4, 2, 2]},
    }
    vision = {"depth": 1, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2, "out_hidden_size": 64}
    vision |= {"deepstack_visual_indexes": [0]}
    config = Qwen3VLConfig(text_config=text, vision_config=vision, image_token_id=60, video_token_id=61)
    return Qwen3VLForConditionalGeneration(config).eval()


def resident() -> int:
    """Bytes of the process in memory; 0 where the system does not say."""
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


class Run:
    """One policy.

    Args:
        policy: its name; "none" lets nothing leave.
        tokens: limit of the cache.
        cells, stamps: cells and text columns of a step.
    """

    def __init__(self, model: Any, policy: str, tokens: int, cells: int, stamps: int) -> None:
        self.model, self.cells, self.stamps, self.next = model, cells, stamps, 0
        self.cache = new_cache(model, False)
        self.bounded = policy != "none"
        self.memory = Memory(model, policy if self.bounded else "fifo", tokens=tokens, closing=torch.tensor([1, 2, 3]))
        self._read(8, torch.full((8,), -1), torch.full((8,), -1), 0.0)

    @torch.no_grad()
    def _read(self, n: int, step: Tensor, cell: Tensor, seconds: float) -> None:
        places = torch.arange(self.next, self.next + n).expand(3, -1)
        at = as_argument(places, int(self.cache.get_seq_length()))
        ids = torch.randint(4, 50, (1, n))
        self.model.base_model(input_ids=ids, position_ids=at, **behind(self.model, self.cache))
        self.next += n
        self.memory.add(step, cell, torch.full((n,), seconds).double(), places, (1, self.cells))

    def step(self, number: int) -> float:
        """Seconds of CPU that one step took."""
        began = time.thread_time()
        n = self.stamps + self.cells
        cell = torch.cat([torch.full((self.stamps,), -1), torch.arange(self.cells)])
        self._read(n, torch.full((n,), number), cell, number / 2)
        if self.bounded:
            self.memory.evict(self.cache, torch.full((3,), self.next))
        if self.next > 30_000:  # positions stay small for ever
            self.memory.shift(self.cache, 20_000)
            self.next -= 20_000
        return time.thread_time() - began


def measure(model: Any, policy: str, args: argparse.Namespace) -> list[Row]:
    """One row for each tenth of the run."""
    run, rows = Run(model, policy, args.tokens, args.cells, args.stamps), []
    steps = steps_of(policy, args)
    for tenth in range(TENTHS):
        first, last = (steps * (tenth + i) // TENTHS for i in (0, 1))
        spent = [run.step(i) for i in range(first, last)]
        rows.append((nbytes(run.cache), run.memory.nbytes_recalled, resident(), 1000 * statistics.median(spent)))
    return rows


def steps_of(policy: str, args: argparse.Namespace) -> int:
    """Steps of a policy: 'none' grows, and is stopped early."""
    return min(args.steps, args.most_none) if policy == "none" else args.steps


def measured(model: Any, args: argparse.Namespace) -> dict[str, list[Row]]:
    """The rows of every policy; one line of the file a policy, so that a stopped run goes on."""
    file = folder(args.out) / f"{NAME}.jsonl" if args.out else None
    known = {}
    for line in file.read_text(encoding="utf-8").splitlines() if file and file.is_file() else []:
        one = json.loads(line)
        known[json.dumps(one["of"])] = one["rows"]
    out = {}
    for policy in args.policies.split(","):
        of = [policy, steps_of(policy, args), args.tokens, args.cells, args.stamps]
        if json.dumps(of) not in known:
            known[json.dumps(of)] = measure(model, policy, args)
            if file:
                with file.open("a", encoding="utf-8") as out_file:
                    out_file.write(json.dumps({"of": of, "rows": known[json.dumps(of)]}) + "\n")
            terminal().print(f"{policy}: done", style="dim")
        out[policy] = known[json.dumps(of)]
    return out


def table_of(found: dict[str, list[Row]], args: argparse.Namespace) -> Table:
    """Policies by tenths of the run."""
    table = Table("policy", "steps", "of", *(f"{10 * (i + 1)} %" for i in range(TENTHS)))
    for policy, rows in found.items():
        steps = f"{steps_of(policy, args):,}"
        table.add_row(policy, steps, "cache, kB", *(f"{r[0] / 1000:.0f}" for r in rows))
        if rows[-1][1]:
            table.add_row("", "", "main memory, MB", *(f"{r[1] / 1e6:.1f}" for r in rows))
        table.add_row("", "", "process, MB", *(f"{r[2] / 1e6:.0f}" for r in rows))
        table.add_row("", "", "a step, CPU ms", *(f"{r[3]:.1f}" for r in rows), end_section=True)
    return table


def plot(found: dict[str, list[Row]], args: argparse.Namespace, path: Path) -> None:
    """Write a PNG: resident memory and time of a step against steps, one line a policy."""
    matplotlib = require("matplotlib", "bench", "the plot")
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, 2, figsize=(11, 3.9), layout="constrained")
    for axes, column, scale, label in (
        (panels[0], 2, 1e-6, "resident memory of the process, MB"),
        (panels[1], 3, 1.0, "CPU time of a step, ms"),
    ):
        for number, (policy, rows) in enumerate(found.items()):
            steps = [steps_of(policy, args) * (i + 1) / TENTHS for i in range(TENTHS)]
            line = "--" if policy == "none" else "-"
            axes.plot(steps, [r[column] * scale for r in rows], line, marker=".", color=f"C{number}", label=policy)
        axes.set_ylim(bottom=0)
        axes.set_xlabel("steps")
        axes.set_title(label, loc="left", fontsize=9.5)
        axes.spines[["top", "right"]].set_visible(False)
    panels[1].legend(fontsize=8, ncols=2)
    with replacing(path) as draft:
        figure.savefig(draft, dpi=140, metadata={"Software": None})
    pyplot.close(figure)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=10_000, help="time steps of each policy (10000)")
    parser.add_argument("--tokens", type=int, default=512, help="limit of the cache (512)")
    parser.add_argument("--cells", type=int, default=8, help="cells of a step (8)")
    parser.add_argument("--stamps", type=int, default=3, help="text columns of a step (3)")
    parser.add_argument("--policies", default=POLICIES, help=f"comma-separated ({POLICIES})")
    parser.add_argument("--most-none", type=int, default=1000, help="steps of 'none' at most, which grows (1000)")
    parser.add_argument("--out", help="folder of the table, the plot and what a stopped run goes on from")
    args = parser.parse_args(argv)
    if min(args.steps, args.most_none) < TENTHS:
        parser.error(f"--steps and --most-none must be at least {TENTHS}")
    found = measured(model_of(), args)
    told = (
        f"limit {args.tokens} tokens, {args.cells} cells and {args.stamps} text columns a step, tiny random model; "
        f"{machine()}; CPU time, since the machine may be shared"
    )
    terminal().print(table_of(found, args))
    terminal().print(told, style="dim")
    if args.out:
        with replacing(folder(args.out) / f"{NAME}.txt") as draft, open(draft, "w", encoding="utf-8") as text:
            Console(file=text, width=140).print(table_of(found, args), told)
        plot(found, args, folder(args.out) / f"{NAME}.png")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
