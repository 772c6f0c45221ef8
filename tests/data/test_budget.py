"""Budget: exact counts and clear refusals."""

from __future__ import annotations

import math
from decimal import ROUND_FLOOR, Decimal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vtoken.data.budget import Budget
from vtoken.errors import InputError


@given(st.integers(0, 10**6), st.integers(1, 10000))
def test_keep_is_exact_in_decimals(n, share):
    written = Decimal(share) / 10000
    wanted = int((written * n + Decimal("0.5")).to_integral_value(ROUND_FLOOR))
    assert Budget(keep=float(written)).resolve(n, math.nan) == min(n, max(1, wanted))


def test_resolve():
    assert Budget(keep=0.29).resolve(50, math.nan) == 15  # 14.5; in binary 14.499999999999998
    assert Budget(keep=1.0).resolve(7, math.nan) == 7
    assert Budget(keep=1e-9).resolve(7, math.nan) == 1
    assert Budget(tokens=16).resolve(7, math.nan) == 7
    assert Budget(tokens=np.int64(3)).resolve(7, math.nan) == 3
    assert Budget(tokens=4.0).resolve(7, math.nan) == 4  # type: ignore[arg-type]
    assert Budget(per_second=64).resolve(10**6, 2.5) == 160
    assert Budget(per_second=0.1).resolve(10**6, 25) == 3
    assert Budget(per_second=64).resolve(0, math.nan) == 0
    assert str(Budget(keep=0.25)) == "keep=0.25"
    assert Budget.given(None, None, None) is None
    assert Budget.given(None, 5, None) == Budget(tokens=5)


@pytest.mark.parametrize("seconds", [math.nan, math.inf, 0.0, -1.0])
def test_per_second_needs_a_length(seconds):
    with pytest.raises(InputError, match=r"per_second=64 needs the length of the clip"):
        Budget(per_second=64).resolve(10, seconds)


@pytest.mark.parametrize("value", [0, -1, math.nan, math.inf, True, "x", None])
@pytest.mark.parametrize("name", ["keep", "tokens", "per_second"])
def test_budget_refuses(name, value):
    with pytest.raises(InputError, match=name):
        Budget(**{name: value})


@pytest.mark.parametrize("options", [{}, {"keep": 0.5, "tokens": 3}, {"keep": 1.01}, {"tokens": 2.5}])
def test_budget_refuses_more(options):
    with pytest.raises(InputError):
        Budget(**options)
