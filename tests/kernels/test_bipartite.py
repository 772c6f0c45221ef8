"""Bipartite matching, PiToMe's energy, folding and FlowCut's counts: official outputs and loops written out."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import normalize, one_hot

from vtoken.kernels.bipartite import bipartite_match, energy, energy_match, groups
from vtoken.kernels.flowcut import flow_score, prune_count
from vtoken.kernels.merge import Merge
from vtoken.thinners.tome import schedule


def load(golden: Path, name: str) -> dict[str, Tensor]:
    return torch.load(golden / f"{name}.pt", weights_only=True)


def rows(data: Tensor) -> Tensor:
    return data.flatten(0, 1)


def test_tome_golden(golden: Path) -> None:
    d = load(golden, "tome_rand")
    group = groups(bipartite_match(d["metric"], d["r"].expand(2)), exact=True)
    plain, sized = (Merge(group.flatten(), s.flatten(), True) for s in (torch.ones(2, 64), d["size_in"]))
    torch.testing.assert_close(plain(rows(d["x"])), rows(d["out"]))
    torch.testing.assert_close(plain.size, d["size"].flatten())
    torch.testing.assert_close(sized(rows(d["x"])), rows(d["out_with_size"]))
    torch.testing.assert_close(sized.size, d["size_with_size"].flatten())
    source = one_hot(group - torch.tensor([[0], [48]]), 48).transpose(1, 2)
    assert torch.equal(source, d["source"].long())
    torch.testing.assert_close(plain(rows(d["x"]))[plain.group], rows(d["unmerged_back"]))


def test_tome_schedules(golden: Path) -> None:
    d = load(golden, "tome_parse_r")
    wanted = {"r8_const": 8, "r8_decr": (8, -1.0), "r13_incr": (13, 0.5), "r_list": [4, 3]}
    for name, r in wanted.items():
        assert schedule(12, r) == d[name].tolist(), name


def test_pitome_golden(golden: Path) -> None:
    d = load(golden, "pitome_rand")
    unit = normalize(d["x"], dim=-1)
    torch.testing.assert_close(energy(unit @ unit.transpose(1, 2), float(d["margin"])), d["energy"])
    match = energy_match(d["x"], torch.tensor([16, 16]), float(d["margin"]))
    group = groups(match, exact=True)
    fold = Merge(group.flatten(), torch.ones(128), True)
    torch.testing.assert_close(fold(rows(d["x"])), rows(d["out"]))
    torch.testing.assert_close(fold.size, d["size"].flatten())
    assert torch.equal(one_hot(group - torch.tensor([[0], [48]]), 48).transpose(1, 2), d["source"].long())


def test_flowcut_golden(golden: Path) -> None:
    d = load(golden, "flowcut_score")
    frame = torch.arange(2).repeat_interleave(64)
    relation = d["cls_attn"].flatten()
    norm = rows(d["value"]).abs().sum(-1)
    score = flow_score(relation, d["semantic_attn"].flatten(), norm, frame, 2)
    torch.testing.assert_close(score, d["score"].flatten())
    now = torch.full((2,), 64)
    for i, (layers, goal) in enumerate(d["rpl_target"].tolist()):
        count = prune_count(relation, frame, now, torch.full((2,), goal), layers)
        assert int(count[0]) == int(d["prune_num_first_image_only"][i])
        assert int(count.max()) == int(d["prune_num_batch2"][i])
    assert prune_count(relation, frame, now, torch.tensor([5, 64]), 0).tolist() == [59, 0]


def tome_by_hand(metric: Tensor, r: int, cls: bool, penalty: list[float] | None = None) -> tuple[list[int], list[int]]:
    """Row into which each row merges, and the published order of those that stay, by loops."""
    n = len(metric)
    unit = normalize(metric, dim=-1)
    best = {}
    for a in range(0, n, 2):
        scores = [(float(unit[a] @ unit[b]), -b) for b in range(1, n, 2)]
        if scores:
            best[a] = max(scores)
            if penalty is not None:
                best[a] = (best[a][0] - penalty[a], best[a][1])
    if cls:
        best[0] = (-9.0, 0)
    ranked = sorted(best, key=lambda a: (-best[a][0], a))
    gone = ranked[: min(r, (n - cls) // 2)]
    into = [-best[i][1] if i in gone else i for i in range(n)]
    stay = [a for a in ranked if a not in gone]
    return into, (sorted(stay) if cls else stay) + list(range(1, n, 2))


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 11), st.booleans())
def test_bipartite_match_of_ragged_counts(seed: int, n: int, cls: bool) -> None:
    g = torch.Generator().manual_seed(seed)
    metric = torch.randn(3, n, 4, generator=g)
    r = torch.randint(0, n + 1, (3,), generator=g)
    match = bipartite_match(metric, r, class_token=cls)
    group = groups(match, exact=True)
    start = 0
    for s in range(3):
        into, order = tome_by_hand(metric[s], int(r[s]), cls)
        assert match.into[s].tolist() == into
        number = {row: start + i for i, row in enumerate(order)} or {0: start}
        assert group[s].tolist() == [number[i] for i in into]
        start += len(number)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(3, 11))  # two rows have equal energies
def test_energy_match_of_ragged_counts(seed: int, n: int) -> None:
    g = torch.Generator().manual_seed(seed)
    metric = torch.randn(3, n, 4, generator=g)
    r = torch.randint(0, n + 1, (3,), generator=g)
    match = energy_match(metric, r, margin=0.3)
    for s in range(3):
        unit = normalize(metric[s], dim=-1)
        cosine = (unit @ unit.T).tolist()
        value = [sum(c - 0.3 if c >= 0.3 else 2.718281828 ** (c - 0.3) - 1 for c in row) for row in cosine]
        order = sorted(range(n), key=lambda i: -value[i])
        most = min(int(r[s]), n // 2)
        a, b = order[0 : 2 * most : 2], order[1 : 2 * most : 2]
        into = {i: max(b, key=lambda j: cosine[i][j]) for i in a}
        assert match.into[s].tolist() == [into.get(i, i) for i in range(n)]
        stay = sorted(set(range(n)) - set(a), key=lambda i: int(match.rank[s, i]))
        assert stay == order[2 * most :] + b


def test_folding_keeps_lone_rows_and_takes_the_heaviest_place() -> None:
    x = torch.randn(5, 2, 3, dtype=torch.bfloat16).flatten(0, 1)  # two rows a number
    fold = Merge(torch.tensor([1, 0, 1, -1, 2]), torch.tensor([1.0, 2, 3, 4, 5]))
    assert fold.group.tolist() == [1, 0, 1, -1, 2] and fold.head.tolist() == [1, 2, 4]
    assert fold.size.tolist() == [2, 4, 5]
    out = fold(x, unit=2).unflatten(0, (3, 2))
    cells = x.unflatten(0, (5, 2))
    assert torch.equal(out[0], cells[1]) and torch.equal(out[2], cells[4])
    torch.testing.assert_close(out[1], ((cells[0].float() + 3 * cells[2].float()) / 4).bfloat16())
    assert fold(torch.arange(5)).tolist() == [1, 2, 4]


@pytest.mark.parametrize("function", [bipartite_match, lambda m, r: energy_match(m, r, 0.9)])
def test_equal_rows_merge_into_the_first(function) -> None:
    match = function(torch.ones(2, 8, 3), torch.tensor([2, 0]))
    assert match.into[1].tolist() == list(range(8))
    assert int((match.into[0] != torch.arange(8)).sum()) == 2 and set(match.into[0, [0, 2]].tolist()) == {1}


def test_blocks_of_segments_decide_as_one(monkeypatch) -> None:
    from vtoken.kernels import bipartite

    metric, r = torch.randn(7, 10, 4), torch.arange(7)
    whole = bipartite_match(metric, r), energy_match(metric, r, 0.5)
    monkeypatch.setattr(bipartite, "BLOCK", 250)
    for a, b in zip(whole, (bipartite_match(metric, r), energy_match(metric, r, 0.5)), strict=True):
        assert torch.equal(a.into, b.into) and torch.equal(a.rank, b.rank)
