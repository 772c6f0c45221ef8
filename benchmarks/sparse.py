"""Pruning beside sparse attention in the prefill of a long prompt: each alone, and both.

    python -m benchmarks.sparse --out docs/benchmarks      # 32,768 visual tokens, 2 layers x 512, one thread

The sparse attention is PyTorch's flex_attention, compiled, with a block mask: the first block of columns and a window
before each row, registered as an attention implementation of the user's. Pruning takes tokens out before the language
model, so any pruner of the same budget costs the same; its own time is left out. The model is random: time alone.
"""

from __future__ import annotations

import argparse
import statistics
import time
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.inner import build, prompt
from vtoken.bench.machine import describe
from vtoken.output.files import folder, write_text

BLOCK, FIRST, WINDOW, TEXT = 128, 128, 2048, 48
NAME = "sparse"
SPARSE = "vtoken_block_sparse"


@cache
def block_mask(columns: int) -> Any:
    """Which blocks of keys each block of queries reads."""
    from torch.nn.attention.flex_attention import create_block_mask

    def seen(batch: Tensor, head: Tensor, row: Tensor, column: Tensor) -> Tensor:
        return (column <= row) & ((row - column < WINDOW) | (column < FIRST))

    return create_block_mask(seen, None, None, columns, columns, device="cpu", BLOCK_SIZE=BLOCK)


@cache
def compiled() -> Any:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention)


def block_sparse(
    module: Any, query: Tensor, key: Tensor, value: Tensor, mask: None, scaling: float, **options: Any
) -> tuple[Tensor, None]:
    """An attention implementation of transformers: query [1, H, N, d], key and value [1, G, N, d]."""
    groups = query.shape[1] // key.shape[1]
    key, value = (part.repeat_interleave(groups, 1) for part in (key, value))
    out = compiled()(query, key, value, block_mask=block_mask(key.shape[2]), scale=scaling)
    return out.transpose(1, 2).contiguous(), None


def register() -> None:
    """Make the implementation known under the name ``SPARSE``; it takes no mask."""
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(SPARSE, block_sparse)
    AttentionMaskInterface.register(SPARSE, lambda *given, **options: None)


def seconds(model: Any, rows: Tensor, attention: str, rounds: int) -> float:
    """Median CPU seconds of one prefill; what has to be compiled is compiled before."""
    model.set_attn_implementation(attention)
    took = []
    with torch.no_grad():
        if attention == SPARSE:
            model(inputs_embeds=rows, use_cache=True, logits_to_keep=1)
        for _ in range(rounds):
            start = time.process_time()
            model(inputs_embeds=rows, use_cache=True, logits_to_keep=1)
            took.append(time.process_time() - start)
    return statistics.median(took)


def measure(layers: int, width: int, visual: int, keep: float, rounds: int) -> str:
    """The table in Markdown."""
    register()
    model, rows = build(layers, width, "cpu"), prompt(visual, TEXT, width, "cpu")[0]
    left = int(visual * keep)
    cut = torch.cat([rows[:, : TEXT // 3 + left], rows[:, TEXT // 3 + visual :]], 1)
    lines = ["| visual tokens | attention | blocks read | time | of stock |", "|---:|---|---:|---:|---:|"]
    stock = 0.0
    for given, count in ((rows, visual), (cut, left)):
        for name in ("sdpa", SPARSE):
            took = seconds(model, given, name, rounds)
            stock = stock or took
            share = "causal" if name == "sdpa" else f"{100 - block_mask(given.shape[1]).sparsity():.0f} %"
            title = "all pairs" if name == "sdpa" else "block-sparse"
            lines.append(f"| {count:,} | {title} | {share} | {took:.1f} s | {took / stock:.2f} |")
    return "\n".join(lines)


def main() -> None:
    """The command."""
    form = argparse.RawDescriptionHelpFormatter
    to = argparse.ArgumentParser("benchmarks.sparse", description=__doc__, formatter_class=form)
    to.add_argument("--layers", type=int, default=2)
    to.add_argument("--width", type=int, default=512)
    to.add_argument("--visual", type=int, default=32768)
    to.add_argument("--keep", type=float, default=0.1)
    to.add_argument("--rounds", type=int, default=3)
    to.add_argument("--out", type=Path, default=Path("out"))
    given = to.parse_args()
    torch.set_num_threads(1)
    told = (
        f"Prefill of {given.layers} layers x {given.width}, float32; blocks of {BLOCK}, the first and a window of "
        f"{WINDOW:,} columns; {describe('cpu')}"
    )
    text = f"{measure(given.layers, given.width, given.visual, given.keep, given.rounds)}\n\n{told}\n"
    write_text(folder(given.out) / f"{NAME}.md", text)
    print(text)


if __name__ == "__main__":
    main()
