"""Which method runs on which family, in words."""

from __future__ import annotations

import difflib
import re

from vtoken.errors import InputError
from vtoken.families import FAMILIES, Family
from vtoken.families.geometry import GEOMETRIES
from vtoken.methods import registry
from vtoken.methods.gate import Gate
from vtoken.methods.pathway import Pathway
from vtoken.methods.registry import Method


def family(name: str) -> Family:
    """A family by its model type, or by a model's name such as ``qwen2.5-vl-7b``.

    Raises:
        InputError: no such family; the message gives the nearest and all known ones.
    """
    key = GEOMETRIES[name].family if name in GEOMETRIES else name.lower().replace("-", "_").replace(".", "_")
    if key not in FAMILIES:
        near = difflib.get_close_matches(key, FAMILIES, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise InputError(f"unknown family {name!r}; {hint}known: {', '.join(FAMILIES)}")
    return FAMILIES[key]


def verdict(method: type[Method], on: Family) -> str:
    """Whether a method runs on a family: "yes", "yes, by ..." for a fallback, or "no: ..." with the reason."""
    if method.kind == "size":
        return "yes" if on.any_size else "no: its encoder takes frames of one size, or vtoken does not read its videos"
    if method.kind == "gate":
        if on.sparse:
            return "yes"
        return "no: its encoder cannot run on some patches only; evs drops repeats after it"
    if method.kind == "image":
        if "image" in on.thins:
            return "yes"
        return "no: its encoder cannot run on some patches of an image only; divprune drops tokens after it"
    if method.kind == "encoder" and not on.thins:
        return "no: tokens cannot leave inside its encoder; divprune drops them after it"
    if method.kind in ("inner", "cache"):
        return "yes"  # its signals come from the language model, not from the encoder
    pathways = map(registry.get, registry.names("pathway"))
    seen: frozenset[str] = frozenset().union(*(p.gives for p in pathways if issubclass(p, Pathway)))
    if (method.kind == "pathway" or method.needs & seen) and on.clip_modality not in on.sparse:
        return "no: vtoken cannot recover the frames from its processor's output; evs drops repeats"
    if lacks := method.missing(on.gives | Gate.gives | seen | {"text", *(method.needs & set(method.takes))}):
        return f"no: it gives no {words(' and no '.join(lacks))}"
    if mine := method.needs & set(method.takes):
        return f"yes, where you give signals={{{', '.join(map(repr, sorted(mine)))}: ...}}"
    if method.needs & Gate.gives:
        return "yes, behind a gate" if on.sparse else "no: it works behind a gate, and none runs here"
    if registry.has(method.accepts, "cls_attention") and not registry.has(on.gives, "cls_attention"):
        return "yes, by received attention: it has no class token"
    return "yes"


def short(paper: str) -> str:
    """The arXiv number of a paper, empty where it has none."""
    number = re.search(r"\d{4}\.\d{5}", paper)
    return number[0] if number else ""


def needs(method: type[Method]) -> str:
    """What a method needs from the encoder or the prompt, in words."""
    wants = sorted(method.needs) + ([" or ".join(sorted(method.accepts))] if method.accepts else [])
    return words(", ".join(wants)) or "-"


def words(signals: str) -> str:
    """Names of signals for the eye."""
    return signals.replace("_", " ")
