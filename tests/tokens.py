"""Made tokens for tests: ragged batches, as behind a gate, with every signal a method may read."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vtoken.data.tokens import Tokens
from vtoken.methods.reducer import Context

WIDTH = 12
SIGNALS: dict[str, tuple[int, ...]] = {
    "cls_attention": (),
    "received_attention": (),
    "keys": (8,),
    "deepstack.0": (WIDTH,),
    "motion": (),
    "surprise": (),
    "cls_attention@0": (),
    "cls_attention@5": (),
    "cls_attention@-12": (),
    "cls_attention@-3": (),
    "cls_attention@-2": (),
    "cls_attention@-1": (),
    "cls_logits": (),
}
TEXT = torch.randn(5, WIDTH, generator=torch.Generator().manual_seed(99))  # a question, the same for every sample


def context() -> Context:
    """What the methods of the matrix may know: a question, and no times."""
    return Context(text=[TEXT] * 64)


def sample(n: int, seed: int = 0, signals: Sequence[str] = (), dtype: torch.dtype = torch.float32) -> Tokens:
    """One clip of n tokens on a 3 x 4 grid whose steps lack some cells, in raster order, every row different."""
    g = torch.Generator().manual_seed(seed * 7919 + n)
    present = torch.zeros(0, dtype=torch.long)
    if n:
        cells = 12 * (n // 6 + 1)
        present = torch.randperm(cells, generator=g)[:n].sort().values
    position = torch.stack([present // 12, present % 12 // 4, present % 4], dim=1)
    made = {s: torch.randn((n, *SIGNALS[s]), generator=g).abs().to(dtype) for s in signals}
    x = torch.randn(n, WIDTH, generator=g).to(dtype)
    tokens = Tokens.of(x, position, position[:, 0] / 2.0, **made, row=torch.arange(n))
    tokens.size = torch.randint(1, 5, (n,), generator=g).float()
    return tokens


def pack(parts: Sequence[Tokens]) -> Tokens:
    """Samples of one source cell a row, packed into one ragged batch."""

    def cat(values: list[Tensor]) -> Tensor:
        return torch.cat(values)

    counts = torch.tensor([0] + [len(p) for p in parts]).cumsum(0)
    names = parts[0].signals
    return Tokens(
        cat([p.x for p in parts]),
        cat([p.position for p in parts]),
        cat([p.time for p in parts]),
        cat([p.size for p in parts]),
        torch.arange(int(counts[-1])),
        counts,
        {s: cat([p.signals[s] for p in parts]) for s in names},
    )


def same(a: Tokens, b: Tokens) -> bool:
    """Whether two batches hold the same rows, bit for bit, whatever their source maps."""
    plain = ("x", "position", "time", "size", "batch")
    return (
        all(torch.equal(getattr(a, f), getattr(b, f)) for f in plain)
        and a.signals.keys() == b.signals.keys()
        and all(torch.equal(a.signals[s], b.signals[s]) for s in a.signals)
    )
