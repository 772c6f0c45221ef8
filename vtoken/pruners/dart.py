"""DART: drop the tokens that duplicate a few pivots."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from vtoken.data.tokens import Tokens
from vtoken.errors import InputError
from vtoken.kernels.farthest import farthest
from vtoken.methods.options import AtLeast0, AtLeast1
from vtoken.methods.reducer import Context, Pruner
from vtoken.methods.registry import register
from vtoken.methods.signals import given

KEYS = "text_keys"  # keys of the text tokens [M, ...], which a user may give


@register("dart")
@dataclass(kw_only=True)
class DART(Pruner):
    """Keeps pivot tokens and, for each pivot in turn, the tokens least like it.

    Pivots are the tokens whose keys have the largest L1 norm: visual ones by the signal ``keys``, or by their features
    where there is none, and text ones by their embeddings; text pivots only compare. Published inside the language
    model, here on projected tokens, before it. The rest of the budget is dealt evenly to the pivots, which take turns
    in the order of their norm, visual ones first; each takes the tokens of lowest cosine from those left.

    Attributes:
        pivot_image_token, pivot_text_token: numbers of pivots, at least 1 and at least 0.
        exact: the published count, image pivots and floor(N (1 - ratio) / pivots) for each pivot, and its order of
            pivots: that of a Python set of their places in the prompt. ``context.text`` then holds the states of the
            text after the visual tokens, and ``signals={"text_keys": ...}`` their keys.
        vision_start: exact mode: tokens of the prompt before the visual ones.
    """

    paper: ClassVar[str] = "DART, EMNLP 2025 (arXiv 2502.11494), as in LightCompress"
    takes: ClassVar = {KEYS: "sample"}
    pivot_image_token: AtLeast1 = 4
    pivot_text_token: AtLeast0 = 4
    exact: bool = False
    vision_start: AtLeast0 = 35

    @property
    def wants(self) -> frozenset[str]:
        return super().wants | {"keys"} | ({"text"} if self.pivot_text_token else set())

    def select(self, tokens: Tokens, k: int, context: Context) -> Tensor:
        text, text_norm = self._text(tokens, context)
        norm = _norm(tokens.signals.get("keys", tokens.x))
        image = norm.argsort(descending=True, stable=True)[: min(self.pivot_image_token, k)]
        words = text_norm.argsort(descending=True, stable=True)[: self.pivot_text_token]
        pivots = torch.cat([tokens.x[image].float(), text[words]])
        if self.exact:
            whole = len(tokens) * self.keep if self.keep is not None else k
            each = int(whole / len(pivots))
            quota = [each] * len(pivots)
            places = [*(image + self.vision_start).tolist(), *(words + self.vision_start + len(tokens)).tolist()]
            order = torch.tensor([places.index(p) for p in set(places)], device=pivots.device)
            pivots = pivots.index_select(0, order)
        else:
            parts = len(pivots)
            quota = [(k - len(image) + parts - 1 - i) // parts for i in range(parts)]
        return torch.cat([image, farthest(tokens.x, image, pivots, quota)]).sort().values

    @property
    def own_count(self) -> bool:
        return self.exact

    def _text(self, tokens: Tokens, context: Context) -> tuple[Tensor, Tensor]:
        """States [M, D] and norms [M] of the text tokens; none where the context has no text."""
        text = None if context.text is None else context.text[context.sample]
        if text is None:
            return tokens.x[:0].float(), tokens.x[:0, 0].float()
        if text.shape[1:] != tokens.x.shape[1:]:
            raise InputError(f"{self.name}: text is {list(text.shape)}, tokens are {list(tokens.x.shape)}")
        keys = given(KEYS, tokens, context)
        return text.float(), _norm(text if keys is None else keys)


def _norm(keys: Tensor) -> Tensor:
    """L1 norm of each row, heads together: float32 [N]."""
    return keys.float().flatten(1).abs().sum(1)
