"""How right an answer is: DIVE's text metrics and sequence edit similarity, with bootstrap intervals."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np


def normalise(text: str) -> str:
    """Lower case, white space collapsed: all that DIVE's metrics do to a text."""
    return " ".join(text.lower().split())


def distance(a: Sequence[object], b: Sequence[object]) -> int:
    """Levenshtein distance between two sequences; a Python loop over the shorter one only."""
    if len(a) > len(b):
        a, b = b, a
    if not a or not b:
        return len(a) + len(b)
    codes: dict[object, int] = {}
    other = np.array([codes.setdefault(item, len(codes)) for item in b])
    row = np.arange(len(b) + 1)
    for i, item in enumerate(a, start=1):
        cost = other != codes.get(item, -1)
        best = np.minimum(row[1:] + 1, row[:-1] + cost)
        # insertions run along the row: the running minimum of best - position
        steps = np.arange(1, len(b) + 1)
        best = np.minimum.accumulate(np.minimum(best - steps, i)) + steps
        row = np.concatenate([[i], np.minimum(best, i + steps)])
    return int(row[-1])


def character_error_rate(answer: str, reference: str) -> float:
    """Edits per character of the reference; may exceed 1."""
    a, b = normalise(answer), normalise(reference)
    return distance(a, b) / max(len(b), 1)


def word_error_rate(answer: str, reference: str) -> float:
    """Edits per word of the reference; may exceed 1."""
    a, b = normalise(answer).split(), normalise(reference).split()
    return distance(a, b) / max(len(b), 1)


def token_f1(answer: str, reference: str) -> float:
    """Harmonic mean of precision and recall over the multisets of words."""
    a, b = Counter(normalise(answer).split()), Counter(normalise(reference).split())
    shared = sum((a & b).values())
    return 2 * shared / (sum(a.values()) + sum(b.values())) if a or b else 1.0


def exact_match(answer: str, reference: str) -> float:
    """1.0 where the normalised texts are equal, else 0.0."""
    return float(normalise(answer) == normalise(reference))


def edit_similarity(answer: str, reference: str) -> float:
    """1 minus the word edits per word of the longer text: how much of a sequence is right, in order."""
    a, b = normalise(answer).split(), normalise(reference).split()
    return 1 - distance(a, b) / max(len(a), len(b), 1)


METRICS = {
    "exact": exact_match,
    "similarity": edit_similarity,
    "cer": character_error_rate,
    "wer": word_error_rate,
    "f1": token_f1,
}


def bootstrap(groups: Sequence[Sequence[float]], seed: int = 0, draws: int = 1000) -> tuple[float, float]:
    """95 % interval of the mean over all values when whole groups (the questions of one clip) are drawn anew.

    Args:
        groups: values of each clip; questions about one clip are not independent, so clips are resampled.

    Returns:
        lower and upper bound; equal to the mean where there is one group, nan where there is none.
    """
    if not groups:
        return float("nan"), float("nan")
    sums = np.array([[sum(g)] for g in groups], float)
    counts = np.array([[len(g)] for g in groups], float)
    return interval(resampled(sums, counts, draw(len(groups), seed, draws)))


def draw(clips: int, seed: int = 0, draws: int = 1000) -> np.ndarray:
    """float64 [draws, clips]: how often each clip comes in each bootstrap sample; the same for the same arguments."""
    shares = np.full(clips, 1 / clips)
    return np.random.default_rng(seed).multinomial(clips, shares, draws).astype(np.float64)


def resampled(sums: np.ndarray, counts: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """float64 [draws]: mean over the tasks of the mean over a task's questions, in every bootstrap sample.

    Two results on the same clips and weights are paired: their difference is that of two systems on one sample.

    Args:
        sums, counts: float64 [clips, tasks], sum of the scores and number of the questions.
        weights: float64 [draws, clips] from ``draw``; ones for the plain mean.
    """
    total, n = weights @ sums, weights @ counts
    seen = n > 0
    means = np.divide(total, n, out=np.zeros_like(total), where=seen)
    found = np.full(len(weights), np.nan)
    return np.divide(means.sum(1), seen.sum(1), out=found, where=seen.any(1))


def interval(means: np.ndarray) -> tuple[float, float]:
    """Middle 95 % of bootstrap means; nan where there are none."""
    known = means[~np.isnan(means)]
    if not len(known):
        return float("nan"), float("nan")
    low, high = np.percentile(known, [2.5, 97.5])
    return float(low), float(high)
