"""The order of a plan's stages."""

from __future__ import annotations

from collections.abc import Sequence

from vtoken.errors import InputError
from vtoken.methods.eviction import Eviction
from vtoken.methods.gate import Gate
from vtoken.methods.image_gate import ImageGate
from vtoken.methods.inner import Inner
from vtoken.methods.pathway import Pathway
from vtoken.methods.registry import Method
from vtoken.methods.resizer import Resizer
from vtoken.methods.thinner import Thinner


def check_order(stages: Sequence[Method], plan: str) -> None:
    """Refuse stages in a wrong order, and stages that exclude each other.

    Args:
        plan: text of the plan, for messages.

    Raises:
        InputError: two gates, two methods inside the encoder, two cache methods, a wrong order, or two pathways that
            give one signal.
    """
    sized = [i for i, s in enumerate(stages) if isinstance(s, Resizer)]
    if len(sized) > 1 or sized and sized[0] != 0:
        raise InputError(f"plan {plan!r}: at most one method sets the size of the frames, and it comes first")
    stages = stages[len(sized) :]
    gates = [i for i, s in enumerate(stages) if isinstance(s, Gate)]
    if len(gates) > 1 or gates and gates[0] != 0:
        raise InputError(f"plan {plan!r}: a plan has at most one gate, and it comes first")
    images = [i for i, s in enumerate(stages) if isinstance(s, ImageGate)]
    if len(images) > 1 or images and images[0] != len(gates):
        raise InputError(f"plan {plan!r}: at most one method gates images, and only a gate of videos comes before it")
    others = [s for s in stages if not isinstance(s, Pathway)]
    inside = [i for i, s in enumerate(others) if isinstance(s, Thinner)]
    if len(inside) > 1 or inside and inside[0] != len(gates) + len(images):
        raise InputError(
            f"plan {plan!r}: at most one method acts inside the encoder, and it comes before those that act after it"
        )
    if inside and images:
        raise InputError(
            f"plan {plan!r}: {stages[images[0]].name} and a method inside the encoder do not go together; leave one out"
        )
    first = stages[0] if stages else None
    if inside and isinstance(first, Gate) and first.reuses:
        raise InputError(
            f"plan {plan!r}: {first} sends features of earlier cells again, which {others[1].name} may drop inside the "
            "encoder; use methods that act after it, such as divprune"
        )
    late = [isinstance(s, (Inner, Eviction)) + isinstance(s, Eviction) for s in others]
    if late != sorted(late) or late.count(2) > 1:
        raise InputError(
            f"plan {plan!r}: methods inside the language model come last, and behind them at most one that takes rows "
            "out of its cache"
        )
    given = [name for s in stages if isinstance(s, Pathway) for name in s.gives]
    if twice := sorted({name for name in given if given.count(name) > 1}):
        raise InputError(f"plan {plan!r}: two pathways give the signal {twice[0]!r}; leave one out")
