"""The guided predictor against the stock one, and what a gate at zero, causality and other samples may change."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from tests.thinkjepa.tiny import LEVELS, WIDTH, config, streams, vjepa
from vtoken.encoders.vjepa import Dense
from vtoken.errors import InputError
from vtoken.thinkjepa.predictor import GuidedPredictor, fresh_predictor
from vtoken.thinkjepa.pyramid import KINDS, Pyramid, level_of, signature
from vtoken.thinkjepa.streams import NAMES, Streams, masked_mean


def past(n: int = 3, steps: int = 4, seed: int = 1) -> torch.Tensor:
    return torch.randn(n, steps, 4, 32, generator=torch.Generator().manual_seed(seed))


def pyramid(**options: Any) -> Pyramid:
    torch.manual_seed(0)
    return Pyramid(WIDTH, LEVELS, 32, 3, heads=2, **options)


def guided(**options: Any) -> GuidedPredictor:
    return GuidedPredictor(vjepa().predictor, pyramid(**options)).eval()


@pytest.mark.parametrize("steps", [1, 4, 9])
def test_unguided_and_full_attention_is_the_stock_predictor(steps: int):
    x = past()
    want = Dense(vjepa()).predict(x, steps)
    got = GuidedPredictor(vjepa().predictor, causal=False)(x, steps)
    assert torch.allclose(got, want, atol=1e-5) and want.std() > 0.1


@pytest.mark.parametrize("kind", KINDS)
def test_shut_gates_change_nothing_at_all(kind):
    x = past()
    assert torch.equal(guided(kind=kind)(x, 4, streams(3)), GuidedPredictor(vjepa().predictor)(x, 4))


@pytest.mark.parametrize("kind", KINDS)
def test_open_gates_let_the_thinker_in_and_learn(kind):
    x, model = past(), guided(kind=kind, gate=1.0)
    assert not torch.allclose(model(x, 4, streams(3)), model(x, 4, streams(3, seed=9)), atol=1e-3)
    shut = GuidedPredictor(copy.deepcopy(vjepa().predictor), pyramid(kind=kind))
    shut(x, 4, streams(3)).square().sum().backward()
    assert shut.guide is not None and bool((shut.guide.gates.grad.abs() > 0).all())  # type: ignore[union-attr]


@pytest.mark.parametrize("kind", KINDS)
def test_each_sample_is_guided_by_itself_and_padding_counts_for_nothing(kind):
    x, model = past(), guided(kind=kind, gate=1.0)
    whole = model(x, 4, streams(3))
    for i in range(3):
        s = streams(3).take(slice(i, i + 1))
        short = {n: int(s.masks[n].sum()) for n in NAMES}
        alone = Streams(
            {n: s.tokens[n][:, :, : short[n]] for n in NAMES}, {n: s.masks[n][:, : short[n]] for n in NAMES}
        )
        assert torch.allclose(model(x[i : i + 1], 4, alone), whole[i : i + 1], atol=1e-5)
    assert torch.allclose(model(x, 4, streams(3, fill=float("nan"))), whole, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_a_stream_not_in_use_or_empty_is_not_read(kind):
    x, model = past(), guided(kind=kind, gate=1.0, use=("generated",))
    a, b = streams(3), streams(3, seed=5)
    mixed = Streams({**a.tokens, "prefill": b.tokens["prefill"]}, {**a.masks, "prefill": b.masks["prefill"]})
    assert torch.equal(model(x, 4, a), model(x, 4, mixed))
    nothing = guided(kind=kind, gate=1.0, use=())
    assert torch.equal(nothing(x, 4, a), nothing(x, 4, b))
    assert nothing(x, 4, streams(3, prefill=0, generated=0)).isfinite().all()


@pytest.mark.parametrize("guide", [None, "film"])
def test_a_frame_sees_no_later_frame(guide):
    model = guided(kind="film", gate=1.0) if guide else GuidedPredictor(vjepa().predictor)
    long = model(past(), 6, streams(3))
    assert torch.allclose(model(past(), 2, streams(3)), long[:, :2], atol=1e-5)
    full = GuidedPredictor(vjepa().predictor, causal=False)
    assert not torch.allclose(full(past(), 2), full(past(), 6)[:, :2], atol=1e-3)  # so the test can fail


def test_the_map_of_levels_is_the_papers():
    assert [level_of(i, 12, 8) for i in range(12)] == [0, 1, 1, 2, 3, 3, 4, 4, 5, 6, 6, 7]
    assert [level_of(i, 12, 1) for i in range(12)] == [0] * 12 and level_of(0, 1, 8) == 7


def test_signature_and_masked_mean():
    a, b = torch.tensor([[1.0, -2.0]]), torch.tensor([[3.0, 5.0]])
    assert signature(a, b).tolist() == [[1, -2, 3, 5, 2, 7, 3, -10]]
    x, mask = torch.tensor([[[1.0], [3.0], [50.0]]]), torch.tensor([[True, True, False]])
    assert masked_mean(x, mask).tolist() == [[2.0]] and masked_mean(x, mask & False).tolist() == [[0.0]]


def test_standardising_is_of_the_given_set():
    guide, s = pyramid(), streams(50)
    guide.fit(s)
    pooled = masked_mean(s.tokens["prefill"], s.masks["prefill"])
    shown = (pooled - guide.mean[0]) * guide.scale[0]
    assert torch.allclose(shown.mean(0), torch.zeros(LEVELS, WIDTH), atol=1e-5)
    assert torch.allclose(shown.std(0), torch.ones(LEVELS, WIDTH), atol=1e-4)


def test_a_fresh_predictor_starts_as_published():
    a, b = fresh_predictor(config(), 3), fresh_predictor(config(), 3)
    assert all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))
    core: Any = a
    assert not core.embeddings.mask_tokens.any()
    assert 0.7 < core.layer[0].mlp.fc2.weight.std() * 2**0.5 / 0.02 < 1.1
    assert 0.7 < core.layer[2].mlp.fc2.weight.std() * 6**0.5 / 0.02 < 1.1


def test_what_does_not_fit_is_refused():
    model = guided()
    with pytest.raises(InputError, match="5 patches"):
        model(torch.zeros(2, 4, 5, 32), 4)
    with pytest.raises(InputError, match="guidance of 2 samples for 3"):
        model(past(), 4, streams(2))
    with pytest.raises(InputError, match="levels"):
        one = streams(3)
        model(past(), 4, Streams({n: x[:, :1] for n, x in one.tokens.items()}, one.masks))
    with pytest.raises(InputError, match="unknown"):
        pyramid(kind="other")
    with pytest.raises(InputError, match="unknown"):
        pyramid(use=("after",))
