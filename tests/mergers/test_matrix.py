"""Properties that every merger of the catalogue must have."""

from __future__ import annotations

import pytest
import torch

from tests.catalogue import MERGERS, Row, label
from tests.tokens import context, pack, same, sample
from vtoken.data.budget import Budget
from vtoken.data.tokens import Tokens
from vtoken.errors import InputError
from vtoken.methods import registry
from vtoken.methods.merger import Merger

K = 9
COUNTS = (0, 1, 2, K, K + 1, 40, 0, 67)
pytestmark = pytest.mark.parametrize("row", MERGERS, ids=label)


def build(row: Row, **own) -> Merger:
    method = registry.build(row["name"], **row["options"], **own)
    assert isinstance(method, Merger)
    return method


def reduce(row: Row, tokens: Tokens, budget: Budget | None = None) -> Tokens:
    return build(row).reduce(tokens, budget or Budget(tokens=K), context())


def batch(row: Row, counts=COUNTS, dtype=torch.float32) -> list[Tokens]:
    return [sample(n, seed, [*row["signals"], "deepstack.0"], dtype) for seed, n in enumerate(counts)]


def test_exact_count_and_sizes_conserved(row):
    parts = batch(row)
    for budget in (Budget(tokens=K), Budget(keep=0.5), Budget(keep=0.97), Budget(tokens=1), Budget(tokens=2)):
        out = reduce(row, pack(parts), budget)
        for b, part in enumerate(parts):
            own = out.sample(b)
            assert len(own) == budget.resolve(len(part), 1.0)
            torch.testing.assert_close(own.size.sum(), part.size.sum())
        assert bool((out.source >= 0).all())  # every token lives on in one
        assert torch.equal(out.source.unique(), torch.arange(len(out)))
        assert torch.equal(out.sample_of[out.source], pack(parts).sample_of)
        assert bool(out.x.isfinite().all())


def test_a_token_stands_where_one_of_its_members_stood(row):
    part = sample(67, 3, row["signals"])
    out = reduce(row, part)
    assert torch.equal(out.position, part.position[out.signals["row"]])
    assert torch.equal(out.time, part.time[out.signals["row"]])
    assert torch.equal(out.source[out.signals["row"]], torch.arange(len(out)))
    if not row["options"].get("exact"):
        assert bool((out.signals["row"].diff() > 0).all())  # raster order


@pytest.mark.parametrize("options", [{"anchors": 1}, {"anchors": "random:2,seed=3"}], ids=str)
def test_anchors_stay_alone(row, options):
    if row["options"].get("exact"):
        pytest.skip("not applicable: published counts")
    part = sample(67, 2, [*row["signals"], "deepstack.0"])
    part.signals["deepstack.0"] = part.x.clone()
    plain = {n: v for n, v in row["options"].items() if n != "anchors"}
    method = registry.build(row["name"], **plain, **options)
    assert isinstance(method, Merger)
    anchors = method.anchor_rows(part)
    k = len(anchors) + 9
    out = method.reduce(part, Budget(tokens=k), context())
    assert len(out) == k
    lone = out.source[anchors]  # their tokens: nobody else's, with their features, sizes and places
    assert bool((torch.bincount(out.source, minlength=k)[lone] == 1).all())
    assert torch.equal(out.x[lone], part.x[anchors]) and torch.equal(out.size[lone], part.size[anchors])
    assert torch.equal(out.signals["row"][lone], anchors)
    assert torch.equal(out.x, out.signals["deepstack.0"])
    assert bool((out.signals["row"].diff() > 0).all())
    torch.testing.assert_close(out.size.sum(), part.size.sum())
    # the others fare as they would without the anchors
    rest = torch.tensor([i for i in range(67) if i not in anchors.tolist()])
    bare = registry.build(row["name"], **plain)
    assert isinstance(bare, Merger)
    alone = bare.reduce(part.take(rest), Budget(tokens=9), context())
    mixed = torch.tensor([i for i in range(k) if i not in lone.tolist()])
    assert torch.equal(out.x[mixed], alone.x) and torch.equal(out.signals["row"][mixed], alone.signals["row"])
    few = method.reduce(part, Budget(tokens=3), context())
    assert len(few) == 3 and set(few.signals["row"].tolist()) < set(anchors.tolist())
    assert torch.equal(few.x, part.x[few.signals["row"]]) and bool((few.source >= 0).all())
    torch.testing.assert_close(few.size.sum(), part.size.sum())


