"""Which plans can run chunk by chunk, and whether their cells are held."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from vtoken.data.report import Report
from vtoken.engine.check import why_not_held
from vtoken.engine.hold.support import window
from vtoken.errors import UnsupportedError
from vtoken.families.compat import attention_of
from vtoken.methods.gate import Gate
from vtoken.methods.hold import Hold
from vtoken.methods.plan import Plan

LAG = 2  # time steps


def held_rule(plan: Plan, model: Any, report: Report) -> tuple[Plan, tuple[Hold, float] | None]:
    """The plan as it runs on chunks, and the lag form of its hold with its threshold; None where cells are dropped.

    Raises:
        UnsupportedError: a plan that needs the question, or the whole video at once.
    """
    if plan.resizer is not None:
        raise UnsupportedError(
            f"plan {str(plan)!r}: {plan.resizer.name} sets the size of the frames of a whole clip; give the stream "
            "smaller frames, or use vtoken.ask on the file"
        )
    if plan.reads_text:
        raise UnsupportedError(
            f"plan {str(plan)!r} chooses by the question, which is not known while a video is read in chunks; use a "
            "plan that does not, or vtoken.Chat"
        )
    if plan.acts_inside:
        raise UnsupportedError(
            f"plan {str(plan)!r} acts inside the language model, which needs the whole video at once; take columns out "
            "of the cache by policy= instead"
        )
    if plan.gate is not None and plan.gate.reuses:
        raise UnsupportedError(
            f"plan {str(plan)!r} sends features of earlier steps again (apply=reuse, recall, or anchors with reuse), "
            "which a video read in chunks does not keep; leave that option out"
        )
    if plan.hold is None:
        return _dropping(plan, report), None
    stage = plan.reducers[-1]
    tau = getattr(stage, "tau", None)
    why = why_not_held(model, plan)
    if why is None and attention_of(model) not in ("sdpa", "eager"):
        why = f"attn_implementation={attention_of(model)!r} takes no free mask in a prefill"
    if why is None and window(model.config.get_text_config(decoder=True)) is not None:
        why = "its layers see a sliding window"
    if why is None and (len(plan.reducers) != 1 or tau is None):
        why = "other stages choose after it, or a budget says how many rows there are"
    if why is not None:
        dropping = plan.without_hold()
        if dropping.hold is not None:
            raise UnsupportedError(f"plan {str(plan)!r} cannot hold chunk by chunk ({why}); leave the stage hold out")
        report.note(f"hold cannot run here ({why}): skipped cells are dropped")
        return _dropping(dropping, report), None
    rule = plan.hold
    if (rule.home, rule.second_home) != ("lag", "lag"):
        rule = replace(rule, home="lag", second_home="lag", lag=LAG)
    return plan, (rule, float(tau))  # type: ignore[arg-type]


def _dropping(plan: Plan, report: Report) -> Plan:
    """The plan where cells are dropped: tokens stay at the start of their runs, whose ends are not known yet."""
    if any(stage.name != "none" for stage in plan.reducers):
        report.note("stages after the encoder choose within each chunk of the video")
    stages = tuple(replace(s, run_position="start") if isinstance(s, Gate) else s for s in plan.stages)
    return replace(plan, stages=stages)
