"""Time and memory of every method that acts after the encoder, beside its published form and beside the encoder.

    python -m benchmarks.reducers --json reducers.jsonl        # everything: about ten minutes on 2 idle cores
    python -m benchmarks.reducers --quick                      # two sizes, narrow tokens, short loops: under 2 minutes
    python -m benchmarks.reducers --methods divprune mmtok --sizes 2880 --widths 1152 --threads 1

Each method keeps 25 % of made tokens (``vtoken.bench.made``) of 1 image of 24 x 24, 5 tiles of 24 x 24, 32 and 64
frames of 14 x 14. Time is the CPU time of the process (user and system, all threads), the smallest of several runs,
wall time beside it in the JSON lines. Memory is what the first run adds to the process at its peak, its result
included, as Linux counts resident pages. "Published" is the form written out in ``benchmarks.published.loops``, run on
the same tokens in the same process; it is never extrapolated: where it would take minutes it is measured on smaller
sizes only.

The encoder of a SigLIP-so400m's size is an estimate: one layer (width 1152, MLP 4304, 16 heads, random weights) on the
729 patches of a frame, times 27 layers, times 32 frames, which are pooled to 196 tokens each. Exits 1 where a target is
missed.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # or a waiting thread counts as CPU time; before torch is imported


import torch

from benchmarks.published import loops as published
from vtoken.bench import machine, made
from vtoken.bench.measure import Cost, measure
from vtoken.data.budget import Budget
from vtoken.methods import registry

GRIDS = {576: (1, 24), 2_880: (5, 24), 6_272: (32, 14), 12_544: (64, 14)}  # frames or tiles, and the side of each
WIDTHS = (1_152, 3_584)
KEEP = 0.25
TILED = {"hired", "globalcom2"}  # take the 5 tiles as an overview and 2 x 2 crops
ENCODER_SIZE, LAYERS, PATCHES = 6_272, 27, 729
SHARE, FASTER, GIB = 0.25, 20.0, 2.0  # the targets
MIB = 2**20


@dataclass
class Row:
    """One method at one size; ``form`` says what the published code is: a loop here, "same" or "none"."""

    method: str
    n: int
    width: int
    left: int
    ours: Cost
    form: str
    loop: Cost | None = None


def case(n: int, width: int, methods: list[str], threads: int, longest: int, pipe: Any) -> None:
    """Measure methods on one set of tokens and send their rows; runs in a process of its own."""
    torch.set_num_threads(threads)
    tokens, context = made.clip(*GRIDS[n], width)
    small, about = made.clip(4, 6, 64)
    assert context.text is not None
    text, k = context.text[0], round(KEEP * n)
    with torch.inference_mode():
        for name in methods:
            options = {"columns": 2} if name in TILED and n == 2_880 else {}
            method: Any = registry.build(name, **options)
            budget = Budget.given(KEEP, None, None) if method.needs_budget else None
            method.reduce(small, budget, about)  # warm up
            ours, out = measure(lambda m=method, b=budget: m.reduce(tokens, b, context))
            row = Row(name, n, width, len(out), ours, "none" if name in published.NONE else "same")
            del out
            if loop := published.LOOPS.get(name):
                row.form = "loop"
                if loop.least <= n <= min(longest, loop.most if width < 2_000 else loop.wide):
                    row.loop, _ = measure(lambda f=loop.run: f(tokens, k, text))
            pipe.send(row)
    pipe.close()


def rows_of(sizes: list[int], widths: list[int], methods: list[str], threads: int, longest: int) -> Iterator[Row]:
    """Every case in a fresh process, so that no memory of one is left for the next."""
    spawn = multiprocessing.get_context("spawn")
    for width in widths:
        for n in sizes:
            here, there = spawn.Pipe(duplex=False)
            worker = spawn.Process(target=case, args=(n, width, methods, threads, longest, there))
            worker.start()
            there.close()
            while True:
                try:
                    yield here.recv()
                except EOFError:
                    break
            worker.join()
            if worker.exitcode:
                raise SystemExit(f"N={n}, D={width}: the measuring process ended with {worker.exitcode}")


def encoder_seconds(threads: int) -> float:
    """CPU seconds of the estimated encoder on 32 frames."""
    from transformers import SiglipVisionConfig
    from transformers.models.siglip.modeling_siglip import SiglipEncoderLayer

    torch.set_num_threads(threads)
    config = SiglipVisionConfig(hidden_size=1152, intermediate_size=4304, num_attention_heads=16, num_hidden_layers=1)
    config._attn_implementation = "sdpa"
    layer, x = SiglipEncoderLayer(config).eval(), torch.randn(1, PATCHES, 1152)
    with torch.inference_mode():
        layer(x, None)
        cost, _ = measure(lambda: layer(x, None), 2.0)
    return cost.cpu * LAYERS * GRIDS[ENCODER_SIZE][0]


def ratio(row: Row | None) -> str:
    """How many times faster than the published form."""
    if row is None or row.form != "loop":
        return "-" if row is None or row.form == "none" else "same"
    return f"{row.loop.cpu / row.ours.cpu:.1f}x" if row.loop else ""


def memory(cost: Cost | None) -> str:
    return f"{cost.peak / MIB:,.0f}" if cost and cost.peak is not None else ""


def table(rows: list[Row], width: int, sizes: list[int], encoder: float | None) -> list[str]:
    """Lines of text: a method a line; times, ratios and memory by size."""
    found = {(r.method, r.n): r for r in rows if r.width == width}
    head = ["method", *(f"{n:,}" for n in sizes)] + [f"{n:,}" for n in sizes] + ["MiB", "published", "at N", "encoder"]
    lines = [head]
    for name in dict.fromkeys(r.method for r in rows):
        own = [found.get((name, n)) for n in sizes]
        looped = [r for r in own if r and r.loop]
        share = found.get((name, ENCODER_SIZE))
        lines.append(
            [name, *(f"{1e3 * r.ours.cpu:,.0f}" if r else "" for r in own), *(ratio(r) for r in own)]
            + [memory(own[-1].ours if own[-1] else None), memory(looped[-1].loop if looped else None)]
            + [f"{looped[-1].n:,}" if looped else "", f"{share.ours.cpu / encoder:.2%}" if share and encoder else ""]
        )
    wide = [max(len(line[i]) for line in lines) for i in range(len(head))]
    text = [
        "  ".join(f"{c:<{w}}" if i == 0 else f"{c:>{w}}" for i, (c, w) in enumerate(zip(line, wide, strict=True)))
        for line in lines
    ]
    times, ratios = sum(wide[1 : 1 + len(sizes)]), sum(wide[1 + len(sizes) : 1 + 2 * len(sizes)])
    gaps = 2 * (len(sizes) - 1)
    above = f"{'':<{wide[0]}}  {'CPU ms at N':<{times + gaps}}  {'times faster than published':<{ratios + gaps}}"
    above += f"  peak at N = {sizes[-1]:,}; of {ENCODER_SIZE:,} tokens' encoder"
    return [f"D = {width:,}", above.rstrip(), *(line.rstrip() for line in text)]


def verdicts(rows: list[Row], encoder: float | None) -> list[tuple[bool, str]]:
    """The targets that these rows can tell of: whether each holds, and in words."""
    found = []
    at = [r for r in rows if r.n == ENCODER_SIZE]
    if at and encoder:
        worst = max(at, key=lambda r: r.ours.cpu)
        share = worst.ours.cpu / encoder
        told = f"{worst.method} takes most at N = {worst.n:,} (D = {worst.width:,}): {share:.2%} of the encoder's time"
        found.append((share <= SHARE, f"{told}, at most {SHARE:.0%}"))
    for r in rows:
        if r.method == "divprune" and r.n == 12_544 and r.loop:
            times = r.loop.cpu / r.ours.cpu
            found.append((times >= FASTER, f"divprune at N = {r.n:,} is {times:.1f}x as fast, at least {FASTER:.0f}x"))
            if r.ours.peak is not None:
                gib = r.ours.peak / 2**30
                found.append((gib < GIB, f"divprune at N = {r.n:,} takes {gib:.2f} GiB, below {GIB:.0f} GiB"))
    return found


def parser() -> argparse.ArgumentParser:
    made_ = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made_.add_argument("--sizes", nargs="+", type=int, choices=list(GRIDS), default=list(GRIDS), help="N, default all")
    made_.add_argument("--widths", nargs="+", type=int, default=list(WIDTHS), help="D, default 1152 3584")
    made_.add_argument("--methods", nargs="+", help="default: every pruner and merger")
    made_.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1), help="default 2")
    made_.add_argument("--quick", action="store_true", help="N of 576 and 6272, D 1152, published loops at 576 only")
    made_.add_argument("--no-published", action="store_true", help="leave the published forms out")
    made_.add_argument("--json", type=Path, help="write one JSON object a row")
    return made_


def main() -> int:
    given = parser().parse_args()
    known = [
        name for name in registry.names("pruner") + registry.names("merger") if name != "learned"
    ]  # it has weights
    methods = given.methods or known
    if strange := sorted(set(methods) - set(known)):
        raise SystemExit(f"no pruner or merger: {', '.join(strange)}; known: {', '.join(known)}")
    sizes, widths = ([576, ENCODER_SIZE], [WIDTHS[0]]) if given.quick else (sorted(given.sizes), given.widths)
    longest = 0 if given.no_published else sizes[0] if given.quick else max(GRIDS)
    start = time.perf_counter()
    encoder = encoder_seconds(given.threads) if ENCODER_SIZE in sizes else None
    print(f"{machine.describe()}; keep {KEEP:.0%}, float32")
    if encoder:
        frames = GRIDS[ENCODER_SIZE][0]
        layer = 1e3 * encoder / LAYERS / frames
        print(
            f"encoder estimate: {layer:.1f} ms a layer x {LAYERS} layers x {frames} frames = {encoder:.1f} s CPU time"
        )
    rows = []
    for row in rows_of(sizes, widths, methods, given.threads, longest):
        rows.append(row)
        if sys.stderr.isatty():
            print(f"\r{row.width:,} {row.n:,} {row.method:<20}", end="", file=sys.stderr, flush=True)
    if given.json:
        part = given.json.with_name(given.json.name + ".part")
        part.write_text("".join(json.dumps(asdict(row)) + "\n" for row in rows))
        part.replace(given.json)
    for width in widths:
        print("\n" + "\n".join(table(rows, width, sizes, encoder)))
    print()
    found = verdicts(rows, encoder)
    for held, told in found:
        print(f"{'pass' if held else 'FAIL'}  {told}")
    print(f"{time.perf_counter() - start:,.0f} s in all")
    return 0 if all(held for held, _ in found) else 1


if __name__ == "__main__":
    raise SystemExit(main())
