"""Generation behind a cut cache: time of one step, and bytes of keys and values, as shares of the stock model's.

    python -m benchmarks.inner_decode                  # 4 layers x 512, 10,000 visual and 48 text columns, one thread
    python -m benchmarks.inner_decode --device cuda    # the same on a GPU

The prompt is read once by the stock model and once under every plan. Then one step of each in turns, and the median of
a plan's steps over that of the stock steps beside them is printed; time is CPU time on a CPU. Bytes are those of the
tensors in the cache, before the steps.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor

from benchmarks.inner import build, prompt
from vtoken.bench import machine
from vtoken.engine.inner import installed
from vtoken.families.compat import CACHE, cache_of, handed
from vtoken.methods.plan import Plan

PLANS = (
    "snapkv:keep=0.5",
    "snapkv:keep=0.25",
    "snapkv:keep=0.1",
    "snapkv:layers=sparsity,keep=0.25",
    "key_norm:keep=0.25",
    "value_norm:keep=0.25",
    "infinipot:keep=0.25",
    "fastv:layer=1,keep=0.25",
    "prunevid_inner:layer=0,keep=0.25",
)


def read(model: Any, plan: Plan | None, rows: Tensor, visual: Any) -> Any:
    """The cache behind the prompt."""
    with torch.no_grad(), installed(model, plan, visual):
        return cache_of(model(inputs_embeds=rows, use_cache=True, logits_to_keep=1))


def nbytes(cache: Any) -> int:
    """Bytes of the keys and values."""
    return sum(t.numel() * t.element_size() for layer in cache.layers for t in (layer.keys, layer.values))


def step(model: Any, cache: Any, row: Tensor, clock: Callable[[], float], cut: bool) -> float:
    """Seconds of one step of generation; ``cut`` where rows left the cache."""
    start = clock()
    with torch.no_grad(), ExitStack() as stack:
        if cut:
            stack.enter_context(installed(model))
        model(inputs_embeds=row, use_cache=True, logits_to_keep=1, **handed(model, {CACHE: cache}))
        if row.is_cuda:
            torch.cuda.synchronize()
    return clock() - start


def main() -> None:
    """Print the table."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--layers", type=int, default=4)
    arguments.add_argument("--width", type=int, default=512)
    arguments.add_argument("--visual", type=int, default=10_000)
    arguments.add_argument("--text", type=int, default=48)
    arguments.add_argument("--steps", type=int, default=15, help="steps of each plan (default 15)")
    arguments.add_argument("--plans", help="plans to run, separated by ;")
    arguments.add_argument("--device", default="cpu")
    given = arguments.parse_args()
    if given.device == "cpu":
        torch.set_num_threads(1)
    clock = time.process_time if given.device == "cpu" else time.perf_counter
    model = build(given.layers, given.width, given.device)
    rows, visual = prompt(given.visual, given.text, given.width, given.device)
    row = rows[:, -1:]
    stock = read(model, None, rows, None)
    whole = nbytes(stock)
    spent = statistics.median(step(model, stock, row, clock, False) for _ in range(given.steps))
    print(f"{given.layers} layers x {given.width}, {given.visual} visual and {given.text} text columns, float32")
    print(f"on {machine.describe(given.device)}; stock step {spent * 1e3:.1f} ms, cache {whole / 2**20:.1f} MiB")
    print("step of generation and bytes of the cache, as shares of stock")
    print(f"{'plan':44} {'step':>6} {'cache':>6}")
    for text in [p.strip() for p in given.plans.split(";")] if given.plans else PLANS:
        cache = read(model, Plan.parse(text), rows, visual)
        share, own, beside = nbytes(cache) / whole, [], []
        for _ in range(given.steps):
            own.append(step(model, cache, row, clock, True))
            beside.append(step(model, stock, row, clock, False))
        print(f"{text:44} {statistics.median(own) / statistics.median(beside):6.3f} {share:6.3f}", flush=True)
        del cache
        gc.collect()


if __name__ == "__main__":
    main()
