"""Tokens: take and merge against slow oracles in plain Python."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.tokens import pack, same, sample
from vtoken.data.tokens import Tokens
from vtoken.errors import InputError

COUNTS = st.lists(st.integers(0, 9), min_size=1, max_size=5)


def batch(counts: list[int]) -> Tokens:
    return pack([sample(n, i, ["cls_attention", "deepstack.0"]) for i, n in enumerate(counts)])


def members(tokens: Tokens) -> list[set[int]]:
    """Source cells of every row."""
    out: list[set[int]] = [set() for _ in range(len(tokens))]
    for cell, row in enumerate(tokens.source.tolist()):
        if row >= 0:
            out[row].add(cell)
    return out


def draw_groups(data, tokens: Tokens) -> list[int]:
    """Group numbers that stay within samples and rise with them; -1 drops."""
    group, start = [], 0
    for n in tokens.batch.diff().tolist():
        raw = [data.draw(st.integers(-1, 3)) for _ in range(n)]
        used = sorted({g for g in raw if g >= 0})
        group += [used.index(g) + start if g >= 0 else -1 for g in raw]
        start += len(used)
    return group


@given(COUNTS, st.data())
@settings(deadline=None)
def test_take_moves_everything(counts, data):
    tokens = batch(counts)
    index: list[int] = []
    for b, n in enumerate(counts):
        rows = data.draw(st.lists(st.integers(0, n - 1), unique=True)) if n else []
        index += [int(tokens.batch[b]) + r for r in rows]
    out = tokens.take(torch.tensor(index, dtype=torch.long))
    for new, old in enumerate(index):
        for name in ("x", "position", "time", "size"):
            assert torch.equal(getattr(out, name)[new], getattr(tokens, name)[old])
        for name in tokens.signals:
            assert torch.equal(out.signals[name][new], tokens.signals[name][old])
    assert out.sample_of.tolist() == [int(tokens.sample_of[i]) for i in index]
    assert members(out) == [{i} for i in index]
    assert out.samples == tokens.samples


@given(COUNTS, st.data())
@settings(deadline=None)
def test_merge_against_a_loop(counts, data):
    tokens = batch(counts)
    group = draw_groups(data, tokens)
    out = tokens.merge(torch.tensor(group, dtype=torch.long))
    assert len(out) == len({g for g in group if g >= 0})
    for g in range(len(out)):
        rows = [i for i, other in enumerate(group) if other == g]
        size = [float(tokens.size[i]) for i in rows]
        assert float(out.size[g]) == sum(size)
        for value, merged in [(tokens.x, out.x), *((tokens.signals[s], out.signals[s]) for s in ("deepstack.0",))]:
            mean = sum(value[i].double() * s for i, s in zip(rows, size, strict=True)) / sum(size)
            assert torch.allclose(merged[g].double(), torch.as_tensor(mean), atol=1e-5)
        heaviest = rows[size.index(max(size))]
        assert torch.equal(out.position[g], tokens.position[heaviest])
        assert out.time[g] == tokens.time[heaviest]
        assert out.signals["row"][g] == tokens.signals["row"][heaviest]
        assert int(out.sample_of[g]) == int(tokens.sample_of[rows[0]])
        assert members(out)[g] == set(rows)
    dropped = sum(float(tokens.size[i]) for i, g in enumerate(group) if g < 0)
    assert float(out.size.sum()) == float(tokens.size.sum()) - dropped


@given(COUNTS, st.data())
@settings(deadline=None)
def test_source_maps_compose(counts, data):
    """Several operations in a row tell the same story as sets of cells carried along by hand."""
    tokens = batch(counts)
    story = members(tokens)
    for _ in range(3):
        if data.draw(st.booleans()):
            index = [i for i in range(len(tokens)) if data.draw(st.booleans())]
            tokens, story = tokens.take(torch.tensor(index, dtype=torch.long)), [story[i] for i in index]
        else:
            group = draw_groups(data, tokens)
            tokens = tokens.merge(torch.tensor(group, dtype=torch.long))
            fused = [set() for _ in range(len(tokens))]
            for g, cells in zip(group, story, strict=True):
                if g >= 0:
                    fused[g] |= cells
            story = fused
        assert members(tokens) == story
        assert len(tokens.source) == sum(counts)


@given(COUNTS)
@settings(deadline=None)
def test_merging_nothing_changes_no_bit(counts):
    tokens = batch(counts)
    tokens.size *= 3
    out = tokens.merge(torch.arange(len(tokens)))
    assert same(out, tokens)
    assert torch.equal(out.source, tokens.source)


def test_sample_keeps_cell_numbers():
    tokens = batch([3, 0, 4])
    last = tokens.sample(2)
    assert last.samples == 1
    assert last.source.tolist() == [-1, -1, -1, 0, 1, 2, 3]
    assert torch.equal(last.x, tokens.x[3:])
    assert len(tokens.sample(1)) == 0


def test_gradients_flow_through_merge():
    tokens = sample(4)
    tokens.size = torch.tensor([1.0, 3.0, 1.0, 1.0])
    tokens.x.requires_grad_()
    tokens.merge(torch.tensor([0, 0, 1, -1])).x.sum().backward()
    assert tokens.x.grad is not None
    assert tokens.x.grad[:, 0].tolist() == [0.25, 0.75, 1.0, 0.0]


def test_half_precision_merges_in_float32():
    tokens = Tokens.of(torch.full((3000, 1), 1.001, dtype=torch.float16))
    assert tokens.merge(torch.zeros(3000, dtype=torch.long)).x.item() == tokens.x[0].item()


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ([0, 7], "outside 0..6"),
        ([-1], "outside"),
        ([2, 2], "taken twice"),
        ([4, 0], "must stay together"),
        ([True, False], "must be int64"),
        ([[0, 1]], "must be int64"),
    ],
)
def test_take_refuses(index, message):
    with pytest.raises(InputError, match=message):
        batch([3, 4]).take(torch.tensor(index))


@pytest.mark.parametrize(
    ("group", "message"),
    [
        ([0, 0, 2], "must be 0..K-1"),
        ([1, 1, 0], "rise with the samples"),
        ([0, 0, 0], "must not join two samples"),
        ([0, 0], r"int64 \[3\]"),
        ([0.0, 0.0, 1.0], "int64"),
    ],
)
def test_merge_refuses(group, message):
    with pytest.raises(InputError, match=message):
        batch([2, 1]).merge(torch.tensor(group))


def test_tokens_refuse_what_does_not_fit():
    x = torch.zeros(3, 2)
    with pytest.raises(InputError, match=r"Tokens\.motion has 2 rows, features have 3"):
        Tokens.of(x, motion=torch.zeros(2))
    with pytest.raises(InputError, match=r"position must be \[3, 3\]"):
        Tokens.of(x, torch.zeros(3, 2))
    for ends in ([0, 2], [1, 3], [0, 4, 3], []):
        with pytest.raises(InputError, match="must rise from 0 to 3"):
            Tokens(x, torch.zeros(3, 3), x[:, 0], x[:, 0], torch.arange(3), torch.tensor(ends))
    part = sample(3)
    part.size = torch.zeros(3)
    with pytest.raises(InputError, match="above 0"):
        part.merge(torch.zeros(3, dtype=torch.long))
