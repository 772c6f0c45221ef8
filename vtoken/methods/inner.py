"""Inner: what every method shares that acts inside the language model, between two of its layers.

A method scores the visual tokens that are left; the base takes the best of them. The hidden states, the masks and the
cache follow from its decision in ``vtoken.engine.inner``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from vtoken.data.budget import Budget
from vtoken.data.tokens import Tokens
from vtoken.errors import InputError
from vtoken.kernels.topk import others, spread
from vtoken.methods.fold import Decision, Fold, beside, folded
from vtoken.methods.reducer import Context, Count, Scorer
from vtoken.methods.view import View

Layer = int | float
SIGNALS = frozenset({"last_attention", "text_attention", "visual_attention", "keys"})
PLACE = "_place"  # signal int64: index of a token among the rows of the stage's view
COLUMN = "_column"  # signal int64: the column of the prompt whose position a token has


@dataclass
class LayerContext(Context):
    """The inputs of a method inside the language model besides the tokens.

    ``text`` holds the hidden states of the text behind the last visual token, as they are at this layer.

    Attributes:
        layer, depth: the layer before which the method acts, and the number of layers.
        step, steps: which of its layers this is, counted from 0, and how many it has.
        view: unit -> rows of its sample at the attention layer that the method reads; made at its first use.
        norm: the final norm of the language model.
        memory: what the method remembers from layer to layer of one prompt.
    """

    layer: int = 0
    depth: int = 1
    step: int = 0
    steps: int = 1
    view: Callable[[int], View] | None = None
    norm: Callable[[Tensor], Tensor] | None = None
    memory: dict[Any, Any] = field(default_factory=dict)

    def look(self) -> View:
        """The view of the sample at hand.

        Raises:
            InputError: the tokens do not come from inside a language model.
        """
        if self.view is None:
            raise InputError("this method reads a layer of the language model; it can only run inside one")
        return self.view(self.sample)

    def first(self, n: int) -> int:
        """Tokens that the sample at hand had at the first layer of the method, ``n`` where this is the first."""
        return self.memory.setdefault(("entered", self.sample), n)


@dataclass(kw_only=True)
class Inner(Scorer):
    """A method that lets visual tokens leave between layers of the language model; subclasses write ``score``.

    Signals that it may name in ``needs``, float32, with one row a token: ``last_attention`` [N, H] of the last row of
    the prompt, ``text_attention`` [N] of the rows behind the last visual token, ``visual_attention`` [N] of the visual
    rows (both averaged over rows and heads), and ``keys`` [N, G d] with rotary positions. Others come from
    ``context.look()``.

    Attributes:
        layer: the layer before which it acts, counted from 0, or a share of the depth in (0, 1); or several.
        exact: the published code to the letter instead of the paper, exact counts and kept positions.
        source: whether attention and keys are those of the layer "before", as it ran, or of the layer "here", on what
            enters it.
        behind: True where ``layer`` names the layer behind which it acts.
        rotary: False where its scores have no rotary positions.
        looks: True where it asks for ``context.look()``; tokens then have their places there as the signal ``_place``.
        looks_later: True where it reads attention at some of its layers only.
        applies_signals: True where ``apply`` reads signals too.
        share: share kept where no budget is given; None where the method decides itself.
        wants_start: True where it reads ``View.start``.

    Raises:
        InputError: a layer out of range.
    """

    kind: ClassVar[str] = "inner"
    source: ClassVar[Literal["before", "here"]] = "before"
    behind: ClassVar[bool] = False
    looks: ClassVar[bool] = False
    looks_later: ClassVar[bool] = False
    applies_signals: ClassVar[bool] = False
    share: ClassVar[float | None] = None
    wants_start: ClassVar[bool] = False
    layer: Layer | tuple[Layer, ...] = 2
    exact: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        given = self.layer if isinstance(self.layer, tuple) else (self.layer,)
        for value in given:
            whole = isinstance(value, int) and not isinstance(value, bool) and value >= 0
            if not whole and not (isinstance(value, float) and 0 < value < 1):
                raise InputError(
                    f"{self.name}:layer={value!r} must be the number of a layer, 0 or more, or a share of the depth "
                    "above 0 and below 1"
                )
        if not given:
            raise InputError(f"{self.name}:layer=() must name at least one layer")

    @property
    def rotary(self) -> bool:
        return True

    @property
    def kept_share(self) -> float:
        """The share kept: ``keep``, or the published one."""
        given = self.keep if self.keep is not None else self.share
        return 1.0 if given is None else given

    @property
    def carried(self) -> frozenset[str]:
        """Signals of the encoder that it can use."""
        return frozenset()

    @property
    def positions(self) -> Literal["keep", "renumber", "mean"]:
        """What becomes of positions: kept, counted anew from 0, or the mean of what a token was made of."""
        return "keep"

    @property
    def cuts_cache(self) -> bool:
        """Whether what leaves also leaves the cache of the layers before."""
        return False

    @property
    def optional_budget(self) -> bool:
        """Whether the method has a share of its own where no budget is given."""
        return self.share is not None

    def boundaries(self, depth: int) -> list[int]:
        """The layers before which it acts in a model of ``depth`` layers, ascending.

        Raises:
            InputError: a layer that the model does not have, or whose work would come too late.
        """
        given = self.layer if isinstance(self.layer, tuple) else (self.layer,)
        most = depth - 1 - self.behind
        found = []
        for value in given:
            number = value if isinstance(value, int) else min(math.floor(Fraction(repr(value)) * depth), most)
            if not 0 <= number <= most:
                raise InputError(f"{self}: layer {value} is not in 0..{most}, for a model of {depth} layers")
            found.append(number + self.behind)
        return sorted(set(found))

    def finished(self, context: LayerContext) -> bool:
        """Whether the method has nothing left to do in the layers to come."""
        return False

    # What a method may write besides ``score``.

    def select(self, tokens: Tokens, k: int, context: LayerContext) -> Tensor:  # type: ignore[override]
        """Rows of one sample to keep: int64; the best k unless a method says otherwise."""
        return super().select(tokens, k, context)

    def merge(self, tokens: Tokens, kept: Tensor, context: LayerContext) -> Fold | None:
        """What is added to the kept rows (int64 [k]); None where the others leave without a trace."""
        return None

    def published(self, n: int, context: LayerContext) -> int | None:
        """The count of the published code for a sample with n tokens left; None where the budget says it."""
        return None

    # What the engine uses.

    def reduce(self, tokens: Tokens, budget: Budget | Count | None, context: Context) -> Tokens:
        assert isinstance(context, LayerContext)
        return self.apply(tokens, self.choose(tokens, budget, context), context)  # type: ignore[arg-type]

    def choose(self, tokens: Tokens, budget: Budget | Count | None, context: LayerContext) -> list[Any]:
        """What stays of every sample, see ``Reducer.reduce``; apart from ``apply``, so that a choice can be used again.

        Raises:
            InputError: a signal is missing, features or scores are not finite, or the count is wrong.
        """
        given = set(tokens.signals) | ({"text"} if context.text is not None else set())
        if lacks := self.missing(given):
            raise InputError(f"{self.name} needs {' and '.join(lacks)}; signals here: {', '.join(given) or 'none'}")
        decisions = []
        with torch.no_grad():  # gradients flow through what is kept, not through the decision
            for b, n in enumerate(tokens.batch.diff().tolist()):
                context.sample = b
                decisions.append(self.decide(tokens, b, self._count(n, budget, context), context))
        return decisions

    def _count(self, n: int, budget: Budget | Count | None, context: LayerContext) -> int:
        """Tokens left after this step; several steps go down to the budget on a logarithmic scale."""
        entered = context.first(n)
        if not self.needs_budget or n == 0:
            return n
        if self.exact and (count := self.published(n, context)) is not None:
            return max(0, min(n, count))
        chosen = self.own_budget() or budget
        if chosen is None:
            return self.default_count(n, context)
        if isinstance(chosen, Budget):
            final = min(n, chosen.resolve(entered, context.length(context.sample)))
        else:
            final = min(n, chosen(context.sample, entered))
        return self.scheduled(n, final, context)

    def default_count(self, n: int, context: LayerContext) -> int:
        """Tokens left after this step where no budget is given.

        Raises:
            InputError: the method has no share of its own.
        """
        if self.share is None:
            raise InputError(f"{self.name} needs a budget: give keep=, tokens= or per_second=")
        return self.scheduled(n, min(n, Budget(keep=self.share).resolve(context.first(n), 0.0)), context)

    def scheduled(self, n: int, final: int, context: LayerContext) -> int:
        """Tokens left after this step, where ``final`` are left after the last one."""
        left = context.steps - context.step
        return final if left == 1 else round(n * (final / n) ** (1 / left))

    def decide(self, tokens: Tokens, b: int, k: int, context: Context) -> Any:
        assert isinstance(context, LayerContext)
        sample = tokens.sample(b)
        n, device = len(sample), tokens.x.device
        if self.is_identity(n, k):
            return Decision(torch.arange(n, device=device))
        anchors = self.anchor_rows(sample)
        if self.needs_budget and k <= len(anchors) and len(anchors):
            return Decision(anchors[spread(len(anchors), k, device)])
        rest = others(anchors, n)
        inner = sample if len(rest) == n else sample.take(rest)
        kept = self.select(inner, k - len(anchors), context)
        if self.needs_budget and not self.exact and len(kept) != k - len(anchors):
            raise InputError(f"{self.name} selected {len(kept)} rows for k={k - len(anchors)}")
        fold = self.merge(inner, kept, context)
        return Decision(kept, fold) if len(anchors) == 0 else beside(kept, fold, rest, anchors)

    def apply(self, tokens: Tokens, decisions: list[Any], context: Context) -> Tokens:
        starts = tokens.batch.tolist()
        kept = torch.cat([d.kept + s for d, s in zip(decisions, starts, strict=False)])
        plain = all(d.fold is None for d in decisions)
        if plain and len(kept) == len(tokens) and torch.equal(kept, torch.arange(len(kept), device=kept.device)):
            return tokens
        out = tokens.take(kept)
        return out if plain else folded(tokens, out, decisions)


def trim(keep: float) -> float:
    """A kept share as published code computes it, from the share that it cuts."""
    return 1 - (1 - keep)
