"""flashvid against its rule in plain loops, on clips in which an object moves."""

from __future__ import annotations

import torch
from torch import Tensor

from vtoken.data.tokens import Tokens
from vtoken.mergers.flashvid import FlashVID, diverse
from vtoken.methods.reducer import Context


def cosine(a: Tensor, b: Tensor) -> float:
    return float(a @ b / (a.norm() * b.norm()))


def clip(frames: int, cells: int, seed: int) -> Tokens:
    g = torch.Generator().manual_seed(seed)
    position = torch.tensor([(t, 0, i) for t in range(frames) for i in range(cells)], dtype=torch.int32)
    x = torch.randn(cells, 16, generator=g).repeat(frames, 1) + 0.3 * torch.randn(frames * cells, 16, generator=g)
    return Tokens.of(x, position, cls_attention=torch.rand(frames * cells, generator=g))


def test_selection_is_greedy_by_weight_times_distance() -> None:
    g = torch.Generator().manual_seed(3)
    x, weight = torch.randn(2, 9, 8, generator=g), torch.rand(2, 9, generator=g)
    found = diverse(x, weight, 4)
    for b in range(2):
        taken: list[int] = []
        for _ in range(4):
            best, at = -1.0, -1
            for i in range(9):
                near = min([1 - cosine(x[b, i], x[b, j]) for j in taken], default=1.0)
                if i not in taken and float(weight[b, i]) * near > best:
                    best, at = float(weight[b, i]) * near, i
            taken.append(at)
        assert found[b].tolist() == taken


def test_trees_are_the_most_similar_links() -> None:
    tokens, k = clip(4, 6, 0), 12
    made = FlashVID(keep=0.5, alpha=0.5, tau=-1.0, c=1).reduce(tokens, None, Context())
    assert len(made) == k
    x, weight = tokens.x, tokens.signals["cls_attention"]
    event = x.mean(0)
    chosen = set()
    for t in range(4):  # quota 3 a frame, 1 of them selected: the largest attention times likeness
        score = [float(weight[t * 6 + i]) * (1 + cosine(x[t * 6 + i], event)) / 2 for i in range(6)]
        chosen.add(t * 6 + max(range(6), key=lambda i: score[i]))
    links = []
    for i in (i for i in range(6, 24) if i not in chosen):
        before = [j for j in range(24) if j // 6 == i // 6 - 1 and j not in chosen]
        best = max(before, key=lambda j: cosine(x[i], x[j]))
        links.append((cosine(x[i], x[best]), i, best))
    parent = {i: j for _, i, j in sorted(links, reverse=True)[: 20 - (k - 4)]}
    root = list(range(24))
    for i in range(24):
        while root[i] in parent:
            root[i] = parent[root[i]]
    want = sorted((root.index(r), r) for r in set(root))
    for row, (_, r) in zip(range(k), want, strict=True):
        members = [i for i in range(24) if root[i] == r]
        torch.testing.assert_close(made.x[row], x[members].mean(0))
        assert float(made.size[row]) == len(members)


def test_an_object_that_moves_is_one_token() -> None:
    """Its patch is at another place in every frame; a method that compares places cannot fuse it."""
    frames, cells = 4, 4
    background, thing = torch.eye(16)[:cells], torch.eye(16)[8]
    x = background.repeat(frames, 1).view(frames, cells, 16).clone()
    for t in range(frames):
        x[t, t] = thing
    position = torch.tensor([(t, 0, i) for t in range(frames) for i in range(cells)], dtype=torch.int32)
    tokens = Tokens.of(x.flatten(0, 1), position, cls_attention=torch.ones(16))
    made = FlashVID(tokens=7, alpha=0.01, tau=-1.0).reduce(tokens, None, Context())
    sizes = {tuple(row.tolist()): float(n) for row, n in zip(made.x, made.size, strict=True)}
    assert sizes[tuple(thing.tolist())] == 4


def test_no_tree_crosses_a_cut_and_counts_are_exact() -> None:
    tokens = clip(6, 5, 4)
    tokens.x[15:] = torch.randn(15, 16, generator=torch.Generator().manual_seed(9)) - 3
    for k in (1, 2, 5, 11, 29):
        made = FlashVID(tokens=k, c=2).reduce(tokens, None, Context())
        assert len(made) == k and float(made.size.sum()) == 30
    made = FlashVID(tokens=12, c=2, tau=0.0).reduce(tokens, None, Context())
    steps = [set((m // 15).tolist()) for m in (torch.nonzero(made.source == i).flatten() for i in range(12))]
    assert all(len(s) == 1 for s in steps)
