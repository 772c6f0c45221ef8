"""What is measured of an operation: itself, other forms of it, its cost model and its targets."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

Call = Callable[[], Any]


@dataclass(frozen=True)
class Setting:
    """Where and how large.

    Attributes:
        device: such as ``cpu`` or ``cuda:0``.
        quick: small sizes, for a look and for tests.
        full: published loops run whole, where they are otherwise run on fewer picks and scaled.
    """

    device: str = "cpu"
    quick: bool = False
    full: bool = False

    @property
    def cuda(self) -> bool:
        return self.device.startswith("cuda")

    @property
    def dtype(self) -> torch.dtype:
        """That of features and attention: bfloat16 on a GPU, float32 on a CPU."""
        return torch.bfloat16 if self.cuda else torch.float32

    def pick(self, full: int, quick: int) -> int:
        """A size."""
        return quick if self.quick else full

    def randn(self, *shape: int, dtype: torch.dtype | None = None) -> torch.Tensor:
        """Seeded normal numbers on the device."""
        made = torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))
        return made.to(self.device, dtype or self.dtype)


@dataclass(frozen=True)
class Form:
    """Another way to the same result.

    Attributes:
        name: what it is, in a few words.
        parts: calls, run in order, and how often the time of each counts.
    """

    name: str
    parts: tuple[tuple[float, Call], ...]

    @classmethod
    def of(cls, name: str, call: Call) -> Form:
        return cls(name, ((1.0, call),))

    @property
    def scaled(self) -> bool:
        return any(factor != 1 for factor, _ in self.parts)


@dataclass(frozen=True)
class Target:
    """A figure to reach: ``value(row) sign bound``, ``sign`` being ``<=`` or ``>=``."""

    what: str
    value: Callable[[Any], float | None]
    sign: str
    bound: float
    on: str  # device type: cpu or cuda

    def verdict(self, row: Any) -> tuple[bool, str] | None:
        """Whether it holds, and in words; None where the row cannot show it."""
        value = self.value(row)
        if value is None:
            return None
        held = value <= self.bound if self.sign == "<=" else value >= self.bound
        return held, f"{row.op}: {self.what} {value:.3g}, target {self.sign} {self.bound:g}"


@dataclass(frozen=True)
class Case:
    """One operation at one size, with inputs ready.

    Attributes:
        run: the operation.
        moved, flops: bytes and floating-point operations that it cannot do without.
        product: dtype of the matrix product that limits it.
        plain, published: the plain torch composition, and the form of the released code.
        beside: a further form that a target is about.
        frames: where time is given per frame, their number.
    """

    op: str
    size: str
    run: Call
    moved: float
    flops: float = 0.0
    product: torch.dtype = torch.float32
    plain: Form | None = None
    published: Form | None = None
    beside: Form | None = None
    frames: int = 0
    targets: tuple[Target, ...] = field(default=())
