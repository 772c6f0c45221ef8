"""A uniform shift of all positions changes nothing, and steps that left come back for a question."""

from __future__ import annotations

import pytest
import torch

from tests.engine.memory.fed import Fed
from vtoken.engine.memory.shift import Turning
from vtoken.engine.state.cache import attention_layers, stored

FAMILIES = ["qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_5", "llava_onevision"]


@pytest.mark.parametrize("name", FAMILIES)
def test_shifted_keys_are_those_of_lower_positions(name):
    """Keys turned down by a constant are the keys of a model that was fed at lower positions."""
    high, low = Fed(name), Fed(name)
    for one, start in ((high, 100), (low, 0)):  # float32 rounds the model's own angles at larger positions
        one.cache = type(low.cache)(config=one.model.config.get_text_config(decoder=True))
        ids = torch.arange(5, 25)
        places = torch.arange(20).expand(one.axes, -1)
        if one.axes == 3:
            places = torch.stack([places[0], places[0] // 2, places[0] % 5])  # the three axes apart
        one.read(ids, places + start)
    turning = Turning(high.model, high.axes)
    for a, b in zip(attention_layers(high.cache), attention_layers(low.cache), strict=True):
        torch.testing.assert_close(turning.by(a.keys, 100), b.keys, atol=1e-5, rtol=1e-4)
        assert not torch.allclose(a.keys, b.keys, atol=1e-3)


@pytest.mark.parametrize("name", FAMILIES)
def test_answers_after_a_shift(name):
    own, other = (Fed(name, policy="fifo", tokens=40) for _ in range(2))
    for one in (own, other):
        one.next = 700
        for _ in range(6):
            one.step()
            one.evict()
    # the prompt of both lies at 0..3, so that it goes below zero: positions are differences
    other.memory.shift(other.cache, 600)
    other.next -= 600
    assert int(other.memory.ledger.places.max()) == other.next - 1
    for one in (own, other):
        one.step()
    torch.testing.assert_close(other.ask(), own.ask(), atol=1e-5, rtol=1e-4)


def test_rows_that_held_cells_show_are_shifted_too():
    own = Fed("qwen3_vl")
    own.step()
    layer = attention_layers(own.cache)[0]
    layer.shown = layer.keys.clone(), layer.values.clone()
    own.memory.shift(own.cache, 3)
    assert torch.equal(layer.shown[0], layer.keys) and torch.equal(layer.shown[1], layer.values)


def test_everything_recalled_is_the_whole_cache():
    """With room for all that left, the answer is that of a cache from which nothing left."""
    own, whole = Fed("qwen3_vl", policy="recall", tokens=400), Fed("qwen3_vl", tokens=400)
    for one in (own, whole):
        for _ in range(10):
            one.step()
    own.memory.limits = type(own.memory.limits)(tokens=40)
    own.evict()
    assert stored(own.cache) < 45 and own.memory.nbytes_recalled > 0
    question, start = torch.tensor([6, 8, 10]), torch.full((3,), own.next)
    with own.memory.recalled(own.cache, question, start) as count:
        assert count == own.memory.evicted and stored(own.cache) == stored(whole.cache)
        answer = own.ask()
    assert stored(own.cache) < 45
    torch.testing.assert_close(answer, whole.ask(), atol=1e-5, rtol=1e-4)


def test_nearest_steps_come_back():
    """A question that is a step's own text brings that step back before others."""
    own = Fed("llava_onevision", stamps=0, policy="recall:recalled=6", tokens=400)
    for _ in range(10):
        own.step()
    own.memory.limits = type(own.memory.limits)(tokens=20)
    layers = attention_layers(own.cache)
    wanted, n = 4, 4 + 4 * 6
    keys = [layer.keys[0][:, n : n + 6].clone() for layer in layers]
    own.evict()
    assert own.memory.store is not None
    found = own.memory.store.nearest(keys, torch.arange(n, n + 6)[None], 6)
    for (key, _), expected in zip(found, keys, strict=True):
        assert torch.equal(key, expected)
    assert wanted * 6 + 4 == n


def test_shift_reaches_what_is_stored():
    own, other = (Fed("qwen2_5_vl", policy="recall", tokens=40) for _ in range(2))
    for one in (own, other):
        for _ in range(10):
            one.step()
            one.evict()
    other.memory.shift(other.cache, 50)
    other.next -= 50
    answers = []
    for one in (own, other):
        with one.memory.recalled(one.cache, torch.tensor([6, 8, 10]), torch.full((3,), one.next)) as count:
            assert count > 0
            answers.append(one.ask())
    torch.testing.assert_close(answers[1], answers[0], atol=1e-5, rtol=1e-4)
