"""Pruners against the outputs of the official code."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from vtoken.data.budget import Budget
from vtoken.data.tokens import Tokens
from vtoken.methods import registry
from vtoken.methods.reducer import Context, Pruner


def build(name: str, **options) -> Pruner:
    method = registry.build(name, **options)
    assert isinstance(method, Pruner)
    return method


def load(golden: Path, name: str) -> dict[str, torch.Tensor]:
    return torch.load(golden / f"{name}.pt", weights_only=True)


@pytest.mark.parametrize("name", ["evs_static", "evs_q09"])
def test_evs_exact_gives_the_mask_of_vllm(golden, name):
    data = load(golden, name)
    t, h, w = data["thw"].tolist()
    merge = int(data["spatial_merge_size"])
    position = torch.cartesian_prod(torch.arange(t), torch.arange(h // merge), torch.arange(w // merge))
    tokens = Tokens.of(data["video_embeds"], position)
    keep = 1 - float(data["q"])
    out = build("evs", exact=True, keep=keep).reduce(tokens, None, Context())
    assert len(out) == int(data["retained"])
    assert torch.equal(out.source >= 0, data["mask"])
    counted = build("evs").reduce(tokens, Budget(tokens=int(data["retained"])), Context())
    assert torch.equal(counted.source >= 0, data["mask"])  # the choice is the same; only the count differs


def test_evs_exact_count_rule():
    position = torch.cartesian_prod(torch.arange(4), torch.arange(2), torch.arange(3))
    tokens = Tokens.of(torch.randn(24, 8, generator=torch.Generator().manual_seed(0)), position)
    for keep, wanted in [(0.01, 6), (0.25, 6), (0.32, 7), (0.99, 23), (1.0, 24)]:
        assert len(build("evs", exact=True, keep=keep).reduce(tokens, None, Context())) == wanted
    assert len(build("evs", exact=True).reduce(tokens, Budget(tokens=2), Context())) == 6
    assert len(build("evs").reduce(tokens, Budget(tokens=2), Context())) == 2


def test_cls_gives_the_tokens_of_fastervlm(golden):
    data = load(golden, "fastervlm_b1")
    budget = Budget(tokens=int(data["k"]))
    for attention in (data["cls_attn_heads"][0].T, data["mean_attn"][0]):
        out = build("cls").reduce(Tokens.of(data["features"][0], cls_attention=attention), budget, Context())
        assert torch.equal(out.x, data["kept"][0])


def test_cls_ties(golden):
    """With ties the official choice is torch.topk's accident: the multiset of scores must agree, and first wins."""
    data = load(golden, "fastervlm_ties")
    score = data["cls_attn_heads"][0].mean(0)
    out = build("cls").reduce(
        Tokens.of(torch.zeros(len(score), 2), cls_attention=score), Budget(tokens=int(data["k"])), Context()
    )
    kept = out.source >= 0
    assert torch.equal(score[kept].sort().values, score[data["index_mask"][0]].sort().values)
    last = score[kept].min()
    ties = (score == last).nonzero().squeeze(1)
    assert kept[ties].tolist() == sorted(kept[ties].tolist(), reverse=True)


def test_divprune_gives_the_published_set(golden):
    data = load(golden, "divprune_rand")
    out = build("divprune", keep=float(data["ratio"])).reduce(Tokens.of(data["features"]), None, Context())
    assert (out.source >= 0).nonzero().squeeze(1).tolist() == data["selected_sorted"].tolist()


def test_divprune_keeps_every_distinct_token_before_a_copy(golden):
    """The published code returns 48 picks of 32 tokens here; ours are 48 tokens that hold all that is distinct."""
    data = load(golden, "divprune_dup")
    x = data["features"]
    out = build("divprune", keep=float(data["ratio"])).reduce(Tokens.of(x), None, Context())
    kept = (out.source >= 0).nonzero().squeeze(1)
    assert len(kept) == len(data["selected_sorted"]) == 48
    assert len(data["selected_sorted"].unique()) == 32
    assert len(x[kept].unique(dim=0)) == len(x.unique(dim=0)) == len(x[data["selected_sorted"]].unique(dim=0))
