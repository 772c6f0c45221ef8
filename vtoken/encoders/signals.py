"""Encoder signals: functions of one attention layer, registered by name.

    @signal("values", layer=-2)
    def values(tap: Tap) -> Tensor:
        return tap.values.mean(dim=1)

A method that says ``needs = frozenset({"values"})`` then finds ``tokens.signals["values"]`` on every family whose
encoder can be tapped. ``values@5`` is the same signal of layer 5. A plug-in may hold the signal and the method in one
file.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass

import torch
from torch import Tensor

from vtoken.errors import InputError
from vtoken.kernels import attention as kernels
from vtoken.kernels.varlen import Segments

# what a tower can be tapped for: the attention of its layers; a CLS token before the patches of each image
PATCHES = frozenset({"attention"})
CLS = PATCHES | {"cls"}


@dataclass(frozen=True)
class Tap:
    """What one attention layer of a vision encoder computes with, packed rows of all images.

    Attributes:
        queries, keys, values: [N, H, d], rotary positions applied.
        hidden: [N, D], normalised rows that enter the layer's attention.
        segments: lengths of the rows that attend to each other: images, time steps, or windows in windowed layers.
        scale: factor on the attention scores.
        has_cls: whether the first row of every segment is its CLS token.
    """

    queries: Tensor
    keys: Tensor
    values: Tensor
    hidden: Tensor
    segments: Segments
    scale: float
    has_cls: bool = False

    @property
    def cls_queries(self) -> Tensor:
        """Queries of the CLS tokens [segments, H, d]."""
        return self.queries[self.segments.cu_seqlens[:-1].long()]


Function = Callable[[Tap], Tensor]


@dataclass(frozen=True)
class Signal:
    """A registered signal.

    Attributes:
        function: gives [N, ...] for the N rows of a tap, CLS rows included; those are dropped afterwards, and where
            tokens are cells of several patches, the mean of the patches is taken.
        layer: layer of the name without a number, counted as ``output_attentions`` lists them; None for the layer
            whose output the language model receives.
        taps: what a tower must have for it.
    """

    name: str
    function: Function
    layer: int | None
    taps: frozenset[str]


_signals: dict[str, Signal] = {}


def signal(name: str, *, layer: int | None = None, cls: bool = False) -> Callable[[Function], Function]:
    """Decorator that makes a function of a ``Tap`` known as a signal.

    Args:
        name: the name that methods ask for; without "@" and ".".
        layer: layer that is read where a method names none, such as -2; None for the layer whose output the language
            model receives.
        cls: whether it needs a CLS token before the patches of each image.

    Raises:
        InputError: the name is taken by another function, or is no plain word.
    """

    def add(function: Function) -> Function:
        if not name.isidentifier():
            raise InputError(f"signal name {name!r} must be a word of letters, digits and underscores")
        taken = _signals.get(name)
        where = (function.__module__, function.__qualname__)
        if taken is not None and (taken.function.__module__, taken.function.__qualname__) != where:
            raise InputError(f"signal name {name!r} is taken by {taken.function.__module__}")
        _signals[name] = Signal(name, function, layer, CLS if cls else PATCHES)
        return function

    return add


def get(name: str) -> Signal:
    """A signal by its name without a layer.

    Raises:
        InputError: no such signal.
    """
    if name not in _signals:
        raise InputError(f"unknown encoder signal {name}; known: {', '.join(sorted(_signals))}")
    return _signals[name]


def given(taps: Collection[str]) -> frozenset[str]:
    """Names of the signals of a tower that can be tapped so; ``keys@*`` stands for those of every layer."""
    names = [s.name for s in _signals.values() if s.taps <= frozenset(taps)]
    return frozenset(names) | {f"{name}@*" for name in names}


def measure(tap: Tap, wanted: Collection[str]) -> dict[str, Tensor]:
    """The wanted signals of a tap, names without a layer: row-aligned tensors [N, ...].

    Raises:
        InputError: a signal that has another number of rows.
    """
    found = {}
    with torch.no_grad():
        for name in sorted(wanted):
            value = get(name).function(tap)
            if len(value) != len(tap.keys):
                raise InputError(f"signal {name!r} gave {len(value)} rows, the layer has {len(tap.keys)}")
            found[name] = value
    return found


@signal("received_attention")
def received_attention(tap: Tap) -> Tensor:
    """Mean attention that each row receives from the rows of its segment: float32 [N]."""
    return kernels.received_attention(tap.queries, tap.keys, tap.scale, tap.segments.cu_seqlens)


@signal("cls_attention", cls=True)
def cls_attention(tap: Tap) -> Tensor:
    """Attention of the CLS token to each row: float32 [N]."""
    return kernels.cls_attention(tap.cls_queries, tap.keys, tap.scale, tap.segments.cu_seqlens)


@signal("cls_logits", layer=-1, cls=True)  # GlobalCom2 reads the last layer
def cls_logits(tap: Tap) -> Tensor:
    """Scores of the CLS token's query with each key, before the softmax: float32 [N]."""
    return kernels.cls_logits(tap.cls_queries, tap.keys, tap.scale, tap.segments.cu_seqlens)


@signal("keys")
def keys(tap: Tap) -> Tensor:
    """Keys, mean over heads: [N, d] in the dtype of the encoder."""
    return tap.keys.mean(dim=1)
