"""A map that is filled part by part equals the parts joined."""

from __future__ import annotations

from dataclasses import fields

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vtoken.data.frames import GateMap
from vtoken.data.growing import GrowingMap
from vtoken.errors import InputError


def part(steps: int, seed: int, share: float) -> GateMap:
    random, shape = np.random.default_rng(seed), (steps, 2, 3)
    return GateMap(
        random.random(shape) < share,
        random.integers(0, 9, shape, np.int32),
        random.integers(0, 3, steps, np.int32),
        random.random(shape, np.float32),
        random.random(shape) < share,
        random.random(shape) < share,
    )


@given(
    st.lists(
        st.tuples(st.integers(1, 5), st.integers(0, 99), st.sampled_from([0.0, 0.3, 1.0])), min_size=1, max_size=6
    ),
    st.integers(0, 12),
)
def test_parts_are_joined(sizes: list[tuple[int, int, float]], expected: int) -> None:
    parts, whole = [part(*size) for size in sizes], GrowingMap(expected)
    for one in parts:
        whole.add(one)
    found, wanted = whole.map(), GateMap.concatenate(parts)
    for field in fields(GateMap):
        assert np.array_equal(getattr(found, field.name), getattr(wanted, field.name)), field.name
        assert getattr(found, field.name).dtype == getattr(wanted, field.name).dtype


def test_no_part_is_an_error() -> None:
    with pytest.raises(InputError, match="at least one part"):
        GrowingMap(3).map()
