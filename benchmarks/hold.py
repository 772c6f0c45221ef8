"""What hold costs in a language model: prefill and decoding over those of the full prompt, and the cache's memory.

    python -m benchmarks.hold                         # 12 layers, 768 wide, 4,352 columns, one thread; minutes
    python -m benchmarks.hold --out docs/benchmarks/hold.txt

A random Qwen3-VL language model; 32 time steps of 128 cells with 7 columns of text before each and 32 behind. Cells
change with different rates, and each run of a cell is one row in the middle of the run. Times are CPU seconds of one
thread. Full and held calls alternate, so that a busy machine slows both alike; every ratio is of two calls side by
side, and the medians are printed. The held prefill includes making cache and mask. "memory" is keys, values and tables
of a cache over the keys and values of its computed rows.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vtoken.bench import machine
from vtoken.data.hold import HoldMap
from vtoken.methods.hold import rows_of
from vtoken.output.files import write_text

STEPS, HEIGHT, WIDTH, STAMP, QUESTION = 32, 8, 16, 7, 32
GOALS = {0.26: 0.42, 0.13: 0.28, 0.05: 0.18}


def decoder(layers: int, width: int) -> Any:
    """A random Qwen3-VL language model with 4 query heads to 12 of 64 dimensions sharing 4 keys."""
    import transformers as hf

    rope: Any = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [12, 10, 10], "mrope_interleaved": True}
    config = hf.Qwen3VLTextConfig(
        hidden_size=width,
        intermediate_size=8 * width // 3,
        num_hidden_layers=layers,
        num_attention_heads=width // 64,
        num_key_value_heads=max(1, width // 192),
        head_dim=64,
        vocab_size=64,
        rope_parameters=rope,
    )
    torch.manual_seed(0)
    return hf.Qwen3VLTextModel(config).eval()


def layout() -> tuple[Tensor, Tensor]:
    """Which columns are cells, bool [1, C], and the M-RoPE positions [4, 1, C] with the text row."""
    cells = torch.cartesian_prod(torch.zeros(1, dtype=torch.long), torch.arange(HEIGHT), torch.arange(WIDTH)).T
    parts, visual, at = [], [], 0
    for _ in range(STEPS):
        parts += [torch.arange(STAMP).expand(3, -1) + at, cells + at + STAMP]
        visual += [torch.zeros(STAMP, dtype=torch.bool), torch.ones(HEIGHT * WIDTH, dtype=torch.bool)]
        at += STAMP + max(HEIGHT, WIDTH)
    parts.append(torch.arange(QUESTION).expand(3, -1) + at)
    visual.append(torch.zeros(QUESTION, dtype=torch.bool))
    position = torch.cat(parts, dim=1)[:, None]
    return torch.cat(visual)[None], torch.cat([torch.arange(position.shape[2])[None, None], position])


def clip(share: float) -> HoldMap:
    """A map with about this share of the cells computed; a few cells change often, most seldom."""
    draw = torch.Generator().manual_seed(1)
    rate = torch.empty(HEIGHT, WIDTH).exponential_(generator=draw)
    chance = torch.rand(STEPS, HEIGHT, WIDTH, generator=draw) / rate
    chance[0] = -1
    limit = chance.flatten().sort().values[round(share * chance.numel())]
    number = torch.arange(chance.numel()).view(chance.shape)
    shown = torch.where(chance < limit, number, -1)
    for t in range(1, STEPS):
        shown[t] = torch.where(shown[t] < 0, shown[t - 1], shown[t])
    held = rows_of(shown, torch.zeros(chance.shape), second=None)
    return HoldMap.of([held.shows], layout()[0])


def alternate(calls: Sequence[Callable[[], Any]], runs: int) -> list[list[float]]:
    """CPU seconds of each call, in turns, after one round to warm up; a single round has none."""
    times: list[list[float]] = [[] for _ in calls]
    for turn in range(runs + 1 if runs > 1 else 1):
        for call, own in zip(calls, times, strict=True):
            start = time.process_time()
            call()
            if turn or runs == 1:
                own.append(time.process_time() - start)
    return times


def ratio(over: Sequence[float], under: Sequence[float]) -> float:
    return statistics.median(a / b for a, b in zip(over, under, strict=True))


@torch.no_grad()
def measure(model: Any, share: float, runs: int, steps: int) -> list[str]:
    """One line of the table for a share of cells."""
    from transformers import DynamicCache

    from vtoken.engine.hold import attention, support
    from vtoken.engine.hold.inputs import hold_inputs

    _, where = layout()
    hold, columns = clip(share), where.shape[2]
    embeds = torch.randn(1, columns, model.config.hidden_size, generator=torch.Generator().manual_seed(2))
    rows = hold.columns()[0]
    caches: dict[str, Any] = {}

    def fill(name: str, turned_bytes: int = 1 << 40) -> None:
        model.set_attn_implementation(support.ATTENTION if name in ("parts", "turned") else "sdpa")
        if name in ("held", "parts", "turned"):
            inputs = hold_inputs(model, {"inputs_embeds": embeds[:, rows]}, hold, where, turned_bytes)
        else:
            at = torch.arange(columns) if name == "full" else rows
            cache = DynamicCache(config=model.config)
            inputs = {"inputs_embeds": embeds[:, at], "position_ids": where[..., at], "past_key_values": cache}
        model(**inputs)
        caches[name] = inputs["past_key_values"]

    attention.install(model)
    kinds = ("full", "held", "parts", "drop")
    full, held, parts, drop = alternate([lambda n=n: fill(n) for n in kinds], runs)
    fill("turned", 0)

    def step(name: str) -> None:
        model(inputs_embeds=embeds[:, :1], position_ids=where[..., -1:] + 1, past_key_values=caches[name])
        caches[name].crop(-1)

    del caches["parts"]
    names = ("full", "held", "turned", "drop")
    decoding = dict(zip(names, alternate([lambda n=n: step(n) for n in names], steps), strict=True))
    model.set_attn_implementation("sdpa")
    stored = sum(t.nbytes for layer in caches["drop"].layers for t in (layer.keys, layer.values))
    tables = caches["turned"].tables
    extra = [tables.source, tables.turned, tables.column, tables.visible, tables.order, *tables.held.blocks.bias]
    memory = (caches["turned"].nbytes() + sum(t.nbytes for t in extra)) / stored
    work = sum((b - a) * n for a, b, n in tables.held.blocks.parts)
    return [
        f"{share:.0%}",
        str(len(rows)),
        f"{ratio(held, full):.2f}",
        f"{ratio(parts, full):.2f} ({GOALS[share]})",
        f"{ratio(drop, full):.2f}",
        f"{ratio(decoding['held'], decoding['full']):.2f}",
        f"{ratio(decoding['turned'], decoding['full']):.2f}",
        f"{ratio(decoding['drop'], decoding['full']):.2f}",
        f"{caches['held'].nbytes() / stored:.2f}",
        f"{memory:.2f}",
        f"{len(tables.cos)}, {work / columns:.1f}",
        f"{statistics.median(full):.1f} s, {1e3 * statistics.median(decoding['full']):.0f} ms",
    ]


def main() -> None:
    """Print the table, and write it where asked."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--runs", type=int, default=3, help="prefills of each kind (default 3)")
    arguments.add_argument("--steps", type=int, default=15, help="decoding steps of each kind (default 15)")
    arguments.add_argument("--layers", type=int, default=12)
    arguments.add_argument("--width", type=int, default=768)
    arguments.add_argument("--shares", type=float, nargs="+", default=list(GOALS), choices=list(GOALS))
    arguments.add_argument("--out", type=Path, help="also write the table to this file")
    given = arguments.parse_args()
    torch.set_num_threads(1)
    model = decoder(given.layers, given.width)
    head = [
        "cells",
        "rows",
        "prefill, sdpa",
        "prefill, vtoken_hold (goal)",
        "prefill, dropped",
        "step, keys turned",
        "step, query turned",
        "step, dropped",
    ]
    head += ["memory, keys turned", "memory, query turned", "rotations, products a column", "full prefill, step"]
    table = [head] + [measure(model, share, given.runs, given.steps) for share in given.shares]
    width = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = [
        f"{given.layers} layers, {given.width} wide, {layout()[0].shape[1]} columns, float32; {machine.describe()}",
        f"medians of {given.runs} prefills and {given.steps} steps; ratios to the full prompt",
        "",
    ]
    lines += ["  ".join(cell.ljust(n) for cell, n in zip(row, width, strict=True)).rstrip() for row in table]
    text = "\n".join(lines) + "\n"
    print(text, end="")
    if given.out:
        write_text(given.out, text)


if __name__ == "__main__":
    main()
