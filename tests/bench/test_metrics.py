"""Text metrics against slow, obvious versions."""

from __future__ import annotations

import math
from functools import cache

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vtoken.bench import metrics

WORDS = st.lists(st.sampled_from(["a", "b", "c", "dd"]), max_size=7)


def slow(a: tuple, b: tuple) -> int:
    @cache
    def at(i: int, j: int) -> int:
        if not i or not j:
            return i + j
        return min(at(i - 1, j) + 1, at(i, j - 1) + 1, at(i - 1, j - 1) + (a[i - 1] != b[j - 1]))

    return at(len(a), len(b))


@given(WORDS, WORDS)
def test_distance(a: list[str], b: list[str]) -> None:
    assert metrics.distance(a, b) == slow(tuple(a), tuple(b))


@given(WORDS, WORDS)
def test_rates_and_similarity(a: list[str], b: list[str]) -> None:
    answer, reference = " ".join(a), " ".join(b)
    edits = slow(tuple(a), tuple(b))
    assert metrics.word_error_rate(answer, reference) == edits / max(len(b), 1)
    assert metrics.edit_similarity(answer, reference) == 1 - edits / max(len(a), len(b), 1)
    assert metrics.character_error_rate(answer, reference) == slow(tuple(answer), tuple(reference)) / max(
        len(reference), 1
    )
    assert metrics.exact_match(answer.upper() + " ", reference) == float(a == b)


def test_token_f1_is_over_multisets() -> None:
    assert metrics.token_f1("a a b", "a b b") == pytest.approx(2 / 3)
    assert metrics.token_f1("x", "a") == 0 and metrics.token_f1("", "") == 1


def test_bootstrap_brackets_the_mean_and_is_seeded() -> None:
    groups = [[1.0, 0.0], [1.0, 1.0], [0.0], [1.0]] * 10
    low, high = metrics.bootstrap(groups, seed=3)
    assert low < 4 / 6 < high and metrics.bootstrap(groups, seed=3) == (low, high)
    assert metrics.bootstrap([[0.5, 0.5]]) == (0.5, 0.5)
    assert all(math.isnan(v) for v in metrics.bootstrap([]))
