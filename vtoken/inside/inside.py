"""Any pruner or merger of the library, run between two layers of the language model."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from vtoken.data.budget import Budget
from vtoken.data.tokens import Tokens
from vtoken.errors import InputError
from vtoken.methods import registry
from vtoken.methods.inner import PLACE, Inner, Layer, LayerContext
from vtoken.methods.merger import Merger
from vtoken.methods.reducer import Context, Count, Pruner, Reducer
from vtoken.methods.registry import Method, register

OWN = ("keys", "received_attention")  # signals of the encoder that a layer of the language model gives too


@register("inside")
@dataclass(kw_only=True)
class Inside(Inner):
    """Runs another method on the hidden states that enter a layer of the language model.

    The method gets the hidden states as features, those of the question as text, and every signal that the tokens
    carry. ``inside:method=(vidcom2),layer=8`` is VidCom2 before layer 8.

    Attributes:
        method: a pruner or merger: its text, or an object.
        layer: the layer before which it acts.
        signals: whether keys and attention received are those of this "layer" (from the visual rows, heads averaged),
            or of the "encoder".

    Raises:
        InputError: ``method`` is no pruner or merger, or two budgets are given.
    """

    paper: ClassVar[str] = "ours: any method, at a layer"
    source: ClassVar[Literal["before", "here"]] = "here"
    applies_signals: ClassVar[bool] = True
    method: str | Reducer = "divprune"
    layer: Layer | tuple[Layer, ...] = 0.25
    signals: Literal["layer", "encoder"] = "layer"

    def __post_init__(self) -> None:
        made: Method = registry.parse(self.method) if isinstance(self.method, str) else self.method
        if not isinstance(made, (Pruner, Merger)) or isinstance(made, Inner):
            raise InputError(f"{self.name}:method={self.method} must be a pruner or merger, such as divprune")
        self._inner = made
        super().__post_init__()
        if self.signals not in ("layer", "encoder"):
            raise InputError(f"{self.name}:signals={self.signals!r} must be layer or encoder")
        outer = Budget.given(self.keep, self.tokens, self.per_second)
        if made.own_budget() is not None and outer is not None:
            raise InputError(f"{self.name}: two budgets, {outer} and {made.own_budget()} of {made.name}")

    @property
    def needs_budget(self) -> bool:  # type: ignore[override]
        return self._inner.needs_budget

    @property
    def optional_budget(self) -> bool:
        return not self.needs_budget or self._inner.own_budget() is not None

    def own_budget(self) -> Budget | None:
        return super().own_budget() or self._inner.own_budget()

    @property
    def parts(self) -> tuple[Method, ...]:
        return (self, *self._inner.parts)

    @property
    def looks(self) -> bool:  # type: ignore[override]
        return bool(self._given_here())

    @property
    def carried(self) -> frozenset[str]:
        return self._inner.wants - self._given_here() - {"text"}

    def _given_here(self) -> frozenset[str]:
        return self._inner.wants & frozenset(OWN) if self.signals == "layer" else frozenset()

    def score(self, tokens: Tokens, context: LayerContext) -> Tensor:  # type: ignore[override]
        raise InputError(f"{self} has no scores of its own")

    def choose(self, tokens: Tokens, budget: Budget | Count | None, context: LayerContext) -> list[Any]:
        tokens = self._signalled(tokens, context)
        given = set(tokens.signals) | ({"text"} if context.text is not None else set())
        if lacks := self._inner.missing(given):
            raise InputError(f"{self}: {self._inner.name} needs {' and '.join(lacks)}, which the tokens do not carry")
        decisions = []
        with torch.no_grad():
            for b, n in enumerate(tokens.batch.diff().tolist()):
                context.sample = b
                decisions.append(self._inner.decide(tokens, b, self._count(n, budget, context), context))
        return decisions

    def apply(self, tokens: Tokens, decisions: list[Any], context: Context) -> Tokens:
        assert isinstance(context, LayerContext)
        out = self._inner.apply(self._signalled(tokens, context), decisions, context)
        return replace(out, signals={n: v for n, v in out.signals.items() if n in tokens.signals})

    def _signalled(self, tokens: Tokens, context: LayerContext) -> Tokens:
        """The tokens with those signals that the method wants and this layer gives."""
        given = self._given_here()
        if not given or PLACE not in tokens.signals:
            return tokens
        parts: dict[str, list[Tensor]] = {name: [] for name in given}
        for b in range(tokens.samples):
            context.sample = b
            view, place = context.look(), tokens.signals[PLACE][tokens.batch[b] : tokens.batch[b + 1]]
            for name in given:
                value = view.received(view.visual) if name == "received_attention" else view.keys(True).mean(0)
                parts[name].append(value[place])
        return tokens.with_signals(**{name: torch.cat(values) for name, values in parts.items()})
