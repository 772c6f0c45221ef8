"""Names of encoder signals: ``cls_attention`` of the usual layer, ``cls_attention@5`` of a layer by its number.

Layers count as ``output_attentions`` lists them: 0 is the first, -2 the one whose output is ``hidden_states[-2]``.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

from vtoken.encoders import SIGNALS
from vtoken.errors import InputError, UnsupportedError


def split(name: str) -> tuple[str, int | None]:
    """Signal and layer of a name; the layer is None where the name has none.

    Raises:
        InputError: a signal that no encoder gives, or a layer that is no whole number.
    """
    base, at, layer = name.partition("@")
    if base not in SIGNALS:
        raise InputError(f"unknown encoder signal {name}; known: {', '.join(sorted(SIGNALS))}")
    if not at:
        return base, None
    if not layer.removeprefix("-").isdecimal():
        raise InputError(f"encoder signal {name!r}: a layer is a whole number, as in {base}@0 or {base}@-2")
    return base, int(layer)


def check_signals(wanted: Collection[str], has_cls: bool) -> None:
    """Refuse unknown signals, and those of a CLS token where there is none.

    Raises:
        InputError: a signal that no encoder gives.
        UnsupportedError: ``cls_attention`` or ``cls_logits`` of an encoder without a CLS token.
    """
    for base in sorted(split(name)[0] for name in wanted):
        if base.startswith("cls_") and not has_cls:
            raise UnsupportedError(f"{base} needs a CLS token, which this encoder lacks; use received_attention")


def by_layer(wanted: Iterable[str], usual: int, layers: int) -> dict[int, dict[str, str]]:
    """The wanted signals of each layer, counted from 0: {layer: {name: signal}}.

    Args:
        usual: layer of names without a number; ``cls_logits`` are of the last (GlobalCom2).
        layers: layers of the encoder.

    Raises:
        InputError: an unknown signal, or a layer the encoder does not have.
    """
    found: dict[int, dict[str, str]] = {}
    for name in sorted(wanted):
        base, layer = split(name)
        if layer is None:
            layer = layers - 1 if base == "cls_logits" else usual
        if not -layers <= layer < layers:
            raise InputError(f"encoder signal {name}: this encoder has {layers} layers, 0 to {layers - 1}")
        found.setdefault(layer % layers, {})[name] = base
    return found


def within(wanted: Iterable[str], layers: int) -> frozenset[str]:
    """The wanted signals without those of layers that the encoder does not have."""
    return frozenset(n for n in wanted if (at := split(n)[1]) is None or -layers <= at < layers)
