"""Design and settings of a model: plain words and numbers, no torch, so that the command line starts at once."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from vtoken.errors import InputError

Kind = Literal["film", "adaln", "crossattn"]
KINDS = ("film", "adaln", "crossattn")
NAMES = ("prefill", "generated")  # streams of the thinker
LOSSES = ("mse", "l1", "smooth_l1")  # of the latents
MODES = ("think", "jepa", "vlm")
LEVELS = ("all", "middle", "last")
POOLS = ("flat", "attention")


@dataclass(frozen=True)
class Design:
    """What is guided by what.

    Attributes:
        mode: "think" (both branches), "jepa" (no thinker) or "vlm" (the dense past zeroed). All have the same modules.
        guidance: "film", "adaln" or "crossattn".
        streams: of the thinker that are read: "prefill", "generated".
        levels: of the thinker: "all", "middle" or "last".
        gate: where the gates start; 0 makes the guided model equal to the unguided one.
        causal: block-causal attention by frame.
        normed: layer-normed latents as input and target, V-JEPA 2's way; False takes them as the encoder gives them.
        pool: the head's pooling over patches, "flat" or "attention".
        queries: of the attentive pooling.

    Raises:
        InputError: an unknown word.
    """

    mode: str = "think"
    guidance: Kind = "film"
    streams: tuple[str, ...] = NAMES
    levels: str = "all"
    gate: float = 0.0
    causal: bool = True
    normed: bool = False
    pool: str = "flat"
    queries: int = 1

    def __post_init__(self) -> None:
        for name, value, known in (
            ("mode", self.mode, MODES),
            ("guidance", self.guidance, KINDS),
            ("levels", self.levels, LEVELS),
            ("pool", self.pool, POOLS),
            *(("streams", s, NAMES) for s in self.streams),
        ):
            if value not in known:
                raise InputError(f"{name}={value!r} is unknown; known are {', '.join(known)}")

    def chosen(self, levels: int) -> list[int]:
        """Levels that are read, of those there are."""
        return {"all": list(range(levels)), "middle": [levels // 2], "last": [levels - 1]}[self.levels]


@dataclass(frozen=True)
class Settings:
    """How a model is trained.

    Attributes:
        design: what is guided by what.
        seed: of the fresh parts, the batches and the dropout.
        steps, batch: optimiser steps, windows in each.
        rate, head_rate, gate_rate: of the predictor with its guidance, of the head, of the gates. Gates start at zero
            and are scalars, which Adam moves by no more than their rate a step.
        decay: weight decay.
        loss: of the latents, "mse", "l1" or "smooth_l1".
        points_weight, latent_weight: of both losses.
        first: share of the windows that are the first of their episode, where the future begins; the others begin
            later, so that a roll-out meets what it was trained for.
        fresh: the predictor from nothing instead of the checkpoint's.

    Raises:
        InputError: a number out of range, or an unknown loss.
    """

    design: Design = field(default_factory=Design)
    seed: int = 0
    steps: int = 600
    batch: int = 16
    rate: float = 1e-3
    head_rate: float = 2e-3
    gate_rate: float = 5e-2
    decay: float = 1e-4
    loss: str = "mse"
    points_weight: float = 1.0
    latent_weight: float = 1.0
    first: float = 0.5
    fresh: bool = False

    def __post_init__(self) -> None:
        if self.loss not in LOSSES:
            raise InputError(f"loss={self.loss!r} is unknown; known are {', '.join(LOSSES)}")
        for name in ("steps", "batch"):
            if getattr(self, name) < 1:
                raise InputError(f"{name}={getattr(self, name)} must be at least 1")
        if not 0 <= self.first <= 1:
            raise InputError(f"first={self.first} is a share, from 0 to 1")

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        return json.loads(json.dumps(asdict(self)))
