"""Recoverable Compression: prune by the encoder's attention, then recover tokens that are similar to the question."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch.nn.functional import normalize

from vtoken.data.tokens import Tokens
from vtoken.kernels.topk import others, shares, top, top_of_groups
from vtoken.methods.absorb import absorb
from vtoken.methods.merger import Groups, Merger
from vtoken.methods.options import Share
from vtoken.methods.reducer import Context
from vtoken.methods.registry import register
from vtoken.methods.signals import SOURCES, attention, text_of


@register("recoverable")
@dataclass(kw_only=True)
class Recoverable(Merger):
    """Keeps the most attended tokens, recovers pruned ones that are similar to the question, and merges the others.

    From the abstract, as the code is not public: it says that the similarity of question and visual tokens recovers
    pruned tokens, that less important ones are merged, and that nothing is trained. Ours are the fixed share of the
    budget for recovery, the similarity (mean cosine with the question's tokens in the language model's space), and
    that every other token is averaged into the kept one of its frame that it is most like.

    Attributes:
        recovered: share of the budget that the question decides, 0 to 1; our choice.
    """

    paper: ClassVar[str] = "Recoverable Compression (arXiv 2409.01179)"
    needs: ClassVar[frozenset[str]] = frozenset({"text"})
    accepts: ClassVar[frozenset[str]] = frozenset(SOURCES)
    recovered: Share = 0.25

    def group(self, tokens: Tokens, k: int, context: Context) -> Groups:
        score = attention(tokens, context, self.name, *SOURCES)
        text = normalize(text_of(context, self.name, tokens.x.shape[1]), dim=1)
        like = normalize(tokens.x.float(), dim=1) @ text.mean(0)
        seen = k - int(k * self.recovered)
        _, step, sizes = tokens.position[:, 0].unique(return_inverse=True, return_counts=True)
        kept = top_of_groups(score, step, shares(sizes, seen))
        rest = others(kept, len(tokens))
        kept = torch.cat([kept, rest[top(like[rest], k - seen)]])
        return absorb(tokens, kept.sort().values)
