"""The pruner base: what a wrong or unusual method meets."""

from __future__ import annotations

from typing import ClassVar

import pytest
import torch
from torch import Tensor

from tests.tokens import pack, sample
from vtoken.data.budget import Budget
from vtoken.data.tokens import Tokens
from vtoken.errors import InputError
from vtoken.methods.reducer import Context, Pruner, Scorer


class Told(Pruner):
    """Returns what the test sets."""

    name = "told"
    answer: Tensor

    def select(self, tokens: Tokens, k: int, context: Context) -> Tensor:
        return self.answer


class Marked(Scorer):
    """Ranks by whatever the test sets."""

    name = "marked"
    answer: Tensor

    def score(self, tokens: Tokens, context: Context) -> Tensor:
        return self.answer


class Threshold(Pruner):
    """Drops quiet tokens, whatever the budget."""

    name = "threshold"
    needs: ClassVar[frozenset[str]] = frozenset({"motion"})
    needs_budget = False

    def select(self, tokens: Tokens, k: int, context: Context) -> Tensor:
        assert k == len(tokens)
        return (tokens.signals["motion"] > 0.5).nonzero().squeeze(1)


@pytest.mark.parametrize(
    ("answer", "message"),
    [([0, 1], "selected 2 rows for k=3"), ([0, 1, 1], "taken twice"), ([0, 1, 9], "outside"), ([-1, 0, 1], "outside")],
)
def test_wrong_selections_are_refused(answer, message):
    method = Told()
    method.answer = torch.tensor(answer)
    with pytest.raises(InputError, match=message):
        method.reduce(sample(6), Budget(tokens=3), Context())


def test_a_selection_never_reaches_another_sample():
    """Rows count from the sample's start: one past its end is another sample's row."""
    method = Told()
    method.answer = torch.tensor([0, 1, 7])
    with pytest.raises(InputError, match=r"outside 0\.\.5"):
        method.reduce(pack([sample(6), sample(2, 1)]), Budget(tokens=3), Context())


def test_order_of_a_selection_is_kept():
    method = Told()
    method.answer = torch.tensor([4, 0, 2])
    assert method.reduce(sample(6), Budget(tokens=3), Context()).signals["row"].tolist() == [4, 0, 2]


def test_wrong_scores_are_refused_and_infinite_ones_rank():
    method = Marked()
    for answer, message in [(torch.zeros(5), r"must be \[6\]"), (torch.full((6,), torch.nan), "6 of 6 scores are NaN")]:
        method.answer = answer
        with pytest.raises(InputError, match=message):
            method.reduce(sample(6), Budget(tokens=3), Context())
    method.answer = torch.tensor([0.0, torch.inf, -torch.inf, 1.0, 0.0, 0.0])
    assert method.reduce(sample(6), Budget(tokens=3), Context()).signals["row"].tolist() == [0, 1, 3]


def test_a_method_may_set_its_own_count():
    parts = [sample(n, n, ["motion"]) for n in (8, 0, 3)]
    out = Threshold().reduce(pack(parts), None, Context())
    assert out.batch.diff().tolist() == [int((p.signals["motion"] > 0.5).sum()) for p in parts]
    with pytest.raises(InputError, match="threshold needs motion; signals of these tokens: row"):
        Threshold().reduce(sample(4), None, Context())


def test_a_count_function_serves_as_budget_and_cannot_ask_for_more_than_there_is():
    asked = []

    def count(b: int, n: int) -> int:
        asked.append((b, n))
        return 4

    method = Marked()
    method.answer = torch.arange(6.0)
    out = method.reduce(pack([sample(6), sample(3), sample(0)]), count, Context())
    assert asked == [(0, 6), (1, 3), (2, 0)]
    assert out.batch.tolist() == [0, 4, 7, 7]


def test_context_tells_the_sample_and_unknown_lengths():
    seen = []

    class Curious(Marked):
        def score(self, tokens: Tokens, context: Context) -> Tensor:
            seen.append(context.sample)
            return torch.zeros(len(tokens))

    Curious().reduce(pack([sample(4), sample(4), sample(5)]), Budget(tokens=2), Context())
    assert seen == [0, 1, 2]
    with pytest.raises(InputError, match="length of the clip"):
        Curious().reduce(pack([sample(4), sample(4)]), Budget(per_second=2), Context(seconds=[1.0]))


@pytest.mark.parametrize("anchors", [-1, 1.5, True, "many"])
def test_bad_anchors_are_refused(anchors):
    with pytest.raises(InputError, match="anchors="):
        Told(anchors=anchors)
