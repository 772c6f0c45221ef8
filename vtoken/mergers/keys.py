"""Keys of the encoder, by which mergers tell which tokens are alike."""

from __future__ import annotations

from torch import Tensor

from vtoken.errors import InputError
from vtoken.types import Tokens


def keys_of(tokens: Tokens, method: str, *sources: str) -> Tensor:
    """The first of ``sources`` (``keys`` by default) that the tokens carry: float32 [N, d].

    Raises:
        InputError: NaN among them.
    """
    name = next((s for s in sources if s in tokens.signals), "keys")
    keys = tokens.signals[name].float().flatten(1)
    if bad := int(keys.isnan().any(1).sum()):
        raise InputError(f"{method}: {bad} of {len(keys)} rows of {name} are NaN; check the encoder's output")
    return keys
