"""The merger base: ragged batches, exact counts, and refusals."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.tokens import pack, same, sample
from vtoken.data.budget import Budget
from vtoken.data.tokens import Tokens
from vtoken.errors import InputError
from vtoken.methods.merger import Groups, Merger
from vtoken.methods.reducer import Context


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


class Leading(Merger):
    """Fuses all rows into one, three quarters of which are its last row."""

    name = "leading"

    def group(self, tokens: Tokens, k: int, context: Context) -> Groups:
        weight = torch.full((len(tokens),), 0.25 / max(1, len(tokens) - 1))
        weight[-1] = 0.75
        return Groups(torch.zeros(len(tokens), dtype=torch.long), weight)


class Doubled(Merger):
    """Fuses runs of rows; the value is twice their sum."""

    name = "doubled"

    def group(self, tokens: Tokens, k: int, context: Context) -> Tensor:
        return torch.arange(len(tokens)) * k // len(tokens)

    def fuse(self, tokens: Tokens, group: Tensor, context: Context) -> Tensor:
        return torch.zeros(int(group.max()) + 1, tokens.x.shape[1]).index_add(0, group, 2 * tokens.x)


def test_weights_make_the_value_and_the_heaviest_the_position():
    parts = [sample(n, i, ["deepstack.0", "keys"]) for i, n in enumerate((5, 1, 7))]
    out = Leading().reduce(pack(parts), Budget(tokens=1), Context())
    for b, part in enumerate(parts):
        own, n = out.sample(b), len(part)
        share = torch.tensor([0.25 / (n - 1)] * (n - 1) + [0.75]) if n > 1 else torch.ones(1)
        torch.testing.assert_close(own.x[0], share @ part.x)
        torch.testing.assert_close(own.signals["deepstack.0"][0], share @ part.signals["deepstack.0"])
        torch.testing.assert_close(own.signals["keys"][0], part.size / part.size.sum() @ part.signals["keys"])
        assert own.position[0].tolist() == part.position[-1].tolist()
        assert own.size.tolist() == [float(part.size.sum())]
    with pytest.raises(InputError, match="weight must be"):
        parts[0].merge(torch.zeros(5, dtype=torch.long), torch.ones(4))


def test_fuse_makes_the_value_of_every_layer():
    parts = [sample(n, i, ["deepstack.0"]) for i, n in enumerate((6, 3, 0, 8))]
    out = Doubled().reduce(pack(parts), Budget(tokens=3), Context())
    for b, part in enumerate(parts):
        own, n = out.sample(b), len(part)
        for value, fused in ((part.x, own.x), (part.signals["deepstack.0"], own.signals["deepstack.0"])):
            if n <= 3:
                assert torch.equal(fused, value)  # nothing to fuse
                continue
            group = torch.arange(n) * 3 // n
            for i in range(3):
                torch.testing.assert_close(fused[i], 2 * value[group == i].sum(0))
