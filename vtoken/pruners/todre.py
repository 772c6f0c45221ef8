"""ToDRE's first stage: a small set of tokens that differ most from each other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from vtoken.data.tokens import Tokens
from vtoken.kernels.kcenter import kcenter, max_sum
from vtoken.methods.reducer import Context, Pruner
from vtoken.methods.registry import register
from vtoken.pruners.kcenter import central


@register("todre")
@dataclass(kw_only=True)
class ToDRE(Pruner):
    """Keeps tokens that differ from each other: greedy by the sum of distances, or k-center as first published.

    From the abstract, as the code is not public: it says that a greedy selection for diversity after the encoder keeps
    10 % of the tokens. Ours are cosine distance and the start at the token most like the mean direction. The second
    stage, which drops all visual tokens at a late layer of the language model, acts elsewhere.

    Attributes:
        diversity: "sum" adds the token with the largest sum of distances to the kept ones (second version of the
            paper), "center" the one whose nearest kept token is farthest (first version).
    """

    paper: ClassVar[str] = "ToDRE, stage 1 (arXiv 2505.18757)"
    diversity: Literal["sum", "center"] = "sum"

    def select(self, tokens: Tokens, k: int, context: Context) -> Tensor:
        pick = max_sum if self.diversity == "sum" else kcenter
        return pick(tokens.x, k, central(tokens.x)).sort().values
