"""A cache that stays within its limits: an oracle that hides what left, and the rules of what may leave."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.engine.memory import fed
from tests.engine.memory.fed import HEAD, Fed
from vtoken.engine.memory.limits import Limits, bytes_per_column
from vtoken.engine.memory.memory import Memory, policy_of
from vtoken.engine.state.cache import attention_layers, stored
from vtoken.errors import InputError

ALIKE = ("fifo", "random", "pyramid", "recall")
APART = ("tar_van", "proxy", "value_norm", "key_norm", "snapkv")


@pytest.mark.parametrize("policy", ALIKE + APART)
@pytest.mark.parametrize("name", ["qwen3_vl", "llava_onevision"])
def test_eviction_equals_hiding(name, policy):
    """Several evictions with steps between them: what is read later is what it is where attention hides what left."""
    own, whole = Fed(name, policy=policy, tokens=40), Fed(name, fresh=True)
    layers = [i for i, layer in enumerate(own.cache.layers) if layer in attention_layers(own.cache)]
    at, before = None, 0
    with fed.written_out(whole.model):
        for _ in range(9):
            own.step()
            whole.step()
            n = stored(whole.cache)
            groups = own.cache.layers[layers[0]].keys.shape[1]
            at = (
                [torch.arange(n).expand(groups, -1)] * len(layers)
                if at is None
                else [torch.cat([a, torch.arange(before, n).expand(groups, -1)], 1) for a in at]
            )
            index = own.evict()
            if index is not None:
                per_layer = index if isinstance(index, list) else [index.expand(groups, -1)] * len(layers)
                at = [a.gather(1, i.expand(groups, -1)) for a, i in zip(at, per_layer, strict=True)]
                for layer, a in zip(layers, at, strict=True):
                    fed.hidden[layer] = torch.ones(groups, n, dtype=torch.bool).scatter(1, a, False)
            before = n
        assert own.memory.evicted > 40 and stored(own.cache) < n
        expected = whole.ask()
    torch.testing.assert_close(own.ask(), expected, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("policy", ALIKE + APART)
def test_time_stamps_leave_with_the_last_cell(policy):
    """A step's text is there exactly as long as some head of some layer holds one of its cells; the prompt stays."""
    own = Fed("qwen3_vl", policy=policy, tokens=60)
    for i in range(16):
        own.step()
        if own.evict() is None and i < 15:
            continue
        assert stored(own.cache) <= 60 + HEAD
        heads = [rows for layer in own.numbers() for rows in layer]
        cells = set(torch.cat([r[r[:, 1] >= 0, 0] for r in heads]).tolist())
        for rows in heads:
            text = rows[(rows[:, 1] < 0) & (rows[:, 0] >= 0), 0]
            assert set(text.tolist()) - {own.steps - 1} == cells - {own.steps - 1}
            assert bool((torch.bincount(text)[text] == own.stamps).all())
            assert int((rows[:, 0] == -1).sum()) == HEAD
            assert bool((rows == torch.tensor([0, 0])).all(1).any())  # the first cell of the first step
            assert bool((rows[:, 0] == i).any())
    assert own.memory.evicted > 0


def test_every_head_keeps_its_own_best_cells():
    """Of one eviction: the cells with the largest values, for each head of each layer, beside the forced first one."""
    own = Fed("qwen3_vl", stamps=0, policy="value_norm", tokens=400)
    for _ in range(9):
        own.step()
    own.memory.limits = Limits(tokens=40)
    values = [layer.values[0, :, HEAD:].norm(dim=-1) for layer in attention_layers(own.cache)]
    index = own.evict()
    assert isinstance(index, list)
    for norm, places in zip(values, index, strict=True):
        norm[:, 0] = torch.inf
        for head, row in zip(norm, places, strict=True):
            assert row[:HEAD].tolist() == list(range(HEAD))
            stays = torch.zeros(len(head), dtype=torch.bool).scatter(0, row[HEAD:] - HEAD, True)
            assert int(stays.sum()) == 30 and head[stays].min() >= head[~stays].max()  # equal tokens have equal values
        assert len({tuple(row.tolist()) for row in places}) == len(places) > 1


def test_steps_without_cells_do_not_pile_up():
    """A camera that sees nothing new sends time stamps only."""
    own = Fed("qwen3_vl", policy="fifo", tokens=400)
    own.step()
    for _ in range(60):
        own.step(torch.zeros(0, dtype=torch.long))
        own.evict()
    assert stored(own.cache) < HEAD + 9 + 70


def test_window():
    own = Fed("qwen3_vl", policy="pyramid", window="3s")  # steps of half a second
    for _ in range(20):
        own.step()
        own.evict()
    rows = own.numbers()[0][0]
    assert sorted(set(rows[:, 0].tolist())) == [-1, 0, 13, 14, 15, 16, 17, 18, 19]
    assert int((rows[:, 0] == 0).sum()) == 1 + own.stamps


def test_memory_in_bytes():
    own = Fed("qwen3_vl", policy="fifo")
    own.step()
    column = bytes_per_column(own.cache)
    parts = [t for layer in attention_layers(own.cache) for t in (layer.keys, layer.values)]
    assert column * stored(own.cache) == sum(t.numel() * t.element_size() for t in parts)
    own = Fed("qwen3_vl", policy="fifo", memory=column * 50)
    for _ in range(20):
        own.step()
        own.evict()
        assert stored(own.cache) <= 50


