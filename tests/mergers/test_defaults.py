"""The mergers with an exact budget, against plain loops and hand-made clips."""

from __future__ import annotations

import pytest
import torch

from tests.tokens import sample
from vtoken.data.budget import Budget
from vtoken.data.tokens import Tokens
from vtoken.errors import InputError
from vtoken.methods import registry
from vtoken.methods.reducer import Context


def reduce(name: str, tokens: Tokens, k: int, context: Context | None = None, **options) -> Tokens:
    method = registry.build(name, **options)
    return method.reduce(tokens, Budget(tokens=k), context or Context())  # type: ignore[attr-defined]


def groups(out: Tokens) -> list[list[int]]:
    return [(out.source == i).nonzero().flatten().tolist() for i in range(len(out))]


def image(n: int, seed: int = 0) -> Tokens:
    g = torch.Generator().manual_seed(seed)
    position = torch.stack([torch.zeros(n), torch.arange(n) // 8, torch.arange(n) % 8], 1)
    score = torch.rand(n, generator=g)
    return Tokens.of(
        torch.randn(n, 16, generator=g),
        position,
        cls_attention=score / score.sum(),
        received_attention=score / score.sum(),
        keys=torch.randn(n, 8, generator=g),
        row=torch.arange(n),
    )


def clip(steps: int = 4, moving: int = 2, places: int = 4, noise: float = 0.0) -> Tokens:
    """Places that stand still except the last ``moving`` ones; place p of frame t is row places * t + p."""
    g = torch.Generator().manual_seed(3)
    x = torch.randn(1, places, 16, generator=g).repeat(steps, 1, 1)
    x[:, places - moving :] = torch.randn(steps, moving, 16, generator=g)
    x = x + noise * torch.randn(x.shape, generator=g)
    position = torch.cartesian_prod(torch.arange(steps), torch.arange(2), torch.arange(places // 2))
    score = torch.rand(steps * places, generator=g)
    return Tokens.of(x.flatten(0, 1), position, received_attention=score, row=torch.arange(steps * places))


def test_visionzip_groups():
    tokens, k, fused = image(64), 16, 2
    out = reduce("visionzip", tokens, k, contextual=fused)
    dominant = sorted(tokens.signals["cls_attention"].argsort(descending=True)[: k - fused].tolist())
    rest = [i for i in range(64) if i not in dominant]
    step = len(rest) // fused
    targets = [rest[0], rest[step]]
    unit = torch.nn.functional.normalize(tokens.signals["keys"], dim=1)
    wanted = [[i] for i in dominant]
    joins = {i: targets.index(i) if i in targets else int((unit[targets] @ unit[i]).argmax()) for i in rest}
    wanted += [[i for i in rest if joins[i] == t] for t in range(fused)]
    assert sorted(groups(out)) == sorted(wanted)


@pytest.mark.parametrize("name", ["prumerge", "prumerge_plus"])
def test_prumerge_values(name):
    tokens, k, near = image(64), 9, 5
    tokens.size = torch.randint(1, 4, (64,), generator=torch.Generator().manual_seed(0)).float()
    out = reduce(name, tokens, k, neighbours=near)
    a, keys = tokens.signals["cls_attention"] * tokens.size, tokens.signals["keys"]
    kept = [g[0] for g in groups(out) if len(g) == 1]
    assert len(kept) == k - 1
    if name == "prumerge":
        assert kept == sorted(tokens.signals["cls_attention"].argsort(descending=True)[: k - 1].tolist())
    cosine = torch.nn.functional.cosine_similarity(keys[:, None], keys[None], dim=-1)
    for i, members in enumerate(groups(out)):
        if len(members) == 1:
            row = members[0]
            beside = [j for j in cosine[row].argsort(descending=True).tolist() if j != row][:near]
            weight = torch.cat([tokens.size[[row]], a[beside]])
            value = (weight[:, None] * tokens.x[[row, *beside]]).sum(0) / weight.sum()
        else:
            value = (a[members, None] * tokens.x[members]).sum(0) / a[members].sum()
        torch.testing.assert_close(out.x[i], value)


def test_prumerge_plus_takes_outliers_then_even_ones():
    tokens = image(64)
    score = torch.full((64,), 0.01)
    score[[5, 40]] = torch.tensor([0.3, 0.2])
    out = reduce("prumerge_plus", tokens.with_signals(cls_attention=score), 9)
    kept = [g[0] for g in groups(out) if len(g) == 1]
    others = [i for i in range(64) if i not in (5, 40)]
    assert kept == sorted([5, 40] + [others[(2 * i + 1) * 62 // 12] for i in range(6)])


def test_holitom_sends_still_places_once():
    tokens = clip(noise=0.01)
    out = reduce("holitom", tokens, 10)  # 2 still places and 2 moving ones in 4 frames: 10 columns
    assert groups(out) == [[0, 4, 8, 12], [1, 5, 9, 13], *[[i] for i in (2, 3, 6, 7, 10, 11, 14, 15)]]
    torch.testing.assert_close(out.x[0], tokens.x[[0, 4, 8, 12]].mean(0))


def test_holitom_undoes_the_weakest_matches():
    tokens = clip(noise=0.05)
    cosine = torch.nn.functional.cosine_similarity(tokens.x[:-4], tokens.x[4:], dim=1)
    links = sorted((float(cosine[i]), i) for i in range(12) if i % 4 < 2)
    out = reduce("holitom", tokens, 12)
    cut = {i for _, i in links[:2]}
    assert all(int(out.source[i] != out.source[i + 4]) == (i in cut) for _, i in links)


def test_holitom_keeps_the_attended_moving_tokens():
    tokens = clip(steps=3, moving=8, places=8)
    out = reduce("holitom", tokens, 9)
    score = tokens.signals["received_attention"].view(3, 8)
    wanted = [8 * t + i for t in range(3) for i in sorted(score[t].argsort(descending=True)[:3].tolist())]
    assert out.signals["row"].tolist() == wanted
    assert torch.equal(out.x, tokens.x[wanted])  # what is not kept adds to sizes only
    for i, members in enumerate(groups(out)):
        assert {m // 8 for m in members} == {wanted[i] // 8}


def test_holitom_splits_moving_tokens_by_D():
    tokens = clip(steps=3, moving=8, places=8)
    out = reduce("holitom", tokens, 12, D=0.5)
    score = tokens.signals["received_attention"].view(3, 8)
    for t in range(3):
        best = [8 * t + i for i in score[t].argsort(descending=True)[:2].tolist()]
        mine = [g for g in groups(out) if g[0] // 8 == t]
        assert [[b] for b in sorted(best)] == [g for g in mine if g[0] in best]
        assert sum(map(len, mine)) == 8


def test_prunevid_meets_any_budget():
    tokens = clip(steps=8, moving=2, places=4, noise=0.01)
    for k in range(1, 33):
        assert len(reduce("prunevid", tokens, k)) == k
    out = reduce("prunevid", tokens, 2 + 16, temporal_segment_ratio=0.125)
    assert [g for g in groups(out) if len(g) > 1] == [list(range(0, 32, 4)), list(range(1, 32, 4))]


@pytest.mark.parametrize("k", [1, 5, 13, 24, 40, 63])
def test_fastvid_meets_any_budget_with_anchors_on_anchor_frames(k):
    tokens = clip(steps=8, moving=8, places=8)
    out = reduce("fastvid", tokens, k, c=1, tau=-1.0)
    assert len(out) == k
    assert out.size.sum() == 64
    if k != 24:
        return
    score = tokens.signals["received_attention"].view(8, 8)
    salient = {8 * t + i for t in range(8) for i in score[t].argsort(descending=True)[:2].tolist()}
    anchors = set(out.signals["row"].tolist()) - salient
    assert salient <= set(out.signals["row"].tolist())
    assert sorted(a // 8 for a in anchors) == [3] * 4 + [7] * 4
    rest = [i for i in range(64) if i not in salient and i not in anchors]
    order = sorted(anchors)
    unit = torch.nn.functional.normalize(tokens.x, dim=1)
    rows = out.signals["row"].tolist()
    for i in rest:
        assert rows[int(out.source[i])] == order[int((unit[order] @ unit[i]).argmax())]
    pool = sorted({*rest, *anchors})
    for t in (3, 7):  # every anchor frame takes all tokens that are not salient, anchors of the other frame too
        heads = [a for a in order if a // 8 == t]
        near = [heads.index(i) if i in heads else int((unit[heads] @ unit[i]).argmax()) for i in pool]
        for h, head in enumerate(heads):
            members = [i for i, n in zip(pool, near, strict=True) if n == h]
            weight = max(1 / (len(members) + 1), 0.6)
            value = weight * tokens.x[head] + (1 - weight) * tokens.x[members].mean(0)
            torch.testing.assert_close(out.x[rows.index(head)], value)


def test_fastvid_without_room_for_all_anchors_takes_other_frames():
    tokens = clip(steps=4, moving=8, places=8)
    out = reduce("fastvid", tokens, 28, c=1, tau=-1.0, d=1.0)
    assert len(out) == 28


def recycled(value: list[float], cell: list[int], k: int) -> list[list[int]]:
    """Rows of every token that is left when the least important go, one after another, until k remain."""
    order = sorted(range(len(value)), key=lambda i: value[i])
    gone: list[int] = []
    while len(value) - len(gone) + len({cell[i] for i in gone}) > k:
        gone.append(order[len(gone)])
    cells = {c: sorted(i for i in gone if cell[i] == c) for c in {cell[i] for i in gone}}
    return sorted([[i] for i in range(len(value)) if i not in gone] + list(cells.values()))


@pytest.mark.parametrize("k", [5, 8, 16, 40, 63])
@pytest.mark.parametrize("m", [2.0, 3.5, 8.0])
def test_vflowopt_recycles_cell_by_cell(k, m):
    tokens = image(64)
    cell = [int(int(h) / m) * 8 + int(int(w) / m) for _, h, w in tokens.position.tolist()]
    if len(set(cell)) > k:
        pytest.skip("not applicable: cells grow")
    out = reduce("vflowopt", tokens, k, m=m)
    score = tokens.signals["received_attention"]
    assert sorted(groups(out)) == recycled(score.tolist(), cell, k)
    for i, members in enumerate(groups(out)):
        value = (score[members, None] * tokens.x[members]).sum(0) / score[members].sum()
        torch.testing.assert_close(out.x[i], value)
        assert int(out.signals["row"][i]) == members[int(score[members].argmax())]


def test_vflowopt_counts_as_published():
    tokens = image(64)
    out = registry.build("vflowopt", m=4.0, exact=True, keep=0.5).reduce(tokens, None, Context())  # type: ignore[attr-defined]
    gone = tokens.signals["received_attention"].argsort()[: 32 + 4].tolist()
    cells = {(i // 8 // 4, i % 8 // 4) for i in gone}
    assert len(out) == 64 - 36 + len(cells)


def test_dpc_knn_per_frame_stays_in_its_frame():
    tokens = sample(67, 1)
    out = reduce("dpc_knn", tokens, 20, per_frame=True)
    assert all(len(tokens.position[g, 0].unique()) == 1 for g in groups(out))
    for i, members in enumerate(groups(out)):
        weight = tokens.size[members]
        torch.testing.assert_close(out.x[i], (weight[:, None] * tokens.x[members]).sum(0) / weight.sum())


@pytest.mark.parametrize(
    "plan",
    [
        "dpc_knn:neighbours=0",
        "visionzip:contextual=0",
        "prumerge:neighbours=0",
        "holitom:D=2",
        "holitom:beta=-1",
        "fastvid:p=0",
        "fastvid:d=1.5",
        "prunevid:k=0",
        "prunevid:cluster_ratio=0",
        "vflowopt:m=0.5",
    ],
)
def test_impossible_options_are_refused(plan):
    name, _, option = plan.partition(":")
    key, _, value = option.partition("=")
    with pytest.raises(InputError, match=f"{key}"):
        registry.build(name, **{key: float(value) if "." in value or key in ("D", "beta", "d") else int(value)})


def test_vflowopt_cells_grow_only_in_the_frames_that_need_it():
    wide = torch.cartesian_prod(torch.tensor([0]), torch.arange(8), torch.arange(8))
    small = torch.cartesian_prod(torch.tensor([1]), torch.arange(2), torch.arange(4))
    position, g = torch.cat([wide, small]), torch.Generator().manual_seed(0)
    score = torch.rand(72, generator=g)
    tokens = Tokens.of(torch.randn(72, 8, generator=g), position, received_attention=score)
    out = reduce("vflowopt", tokens, 16, m=2.0)  # 14 of the first frame's 16 cells, 2 of the second's 2
    assert len(out) == 16
    second = [[i - 64 for i in members] for members in groups(out) if members[0] >= 64]
    assert sorted(second) == recycled(score[64:].tolist(), [0, 0, 1, 1, 0, 0, 1, 1], 2)


def test_prunevid_and_holitom_leave_a_place_with_a_gap_in_its_frames():
    """Behind a gate a frame lacks cells: what is not there in every frame of a segment is no static place."""
    whole = clip(steps=4, moving=0)
    tokens = whole.take(torch.tensor([i for i in range(16) if i != 5]))  # place 1 is missing in frame 1
    for name in ("prunevid", "holitom"):
        out = reduce(name, tokens, 6, tau=0.3)
        assert [g for g in groups(out) if len(g) > 1] == [[0, 4, 8, 12], [2, 6, 10, 14], [3, 7, 11, 15]]


def test_prumerge_prefers_the_last_layer():
    tokens, last = image(64), image(64, seed=1)
    signals = {f"{name}@-1": last.signals[name] for name in ("cls_attention", "keys")}
    both = reduce("prumerge", tokens.with_signals(**signals), 9)
    alone = reduce("prumerge", tokens.with_signals(**{n.removesuffix("@-1"): v for n, v in signals.items()}), 9)
    assert torch.equal(both.x, alone.x)
    assert not torch.equal(both.x, reduce("prumerge", tokens, 9).x)
    context = Context()
    reduce("prumerge", tokens, 9, context)
    assert context.notes == ["prumerge: no cls_attention@-1 here, cls_attention in its place"]
