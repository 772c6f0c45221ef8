"""QuoTA: frames that matter to the question keep more tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import normalize

from vtoken.data.tokens import Tokens
from vtoken.errors import InputError
from vtoken.kernels.precision import widest
from vtoken.methods.frame_budget import FrameBudget
from vtoken.methods.options import NotNegative
from vtoken.methods.reducer import Context
from vtoken.methods.registry import register
from vtoken.methods.signals import given, text_of

BLOCK = 1 << 22  # similarities held at a time


@register("quota")
@dataclass(kw_only=True)
class Quota(FrameBudget):
    """Keeps more tokens of frames that answer the question; another pruner chooses within each frame.

    A frame of score p has the weight p ** ``power``. The paper asks a second vision language model, frame by frame,
    whether what the question is about is there, and takes the probability of yes. Give such scores as
    ``signals={"frame_scores": ...}``, for every sample a tensor [T] of numbers of at least 0. Without them p
    comes from the language model's own embeddings (ours): the mean over the text's tokens of the best cosine with a
    token of the frame, as the logistic of its standard score among the frames.

    Attributes:
        power: the paper squares the probability; 0 gives every frame the same weight.

    Raises:
        InputError: frame scores that do not fit.
    """

    paper: ClassVar[str] = "QuoTA (arXiv 2503.08689), frame budgets; its scorer is a second model"
    needs: ClassVar[frozenset[str]] = frozenset({"text"})
    takes: ClassVar = {"frame_scores": "sample"}
    power: NotNegative = 2.0

    def weights(self, tokens: Tokens, steps: Tensor, step: Tensor, context: Context) -> Tensor:
        score = given("frame_scores", tokens, context)
        if score is None:
            text = text_of(context, self.name, tokens.x.shape[1])
            return _relevance(tokens.x, step, len(steps), text) ** self.power
        score = score.to(widest(tokens.x.device))
        if score.dim() != 1 or len(score) <= int(steps.max()) or not bool((score >= 0).all() & score.isfinite().all()):
            raise InputError(
                f"{self.name}: frame_scores of sample {context.sample} must be one finite number of at least 0 for "
                f"each of {int(steps.max()) + 1} time steps"
            )
        return score[steps.long()] ** self.power


def _relevance(x: Tensor, step: Tensor, steps: int, text: Tensor) -> Tensor:
    """float32 [T] in 0..1: how much better than the other frames each frame matches the text [M, D]."""
    to = normalize(text, dim=1).T
    best = to.new_full((steps, to.shape[1]), -torch.inf)
    rows = max(1, BLOCK // max(1, to.shape[1]))
    for part, own in zip(x.split(rows), step.split(rows), strict=True):
        near = normalize(part.float(), dim=1) @ to
        best.scatter_reduce_(0, own[:, None].expand_as(near), near, "amax")
    score = best.mean(1)
    spread = score.std(correction=0)
    return ((score - score.mean()) / spread.clamp(min=1e-6)).sigmoid()
