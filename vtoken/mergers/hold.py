"""Hold: tokens whose feature their cell shows already get no row in the language model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from vtoken.data.tokens import Tokens
from vtoken.methods.hold import FeatureGate, Hold, Home
from vtoken.methods.merger import Groups, Merger
from vtoken.methods.reducer import Context
from vtoken.methods.registry import register


@register("hold")
@dataclass(kw_only=True)
class HoldStage(Merger):
    """Drops tokens near to what their cell shows; the language model goes on seeing the shown token there.

    A token within cosine distance ``tau`` of the feature that its cell shows is no row of its own: attention sees the
    shown token's key and value at its place (``vtoken.engine.hold``). After a large change a second row with the same
    feature is computed a little later, because "new" must not be copied along the run. Works behind any encoder.

    Attributes:
        tau: cosine distance, 0 to 2; None where a budget says how many rows there are.
        second: a second row where the distance is above this; None for no second rows.
        home: where in its run a row is computed: "start", "middle", "end" or "lag" steps after the start.
        second_home: the same for second rows, in the rest of the run.
        lag: time steps.
        restart: a scene shows nothing of the one before, so that all its cells have a row of their own; needs the
            signal "scene" of a gate. By default a cell that looks alike after the cut goes on showing the old row.

    Raises:
        InputError: a value outside its range, or both ``tau`` and a budget.
    """

    tau: float | None = None
    second: float | None = 0.4
    home: Home = "middle"
    second_home: Home = "middle"
    lag: int = 2
    restart: bool = False

    paper: ClassVar[str] = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._gate()

    def _gate(self) -> FeatureGate:
        return FeatureGate(tau=self.tau, second=self.second, home=self.home, second_home=self.second_home, lag=self.lag)

    @property
    def needs_budget(self) -> bool:  # type: ignore[override]
        return self.tau is None

    @property
    def own_count(self) -> bool:
        return True  # second rows count too, and they come after the merge

    @property
    def rule(self) -> Hold:
        """Where rows are computed."""
        return Hold(self.second, self.home, self.second_home, self.lag)

    def group(self, tokens: Tokens, k: int, context: Context) -> Groups:
        position = tokens.position.long() - tokens.position.long().amin(0)
        shape = tuple((position.amax(0) + 1).tolist())
        image = context.length(context.sample) == 0 and not bool(tokens.time.isfinite().any())  # tiles are no steps
        if image or (shape[0] == 1 and self.tau is None):
            if self.tau is None:
                context.note("hold: an image or a video of one time step holds nothing; all its tokens stay")
            return Groups(torch.arange(len(tokens), device=position.device))
        starts = None
        if self.restart and "scene" in tokens.signals:
            starts = torch.zeros(shape[0], dtype=torch.bool, device=position.device)
            scene = tokens.signals["scene"]
            step = position[:, 0]
            first = torch.full((shape[0],), -1, dtype=torch.long, device=position.device)
            first[step] = scene.long()
            known = torch.where(first >= 0, torch.arange(shape[0], device=first.device), 0).cummax(0).values
            before = first[known]
            starts[1:] = before[1:] != before[:-1]
        found = self._gate()(tokens.x, position, shape, None if self.tau is not None else k, starts)
        run = found.source  # a token's rows are neighbours in source; its group is the token
        flat = found.show.flatten()
        place = (position[:, 0] * shape[1] + position[:, 1]) * shape[2] + position[:, 2]
        head = run[flat[place]]  # int64 [N], the token that is shown in each token's slot
        heads, number = head.unique(return_inverse=True)
        weight = torch.zeros(len(tokens), device=tokens.x.device)
        weight[heads] = 1.0
        return Groups(number, weight)
