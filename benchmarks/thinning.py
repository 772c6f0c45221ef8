"""Encoder time when tokens leave inside it, relative to the stock Hugging Face encoder that keeps all to the end.

    python -m benchmarks.thinning                       # all methods and towers, 1 thread, about two minutes
    python -m benchmarks.thinning --towers siglip --methods tome --runs 5

Mid-size random towers as in ``encoder``, CPU time, the smallest of several runs, stock and ours in turn. Every frame
ends on the given share of its cells. How early FlowCut's patches leave depends on how the attention gathers; that of a
random tower is nearly even, which is its slowest case.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # or a waiting thread counts as CPU time; before torch is imported

import numpy as np
import torch
import transformers

from benchmarks import encoder
from vtoken.encoders.packed import Thinning
from vtoken.methods import registry

ENDS = (0.5, 0.25, 0.1)
METHODS = ("tome", "pitome", "turbo", "flowcut")


def measure(tower: encoder.Tower, methods: list[str], runs: int) -> tuple[float, dict[tuple[str, float], float]]:
    """CPU seconds of the stock tower and of ours by method and end; the smallest of ``runs``, taken in turn."""
    frames, h, w = tower.cells
    whole = np.ones(tower.cells, bool)
    jobs: dict[Any, Callable[[], Any]] = {"stock": tower.stock}
    for name in methods:
        for end in ENDS:
            thin = Thinning(registry.build(name, keep=end), torch.full((frames,), round(end * h * w)))
            jobs[name, end] = lambda thin=thin: tower.ours(whole, thin)
    best = dict.fromkeys(jobs, float("inf"))
    with torch.inference_mode():
        tower.stock()  # warm up
        for _ in range(runs):
            for key, job in jobs.items():
                start = time.process_time()
                job()
                best[key] = min(best[key], time.process_time() - start)
    return best.pop("stock"), best


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--towers", nargs="+", choices=list(encoder.TOWERS), default=list(encoder.TOWERS))
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--runs", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print(f"{encoder.hardware()}, torch {torch.__version__}, transformers {transformers.__version__}")
    print(
        f"random towers of {encoder.LAYERS} layers, width {encoder.WIDTH}, 3 frames of 24x24 patches, float32, "
        f"{args.threads} thread(s); CPU time, least of {args.runs} runs"
    )
    print("columns: share of the cells at the end; values: time relative to the stock encoder\n")
    print(f"{'encoder':<12}{'stock ms':>10}  {'method':<10}{''.join(f'{e:>9.0%}' for e in ENDS)}")
    for name in args.towers:
        torch.manual_seed(0)
        stock, ours = measure(encoder.TOWERS[name](3, "cpu"), args.methods, args.runs)
        for method in args.methods:
            cells = "".join(f"{ours[method, e] / stock:>9.3f}" for e in ENDS)
            print(f"{name:<12}{stock * 1e3:>10.0f}  {method:<10}{cells}", flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
