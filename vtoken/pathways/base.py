"""Pathway: a second stream beside the vision encoder, whose signals guide the reduction."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from vtoken.errors import InputError
from vtoken.pruners.base import Context
from vtoken.registry import Method
from vtoken.types import Frames, Tokens


@dataclass(kw_only=True)
class Pathway(Method):
    """A second stream over the frames; subclasses write ``signals``, the base checks and keeps what they gave."""

    kind: ClassVar[str] = "pathway"

    def __post_init__(self) -> None:
        self._kept: tuple[Frames, Tensor, dict[str, Tensor]] | None = None

    def signals(self, frames: Frames, tokens: Tokens, context: Context) -> dict[str, Tensor]:
        """Row-aligned tensors [N, ...] by name for the tokens of one clip."""
        raise NotImplementedError(type(self).__name__)

    def run(self, frames: Frames, tokens: Tokens, context: Context) -> dict[str, Tensor]:
        """``signals``, checked, and computed once for the same frames and positions.

        Raises:
            InputError: more than one sample, or a signal whose rows are not those of the tokens.
        """
        if tokens.samples != 1:
            raise InputError(f"{self.name} looks at one clip at a time, got {tokens.samples} samples")
        if self._kept is not None:
            seen, position, made = self._kept
            if seen is frames and torch.equal(position, tokens.position):
                return dict(made)
        with torch.no_grad():
            made = self.signals(frames, tokens, context)
        for name, value in made.items():
            if len(value) != len(tokens):
                raise InputError(f"{self.name}: signal {name!r} has {len(value)} rows, the clip {len(tokens)} tokens")
        self._kept = (frames, tokens.position, made)
        return dict(made)
