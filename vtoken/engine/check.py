"""Whether a plan can run on a family, checked before a frame is decoded."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

from vtoken.data.report import Report
from vtoken.engine.hold.support import MASKED, supports, window
from vtoken.engine.inner import check_layers
from vtoken.errors import UnsupportedError
from vtoken.families.compat import attention_of
from vtoken.families.family import Family
from vtoken.methods.gate import Gate
from vtoken.methods.plan import Plan
from vtoken.methods.registry import Method


def check(plan: Plan, family: Family, signals: Collection[str] = ()) -> Plan:
    """The plan, if it can run on the family.

    Args:
        signals: names of the signals that the user gives, see ``Context.given``.

    Raises:
        InputError: no stage uses one of those signals.
        UnsupportedError: a stage needs what the family cannot give; the message names an alternative.
    """
    plan.check_given(signals)
    if plan.resizer is not None and not family.any_size:
        raise UnsupportedError(
            f"plan {str(plan)!r}: {plan.resizer.name} cannot make the frames of {family.title} smaller, whose encoder "
            "takes them in one size or whose videos vtoken does not read; 'uniform' and 'random' run on every family"
        )
    if plan.gate is not None and not family.sparse:
        raise UnsupportedError(
            f"plan {str(plan)!r}: the encoder of {family.title} cannot run on some patches only, so {plan.gate.name} "
            "cannot gate it; 'evs' drops repeated tokens after the encoder"
        )
    if plan.image_gate is not None and "image" not in family.thins:
        raise UnsupportedError(
            f"plan {str(plan)!r}: {plan.image_gate.name} skips cells of images before the encoder, which vtoken can do "
            f"for LLaVA-1.5 and the Qwen-VL families, not for {family.title}; 'divprune' drops tokens after it"
        )
    if plan.thinner is not None and not family.thins:
        raise UnsupportedError(
            f"plan {str(plan)!r}: {plan.thinner.name} lets tokens leave inside the encoder, which vtoken can do for "
            f"LLaVA-1.5 and the Qwen-VL families, not for {family.title}; 'divprune' drops them after it"
        )
    if plan.pathways and family.clip_modality not in family.sparse:
        raise UnsupportedError(
            f"plan {str(plan)!r}: {plan.pathways[0].name} reads the frames themselves, which vtoken cannot "
            f"recover from the output of the processor of {family.title}; 'divprune' and 'evs' run on every family"
        )
    given = {"text", *signals} | family.gives | Gate.gives | plan.seen  # a plan checks its gate
    for stage, own in _parts(plan):
        if lacks := stage.lacks(given | own):
            raise UnsupportedError(
                f"plan {str(plan)!r}: {stage.name} needs {' and '.join(lacks)}, which {family.title} does not give; "
                "'divprune' and 'evs' run on every family"
            )
    return plan


def _parts(plan: Plan) -> Iterator[tuple[Method, frozenset[str]]]:
    """The methods behind the encoder and those within them, and the signals that a layer of the model gives them."""
    for stage in plan.reducers:
        yield from ((part, frozenset()) for part in stage.parts)
    for stage in plan.inner:
        own = frozenset().union(*(part.wants for part in stage.parts)) - stage.carried
        yield from ((part, own) for part in stage.parts)


def on_model(plan: Plan, model: Any, report: Report) -> Plan:
    """The plan as it runs on a model: where the model cannot hold, its gate drops what it skips, with a note.

    Raises:
        InputError: a layer that the model does not have.
        UnsupportedError: methods inside the language model that cannot run in this one.
    """
    if plan.acts_inside:
        check_layers(model, plan)
    gates = (plan.gate, plan.image_gate)
    if not any(gate is not None and gate.hold for gate in gates) or not (why := why_not_held(model, plan)):
        return plan
    report.note(f"hold cannot run here ({why}): skipped cells are dropped")
    return plan.without_hold()


def _why_not_inside(model: Any, plan: Plan) -> str | None:
    """Why a plan's methods inside the language model cannot run on held cells; None where they can, or are none."""
    if plan.evictions or any(method.cuts_cache for method in plan.inner):
        return "it does not run together with methods that take rows out of the cache"
    if any(method.positions != "keep" for method in plan.inner):
        return "it does not run together with positions counted anew (exact=True)"
    if plan.acts_inside and window(model.config.get_text_config(decoder=True)) is not None:
        return "layers with a sliding window do not hold together with methods inside the language model"
    layers = getattr(model.config.get_text_config(decoder=True), "layer_types", None) or ()
    if plan.acts_inside and "linear_attention" in layers:
        return "linear attention layers cannot take back the row at which methods inside the language model look"
    return None


def why_not_held(model: Any, plan: Plan) -> str | None:
    """Why a model cannot hold cells that are not computed, or None where it can."""
    if why := _why_not_inside(model, plan):
        return why
    if plan.thinner is not None:
        return "it does not run together with methods inside the encoder"
    why = supports(model.config)
    attention = attention_of(model)
    if why is None and attention not in MASKED:
        why = f"attn_implementation={attention!r} takes no mask in the prefill; attn_implementation='sdpa' does"
    return why
