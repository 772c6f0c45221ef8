"""Which gate a request runs with: the plan of the server, or that of the request. Nothing of vLLM is imported here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from functools import lru_cache
from typing import Any

from vtoken.errors import InputError
from vtoken.methods.gate import Gate
from vtoken.methods.plan import Plan

PLAN = "vtoken"  # the name of the plan in hf_overrides and in mm_processor_kwargs
BUDGETS = ("keep", "tokens", "per_second")
OWN = (PLAN, *BUDGETS)
DEFAULT = "grt"
ONLY_A_GATE = (
    "on vLLM a plan is one gate, because the number of tokens must be known before the encoder runs; write for example "
    "'grt' or 'mad', or 'none' for all tokens"
)


@lru_cache(maxsize=1024)
def gate_of(plan: str) -> Gate | None:
    """The gate of a plan as it runs here: skipped cells are dropped, and no second stage follows.

    Args:
        plan: text such as "grt:threshold=8"; "none" keeps every cell.

    Returns:
        the gate with ``hold`` off, and without the merging of scenes where it has one; None for "none".

    Raises:
        InputError: a plan that cannot be read, with other stages, or whose gate sends features again.
    """
    if not isinstance(plan, str):
        raise InputError(f"{PLAN}={plan!r}: give the plan as text, such as 'grt'")
    read = Plan.parse(plan)
    others = [stage.name for stage in read.stages if not isinstance(stage, Gate) and stage.name != "none"]
    if others:
        raise InputError(f"plan {plan!r}: {' and '.join(others)} cannot run in vLLM: {ONLY_A_GATE}")
    gate = read.gate
    if gate is None:
        return None
    if gate.reuses:
        raise InputError(f"plan {plan!r}: {gate.name} sends earlier features again, which vLLM cannot; {ONLY_A_GATE}")
    own = {"hold": False, "merge": "none"}
    return replace(gate, **{name: own[name] for name in own if name in {f.name for f in fields(gate)}})


def asked(arguments: Mapping[str, Any], default: str) -> tuple[str, dict[str, Any]]:
    """The plan of a request, and the arguments that are not ours.

    Args:
        arguments: ``mm_processor_kwargs`` of the request.
        default: the plan of the server.

    Raises:
        InputError: the plan cannot run here, or a budget, which no gate takes.
    """
    plan = arguments.get(PLAN, default)
    gate_of(plan)
    for name in BUDGETS:
        if arguments.get(name) is not None:
            raise InputError(f"{name}={arguments[name]!r}: a gate takes no budget; {ONLY_A_GATE}")
    return plan, {name: value for name, value in arguments.items() if name not in OWN}


def of_server(config: Any, processor_arguments: Mapping[str, Any] | None) -> str:
    """The plan that the server was started with.

    Args:
        config: the model's config, on which ``hf_overrides`` are.
        processor_arguments: ``mm_processor_kwargs`` of the server.

    Raises:
        InputError: the plan cannot run here, or is in the wrong place.
    """
    for name in OWN:
        if name in (processor_arguments or {}):
            raise InputError(
                f"mm_processor_kwargs of the server name {name}: give the server's plan by hf_overrides, as in "
                f"hf_overrides={{'{PLAN}': 'grt', ...}}; mm_processor_kwargs of a request take one too"
            )
    plan = getattr(config, PLAN, DEFAULT)
    gate_of(plan)
    return plan