def test_single_tokens_keep_their_features(row):
    if row["name"].startswith("prumerge"):
        pytest.skip("not applicable: adds neighbours to what it keeps")
    part = sample(67, 4, row["signals"])
    out = reduce(row, part, Budget(keep=0.6))
    alone = torch.bincount(out.source, minlength=len(out)) == 1
    assert bool(alone.any())
    assert torch.equal(out.x[alone], part.x[out.signals["row"][alone]])


def test_features_of_other_layers_move_alike(row):
    part = sample(67, 5, [*row["signals"], "deepstack.0"])
    part.signals["deepstack.0"] = part.x.clone()
    out = reduce(row, part)
    assert torch.equal(out.x, out.signals["deepstack.0"])


def test_batch_equals_one_by_one_and_any_order(row):
    parts = batch(row)
    out = reduce(row, pack(parts))
    assert same(out, pack([reduce(row, p) for p in parts]))
    order = torch.randperm(len(parts), generator=torch.Generator().manual_seed(1)).tolist()
    assert same(reduce(row, pack([parts[i] for i in order])), pack([out.sample(i) for i in order]))


def test_repeats_and_leaves_the_random_state_alone(row):
    tokens = pack(batch(row))
    state = torch.get_rng_state()
    out = reduce(row, tokens)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(int(torch.randint(1 << 30, ())))
    assert same(out, reduce(row, tokens))


def test_whole_budget_is_the_identity(row):
    tokens = pack(batch(row))
    assert same(reduce(row, tokens, Budget(keep=1.0)), tokens)


def test_stage_budget_wins(row):
    part = sample(40, 0, row["signals"])
    assert len(build(row, keep=0.25).reduce(part, Budget(tokens=K), context())) == 10
    with pytest.raises(InputError, match="needs a budget"):
        build(row).reduce(part, None, context())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["fp16", "bf16"])
def test_half_precision_decides_as_float32_does(row, dtype):
    for half in batch(row, dtype=dtype):
        out = reduce(row, half)
        assert out.x.dtype == dtype
        whole = {n: v.float() if v.is_floating_point() else v for n, v in half.signals.items()}
        wide = Tokens.of(half.x.float(), half.position, half.time, **whole)
        wide.size = half.size
        wide = reduce(row, wide)
        assert torch.equal(out.signals["row"], wide.signals["row"])
        assert torch.equal(out.source, wide.source)


@pytest.mark.parametrize("value", [0.0, 1.0, 3.7])
def test_equal_tokens_are_no_trouble(row, value):
    part = sample(40, 0, row["signals"])
    part.x = torch.full_like(part.x, value)
    part.signals |= {s: torch.full_like(part.signals[s], value) for s in row["signals"]}
    out = reduce(row, part)
    assert len(out) == K
    assert bool(out.x.isfinite().all())


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")], ids=str)
def test_broken_features_are_refused(row, value):
    tokens = pack(batch(row))
    tokens.x[5, 3] = value
    with pytest.raises(InputError, match=r"1 of \d+ token features"):
        reduce(row, tokens)


def test_broken_or_missing_signals_are_refused(row):
    if not row["signals"]:
        pytest.skip("not applicable: reads no signals")
    for name in row["signals"]:
        part = sample(40, 0, row["signals"])
        part.signals[name][3:6] = float("nan")
        with pytest.raises(InputError, match="NaN"):
            reduce(row, part)
    with pytest.raises(InputError, match=row["signals"][0]):
        reduce(row, sample(40, 0))


def test_gradients_flow(row):
    part = sample(40, 0, row["signals"])
    part.x.requires_grad_()
    reduce(row, part).x.square().sum().backward()
    assert part.x.grad is not None
    assert bool(part.x.grad.isfinite().all())
    assert int((part.x.grad != 0).any(1).sum()) >= K


def test_empty_batches(row):
    nothing = sample(0, 0, row["signals"])
    assert len(reduce(row, nothing)) == 0
    nothing.batch = torch.tensor([0])
    assert reduce(row, nothing).samples == 0
