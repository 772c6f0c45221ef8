"""Methods inside the language model: prefill time, FLOPs and memory, as shares of the stock model's.

    python -m benchmarks.inner                  # 12 layers x 768, 4,096 visual and 48 text tokens, one thread
    python -m benchmarks.inner --device cuda    # the same on a GPU

Every plan runs beside a stock run, in turns, and the median of the ratios is printed; time is CPU time on a CPU. FLOPs
are those of the decoder layers, half the square for causal attention. Exits 1 where a limit is passed: 1.02 where
nothing leaves, FastV and PyramidDrop 1.1 of their FLOPs, VisionDrop 1.3.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vtoken.bench import machine
from vtoken.engine.inner import Record, Visual, installed
from vtoken.engine.inner.costs import cache_share, flops_share
from vtoken.methods.plan import Plan

# plan, highest time as a multiple of its FLOPs; None where no limit is set
PLANS: list[tuple[str, float | None]] = [
    ("fastv:keep=1.0", 1.02),  # hooks only: nothing leaves
    ("fastv:layer=2,keep=0.5", 1.1),
    ("pyramiddrop", 1.1),
    ("visiondrop:keep=0.125", 1.3),
    ("dart_inner:layer=2,keep=0.5", None),
    ("holitom_inner:keep=0.5", None),
    ("sparsevlm", None),
    ("prunevid_inner", None),
    ("vscan_inner", None),
    ("aim_inner", None),
    ("llavolta:keep=0.5", None),
    ("framefusion", None),
    ("zipvl:tau=0.5", None),
    ("flow", None),
    ("inside:method=(vidcom2),layer=2,keep=0.5", None),
]


@dataclass
class Row:
    """One plan: median of time ratios, shares of FLOPs and cache, and memory above the stock model's in MiB."""

    plan: str
    time: float
    flops: float
    cache: float
    tokens: float
    memory: float
    limit: float | None

    @property
    def passed(self) -> bool:
        return self.limit is None or self.time <= self.limit * self.flops