@settings(max_examples=8)
@given(st.data())
def test_any_cells_any_policy(data):
    """Ragged steps: limits, order of columns and equal counts hold."""
    policy = data.draw(st.sampled_from(ALIKE + APART))
    own = Fed("llava_onevision", stamps=data.draw(st.integers(0, 3)), policy=policy, tokens=30)
    for _ in range(8):
        cells = data.draw(st.lists(st.integers(0, 5), unique=True, max_size=6).map(sorted))
        if own.stamps + len(cells):
            own.step(torch.tensor(cells, dtype=torch.long))
        own.evict()
        assert len(own.memory.ledger) == stored(own.cache) <= 30 + HEAD
        for i in range(len(attention_layers(own.cache))):
            assert bool((own.memory.ledger.rows(i).diff(dim=1) > 0).all())


def test_pyramid_thins_out_with_age():
    """Old steps lie farther apart than new ones, and the oldest are still there."""
    own = Fed("llava_onevision", stamps=0, policy="pyramid", tokens=120)
    for _ in range(120):
        own.step()
        own.evict()
    steps = own.numbers()[0][0][HEAD:, 0].unique()
    assert int(steps[1]) <= 64
    apart = steps.diff()
    assert bool((apart[-3:] == 1).all()) and int(apart[: len(apart) // 2].min()) >= 2


def test_random_draws_anew():
    own, other = (Fed("llava_onevision", stamps=0, policy=f"random:seed={s}", tokens=40) for s in (0, 1))
    for _ in range(12):
        for one in (own, other):
            one.step()
            one.evict()
    assert own.numbers()[0][0].tolist() != other.numbers()[0][0].tolist()


def test_hybrid_evicts_in_its_full_layers():
    own = Fed("qwen3_5", policy="tar_van", tokens=40)
    for _ in range(8):
        own.step()
        own.evict()
    assert own.memory.evicted > 0
    assert own.ask().isfinite().all()


def test_cache_is_as_it_was_after_closing_tokens_looked():
    own = Fed("qwen3_5", policy="proxy", tokens=40)
    own.step()
    before = own.ask()
    own2 = Fed("qwen3_5", policy="proxy", tokens=40)
    own2.step()
    from vtoken.engine.memory.closing import sights

    sights(own2.model, own2.cache, torch.tensor([7, 9]), torch.full((3,), own2.next))
    torch.testing.assert_close(own2.ask(), before)


def test_proxy_scores_are_the_models_own_attention():
    """The weights of the closing tokens are those that eager attention gives out."""
    from vtoken.engine.memory.closing import sights

    own = Fed("qwen3_vl", policy="proxy", tokens=40, fresh=True)
    own.step()
    n, ids = stored(own.cache), torch.tensor([7, 9, 11])
    seen = sights(own.model, own.cache, ids, torch.full((3,), own.next))
    own.model.set_attn_implementation("eager")
    from vtoken.engine.state.tail import text_positions

    places = text_positions(own.cache, torch.full((3,), own.next), 3, "cpu")
    with torch.no_grad():
        out = own.model.base_model(
            input_ids=ids[None], position_ids=places, past_key_values=own.cache, use_cache=True, output_attentions=True
        )
    for sight, weight in zip(seen, out.attentions, strict=True):
        view = sight.view(None, torch.arange(n))
        torch.testing.assert_close(view.attention(view.text), weight[0], atol=1e-5, rtol=1e-4)
        share = len(sight.queries) // len(sight.keys)
        alone = sight.view(1, torch.arange(n))
        torch.testing.assert_close(alone.attention(alone.text), weight[0, share : 2 * share], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("text", "value"), [("2GB", 2e9), ("512 MiB", 512 * 2**20), (1000, 1000), ("1.5kb", 1500), ("7", 7)]
)
def test_amounts(text, value):
    assert Limits.of(memory=text).nbytes == value


@pytest.mark.parametrize(
    "given_",
    [
        {"memory": "2 parsecs"},
        {"memory": "GB"},
        {"memory": 0},
        {"window": "-3s"},
        {"window": "1.2.3s"},
        {"tokens": 0},
        {"tokens": 2.5},
        {"tokens": True},
        {"window": float("nan")},
    ],
)
def test_amounts_that_are_none(given_):
    with pytest.raises(InputError, match=next(iter(given_))):
        Limits.of(**given_)


def test_refusals():
    model = Fed("qwen3_vl").model
    with pytest.raises(InputError, match="closing="):
        Memory(model, "proxy", tokens=10)
    with pytest.raises(InputError, match="does not take rows out of a cache"):
        policy_of("divprune")
    with pytest.raises(InputError, match="floor=0"):
        Memory(model, "fifo", floor=0)
    own = Fed("qwen3_vl", policy="fifo", tokens=10)
    own.ask()
    with pytest.raises(InputError, match="call add first"):
        own.evict()
    with pytest.raises(InputError, match="holds no token"):
        small = Fed("qwen3_vl", policy="fifo", memory=100)
        small.step()
        small.evict()
