"""Encode: pixels to features, by the stock encoder, or on the kept patches alone where a plan has a gate."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vtoken.data.report import Report
from vtoken.engine.goals import thinning
from vtoken.errors import InputError
from vtoken.families.clips import Memory, encode_each_once
from vtoken.families.family import Family, has_pixels
from vtoken.families.features import Clip, Features
from vtoken.families.runs import stand
from vtoken.methods.plan import Plan

MODALITIES = ("image", "video")


@dataclass
class Rows:
    """The placeholder rows of one modality and the features that fill them.

    Attributes:
        sample, column: int64 [R], place of every placeholder row in ``input_ids``.
        features: what the encoder gave.
        parts: after reduction, per sample the feature rows in the order of their slots.
        gated: whether the rows are of clips that were gated while they were decoded.
        stand: int64 [R], the placeholder row in which the token of each row stands; None for its own.
    """

    modality: str
    sample: Tensor
    column: Tensor
    features: Features
    parts: list[Tensor]
    gated: bool = False
    stand: Tensor | None = None


def encode(
    family: Family,
    model: nn.Module,
    plan: Plan,
    inputs: dict[str, Any],
    clips: list[Clip] | None,
    fps: float | None,
    preprocess: Any,
    report: Report,
    memory: Memory | None = None,
) -> list[Rows]:
    """Run the encoder for every modality, on the kept patches only where the plan has a gate.

    Args:
        memory: see ``encode_each_once``.

    Raises:
        InputError: the prompt's placeholders and the features do not match.
    """
    device = inputs["input_ids"].device
    found = []
    for modality in MODALITIES:
        given = clips if modality == family.clip_modality else None
        if given is None and not has_pixels(inputs, modality):
            continue
        if given is None and modality in family.sparse:
            given = _looked_at(family, model, plan, inputs, fps, preprocess, report)
        mask = family.placeholders(model, modality, inputs["input_ids"], inputs)
        sample, column = mask.nonzero(as_tuple=True)
        with report.stage("encode", device):
            features = _encode_thin(family, model, plan, modality, inputs, given, sample, fps, report)
            if features is None and given is not None and (plan.gate is not None or clips is not None):
                reuse = plan.gate is not None and plan.gate.apply == "reuse"
                features = encode_each_once(family, model, given, plan.wants, reuse, memory)
                if reuse:
                    _note_reuse(given, report)
            elif features is None:
                features = family.encode(model, modality, inputs, plan.wants)
                features.signals |= family.told(model, modality, inputs, given or [], features)
        if plan.gate is not None:
            _ungated(features)
        _unseen(features, plan, modality, report)
        if fps and modality == "video":
            features.layout.timed(family.frames_per_step(model) / fps)
        if len(sample) != len(features.layout.position):
            raise InputError(
                f"the prompt has {len(sample)} {modality} placeholders, the {modality}s make "
                f"{len(features.layout.position)} rows; were ids and pixels made by the same processor?"
            )
        where = stand(features.layout, plan.gate.run_position) if plan.gate is not None else None
        found.append(Rows(modality, sample, column, features, [], clips is not None and given is clips, where))
    return found


def _looked_at(
    family: Family,
    model: nn.Module,
    plan: Plan,
    inputs: dict[str, Any],
    fps: float | None,
    preprocess: Any,
    report: Report,
) -> list[Clip] | None:
    """What the plan's gate and its pathways make of the videos of an ordinary processor; None where it has neither."""
    device, clips = inputs["input_ids"].device, None
    if plan.gate is not None:
        with report.stage("gate", device):
            clips = family.clips(model, inputs, plan.gate, fps, preprocess)
    if plan.pathways:
        with report.stage("pathway", device):
            seen = family.clips(model, inputs, None, fps, preprocess, plan.pathways)
        for clip, other in zip(clips or (), seen, strict=False):
            clip.signals.update(other.signals)
        clips = clips or seen
    return clips


def _note_reuse(clips: list[Clip], report: Report) -> None:
    kept, cells = sum(int(c.gate.keep.sum()) for c in clips), sum(c.gate.keep.size for c in clips)
    report.note(f"apply=reuse: {kept} of {cells} patch groups were projected, the encoder ran on all")


def _encode_thin(
    family: Family,
    model: nn.Module,
    plan: Plan,
    modality: str,
    inputs: dict[str, Any],
    clips: list[Clip] | None,
    sample: Tensor,
    fps: float | None,
    report: Report,
) -> Features | None:
    """Features of an encoder that tokens leave on the way; None where the plan has none leave."""
    if plan.thinner is None or modality not in family.thins:
        return None
    whole = family.whole(model, modality, inputs, fps) if clips is None else clips
    thin = thinning(plan, whole, sample, report)
    if thin is None:
        return None
    features = family.encode_clips(model, whole, plan.wants, thin)
    if clips is None:
        for name in ("motion", "scene"):  # no gate has looked
            del features.signals[name]
    return features


def _ungated(features: Features) -> None:
    """What no gate looked at counts as one scene that is new throughout."""
    n, device = len(features.x), features.x.device
    features.signals.setdefault("motion", torch.full((n,), math.inf, device=device))
    features.signals.setdefault("scene", torch.zeros(n, dtype=torch.long, device=device))


def _unseen(features: Features, plan: Plan, modality: str, report: Report) -> None:
    """What no pathway looked at has no past that could foretell it."""
    for name in sorted(plan.seen - set(features.signals)):
        features.signals[name] = torch.full((len(features.x),), math.inf, device=features.x.device)
        report.note(f"{name}: {modality}s have none; their tokens count as wholly new")
