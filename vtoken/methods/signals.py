"""Reading signals in a method: those of the encoder, in float32 and checked, and those that only the user can give.

A method names what it reads. ``needs`` and ``accepts`` are signals of the encoder, a gate or a pathway; ``takes`` are
signals that the user gives to ``ask`` or ``wrap`` as ``signals={name: value}``, where the value is a tensor that every
sample shares, a list with one tensor for each sample, or a function ``(tokens, question) -> tensor`` that is called for
each sample with its ``Tokens`` and the text of its question.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence

import torch
from torch import Tensor

from vtoken.data.tokens import Tokens
from vtoken.errors import InputError
from vtoken.kernels.topk import shares
from vtoken.methods.reducer import Context

Given = Tensor | Sequence[Tensor] | Callable[[Tokens, str | None], Tensor]
SOURCES = ("cls_attention", "received_attention")  # the first that an encoder gives is used


def attention(tokens: Tokens, context: Context, method: str, *sources: str) -> Tensor:
    """The first of ``sources`` that the tokens carry, mean over heads: float32 [N].

    Where it is not the first, ``context.notes`` says so.

    Raises:
        InputError: none of them is there, or values are NaN.
    """
    name = next((s for s in sources if s in tokens.signals), None)
    if name is None:
        raise InputError(f"{method} needs {' or '.join(sources)}; signals here: {', '.join(tokens.signals) or 'none'}")
    if name != sources[0]:
        context.note(f"{method}: no {sources[0]} here, {name} in its place")
    return checked(tokens, method, name)


def given(name: str, tokens: Tokens, context: Context) -> Tensor | None:
    """What the user gives under a name for the sample at hand (``context.sample``); None where nothing is given.

    Args:
        tokens: the sample's tokens, for functions.

    Raises:
        InputError: a list that is too short, or a value that cannot become a tensor.
    """
    value = context.given.get(name)
    if value is None:
        return None
    if callable(value):
        value = value(tokens, None if context.questions is None else context.questions[context.sample])
    elif isinstance(value, (list, tuple)):
        if context.sample >= len(value):
            raise InputError(f"signals[{name!r}] has {len(value)} entries; sample {context.sample} has none")
        value = value[context.sample]
    try:
        return torch.as_tensor(value, device=tokens.x.device)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"signals[{name!r}] must give a tensor, got {type(value).__name__} ({error})") from error


def with_given(tokens: Tokens, names: Collection[str], context: Context) -> Tokens:
    """The tokens with those of some given signals that have a row for each token; they move with the tokens then.

    Raises:
        InputError: another number of rows than the sample has tokens.
    """
    found = {}
    for name in sorted(set(names) & set(context.given)):
        parts = []
        for b in range(tokens.samples):
            context.sample, sample = b, tokens.sample(b)
            value = given(name, sample, context)
            if value is None or value.dim() == 0 or len(value) != len(sample):
                got = None if value is None else list(value.shape)
                raise InputError(
                    f"signals[{name!r}] must have a row for each of the {len(sample)} tokens of sample {b}, got {got}; "
                    "give a function of (tokens, question) where a gate or the encoder leaves some out"
                )
            parts.append(value)
        found[name] = torch.cat(parts) if parts else tokens.time
    return tokens.with_signals(**found) if found else tokens


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
    return list(step.argsort(stable=True).split(step.bincount().tolist())) if len(step) else []


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
