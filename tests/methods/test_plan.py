"""Plans from what a user gives: the default, budgets, and errors in the user's words."""

from __future__ import annotations

from typing import Any

import pytest

import vtoken
from tests.families.tiny import model_of
from vtoken.errors import InputError
from vtoken.methods.plan import Plan


def test_the_default_takes_a_budget() -> None:
    assert str(Plan.parse("default")) == "grt"
    assert str(Plan.parse("default", keep=0.25)) == "grt | divprune (keep=0.25)"
    model = model_of("qwen2_5_vl")
    with vtoken.wrapped(model, tokens=64):
        assert str(model.vtoken.plan) == "grt | divprune (tokens=64)"
    with vtoken.wrapped(model):
        assert str(model.vtoken.plan) == "grt"
    with pytest.raises(InputError, match="takes the budget; append a pruner or merger"):
        Plan.parse("grt", keep=0.25)


@pytest.mark.parametrize(
    ("plan", "budget", "told"),
    [
        (None, {}, r"plan=None: give text such as 'grt \| divprune'"),
        (3, {}, "plan=3: give text"),
        (["grt"], {}, r"plan=\['grt'\]: give text"),
        ("GRT", {}, "unknown method 'GRT'; did you mean grt"),
        ("", {}, "the plan is empty"),
        ("default", {"keep": "two"}, "keep='two' is not a finite number"),
        ("default", {"keep": True}, "keep=True is not a finite number"),
        ("default", {"keep": 0.5, "tokens": 3}, "exactly one of keep, tokens and per_second"),
    ],
)
def test_wrong_plans_and_budgets_are_told_in_words(plan: Any, budget: dict[str, Any], told: str) -> None:
    with pytest.raises(InputError, match=told):
        vtoken.wrap(model_of("qwen2_5_vl"), plan, **budget)


def test_dir_lists_the_public_names() -> None:
    assert dir(vtoken) == sorted(vtoken.__all__) and all(hasattr(vtoken, name) for name in dir(vtoken))
