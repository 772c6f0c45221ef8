"""The feature gate of hold against a slow form that walks through every cell by itself."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import normalize

from vtoken.data.hold import HoldMap
from vtoken.errors import InputError
from vtoken.methods.hold import FeatureGate, gate, rows_of, slot_tokens


def clip(steps: int, h: int, w: int, share: float, seed: int, wander: float = 0.4) -> tuple[Tensor, Tensor]:
    """Features that wander, with sudden changes, and positions in random order; first tokens of cells come late."""
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(steps, h, w, 6, generator=draw)
    for t in range(1, steps):
        jump = torch.rand(h, w, 1, generator=draw) < 0.3
        x[t] = torch.where(jump, x[t], x[t - 1] + wander * x[t])
    there = torch.rand(steps, h, w, generator=draw) < share
    position = there.nonzero()
    order = torch.randperm(len(position), generator=draw)
    return x[there][order], position[order]


def slow(x: Tensor, position: Tensor, shape, tau, second, home, second_home, lag, starts=None):
    """{slot: (token, home slot)} by walking."""
    steps, h, w = shape
    at = {tuple(p): i for i, p in enumerate(position.tolist())}
    unit = normalize(x.float(), dim=1)
    out = {}
    for i in range(h):
        for j in range(w):
            runs, now = [], None  # [token, first step, last step, jump]
            for t in range(steps):
                if starts is not None and starts[t]:
                    now = None
                token = at.get((t, i, j))
                if token is not None:
                    jump = math.inf if now is None else 1 - float(unit[token] @ unit[now])
                    if jump > tau:
                        now = token
                        runs.append([token, t, t, jump])
                if now is not None:
                    runs[-1][2] = t
            for token, a, b, jump in runs:
                place = {"start": a, "middle": (a + b) // 2, "end": b, "lag": min(a + lag, b)}
                rest = {"start": a + 1, "middle": (a + 1 + b) // 2, "end": b, "lag": min(a + lag, b)}
                two = second is not None and math.isfinite(jump) and jump > second and b > a
                for t in range(a, b + 1):
                    when = (a if t == a else rest[second_home]) if two else place[home]
                    out[t, i, j] = (token, when * h * w + i * w + j)
    return out


HOMES = st.sampled_from(["start", "middle", "end", "lag"])


@settings(max_examples=60, deadline=None)
@given(
    st.tuples(st.integers(1, 9), st.integers(1, 3), st.integers(1, 3)),
    st.sampled_from([0.2, 0.6, 1.0]),
    st.sampled_from([0.0, 0.1, 0.4, 1.0]),
    st.sampled_from([None, 0.0, 0.4]),
    HOMES,
    HOMES,
    st.integers(1, 3),
    st.booleans(),
    st.integers(0, 10**6),
)
def test_the_gate_equals_the_slow_form(shape, share, tau, second, home, second_home, lag, scenes, seed):
    x, position = clip(*shape, share, seed)
    starts = torch.rand(shape[0], generator=torch.Generator().manual_seed(seed)) < 0.3 if scenes else None
    made = FeatureGate(tau=tau, second=second, home=home, second_home=second_home, lag=lag)
    held = made(x, position, shape, starts=starts)
    expected = slow(x, position, shape, tau, second, home, second_home, lag, starts)
    assert held.home.tolist() == sorted(held.home.tolist()) and len(held.home.unique()) == len(held.home)
    for slot, row in zip(
        torch.cartesian_prod(*map(torch.arange, shape)).tolist(), held.show.flatten().tolist(), strict=True
    ):
        got = None if row < 0 else (int(held.source[row]), int(held.home[row]))
        assert got == expected.get(tuple(slot))
    visual = torch.ones(1, math.prod(shape), dtype=torch.bool)
    rows = HoldMap.of([held.shows], visual).columns()[0]  # every home shows its own row
    assert rows.tolist() == held.home.tolist()


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([0.5, 1.0]), st.sampled_from([None, 0.2, 0.4]), st.floats(0, 1))
def test_a_number_of_rows_is_met(seed, share, second, where):
    shape = (8, 2, 3)
    x, position = clip(*shape, share, seed)
    least = len(FeatureGate(tau=2.0, second=second)(x, position, shape).home)
    most = len(x)  # each token one row
    rows = round(least + where * (most - least))
    held = FeatureGate(second=second)(x, position, shape, rows=rows)
    assert len(held.home) == rows
    if rows > least:
        with pytest.raises(InputError, match="too few"):
            FeatureGate(second=second)(x, position, shape, rows=least - 1)


def test_a_still_clip_has_one_row_a_cell():
    x = torch.randn(6, 4).repeat(5, 1)
    position = torch.cartesian_prod(torch.arange(5), torch.arange(2), torch.arange(3))
    held = FeatureGate(tau=1e-4)(x, position, (5, 2, 3))
    assert held.home.tolist() == list(range(12, 18))  # the third of five steps
    assert torch.equal(held.show, torch.arange(6).view(1, 2, 3).expand(5, -1, -1))


def test_what_a_cell_showed_is_what_counts():
    """Slow change: each step is near to the last one, and the distance to what is shown grows until it is too far."""
    angle = torch.arange(12) * 0.1
    x = torch.stack([angle.cos(), angle.sin()], dim=1)
    token = slot_tokens(
        torch.stack([torch.arange(12), torch.zeros(12, dtype=torch.long), torch.zeros(12, dtype=torch.long)], 1),
        (12, 1, 1),
    )
    shown, jump = gate(x, token, tau=1 - math.cos(0.35))
    assert shown.flatten().tolist() == [0, 0, 0, 0, 4, 4, 4, 4, 8, 8, 8, 8]
    assert jump[4].item() == pytest.approx(1 - math.cos(0.4), abs=1e-6)


def test_second_rows_lie_two_steps_behind_a_change():
    shown = torch.tensor([0, 0, 5, 5, 5, 5, 9]).view(7, 1, 1)
    leap = torch.tensor([math.inf, 0, 0.5, 0, 0, 0, 0.9]).view(7, 1, 1)
    held = rows_of(shown, leap)
    assert held.home.tolist() == [0, 2, 4, 6] and held.source.tolist() == [0, 5, 5, 9]
    assert held.show.flatten().tolist() == [0, 0, 1, 2, 2, 2, 3]
    assert rows_of(shown, leap, second_home="middle").home.tolist() == [0, 2, 4, 6]
    assert rows_of(shown, leap, second=None).home.tolist() == [0, 3, 6]
    assert rows_of(shown, leap, second=None, home="end").home.tolist() == [1, 5, 6]


@pytest.mark.parametrize(
    "call, told",
    [
        (lambda: FeatureGate(tau=3.0), "tau"),
        (lambda: FeatureGate(lag=0), "lag"),
        (lambda: FeatureGate(home="there"), "home"),  # type: ignore[arg-type]
        (lambda: FeatureGate()(torch.ones(1, 2), torch.zeros(1, 3, dtype=torch.long), (1, 1, 1)), "either"),
        (lambda: FeatureGate(tau=0.1)(torch.ones(1, 2), torch.ones(1, 3, dtype=torch.long), (1, 1, 1)), "inside"),
        (lambda: FeatureGate(tau=0.1)(torch.ones(2, 2), torch.zeros(2, 3, dtype=torch.long), (1, 1, 1)), "same"),
    ],
)
def test_bad_input_is_refused(call, told):
    with pytest.raises(InputError, match=told):
        call()
