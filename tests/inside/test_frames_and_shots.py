"""dytok and catp_inner against their rules in plain loops."""

from __future__ import annotations

import torch
from torch import Tensor

import vtoken
from tests.families.tiny import FAMILIES, model_of
from vtoken.data.tokens import Tokens
from vtoken.inside.catp_inner import CATPInner
from vtoken.inside.dytok import DyToK
from vtoken.methods.inner import COLUMN, PLACE, LayerContext


def frames(sizes: list[int], attention: Tensor) -> Tokens:
    position = torch.tensor([(t, 0, i) for t, n in enumerate(sizes) for i in range(n)], dtype=torch.int32)
    column = torch.arange(len(position))
    x = torch.randn(len(position), 8, generator=torch.Generator().manual_seed(0))
    return Tokens.of(x, position, **{COLUMN: column, PLACE: column, "last_attention": attention})


def test_dytok_deals_to_the_frames_that_are_looked_at() -> None:
    sizes = [6, 6, 6]
    weight = torch.tensor([0.02] * 6 + [0.3, 0.2, 0.06, 0.05, 0.04, 0.03] + [0.02] * 6)[:, None].repeat(1, 2)
    tokens = frames(sizes, weight)
    out = DyToK(tokens=9).reduce(tokens, None, LayerContext(depth=4, steps=1))
    kept = out.signals[COLUMN]
    counts = torch.bincount(out.position[:, 0].long(), minlength=3).tolist()
    assert counts == [2, 6, 1]  # shares 1.17, 6.65 and 1.17 of 9; the middle one is full, the rest goes on
    assert kept.tolist() == [0, 1, *range(6, 12), 12]
    few = DyToK(tokens=4).reduce(tokens, None, LayerContext(depth=4, steps=1))
    assert few.signals[COLUMN].tolist()[-4:] == [6, 7, 8, 12] or len(few) == 4


def shots(counts: list[int], seed: int) -> tuple[Tokens, list[Tensor]]:
    g = torch.Generator().manual_seed(seed)
    n = sum(counts)
    batch = torch.tensor([0, *torch.tensor(counts).cumsum(0).tolist()])
    column = torch.cat([torch.arange(c) + 100 * i for i, c in enumerate(counts)])
    position = torch.stack([torch.zeros(n), torch.zeros(n), torch.arange(n)], 1).to(torch.int32)
    tokens = Tokens(
        torch.randn(n, 8, generator=g),
        position,
        torch.full((n,), torch.nan),
        torch.ones(n),
        torch.arange(n),
        batch,
        {COLUMN: column, PLACE: column, "id": torch.arange(n)},
    )
    return tokens, [torch.rand(n, 3, generator=g) for _ in range(3)]


def cosine(a: Tensor, b: Tensor) -> float:
    return float(a @ b / (a.norm() * b.norm()))


def test_catp_cuts_the_shots_together_and_the_query_behind_them() -> None:
    counts, keep = [7, 9, 6], 0.5
    tokens, attention = shots(counts, 1)
    text = torch.randn(4, 8, generator=torch.Generator().manual_seed(2))
    method, context = CATPInner(keep=keep, lambda_2=0.6), LayerContext(depth=6, steps=3)
    context.prompt, context.text = [0, 0, 0], [text] * 3
    for step in range(3):
        context.step = step
        told = tokens.with_signals(last_attention=attention[step][tokens.signals["id"]])
        tokens = method.apply(told, method.choose(told, None, context), context)
        if step == 0:
            assert len(tokens) == 22
        if step == 1:
            assert int(tokens.batch[2]) == 4 + 5 and len(tokens.sample(2)) == 6
    x = shots(counts, 1)[0].x
    query = torch.cat([text, x[16:]]).mean(0)
    score = [
        max(0.0, float(attention[1][i].mean() - attention[0][i].mean())) + 0.6 * cosine(x[i], query) for i in range(16)
    ]
    best = sorted(sorted(range(16), key=lambda i: -score[i])[:9])
    context_mean = x[best].mean(0)
    own = sorted(sorted(range(16, 22), key=lambda i: -cosine(x[i], context_mean))[:3])
    assert tokens.signals["id"].tolist() == best + own


def test_catp_on_a_prompt_with_three_images() -> None:
    """In a model, under one budget with stage 1: exact counts, and images that keep different numbers."""
    family, model = FAMILIES["qwen2_5_vl"], model_of("qwen2_5_vl")
    import dataclasses

    name, config = family.spec()
    config.text_config.num_hidden_layers = 6
    config.text_config.layer_types = ["full_attention"] * 6
    model = dataclasses.replace(family, spec=lambda: (name, config)).build()
    image = [("image", None), ("text", 4)]
    inputs = family.inputs(model, [[("text", 3), *image, *image, *image]])
    with vtoken.wrapped(model, "catp | catp_inner:layer=2", keep=0.25) as wrapped:
        model.generate(**inputs, max_new_tokens=2, do_sample=False)
        report = wrapped.vtoken.report
    assert report.cells == 36 and report.inside[0] == report.tokens == 18 and report.inside[-1] == 9
