"""Names of encoder signals: ``cls_attention`` of the default layer, ``cls_attention@5`` of layer 5.

Layers count as ``output_attentions`` lists them: 0 is the first, -2 the one whose output is ``hidden_states[-2]``.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

from torch import nn

from vtoken.encoders.compat import full_attention, inner, layers_of
from vtoken.encoders.signals import get
from vtoken.errors import InputError, UnsupportedError


def split(name: str) -> tuple[str, int | None]:
    """Signal and layer of a name; the layer is None where the name has none.

    Raises:
        InputError: a signal that is not registered, or a layer that is no whole number.
    """
    base, at, layer = name.partition("@")
    get(base)
    if not at:
        return base, None
    if not layer.removeprefix("-").isdecimal():
        raise InputError(f"encoder signal {name!r}: a layer is a whole number, as in {base}@0 or {base}@-2")
    return base, int(layer)


def check_signals(wanted: Collection[str], has_cls: bool) -> None:
    """Refuse unknown signals, and those of a CLS token where there is none.

    Raises:
        InputError: a signal that is not registered.
        UnsupportedError: ``cls_attention`` or ``cls_logits`` of an encoder without a CLS token.
    """
    for base in sorted(split(name)[0] for name in wanted):
        if "cls" in get(base).taps and not has_cls:
            raise UnsupportedError(f"{base} needs a CLS token, which this encoder lacks; use received_attention")


def by_layer(wanted: Iterable[str], default: int, layers: int) -> dict[int, dict[str, str]]:
    """The wanted signals of each layer, counted from 0: {layer: {name: signal}}.

    Args:
        default: layer of names without a number, where the signal has no layer of its own.
        layers: layers of the encoder.

    Raises:
        InputError: an unknown signal, or a layer the encoder does not have.
    """
    found: dict[int, dict[str, str]] = {}
    for name in sorted(wanted):
        base, layer = split(name)
        if layer is None:
            own = get(base).layer
            layer = default if own is None else own
        if not -layers <= layer < layers:
            raise InputError(f"encoder signal {name}: this encoder has {layers} layers, 0 to {layers - 1}")
        found.setdefault(layer % layers, {})[name] = base
    return found


def within(wanted: Iterable[str], layers: int) -> frozenset[str]:
    """The wanted signals without those of layers that the encoder does not have."""
    return frozenset(n for n in wanted if (at := split(n)[1]) is None or -layers <= at < layers)


def default_layer(tower: nn.Module, layer: int = -1) -> int:
    """Number of the layer, counted from 0, whose scores go with a feature layer.

    For CLIP and SigLIP it is the layer whose output is ``hidden_states[layer]`` (FasterVLM's ``attentions[layer]``);
    for Qwen2.5-VL the last layer with full attention; for other Qwen towers the last layer.

    Args:
        tower: vision model with ``encoder.layers`` or ``blocks``.
        layer: index into its hidden states, where 0 is the embedding.

    Raises:
        InputError: the embedding, or a layer the tower does not have.
        UnsupportedError: a tower of another build.
    """
    layers = len(layers_of(tower))
    if hasattr(inner(tower), "blocks"):
        full = full_attention(tower)
        return max(full) if full else layers - 1
    index = layer_index(layer, layers)
    if index == 0:
        raise InputError(f"feature layer {layer} is the patch embedding, which has no attention scores")
    return index - 1


def layer_index(layer: int, layers: int) -> int:
    """A hidden-state index such as -2 counted from 0, the embedding.

    Raises:
        InputError: outside the ``layers`` + 1 hidden states.
    """
    if not -layers - 1 <= layer <= layers:
        raise InputError(f"feature layer {layer} is outside the {layers + 1} hidden states of this encoder")
    return layer % (layers + 1)