def build(layers: int, width: int, device: str) -> Any:
    """A random Llama with grouped keys, 12 query and 3 key heads at width 768."""
    import transformers as hf

    config = hf.LlamaConfig(
        vocab_size=512,
        hidden_size=width,
        intermediate_size=width * 8 // 3,
        num_hidden_layers=layers,
        num_attention_heads=width // 64,
        num_key_value_heads=max(1, width // 256),
        max_position_embeddings=1 << 17,
    )
    torch.manual_seed(0)
    made: Any = hf.LlamaForCausalLM(config)
    return made.to(device).eval()


def prompt(visual: int, text: int, width: int, device: str) -> tuple[Tensor, Visual]:
    """Embeddings of a few words, the visual tokens of a video of 16 x 16 cells a step, and the question."""
    rows = torch.randn(1, visual + text, width, generator=torch.Generator().manual_seed(1)).to(device)
    mask = torch.zeros(1, visual + text, dtype=torch.bool, device=device)
    mask[:, text // 3 : text // 3 + visual] = True
    cell = torch.arange(visual, device=device)
    position = torch.stack([cell // 256, cell % 256 // 16, cell % 16], 1)
    return rows, Visual.of(mask, position)


class Bench:
    """Runs of one model on one prompt."""

    def __init__(self, model: Any, rows: Tensor, visual: Visual, device: str) -> None:
        self.model, self.rows, self.visual, self.device = model, rows, visual, device
        self.clock: Callable[[], float] = time.process_time if device == "cpu" else time.perf_counter

    def run(self, plan: Plan | None) -> tuple[float, Record]:
        """Seconds of one prefill, and the record."""
        gc.collect()
        with torch.no_grad(), installed(self.model, plan, self.visual) as record:
            self._wait()
            start = self.clock()
            self.model(inputs_embeds=self.rows, use_cache=True, logits_to_keep=1)
            self._wait()
            return self.clock() - start, record

    def _wait(self) -> None:
        if self.device != "cpu":
            torch.cuda.synchronize()

    def peak(self, plan: Plan | None) -> float:
        """MiB by which one prefill raises the peak: of the GPU's memory, or of this process."""
        gc.collect()
        if self.device != "cpu":
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            self.run(plan)
            return (torch.cuda.max_memory_allocated() - before) / 2**20
        before = resident()
        self.run(plan)
        return resident() - before


def resident() -> float:
    """Peak resident memory of this program in MiB; ``getrusage`` would count that of the process that started it."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) / 1024
    return 0.0


def peak_of(plan: str) -> float:
    """The same in a process of its own, since a process's peak never falls."""
    # by its name: run as a file, its folder would hide packages of the same names as its neighbours
    ask = [sys.executable, "-m", "benchmarks.inner", *sys.argv[1:], "--peak", plan]
    return float(subprocess.run(ask, capture_output=True, text=True, check=True).stdout.split()[-1])


def measure(bench: Bench, text: str, limit: float | None, rounds: int, stock_peak: float) -> Row:
    """One plan beside the stock model, in turns."""
    plan, ratios, record = Plan.parse(text), [], Record(0, [])
    for i in range(rounds):
        took: dict[bool, float] = {}
        for own in (None, plan) if i % 2 == 0 else (plan, None):
            took[own is None], seen = bench.run(own)
            record = record if own is None else seen
        ratios.append(took[False] / took[True])
    memory = peak_of(text) - stock_peak
    flops, cache = flops_share(bench.model, record), cache_share(bench.model, record)
    tokens = record.mean_visual / len(bench.visual.column)
    return Row(text, statistics.median(ratios), flops, cache, tokens, memory, limit)


def main() -> int:
    """Print the table and say whether every limit is kept."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--layers", type=int, default=12)
    arguments.add_argument("--width", type=int, default=768)
    arguments.add_argument("--visual", type=int, default=4096)
    arguments.add_argument("--text", type=int, default=48)
    arguments.add_argument("--rounds", type=int, default=3, help="pairs of runs of each plan (default 3)")
    arguments.add_argument("--plans", help="plans to run, separated by ;")
    arguments.add_argument("--device", default="cpu")
    arguments.add_argument("--peak", help="print the memory of one plan alone; none for the stock model")
    given = arguments.parse_args()
    if given.device == "cpu":
        torch.set_num_threads(1)
    model = build(given.layers, given.width, given.device)
    bench = Bench(model, *prompt(given.visual, given.text, given.width, given.device), given.device)
    if given.peak:
        print(f"{bench.peak(None if given.peak == 'none' else Plan.parse(given.peak)):.1f}")
        return 0
    limits = dict(PLANS)
    plans = [p.strip() for p in given.plans.split(";")] if given.plans else list(limits)
    stock_peak, (seconds, _) = peak_of("none"), bench.run(None)
    print(f"{given.layers} layers x {given.width}, {given.visual} visual and {given.text} text tokens, float32")
    print(f"on {machine.describe(given.device)}; stock prefill {seconds:.2f} s, {stock_peak:.0f} MiB at its peak")
    print("time, FLOPs of the layers and cache as shares of stock; tokens: visual ones, mean over layers; memory: MiB")
    print(f"{'plan':44} {'time':>6} {'FLOPs':>6} {'ratio':>6} {'cache':>6} {'tokens':>6} {'memory':>7}")
    failed = []
    for text in plans:
        row = measure(bench, text, limits.get(text), given.rounds, stock_peak)
        mark = "" if row.passed else "  above its limit"
        print(
            f"{row.plan:44} {row.time:6.3f} {row.flops:6.3f} {row.time / row.flops:6.2f} {row.cache:6.3f} "
            f"{row.tokens:6.3f} {row.memory:+7.0f}{mark}",
            flush=True,
        )
        failed += [] if row.passed else [row.plan]
    print(f"above their limit: {', '.join(failed)}" if failed else "every limit kept")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
