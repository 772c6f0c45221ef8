"""How right an answer is: DIVE's text metrics and sequence edit similarity, with bootstrap intervals."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np


def normalise(text: str) -> str:
    """Lower case, white space collapsed: all that DIVE's metrics do to a text."""
    return " ".join(text.lower().split())


def distance(a: Sequence[object], b: Sequence[object]) -> int:
    """Levenshtein distance between two sequences."""
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
    sums = np.array([sum(g) for g in groups])
    counts = np.array([len(g) for g in groups])
    picks = np.random.default_rng(seed).integers(0, len(groups), (draws, len(groups)))
    means = sums[picks].sum(1) / np.maximum(counts[picks].sum(1), 1)
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)
