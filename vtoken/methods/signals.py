"""Reading signals: the first that an encoder gives, in float32, checked, and told where it is a stand-in."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from vtoken.data.tokens import Tokens
from vtoken.errors import InputError
from vtoken.kernels.topk import shares
from vtoken.methods.reducer import Context

SOURCES = ("cls_attention", "received_attention")  # the first that an encoder gives is used


def attention(tokens: Tokens, context: Context, method: str, *sources: str) -> Tensor:
    """The first of ``sources`` that the tokens carry, mean over heads: float32 [N].

    Any other than the first is told in ``context.notes``.

    Raises:
        InputError: none of them is there, or values are NaN.
    """
    name = next((s for s in sources if s in tokens.signals), None)
    if name is None:
        raise InputError(f"{method} needs {' or '.join(sources)}; signals here: {', '.join(tokens.signals) or 'none'}")
    if name != sources[0]:
        context.note(f"{method}: no {sources[0]} here, {name} in its place")
    return checked(tokens, method, name)


def checked(tokens: Tokens, method: str, name: str) -> Tensor:
    """One signal, mean over heads if it has them: float32 [N].

    Raises:
        InputError: values are NaN.
    """
    value = tokens.signals[name].float()
    value = value.flatten(1).mean(1) if value.dim() > 1 else value
    if bad := int(value.isnan().sum()):
        raise InputError(f"{method}: {bad} of {len(value)} values of {name} are NaN; check the encoder's output")
    return value


def text_of(context: Context, method: str, width: int) -> Tensor:
    """Text embeddings of the sample at hand: float32 [M, width].

    Raises:
        InputError: there are none, or they have another width.
    """
    text = None if context.text is None else context.text[context.sample]
    if text is None or text.dim() != 2 or len(text) == 0 or text.shape[1] != width:
        got = "none" if text is None else f"{list(text.shape)}"
        raise InputError(f"{method} needs embeddings of the question [M, {width}] in Context.text, got {got}")
    return text.float()


def steps(position: Tensor) -> list[Tensor]:
    """Rows of every time step in order, int64 ascending each."""
    _, step = position[:, 0].unique(return_inverse=True)
    return list(step.argsort(stable=True).split(torch.bincount(step).tolist())) if len(step) else []


def per_step(position: Tensor, k: int) -> Iterator[tuple[Tensor, int]]:
    """Rows of every time step and the tokens it may keep, in proportion to its rows; they add up to k."""
    rows = steps(position)
    sizes = torch.tensor([len(r) for r in rows], device=position.device)
    return zip(rows, shares(sizes, k).tolist(), strict=True)


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
