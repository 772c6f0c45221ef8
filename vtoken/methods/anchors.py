"""Time anchors: tokens of every time step that stay whatever a method decides; they keep the language model's clock."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from vtoken.data.frames import Grid
from vtoken.errors import InputError
from vtoken.kernels.topk import cells, last_of_steps, top_of_groups

Place = Literal["last", "first", "spread", "random"]
PLACES: tuple[Place, ...] = get_args(Place)


@dataclass(frozen=True)
class Anchors:
    """How many tokens of every time step stay, and which.

    As text: ``2``, ``spread:3``, ``random:2,seed=5``, ``16,reuse``; in a plan ``grt:anchors=(spread:3)``.

    Attributes:
        count: tokens of each step; a step with fewer keeps all.
        at: their place among the step's tokens in raster order: "last", "first", "spread" evenly, or "random".
        seed: of the random place. A gate draws anew for each step, by the seed and the step's number alone.
        reuse: for gates: an anchor that did not change is not encoded; the last features of its cell are sent again.

    Raises:
        InputError: a number below 0 or that is not whole, or an unknown place.
    """

    count: int = 0
    at: Place = "last"
    seed: int = 0
    reuse: bool = False

    def __post_init__(self) -> None:
        for name in ("count", "seed"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 0:
                raise InputError(f"anchors={self._given()}: {name} must be a whole number of at least 0")
        if self.at not in PLACES:
            raise InputError(f"anchors={self._given()}: the place must be one of {', '.join(PLACES)}")

    @classmethod
    def of(cls, value: Anchors | int | str, method: str = "") -> Anchors:
        """Anchors from a number, their text, or anchors; ``method`` is for messages.

        Raises:
            InputError: see ``Anchors``, or text that cannot be read.
        """
        if isinstance(value, Anchors):
            return value
        try:
            return _read(value) if isinstance(value, str) else cls(value)
        except InputError as error:
            raise InputError(f"{method}:{error}" if method else str(error)) from None

    def rows(self, position: Tensor) -> Tensor:
        """Rows of the anchors of one sample at int [N, 3] (t, h, w): int64 ascending."""
        if self.count == 0 or len(position) == 0:
            return torch.arange(0, device=position.device)
        if self.at == "last":
            return last_of_steps(position, self.count)
        steps, step = position[:, 0].unique(return_inverse=True)
        place = cells(position)
        if self.at == "spread":
            return _spread(step, place, self.count)
        if self.at == "random":
            generator = torch.Generator().manual_seed(self.seed)
            place = torch.randperm(len(position), generator=generator).to(position.device)
        return top_of_groups(-place, step, step.new_full((len(steps),), self.count))

    def cells(self, grid: Grid, step: int) -> np.ndarray:
        """Raster numbers of the anchors of a whole time step by its number: int64 [min(count, cells)]."""
        n, cells = min(self.count, grid.cells), grid.cells
        if self.at == "random":
            return np.random.default_rng((self.seed, step)).permutation(cells)[:n]
        if self.at == "spread":
            return (2 * np.arange(n) + 1) * cells // (2 * max(n, 1))
        return np.arange(n) + (cells - n if self.at == "last" else 0)

    def __str__(self) -> str:
        """The text that ``of`` reads, in brackets where a plan needs them."""
        plain = self.at == "last" and self.seed == 0 and not self.reuse
        return str(self.count) if plain else f"({self._given()})"

    def _given(self) -> str:
        parts = [f"{self.count}" if self.at == "last" else f"{self.at}:{self.count}"]
        parts += [f"seed={self.seed}"] if self.seed else []
        return ",".join(parts + (["reuse"] if self.reuse else []))


def _read(text: str) -> Anchors:
    """Anchors from text such as "spread:3" or "random:2,seed=5"."""
    first, *rest = (part.strip() for part in text.strip("() ").split(","))
    place, colon, count = first.rpartition(":")
    try:
        options: dict[str, int | bool] = {}
        for part in rest:
            name, _, value = part.partition("=")
            if part != "reuse" and name != "seed":
                raise ValueError(part)
            options[name] = True if part == "reuse" else int(value)
        number = int(count)
    except ValueError:
        raise InputError(
            f"anchors={text!r} cannot be read; write a number, or PLACE:NUMBER with PLACE one of {', '.join(PLACES)}, "
            "and after a comma seed=NUMBER or reuse, such as (random:2,seed=5)"
        ) from None
    return Anchors(number, place if colon else "last", **options)  # type: ignore[arg-type]  # checked there


def _spread(step: Tensor, place: Tensor, count: int) -> Tensor:
    """The middles of ``count`` equal parts of every step, as ``kernels.topk.spread`` takes them."""
    order = place.argsort(stable=True)
    order = order[step[order].argsort(stable=True)]
    sizes = torch.bincount(step)
    rank = torch.arange(len(order), device=order.device) - (sizes.cumsum(0) - sizes)[step[order]]
    n = sizes[step[order]]
    m = n.clamp(max=count)

    def below(r: Tensor) -> Tensor:
        """How many of a step's m middles lie below rank r."""
        return (2 * m * r + n - 1) // (2 * n)

    return order[below(rank + 1) > below(rank)].sort().values
