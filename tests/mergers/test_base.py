"""The merger base: ragged batches, exact counts, and refusals."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.tokens import pack, same, sample
from vtoken.errors import InputError
from vtoken.mergers.base import Merger
from vtoken.pruners.base import Context
from vtoken.types import Budget, Tokens


class Runs(Merger):
    """Fuses runs of neighbouring rows into k tokens."""

    name = "runs"

    def group(self, tokens: Tokens, k: int, context: Context) -> Tensor:
        n = len(tokens)
        return torch.arange(n) * k // n


class Broken(Merger):
    """Returns what the test sets."""

    name = "broken"
    answer: Tensor

    def group(self, tokens: Tokens, k: int, context: Context) -> Tensor:
        return self.answer


class Pairs(Merger):
    """Fuses pairs, whatever the budget."""

    name = "pairs"
    needs_budget = False

    def group(self, tokens: Tokens, k: int, context: Context) -> Tensor:
        return torch.arange(len(tokens)) // 2


COUNTS = (0, 1, 9, 10, 0, 40)


def test_ragged_batch_equals_one_by_one():
    parts = [sample(n, i, ["keys"]) for i, n in enumerate(COUNTS)]
    out = Runs().reduce(pack(parts), Budget(tokens=9), Context())
    assert out.batch.diff().tolist() == [0, 1, 9, 9, 0, 9]
    assert same(out, pack([Runs().reduce(p, Budget(tokens=9), Context()) for p in parts]))
    assert out.size.sum() == sum(float(p.size.sum()) for p in parts)
    assert (out.source >= 0).all()
    assert torch.equal(out.sample_of[out.source], pack(parts).sample_of)


def test_whole_budget_is_the_identity():
    tokens = pack([sample(n, i) for i, n in enumerate(COUNTS)])
    assert same(Runs().reduce(tokens, Budget(keep=1.0), Context()), tokens)


def test_a_merger_may_set_its_own_count():
    out = Pairs().reduce(pack([sample(5), sample(0), sample(4)]), None, Context())
    assert out.batch.tolist() == [0, 3, 3, 5]
    with pytest.raises(InputError, match="takes no budget"):
        Pairs(keep=0.5)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ([0, 0, 1, 2], "made 3 tokens for k=2"),
        ([0, 0, 0, 0], "made 1 tokens for k=2"),
        ([-1, -1, -1, -1], "made 0 tokens for k=2"),
        ([1, 1, 1, -1], "must be 0..K-1"),
        ([0, 1], r"must be \[4\]"),
    ],
)
def test_wrong_groups_are_refused(answer, message):
    merger = Broken()
    merger.answer = torch.tensor(answer)
    with pytest.raises(InputError, match=message):
        merger.reduce(sample(4), Budget(tokens=2), Context())
