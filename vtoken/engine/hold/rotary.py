"""Turn a key from one position to another: R(p') k = R(p' - p) R(p) k, with the model's own rotary module."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from vtoken.encoders.compat import device_of
from vtoken.errors import UnsupportedError
from vtoken.families.compat import handed

_known: WeakKeyDictionary[nn.Module, Rotary] = WeakKeyDictionary()


def partner(x: Tensor, neighbours: bool) -> Tensor:
    """The other half of every pair that a rotation mixes, with its sign: (-b, a) for (a, b).

    Args:
        x: [..., D].
        neighbours: pairs are (0, 1), (2, 3), ... instead of (0, D / 2), (1, D / 2 + 1), ...
    """
    if neighbours:
        return torch.stack((-x[..., 1::2], x[..., ::2]), dim=-1).flatten(-2)
    half = x.shape[-1] // 2
    return torch.cat((-x[..., half:], x[..., :half]), dim=-1)


def turn(x: Tensor, cos: Tensor, sin: Tensor, neighbours: bool) -> Tensor:
    """Rotate the first dimensions of vectors, in float32.

    Args:
        x: [..., D], any floating dtype.
        cos, sin: float32 [..., d] with d <= D; what is beyond d stays (partial rotary).

    Returns:
        [..., D] in the dtype of ``x``.
    """
    d = cos.shape[-1]
    front = x[..., :d].float()
    turned = torch.addcmul(front * cos, partner(front, neighbours), sin).to(x.dtype)
    return turned if d == x.shape[-1] else torch.cat([turned, x[..., d:]], dim=-1)


@dataclass(frozen=True)
class Rotary:
    """The rotation of a language model.

    Attributes:
        module: the model's rotary module, called as ``module(x, position_ids)``.
        neighbours: how it pairs dimensions, see ``partner``.
    """

    module: nn.Module
    neighbours: bool

    def angles(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """cos and sin, float32 [B, n, d], of positions [B, n] or [3, B, n]; both scaled where the model scales."""
        cos, sin = self.module(torch.zeros(1, device=positions.device), positions)
        return cos.float(), sin.float()

    def between(self, source: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """cos and sin, float32 [B, n, d], that turn a rotated key on from ``source`` to ``target``.

        Made of the angles at both positions, which are those that the model uses itself; its scale cancels.
        """
        (a, b), (c, d) = self.angles(source), self.angles(target)
        size = a * a + b * b
        return (c * a + d * b) / size, (d * a - c * b) / size


def rotary_of(decoder: nn.Module, axes: int) -> Rotary:
    """How a language model rotates its keys, found by running one token at two positions; remembered per model.

    A single token attends to itself alone, so that its states are the same at every position and its keys differ by
    the rotation only. This finds the pairing, and refuses a model whose keys are not turned by its rotary module.

    Args:
        decoder: a Hugging Face language model with a ``rotary_emb`` module.
        axes: 1 for positions [B, n], 3 for M-RoPE positions [3, B, n].

    Raises:
        UnsupportedError: no such module, or keys that do not follow it.
    """
    known = _known.get(decoder)
    if known is None:
        known = _known[decoder] = _probe(decoder, axes)
    return known


@torch.no_grad()
def _probe(decoder: Any, axes: int) -> Rotary:
    module = getattr(decoder, "rotary_emb", None)
    if module is None:
        raise UnsupportedError(
            f"hold cannot run on {type(decoder).__name__}: it has no rotary_emb module; use hold=off"
        )
    token = torch.ones(1, 1, dtype=torch.long, device=device_of(decoder.get_input_embeddings()))
    embedding = decoder.get_input_embeddings()(token)
    places = [torch.zeros_like(token), token * 7]
    if axes == 3:
        places = [torch.cat([p, p, p - p // 3, p + p // 2])[:, None] for p in places]  # the text row and three others
    first, second = (_keys(decoder, embedding, place) for place in places)
    bare = [p[1:] if axes == 3 else p for p in places]
    for neighbours in (False, True):
        rotary = Rotary(module, neighbours)
        cos, sin = rotary.between(*(p.to(embedding.device) for p in bare))
        if all(
            _close(turn(a, cos.to(a.device), sin.to(a.device), neighbours), b)
            for a, b in zip(first, second, strict=True)
        ):
            return rotary
    raise UnsupportedError(
        f"hold cannot run on {type(decoder).__name__}: its keys do not follow its rotary_emb module; use hold=off"
    )


def _keys(decoder: Any, embedding: Tensor, place: Tensor) -> list[Tensor]:
    from transformers import DynamicCache

    cache = DynamicCache(config=decoder.config)
    decoder(inputs_embeds=embedding, position_ids=place, use_cache=True, **handed(decoder, {"past_key_values": cache}))
    keys = (getattr(layer, "keys", None) for layer in cache.layers)
    return [k for k in keys if isinstance(k, Tensor)]


def _close(a: Tensor, b: Tensor) -> bool:
    tolerance = 1e-3 if b.dtype == torch.float32 else 0.05
    return bool((a.float() - b.float()).norm() <= tolerance * b.float().norm())
