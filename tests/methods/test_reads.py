"""How often a reduction reads a tensor from the device: each read waits for a GPU, so it must not grow with frames."""

from __future__ import annotations

import pytest
import torch

from tests.tokens import SIGNALS, TEXT
from vtoken.data.budget import Budget
from vtoken.data.tokens import Tokens
from vtoken.methods import registry
from vtoken.methods.reducer import Context, Reducer

READS = ("tolist", "item", "__bool__", "__int__", "__float__", "nonzero", "unique")


def whole(steps: int, signals: tuple[str, ...]) -> Tokens:
    g, n = torch.Generator().manual_seed(steps), steps * 16
    position = torch.cartesian_prod(torch.arange(steps), torch.arange(4), torch.arange(4))
    made = {s: torch.rand((n, *SIGNALS[s]), generator=g) for s in signals}
    return Tokens.of(torch.randn(n, 12, generator=g), position, position[:, 0] / 2.0, **made)


@pytest.mark.parametrize("name", ["evs", "cls", "vispruner", "hiprune", "visionzip", "pool", "vscan", "recoverable"])
def test_reads_do_not_grow_with_the_frames(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    count = [0]
    for read in READS:
        stock = getattr(torch.Tensor, read)
        monkeypatch.setattr(
            torch.Tensor, read, lambda *a, _stock=stock, **k: count.__setitem__(0, count[0] + 1) or _stock(*a, **k)
        )
    method = registry.build(name)
    assert isinstance(method, Reducer)
    found = []
    for steps in (8, 40):
        tokens, count[0] = whole(steps, ("cls_attention", "received_attention", "keys")), 0
        method.reduce(tokens, Budget(keep=0.25), Context(text=[TEXT]))
        found.append(count[0])
    assert found[1] < 1.5 * found[0] and found[0] < 60  # for five times the frames


def test_checks_of_take_and_merge_cost_a_read_or_two(monkeypatch: pytest.MonkeyPatch) -> None:
    tokens, count = whole(4, ()), [0]
    stock = torch.Tensor.tolist
    monkeypatch.setattr(torch.Tensor, "tolist", lambda t: count.__setitem__(0, count[0] + 1) or stock(t))
    tokens.take(torch.arange(10))
    assert count[0] == 2  # the checks, and the offsets of the result
    count[0] = 0
    assert len(tokens.sample(0)) == 64 and count[0] == 0
