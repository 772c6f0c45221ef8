"""Learned: keep the tokens that a small trained network scores highest."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from vtoken.data.tokens import Tokens
from vtoken.errors import InputError
from vtoken.methods import learned
from vtoken.methods.reducer import Context, Scorer
from vtoken.methods.registry import register
from vtoken.methods.signals import text_of

SHIPPED = Path(__file__).resolve().parent.parent / "reference" / "scorer"


@register("learned")
@dataclass(kw_only=True)
class Learned(Scorer):
    """Keeps the tokens with the highest score of a network that was trained for the model, the question in sight.

    After CoViPAL: a classifier in front of the frozen language model, trained on the attention that visual tokens
    receive in a deeper layer, then end to end with soft pruning. The network's size and the losses' weights are ours,
    because the paper does not give them. `vtoken train scorer` trains one.

    Attributes:
        weights: folder of a scorer, or "reference" for that of the reference model. Required.

    Raises:
        InputError: no ``weights``, or the folder is not a scorer.
    """

    paper: ClassVar[str] = "CoViPAL, EMNLP 2025 Findings (arXiv 2508.17243)"
    needs: ClassVar[frozenset[str]] = frozenset({"text"})
    weights: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.weights:
            raise InputError(
                "learned needs weights=FOLDER, a scorer that `vtoken train scorer` made; weights=reference is that of "
                "the reference model"
            )
        learned.load(self.folder)

    @property
    def folder(self) -> Path:
        """Where the scorer is."""
        return SHIPPED if self.weights == "reference" else Path(self.weights)

    def score(self, tokens: Tokens, context: Context) -> Tensor:
        net = learned.load(self.folder, tokens.x.device)
        self._check(net.shape, tokens, context)
        text = text_of(context, self.name, tokens.x.shape[1]) if net.shape.text else None
        return net(tokens.x, places(tokens), text)

    def _check(self, shape: learned.Shape, tokens: Tokens, context: Context) -> None:
        kind = context.extra.get("model_type")
        if tokens.x.shape[1] != shape.width or (kind is not None and kind != shape.model_type):
            raise InputError(
                f"weights={self.weights}: this scorer is for {shape.model_type} with tokens of width {shape.width}; "
                f"here are {kind or 'tokens'} of width {tokens.x.shape[1]}; train one with `vtoken train scorer`"
            )
        table = context.extra.get("embeddings")
        if table is not None and shape.checkpoint and learned.fingerprint(table.weight) != shape.checkpoint:
            context.note(f"{self.name}: the scorer was trained on another checkpoint than this one")


def places(tokens: Tokens) -> Tensor:
    """float32 [n, 3]: seconds (time steps where they are unknown), row and column of every token."""
    place = tokens.position.float()
    if bool(torch.isfinite(tokens.time).all()):
        place[:, 0] = tokens.time
    return place
