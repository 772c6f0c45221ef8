"""Whether a plan can run on a family; said before a frame is decoded."""

from __future__ import annotations

from vtoken.errors import UnsupportedError
from vtoken.families.base import Family
from vtoken.methods.gate import Gate
from vtoken.methods.plan import Plan


def check(plan: Plan, family: Family) -> Plan:
    """The plan, if it can run on the family.

    Raises:
        UnsupportedError: a stage needs what the family cannot give; the message names an alternative.
    """
    if plan.gate is not None and not family.sparse:
        raise UnsupportedError(
            f"plan {str(plan)!r}: the encoder of {family.title} cannot run on some patches only, so {plan.gate.name} "
            "cannot gate it; 'evs' drops repeated tokens after the encoder"
        )
    if plan.thinner is not None and not family.thins:
        raise UnsupportedError(
            f"plan {str(plan)!r}: {plan.thinner.name} lets tokens leave inside the encoder, which vtoken can do for "
            f"LLaVA-1.5 and the Qwen-VL families, not for {family.title}; 'divprune' drops them after it"
        )
    if plan.pathways and family.clip_modality not in family.sparse:
        raise UnsupportedError(
            f"plan {str(plan)!r}: {plan.pathways[0].name} looks at the frames themselves, which vtoken cannot tell "
            f"from what a processor makes for {family.title}; 'divprune' and 'evs' run on every family"
        )
    for stage in (part for s in plan.reducers for part in s.parts):
        if lacks := stage.missing(family.gives | Gate.gives | plan.seen | {"text"}):  # a plan checks its gate
            raise UnsupportedError(
                f"plan {str(plan)!r}: {stage.name} needs {' and '.join(lacks)}, which {family.title} does not give; "
                "'divprune' and 'evs' run on every family"
            )
    return plan
