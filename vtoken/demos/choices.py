"""From the controls of the page to a plan: what can be chosen, what each choice means, and the presets."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from vtoken.errors import InputError
from vtoken.families import Family
from vtoken.families.support import verdict
from vtoken.methods import registry
from vtoken.methods.plan import Plan

NONE = "none"
BUDGETS = {"Share": "keep", "Tokens": "tokens", "Tokens / s": "per_second"}
AMOUNTS = {"keep": 0.25, "tokens": 256, "per_second": 64}
FULL = "none"  # the plan of the run with full tokens
COMPARED = ("none", "grt", "grt:hold=off", "grt | divprune", "evs", "uniform", "random")
CURVES = ("none", "grt", "grt | divprune")
RATES = ("1", "2", "4", "8", "16", "native")
GATED = "gated"
PIXELS = (("all cells", "stock"), ("cells that the gate keeps", GATED))  # what counts against a cap
DRAWN = ("1", "2", "4", "8", "native")  # chosen at first


@dataclass(frozen=True)
class Preset:
    """A named setting of the controls; ``fps`` is a share of the clip's own rate."""

    title: str
    tells: str
    fps: float
    gate: str
    reducer: str
    threshold: float | None = None
    budget: str = "keep"
    amount: float = AMOUNTS["keep"]


PRESETS = {
    "Fast": Preset("Fast", "half the frames, 16 tokens a second", 0.5, "grt", "divprune", None, "per_second", 16),
    "Balanced": Preset("Balanced", "every frame; what did not change is shown again, not computed", 1.0, "grt", NONE),
    "Faithful": Preset("Faithful", "every frame; even faint changes are computed", 1.0, "grt", NONE, threshold=3.5),
}
START = PRESETS["Balanced"]

WRITTEN = ("jepa", "learned", "surprise")  # need weights of their own: a plan that is written out can name them


def methods(family: Family, *kinds: str) -> list[str]:
    """Names of the methods of some kinds that run on a family and need no checkpoint of their own."""
    names = [n for kind in kinds for n in registry.names(kind) if n not in WRITTEN]
    return [n for n in names if verdict(registry.get(n), family).startswith("yes")]


def gates(family: Family) -> list[str]:
    """What can stand before the encoder."""
    return [NONE, *methods(family, "gate")]


def reducers(family: Family) -> list[str]:
    """What can stand after the encoder."""
    return [NONE, *(n for n in methods(family, "pruner", "merger") if n != NONE)]


def describe(name: str, place: str) -> str:
    """One line about a method, for under its control."""
    if name == NONE:
        return {"gate": "Every cell of every frame is encoded.", "reducer": "Nothing is cut after the encoder."}[place]
    return registry.get(name).describe()


def threshold_of(gate: str) -> float | None:
    """The gate's own threshold, None where it has none."""
    if gate == NONE:
        return None
    fields = {f.name: f.default for f in dataclasses.fields(registry.get(gate))}  # type: ignore[arg-type]
    value = fields.get("threshold")
    return float(value) if isinstance(value, (int, float)) else None


def plan_text(gate: str, reducer: str, threshold: float | None, written: str | None = None) -> str:
    """The plan as text; a plan that was written out wins over the controls; no threshold, or 0, is the gate's own.

    Raises:
        InputError: an unknown method or a threshold that makes no sense.
    """
    if text := (written or "").strip():
        return text
    first = gate if gate != NONE else ""
    if first and threshold:
        if threshold_of(gate) is None:
            raise InputError(f"the gate {gate} has no threshold; leave the gate threshold at 0")
        first = f"{gate}:threshold={threshold:g}"
    return " | ".join(part for part in (first, "" if reducer == NONE else reducer) if part) or NONE


def takes_budget(text: str) -> bool:
    """Whether a plan has a stage that a budget would bind.

    Raises:
        InputError: the plan itself is wrong.
    """
    try:
        return Plan.parse(text).takes_budget
    except InputError:
        return Plan.parse(text, keep=0.5).takes_budget  # it needs one, or it is wrong and says so


def budget(text: str, kind: str, amount: float | None) -> dict[str, Any]:
    """Keyword for ``vtoken.ask``; empty where no stage takes a budget.

    Raises:
        InputError: the plan is wrong, or the amount is missing.
    """
    if not takes_budget(text):
        return {}
    if amount is None:
        raise InputError("the budget is empty; give how much to keep")
    return {kind: int(amount) if kind == "tokens" else float(amount)}


def caps(text: str, max_pixels: float | None, per_frame: float | None, way: str) -> dict[str, Any]:
    """Keywords of ``vtoken.ask`` for the size of frames; a plan without a gate counts all cells, whatever ``way`` says.

    Raises:
        InputError: a cap that is no whole number above 0.
    """
    given = {"max_pixels": max_pixels, "per_frame_pixels": per_frame}
    out: dict[str, Any] = {}
    for name, value in given.items():
        if not value:  # an empty field
            continue
        if value != int(value) or value < 1:
            raise InputError(f"{name}={value:g} must be a whole number of pixels, or empty for no cap")
        out[name] = int(value)
    if way == GATED and text.partition(":")[0].split("|")[0].strip() in registry.names("gate"):
        out["pixels"] = GATED
    return out


def rates(fps: float) -> list[tuple[str, str]]:
    """Labels and values of the rates that are offered for a clip: those below its own, and its own."""
    return [(r, r) for r in RATES[:-1] if float(r) < fps] + [(f"{fps:.4g} (every frame)", RATES[-1])]


def runs(text: str, family: Family) -> bool:
    """Whether every stage of a plan that is offered runs on a family."""
    names = [part.partition(":")[0].strip() for part in text.split("|") if part.strip() != NONE]
    return all(verdict(registry.get(name), family).startswith("yes") for name in names)
