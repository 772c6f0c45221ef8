"""Text metrics against slow, obvious versions."""

from __future__ import annotations

import math
from functools import cache

import numpy as np
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


def test_resampled_means_against_clips_drawn_by_hand() -> None:
    rng = np.random.default_rng(0)
    sums, counts = rng.random((5, 3)), rng.integers(0, 3, (5, 3)).astype(float)
    sums *= counts > 0
    weights = metrics.draw(5, seed=1, draws=50)
    assert weights.sum(1).tolist() == [5.0] * 50 and np.array_equal(weights, metrics.draw(5, seed=1, draws=50))
    found = metrics.resampled(sums, counts, weights)
    for w, value in zip(weights.astype(int), found, strict=True):
        clips = np.repeat(np.arange(5), w)
        total, n = sums[clips].sum(0), counts[clips].sum(0)
        means = [t / k for t, k in zip(total, n, strict=True) if k]
        assert value == pytest.approx(sum(means) / len(means)) if means else math.isnan(value)


def test_intervals_cover_the_truth_as_often_as_they_say() -> None:
    rng, hits = np.random.default_rng(2), 0
    for trial in range(200):
        hits += (lambda low, high: low <= 0.7 <= high)(
            *metrics.bootstrap([list(rng.random(4) < p) for p in rng.beta(7, 3, 40)], seed=trial, draws=300)
        )
    assert 0.88 <= hits / 200 <= 0.99


def test_long_texts_are_quick_whichever_is_longer() -> None:
    long = " ".join(f"w{i % 977}" for i in range(20_000))
    assert metrics.word_error_rate("w0 w1 x", long) == (20_000 - 2) / 20_000
    assert metrics.word_error_rate(long, "w0 w1 x") == (20_000 - 2) / 3
