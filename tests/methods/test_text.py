"""Which methods read the question's text: what they declare is what they do."""

from __future__ import annotations

import pytest
import torch

from tests.catalogue import MERGERS, OWN_COUNT, PRUNERS, Row, label
from tests.tokens import TEXT, sample
from vtoken.data.budget import Budget
from vtoken.methods import registry
from vtoken.methods.plan import Plan
from vtoken.methods.reducer import Context, Reducer, Scorer


class Sealed(list):
    """Text that must not be read."""

    def __getitem__(self, index):
        raise AssertionError("the text was read")

    def __iter__(self):
        raise AssertionError("the text was read")


def made(row: Row) -> Reducer:
    method = registry.build(row["name"], **row["options"])
    assert isinstance(method, Reducer)
    return method


@pytest.mark.parametrize("row", [*PRUNERS, *MERGERS, *OWN_COUNT], ids=label)
def test_a_method_reads_the_text_exactly_if_it_wants_it(row: Row):
    method, tokens = made(row), sample(60, 1, row["signals"] if row["name"] != "scene" else [])
    if row["name"] == "scene":
        tokens.signals["scene"] = tokens.position[:, 0].long() // 2
    budget = Budget(tokens=30) if method.needs_budget else None
    if not any("text" in part.wants for part in (method, *method.parts)):
        method.reduce(tokens, budget, Context(text=Sealed([TEXT])))
        return
    with pytest.raises(AssertionError, match="the text was read"):
        method.reduce(tokens, budget, Context(text=Sealed([TEXT])))


@pytest.mark.parametrize(
    ("plan", "reads"),
    [
        ("grt", False),
        ("none", False),
        ("kffocus:keep=0.5", False),
        ("kffocus:keep=0.5,inner=mmtok", True),
        ("grt | evs:keep=0.5 | recoverable:keep=0.5", True),
        ("dart:keep=0.5", True),
        ("dart:keep=0.5,pivot_text_token=0", False),
        ("quota:keep=0.5", True),
        ("cdpruner:keep=0.5", True),
    ],
)
def test_a_plan_knows_whether_it_reads_the_text(plan: str, reads: bool):
    assert Plan.parse(plan).reads_text is reads


def test_text_that_is_not_declared_is_not_there():
    class Sly(Scorer):
        """Reads the text without saying so."""

        def score(self, tokens, context):
            assert context.text is None
            return torch.zeros(len(tokens))

    assert len(Sly().reduce(sample(20), Budget(tokens=3), Context(text=[TEXT]))) == 3
