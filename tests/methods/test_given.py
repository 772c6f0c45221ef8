"""Signals that only a user can give: declared, refused before anything runs, and moved with the tokens."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from tests.tokens import context, pack, sample
from vtoken import families
from vtoken.data.tokens import Tokens
from vtoken.engine.session import check
from vtoken.errors import InputError, UnsupportedError
from vtoken.families.support import verdict
from vtoken.methods import registry
from vtoken.methods.plan import Plan
from vtoken.methods.reducer import Context, Scorer
from vtoken.methods.signals import given


@pytest.fixture
def depth() -> Iterator[None]:
    """A method of another package that ranks by a signal which the user gives."""

    @registry.register("nearest_first")
    @dataclass(kw_only=True)
    class Nearest(Scorer):
        """Keeps what is near the camera."""

        needs: ClassVar[frozenset[str]] = frozenset({"depth"})
        takes: ClassVar = {"depth": "token"}

        def score(self, tokens: Tokens, context: Context) -> Tensor:
            return -tokens.signals["depth"]

    yield
    del registry._methods["nearest_first"]


def rows(tokens: Tokens) -> list[int]:
    return (tokens.source >= 0).nonzero().squeeze(1).tolist()


@pytest.mark.usefixtures("depth")
@pytest.mark.parametrize("kind", ["function", "list", "tensor"])
def test_a_signal_with_a_row_for_each_token_moves_with_the_tokens(kind: str) -> None:
    parts = [sample(20, 1), sample(20, 2)]
    values = [torch.rand(20, generator=torch.Generator().manual_seed(b)) for b in range(2)]
    if kind == "tensor":
        values[1] = values[0]
    seen: list[Any] = []

    def function(tokens: Tokens, question: str | None) -> Tensor:
        seen.append((len(tokens), question))
        return values[len(seen) - 1]

    signal: Any = {"function": function, "list": values, "tensor": values[0]}[kind]
    plan = Plan.parse("divprune:tokens=10 | nearest_first:tokens=4")
    own = Context(given={"depth": signal}, questions=["near?", "far?"])
    out = plan.reduce(pack(parts), own)
    first = Plan.parse("divprune:tokens=10").reduce(pack(parts), Context())
    expected = []
    for b in range(2):
        left = [r for r in rows(first) if r // 20 == b]
        expected += sorted(sorted(left, key=lambda r, b=b: float(values[b][r - 20 * b]))[:4])
    assert rows(out) == expected
    assert seen == ([(20, "near?"), (20, "far?")] if kind == "function" else [])


@pytest.mark.usefixtures("depth")
def test_rows_that_do_not_fit_are_refused_by_name() -> None:
    plan = Plan.parse("nearest_first:tokens=4")
    with pytest.raises(InputError, match=r"signals\['depth'\] must have a row for each of the 20 tokens"):
        plan.reduce(sample(20), Context(given={"depth": torch.rand(19)}))
    with pytest.raises(InputError, match="sample 1 has none"):
        plan.reduce(pack([sample(20), sample(20, 1)]), Context(given={"depth": [torch.rand(20)]}))
    with pytest.raises(InputError, match="must give a tensor, got str"):
        plan.reduce(sample(20), Context(given={"depth": "far"}))


@pytest.mark.usefixtures("depth")
def test_refusals_come_before_anything_is_read() -> None:
    family = families.FAMILIES["qwen2_vl"]
    for text, names in (
        ("nearest_first:tokens=4", {"depth"}),
        ("cdpruner:exact=True", {"image_embeds", "text_embeds"}),
    ):
        plan = Plan.parse(text, keep=None if "tokens" in text else 0.5)
        assert check(plan, family, names) is plan
        with pytest.raises(UnsupportedError, match=f"needs {min(names)}"):
            check(plan, family)
        with pytest.raises(
            InputError, match=r"signals=\{'dept': ...\}: no stage .* it takes " + ", ".join(sorted(names))
        ):
            check(plan, family, {*names, "dept"})
    assert check(Plan.parse("cdpruner", keep=0.5), family)
    with pytest.raises(InputError, match="it takes none"):
        check(Plan.parse("divprune", keep=0.5), family, {"depth"})


def test_methods_of_the_package_take_what_they_name() -> None:
    tokens = sample(24, 3)
    scores = torch.zeros(int(tokens.position[:, 0].max()) + 1)
    scores[2] = 1

    def asked(_: Tokens, question: str | None) -> Tensor:
        return scores if question == "where?" else scores.roll(1)

    for question, step in (("where?", 2), ("when?", 3)):
        own = Context(text=context().text, given={"frame_scores": asked}, questions=[question])
        out = Plan.parse("quota", tokens=3).reduce(tokens, own)
        assert out.position[:, 0].tolist() == [step] * 3
    embeds = torch.randn(24, 6, generator=torch.Generator().manual_seed(0))
    words = torch.randn(2, 6, generator=torch.Generator().manual_seed(1))
    plan = Plan.parse("cdpruner:exact=True", tokens=5)
    own = Context(text=context().text, given={"image_embeds": lambda t, q: embeds, "text_embeds": words})
    same = plan.reduce(tokens.with_signals(image_embeds=embeds), Context(text=own.text, given={"text_embeds": words}))
    assert rows(plan.reduce(tokens, own)) == rows(same)


def test_inner_methods_get_what_every_sample_shares() -> None:
    tokens = sample(24, 3)
    plan = Plan.parse("quota:inner=(cdpruner:exact=True)", tokens=9)
    assert plan.takes == {"frame_scores": "sample", "image_embeds": "token", "text_embeds": "sample"}
    shared = {"image_embeds": torch.randn(24, 6), "text_embeds": torch.randn(2, 6)}
    assert len(plan.reduce(tokens, Context(text=context().text, given=shared))) == 9


@pytest.mark.usefixtures("depth")
def test_the_table_says_what_to_give() -> None:
    said = verdict(registry.get("nearest_first"), families.FAMILIES["mistral3"])
    assert said == "yes, where you give signals={'depth': ...}"


def test_nothing_given_is_none() -> None:
    assert given("frame_scores", sample(4), Context()) is None
