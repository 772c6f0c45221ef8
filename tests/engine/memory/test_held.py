"""Columns leave a HoldCache: equal to a mask that hides them, in both of its forms."""

from __future__ import annotations

import pytest
import torch

from tests.engine.held import cut, positions, random_map
from tests.families.tiny import FAMILIES
from vtoken.data.hold import HoldMap
from vtoken.engine.hold import attention
from vtoken.engine.hold.cache import HoldCache
from vtoken.engine.hold.inputs import hold_inputs
from vtoken.engine.memory.held import evict_columns
from vtoken.errors import InputError, UnsupportedError

LAYOUT = [("text", 5), ("video", 6), ("text", 4)]


def filled(name: str, query: bool, samples: int = 1):
    family = FAMILIES[name]
    model = family.build().eval()
    if query:
        attention.install(model)
    inputs = family.inputs(model, [LAYOUT] * samples)
    hold: HoldMap = random_map(model, inputs, 0.4, 0.0)
    caches = []
    for turned in (1 << 40, 0 if query else 1 << 40):  # the first one keeps turned keys, which a mask can hide
        made = hold_inputs(model, cut(model, inputs, hold), hold, positions(model, inputs), turned)
        with torch.no_grad():
            caches.append(model(**made, use_cache=True).past_key_values)
    return model, inputs, hold, caches


@torch.no_grad()
def asked(model, cache, start: int, mask=None):
    """Logits of three tokens, in one call and in three."""
    length = int(cache.get_seq_length())
    out, place = [], start
    for n in (3, 1, 1):
        at = torch.arange(place, place + n).expand(3, 1, -1)
        given = None if mask is None else torch.nn.functional.pad(mask, (0, place + n - start), value=1)
        ids = torch.arange(6, 6 + n)[None]
        out.append(
            model(input_ids=ids, position_ids=at, attention_mask=given, past_key_values=cache, use_cache=True).logits
        )
        place += n
    assert int(cache.get_seq_length()) == length + 5
    return torch.cat(out, 1)


@pytest.mark.parametrize("query", [False, True])
@pytest.mark.parametrize("name", ["qwen2_5_vl", "qwen3_vl"])
def test_columns_that_left_are_not_seen(name, query):
    model, inputs, hold, (whole, cache) = filled(name, query)
    assert isinstance(cache, HoldCache)
    width = inputs["input_ids"].shape[1]
    visual = (hold.shows != torch.arange(width)).logical_or(hold.rows).nonzero()[:, 1]
    gone = visual[8:25:2]
    bytes_before = cache.nbytes()
    freed = evict_columns(cache, gone)
    assert freed == bytes_before - cache.nbytes() and (query or freed > 0)
    assert int(cache.get_seq_length()) == width
    mask = torch.ones(1, width, dtype=torch.long)
    mask[0, gone] = 0
    start = int(positions(model, inputs).max()) + 1
    expected = asked(model, whole, start, mask)
    torch.testing.assert_close(asked(model, cache, start), expected, atol=2e-5, rtol=1e-4)


def test_rows_leave_when_no_column_shows_them():
    model, _, hold, (_, cache) = filled("qwen2_5_vl", True)
    rows = cache.tables.rows
    row = int(hold.rows[0].nonzero()[7])
    slots = (hold.shows[0] == row).nonzero()[:, 0]
    stored = cache.layers[0].keys.shape[2]
    assert len(slots) > 1
    evict_columns(cache, slots[:-1])  # one slot still shows it
    assert cache.tables.rows == rows and cache.layers[0].keys.shape[2] == stored
    evict_columns(cache, slots[-1:])
    assert cache.tables.rows == rows - 1 and cache.layers[0].keys.shape[2] == stored - 1


def test_refusals():
    _, inputs, _, (cache, _) = filled("qwen2_5_vl", False)
    with pytest.raises(InputError, match="columns must lie in"):
        evict_columns(cache, torch.tensor([10_000]))
    with pytest.raises(InputError, match="no column"):
        evict_columns(cache, torch.arange(inputs["input_ids"].shape[1]))
    cache = filled("qwen2_5_vl", False, samples=2)[3][0]
    with pytest.raises(UnsupportedError, match="holds 2"):
        evict_columns(cache, torch.tensor([7]))
