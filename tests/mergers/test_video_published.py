"""Video mergers against official outputs, and against plain loops where there are none."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import cosine_similarity, normalize

from tests.pruners.test_published import load
from tests.tokens import sample
from vtoken.data.budget import Budget
from vtoken.data.tokens import Tokens
from vtoken.errors import InputError
from vtoken.methods import registry
from vtoken.methods.merger import Merger
from vtoken.methods.reducer import Context


def build(name: str, **options) -> Merger:
    method = registry.build(name, **options)
    assert isinstance(method, Merger)
    return method


def video(t: int, h: int = 3, w: int = 4, seed: int = 0, width: int = 16) -> Tokens:
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(1, h * w, width, generator=g) + 0.3 * torch.randn(t, h * w, width, generator=g).cumsum(0)
    position = torch.cartesian_prod(torch.arange(t), torch.arange(h), torch.arange(w))
    return Tokens.of(x.flatten(0, 1), position, row=torch.arange(t * h * w))


def test_dycoke_exact_gives_the_official_tokens_in_their_order(golden: Path):
    data = load(golden, "dycoke_ttm_rand")
    n = int(data["tokens_per_frame"])
    tokens = video(len(data["tokens"]) // n, 4, 4)
    tokens.x = data["tokens"]
    out = build("dycoke", exact=True, ratio=float(data["merging_ratio"])).reduce(tokens, None, Context())
    assert out.signals["row"].tolist() == data["kept_index_out_order"].tolist()
    assert torch.equal(out.x, data["out"])
    assert float(out.size.sum()) == len(tokens)  # what joined a token counts in its size


def published_dycoke(x: Tensor, n: int, ratio: float) -> list[int]:
    """Token temporal merging as published, frame by frame."""
    frames, keep = x.view(-1, n, x.shape[1]), int((1 - ratio) * n)
    count = len(frames)
    rows = [list(range(t * n, t * n + n)) for t in range(count)]

    def least(t: int, before: int) -> list[int]:
        like = cosine_similarity(frames[t], frames[before], dim=1)
        return (t * n + like.argsort(stable=True)[:keep]).tolist()

    for t in range(1, count, 2):
        rows[t] = least(t, t - 1)
    for t in range(0, count - 4, 4):
        rows[t + 2] = least(t + 2, t)
    return [r for own in rows[: count - count % 2] for r in own]


@pytest.mark.parametrize("frames", [5, 6, 7, 8, 9, 10, 11, 12, 13])
@pytest.mark.parametrize("ratio", [0.0, 0.5, 0.7, 1.0])
def test_dycoke_exact_by_a_loop(frames: int, ratio: float):
    tokens, context = video(frames, seed=frames), Context()
    out = build("dycoke", exact=True, ratio=ratio).reduce(tokens, None, context)
    assert out.signals["row"].tolist() == published_dycoke(tokens.x, 12, ratio)
    assert bool(context.notes) == bool(frames % 2)
    assert bool((out.source[-12:] < 0).all()) == bool(frames % 2)


def test_dycoke_exact_refuses_short_clips():
    with pytest.raises(InputError, match="more than 4 frames"):
        build("dycoke", exact=True).reduce(video(4), None, Context())


@pytest.mark.parametrize("frames", [1, 2, 3, 4, 5, 7, 16, 17])
def test_dycoke_drops_nothing_in_silence(frames: int):
    tokens = video(frames)
    for k in {1, len(tokens) // 10 + 1, len(tokens) // 3 + 1, len(tokens) - 1}:
        out = build("dycoke").reduce(tokens, Budget(tokens=k), Context())
        assert len(out) == k and bool((out.source >= 0).all())
        assert torch.equal(out.x, tokens.x[out.signals["row"]])  # values stay as they are
        if k >= 12:  # then tokens join one in their own place
            assert torch.equal(out.position[out.source, 1:], tokens.position[:, 1:])
            assert bool((out.position[out.source, 0] <= tokens.position[:, 0]).all())


def test_dycoke_keeps_one_frame_in_four_longest():
    out = build("dycoke").reduce(video(16), Budget(tokens=4 * 12 + 12), Context())
    counts = torch.bincount(out.position[:, 0].long(), minlength=16).tolist()
    assert counts == [12, 1, 1, 1] * 4
    out = build("dycoke").reduce(video(16), Budget(tokens=12 + 6), Context())
    assert torch.bincount(out.position[:, 0].long(), minlength=16).tolist() == [
        12,
        0,
        0,
        0,
        2,
        0,
        0,
        0,
        2,
        0,
        0,
        0,
        2,
        0,
        0,
        0,
    ]


def test_aim_exact_gives_the_official_tokens(golden: Path):
    data = load(golden, "aim_merge")
    tokens = video(2, 8, 8)
    tokens.x = data["x"].flatten(0, 1)
    out = build("aim", exact=True).reduce(tokens, None, Context())
    torch.testing.assert_close(out.x, data["after_quarter"].flatten(0, 1), atol=1e-5, rtol=1e-5)
    assert float(out.size.sum()) == 128


def tome(x: Tensor, r: int) -> Tensor:
    """One round of bipartite matching with the plain mean, token by token."""
    if len(x) == 1:
        return x
    unit = normalize(x, dim=1)
    even, odd = list(range(0, len(x), 2)), list(range(1, len(x), 2))
    best = {i: max(odd, key=lambda j, i=i: float(unit[i] @ unit[j])) for i in even}
    order = sorted(even, key=lambda i: -float(unit[i] @ unit[best[i]]))
    joined = {j: [j] + [i for i in order[:r] if best[i] == j] for j in odd}
    return torch.stack([x[i] for i in order[r:]] + [x[joined[j]].mean(0) for j in odd])


@pytest.mark.parametrize("cells", [(3, 3), (3, 4), (1, 7), (5, 7), (1, 2)])
def test_aim_exact_by_a_loop(cells: tuple[int, int]):
    tokens = video(3, *cells)
    n = cells[0] * cells[1]
    out = build("aim", exact=True).reduce(tokens, None, Context())
    wanted = []
    for frame in tokens.x.view(3, n, -1):
        half = tome(frame, n // 2)
        wanted.append(tome(half, min(n // 4, len(half) // 2)))
    torch.testing.assert_close(out.x, torch.cat(wanted), atol=1e-5, rtol=1e-5)


def test_aim_merges_within_frames_and_weighs_by_size():
    tokens = video(3)
    tokens.size = torch.randint(1, 5, (36,), generator=torch.Generator().manual_seed(0)).float()
    out = build("aim").reduce(tokens, Budget(tokens=13), Context())
    assert torch.bincount(out.position[:, 0].long()).tolist() in ([4, 4, 5], [4, 5, 4], [5, 4, 4])
    for i in range(13):
        members = (out.source == i).nonzero().squeeze(1)
        assert len(set((members // 12).tolist())) == 1
        share = tokens.size[members] / tokens.size[members].sum()
        torch.testing.assert_close(out.x[i], (share[:, None] * tokens.x[members]).sum(0), atol=1e-5, rtol=1e-5)


def test_runlength_fuses_equal_runs_into_their_length():
    still = torch.randn(6, 8, generator=torch.Generator().manual_seed(0))
    x = still.repeat(5, 1, 1)
    x[3:, 2] = torch.randn(8, generator=torch.Generator().manual_seed(1))  # place 2 changes at step 3
    position = torch.cartesian_prod(torch.arange(5), torch.arange(2), torch.arange(3))
    tokens = Tokens.of(x.flatten(0, 1), position)
    for options, budget in (({}, Budget(tokens=7)), ({"threshold": 0.99}, None)):
        out = build("runlength", **options).reduce(tokens, budget, Context())
        assert out.position.tolist() == [[0, c // 3, c % 3] for c in range(6)] + [[3, 0, 2]]
        assert out.size.tolist() == [5, 5, 3, 5, 5, 5, 2]
        torch.testing.assert_close(out.x, torch.cat([still, x[3, 2][None]]))


def test_runlength_by_a_loop():
    tokens = video(6)
    tokens.x = tokens.x + 0.5 * torch.randn(72, 16, generator=torch.Generator().manual_seed(5))
    x = tokens.x.view(6, 12, -1)
    like = cosine_similarity(x[1:], x[:-1], dim=-1)
    bar = float(like.flatten().sort().values[30])
    out = build("runlength", threshold=bar).reduce(tokens, None, Context())
    starts = [(0, c) for c in range(12)] + [(t + 1, c) for t in range(5) for c in range(12) if like[t, c] <= bar]
    assert [(t, 4 * h + w) for t, h, w in out.position.tolist()] == sorted(starts)
    assert len(out) == 12 + 31
    same = build("runlength").reduce(tokens, Budget(tokens=43), Context())
    assert torch.equal(same.source, out.source)


@given(st.integers(2, 60), st.integers(0, 5), st.data())
@settings(deadline=None, max_examples=40)
def test_runlength_goes_on_into_neighbouring_places_at_last(n: int, seed: int, data):
    tokens = sample(n, seed)
    k = data.draw(st.integers(1, n - 1))
    out = build("runlength").reduce(tokens, Budget(tokens=k), Context())
    places = tokens.position[:, 1:].unique(dim=0)
    owner = {tuple(p.tolist()): set() for p in places}
    for row, group in enumerate(out.source.tolist()):
        owner[tuple(tokens.position[row, 1:].tolist())].add(group)
    mixed = any(len(set(map(tuple, tokens.position[out.source == i, 1:].tolist()))) > 1 for i in range(k))
    assert mixed == (k < len(places))
    if mixed:
        assert all(len(groups) == 1 for groups in owner.values())


def test_bad_options():
    for name, options in (("runlength", {"threshold": 1.5}), ("dycoke", {"ratio": -0.1})):
        with pytest.raises(InputError, match=name):
            build(name, **options)
    for name, options in (("runlength", {"threshold": 0.5}), ("dycoke", {"exact": True}), ("aim", {"exact": True})):
        with pytest.raises(InputError, match="takes no budget"):
            build(name, **options, keep=0.5)


def folded(x: Tensor, penalty: list[float], count: int, scale: bool = False) -> list[tuple[list[int], Tensor]]:
    """One frame by FOLDER's rounds, row by row: members and features of each token, by rising first member."""
    rows = [([i], x[i].double(), penalty[i]) for i in range(len(x))]
    start = len(rows)
    while len(rows) > count:
        unit = [normalize(r[1], dim=0) for r in rows]
        odd = range(1, len(rows), 2)
        best = {a: max((float(unit[a] @ unit[b]), -b) for b in odd) for a in range(0, len(rows), 2)}
        order = sorted(best, key=lambda a: (rows[a][2] - best[a][0], a))
        gone = order[: min(len(rows) // 2, len(rows) - count)]
        made = []
        for i, row in enumerate(rows):
            if i in gone:
                continue
            parts = [row, *(rows[a] for a in gone if -best[a][1] == i)]
            total = sum(len(p[0]) for p in parts)
            mean: Tensor = sum(p[1] * len(p[0]) for p in parts) / total  # type: ignore[assignment]
            made.append((sorted(sum((p[0] for p in parts), [])), mean, sum(p[2] for p in parts) / len(parts)))
        rows = made
    grow = [1 + torch.tensor(float(len(r[0]))).log() if scale and 2 * count > start else 1.0 for r in rows]
    return [(r[0], r[1] * g) for r, g in zip(rows, grow, strict=True)]


@pytest.mark.parametrize("count", [10, 7, 2, 1])
@pytest.mark.parametrize("options", [{}, {"scale": True}, {"alpha": 5.0}], ids=str)
def test_folder_against_loops(count: int, options: dict) -> None:
    tokens = video(2, 3, 4, seed=count)
    attention = torch.rand(24, generator=torch.Generator().manual_seed(1))
    out = build("folder", **options).reduce(
        tokens.with_signals(cls_attention=attention), Budget(tokens=2 * count), Context()
    )
    expected: dict[tuple[int, ...], Tensor] = {}
    for t in range(2):
        rows = slice(12 * t, 12 * t + 12)
        penalty = (100 * options.get("alpha", 0.0) * attention[rows]).tolist()
        for members, x in folded(tokens.x[rows], penalty, count, options.get("scale", False)):
            expected[tuple(12 * t + i for i in members)] = x
    got = {tuple((out.source == i).nonzero().squeeze(1).tolist()): out.x[i] for i in range(len(out))}
    assert set(got) == set(expected)
    for members, x in got.items():
        torch.testing.assert_close(x.double(), expected[members].double(), atol=1e-5, rtol=1e-5)


def test_folder_asks_for_what_its_options_read() -> None:
    tokens = video(2)
    for options, lack in (({"alpha": 1.0}, "cls_attention or received_attention"), ({"metric": "keys"}, "keys")):
        with pytest.raises(InputError, match=f"needs {lack}"):
            build("folder", **options).reduce(tokens, Budget(tokens=4), Context())
