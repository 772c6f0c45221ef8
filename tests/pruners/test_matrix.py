"""Properties that every pruner of the catalogue must have."""

from __future__ import annotations

import pytest
import torch

from tests.catalogue import PRUNERS, Row, label
from tests.tokens import context, pack, same, sample
from vtoken.data.budget import Budget
from vtoken.data.tokens import Tokens
from vtoken.errors import InputError
from vtoken.methods import registry
from vtoken.methods.reducer import Pruner

K = 9
COUNTS = (0, 1, 2, K, K + 1, 40, 0, 67)
pytestmark = pytest.mark.parametrize("row", PRUNERS, ids=label)


def build(row: Row) -> Pruner:
    method = registry.build(row["name"], **row["options"])
    assert isinstance(method, Pruner)
    return method


def reduce(row: Row, tokens: Tokens, budget: Budget | None = None) -> Tokens:
    return build(row).reduce(tokens, budget or Budget(tokens=K), context())


def batch(row: Row, counts=COUNTS, dtype=torch.float32) -> list[Tokens]:
    return [sample(n, seed, [*row["signals"], "deepstack.0"], dtype) for seed, n in enumerate(counts)]


def test_exact_count_of_different_rows_in_raster_order(row):
    parts = batch(row)
    for budget in (Budget(tokens=K), Budget(keep=0.5), Budget(tokens=1), Budget(keep=1.0)):
        out = reduce(row, pack(parts), budget)
        assert out.samples == len(parts)
        for b, part in enumerate(parts):
            wanted = budget.resolve(len(part), 1.0) if build(row).needs_budget else len(part)
            kept = out.sample(b).signals["row"].tolist()
            assert len(kept) == wanted
            assert kept == sorted(set(kept))
            assert set(kept) <= set(range(len(part)))


def test_every_signal_moves_with_its_row(row):
    part = sample(40, 3, [*row["signals"], "deepstack.0"])
    out = reduce(row, part)
    rows = out.signals["row"]
    for name in part.signals:
        assert torch.equal(out.signals[name], part.signals[name][rows]), name
    for name in ("x", "position", "time", "size"):
        assert torch.equal(getattr(out, name), getattr(part, name)[rows]), name
    standing = torch.full((40,), -1)
    standing[rows] = torch.arange(len(out))
    assert torch.equal(out.source, standing)


def test_batch_equals_one_by_one(row):
    parts = batch(row)
    assert same(reduce(row, pack(parts)), pack([reduce(row, p) for p in parts]))


def test_permuted_batch_gives_the_permuted_result(row):
    parts = batch(row)
    out = reduce(row, pack(parts))
    order = torch.randperm(len(parts), generator=torch.Generator().manual_seed(1)).tolist()
    permuted = reduce(row, pack([parts[i] for i in order]))
    assert same(permuted, pack([out.sample(i) for i in order]))


def test_repeats_and_leaves_the_random_state_alone(row):
    tokens = pack(batch(row))
    state = torch.get_rng_state()
    first = reduce(row, tokens)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(int(torch.randint(1 << 30, ())))
    assert same(first, reduce(row, tokens))


def test_whole_budget_is_the_identity(row):
    tokens = pack(batch(row))
    out = reduce(row, tokens, Budget(keep=1.0))
    assert same(out, tokens)
    assert torch.equal(out.source, tokens.source)


def test_stage_budget_wins(row):
    if not build(row).needs_budget:
        pytest.skip("not applicable: takes no budget")
    own = registry.build(row["name"], **row["options"], keep=0.25)
    assert isinstance(own, Pruner)
    assert len(own.reduce(sample(40, 0, row["signals"]), Budget(tokens=K), context())) == 10
    assert len(own.reduce(sample(40, 0, row["signals"]), None, context())) == 10
    with pytest.raises(InputError, match="needs a budget"):
        build(row).reduce(sample(40, 0, row["signals"]), None, context())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["fp16", "bf16"])
def test_half_precision_chooses_as_float32_does(row, dtype):
    half = batch(row, dtype=dtype)
    out = reduce(row, pack(half))
    assert out.x.dtype == dtype
    whole = []
    for part in half:
        values = {n: v.float() if v.is_floating_point() else v for n, v in part.signals.items()}
        whole.append(Tokens.of(part.x.float(), part.position, part.time, **values))
    assert torch.equal(out.signals["row"], reduce(row, pack(whole)).signals["row"])


def test_equal_tokens_are_no_trouble(row):
    part = sample(40, 0, row["signals"])
    part.x = torch.ones_like(part.x)
    part.signals |= {s: torch.ones_like(part.signals[s]) for s in row["signals"]}
    out = reduce(row, part)
    assert len(out.signals["row"].unique()) == (K if build(row).needs_budget else 40)
    part.x = torch.zeros_like(part.x)
    assert len(reduce(row, part)) == len(out)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")], ids=str)
def test_broken_features_are_refused(row, value):
    tokens = pack(batch(row))
    tokens.x[5, 3] = value
    with pytest.raises(InputError, match=r"1 of \d+ token features"):
        reduce(row, tokens)


def test_broken_or_missing_signals_are_refused(row):
    if not row["signals"]:
        pytest.skip("not applicable: reads no signals")
    part = sample(40, 0, row["signals"])
    for name in row["signals"]:
        part.signals[name][3:6] = float("nan")  # an anchor is not looked at, its neighbours are
    with pytest.raises(InputError, match="NaN"):
        reduce(row, part)
    with pytest.raises(InputError, match=row["signals"][0]):
        reduce(row, sample(40, 0))


def test_gradients_flow_through_what_is_kept(row):
    part = sample(40, 0, row["signals"])
    part.x.requires_grad_()
    out = reduce(row, part)
    out.x.sum().backward()
    hit = torch.zeros(40)
    hit[out.signals["row"]] = 1
    assert part.x.grad is not None
    assert torch.equal(part.x.grad, hit[:, None].expand_as(part.x))


def test_anchors_are_kept(row):
    if not build(row).needs_budget:
        pytest.skip("not applicable: keeps all")
    part = sample(67, 2, row["signals"])
    steps = part.position[:, 0]
    last = [max(i for i in range(67) if steps[i] == t) for t in steps.unique().tolist()]
    method = registry.build(row["name"], **(row["options"] | {"anchors": 1}))
    assert isinstance(method, Pruner)
    kept = method.reduce(part, Budget(tokens=len(last) + 5), context()).signals["row"].tolist()
    assert set(last) < set(kept)
    assert method.reduce(part, Budget(tokens=len(last)), context()).signals["row"].tolist() == last
    few = method.reduce(part, Budget(tokens=3), context()).signals["row"].tolist()
    assert len(few) == 3
    assert set(few) < set(last)


def test_empty_batches(row):
    nothing = sample(0, 0, row["signals"])
    assert len(reduce(row, nothing)) == 0
    nothing.batch = torch.tensor([0])
    assert reduce(row, nothing).samples == 0
