"""FrameBudget: base of methods that set the token count of each frame; another pruner chooses the tokens."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from vtoken.data.tokens import Tokens
from vtoken.errors import InputError
from vtoken.kernels.deal import deal
from vtoken.methods import registry
from vtoken.methods.reducer import Context, Pruner
from vtoken.methods.registry import Method

ROW = "_row_of_sample"


@dataclass(kw_only=True)
class FrameBudget(Pruner):
    """Divides the budget among frames by weight; subclasses write ``weights``.

    A frame never gets more than it has; the rest of its share goes to the others, so that the count is exact.

    Attributes:
        inner: the pruner that chooses within each frame: its text, such as "divprune", or an object.

    Raises:
        InputError: ``inner`` is no pruner, or has a budget of its own.
    """

    inner: str | Pruner = "uniform"

    def __post_init__(self) -> None:
        super().__post_init__()
        made: Method = registry.parse(self.inner) if isinstance(self.inner, str) else self.inner
        if not isinstance(made, Pruner) or not made.needs_budget:
            raise InputError(f"{self.name}:inner={self.inner} must be a pruner that takes a budget, such as divprune")
        if made.own_budget() is not None:
            raise InputError(f"{self.name}:inner={self.inner} must not bring a budget; {self.name} gives it one")
        self._inner = made

    def weights(self, tokens: Tokens, steps: Tensor, step: Tensor, context: Context) -> Tensor:
        """Weight of each frame: float [T], at least 0.

        Args:
            tokens: one sample.
            steps: int [T], time steps of the sample.
            step: int64 [N], number of each row's step among them.
        """
        raise NotImplementedError(type(self).__name__)

    @property
    def wants(self) -> frozenset[str]:
        return super().wants | self._inner.wants

    @property
    def parts(self) -> tuple[Method, ...]:
        return (self, *self._inner.parts)

    def select(self, tokens: Tokens, k: int, context: Context) -> Tensor:
        steps, step, sizes = tokens.position[:, 0].unique(return_inverse=True, return_counts=True)
        weight = self.weights(tokens, steps, step, context)
        quota = deal(weight, sizes, k)
        order = step.argsort(stable=True)
        rows = order[quota[step[order]] > 0]
        lengths = sizes[quota > 0]
        wants = self._inner.wants | set(self._inner.takes)
        signals = {n: v for n, v in tokens.signals.items() if n in wants}
        frames = replace(tokens, signals=signals).take(rows).with_signals(**{ROW: rows})
        frames = replace(frames, batch=torch.cat([lengths.new_zeros(1), lengths.cumsum(0)]))  # a frame is a sample
        text = None if context.text is None else [context.text[context.sample]] * len(lengths)
        shared = {n: v for n, v in context.given.items() if not isinstance(v, (list, tuple))}  # no list of frames
        questions = None if context.questions is None else [context.questions[context.sample]] * len(lengths)
        own = Context([], text, given=shared, questions=questions, extra=context.extra, notes=context.notes)
        counts = quota[quota > 0].tolist()
        return self._inner.reduce(frames, lambda b, n: counts[b], own).signals[ROW].sort().values
