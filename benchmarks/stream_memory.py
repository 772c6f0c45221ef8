"""Memory and time of a step of a stream that never ends, under every policy: both curves must be flat.

python -m benchmarks.stream_memory                    # 10,000 steps a policy, on a tiny random model
python -m benchmarks.stream_memory --steps 1000 --policies fifo,pyramid

Text stands for cells, so that the cost of the vision encoder is left out. The table has the bytes of the cache, the
resident memory of the process and the median CPU time of a step in each tenth of the run.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import time
from collections.abc import Sequence
from typing import Any

import torch
from rich.table import Table
from torch import Tensor

from vtoken.engine.memory.memory import Memory
from vtoken.engine.state.cache import nbytes, new_cache
from vtoken.engine.state.tail import as_argument
from vtoken.output.console import terminal

POLICIES = "none,fifo,random,pyramid,tar_van,proxy,value_norm,key_norm,recall"
TENTHS = 10


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
        self.model.base_model(input_ids=ids, position_ids=at, past_key_values=self.cache, use_cache=True)
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


def measure(model: Any, policy: str, args: argparse.Namespace) -> list[tuple[int, int, int, float]]:
    """Bytes of the cache, bytes in main memory, bytes of the process, median CPU milliseconds: one row a tenth."""
    run, rows = Run(model, policy, args.tokens, args.cells, args.stamps), []
    for tenth in range(TENTHS):
        first, last = (args.steps * (tenth + i) // TENTHS for i in (0, 1))
        spent = [run.step(i) for i in range(first, last)]
        memory = run.memory.nbytes_recalled
        rows.append((nbytes(run.cache), memory, resident(), 1000 * statistics.median(spent)))
    return rows


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=10_000, help="time steps of each policy (10000)")
    parser.add_argument("--tokens", type=int, default=512, help="limit of the cache (512)")
    parser.add_argument("--cells", type=int, default=8, help="cells of a step (8)")
    parser.add_argument("--stamps", type=int, default=3, help="text columns of a step (3)")
    parser.add_argument("--policies", default=POLICIES, help=f"comma-separated ({POLICIES})")
    parser.add_argument("--most-none", type=int, default=1000, help="steps of 'none' at most, which grows (1000)")
    args = parser.parse_args(argv)
    if min(args.steps, args.most_none) < TENTHS:
        parser.error(f"--steps and --most-none must be at least {TENTHS}")
    model = model_of()
    table = Table("policy", "steps", "of", *(f"{10 * (i + 1)} %" for i in range(TENTHS)))
    steps = args.steps
    for policy in args.policies.split(","):
        args.steps = min(steps, args.most_none) if policy == "none" else steps
        rows = measure(model, policy, args)
        table.add_row(policy, f"{args.steps:,}", "cache, kB", *(f"{r[0] / 1000:.0f}" for r in rows))
        if rows[-1][1]:
            table.add_row("", "", "main memory, MB", *(f"{r[1] / 1e6:.1f}" for r in rows))
        table.add_row("", "", "process, MB", *(f"{r[2] / 1e6:.0f}" for r in rows))
        table.add_row("", "", "a step, CPU ms", *(f"{r[3]:.1f}" for r in rows), end_section=True)
        terminal().print(f"{policy}: done", style="dim")
    terminal().print(table)
    terminal().print(
        f"[dim]limit {args.tokens} tokens, {args.cells} cells and {args.stamps} text columns a step, tiny random "
        f"model; {platform.processor() or platform.machine()}, {torch.get_num_threads()} threads[/]"
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
