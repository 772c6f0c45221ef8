"""Encode: pixels to features, by the stock encoder, or on the kept patches alone where a plan has a gate."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vtoken.engine.call import Call
from vtoken.engine.quota import Item, items_of, thinning
from vtoken.errors import InputError
from vtoken.families.clips import UNKNOWN_FPS, encode_each_once
from vtoken.families.family import has_pixels
from vtoken.families.features import Clip, Features
from vtoken.families.images import encode_images, gate_images
from vtoken.families.runs import run_slot
from vtoken.methods.image_gate import ImageGate

MODALITIES = ("image", "video")


@dataclass(frozen=True)
class Rows:
    """The placeholder rows of one modality and the features that fill them.

    Attributes:
        sample, column: int64 [R], place of every placeholder row in ``input_ids``.
        features: what the encoder gave.
        items: rows of each image or video, in order; no method mixes two of them.
        gated: whether the rows are of clips that were gated while they were decoded.
        home: int32 [R], the placeholder row that the token of each row moves to; None where no token moves.
        stock: tokens of the stock model for each item whose frames were made smaller, else None; empty for none.
    """

    modality: str
    sample: Tensor
    column: Tensor
    features: Features
    items: list[int]
    gated: bool = False
    home: Tensor | None = None
    stock: tuple[int | None, ...] = ()


def encode(call: Call, inputs: dict[str, Any], hold: bool = False) -> list[Rows]:
    """Run the encoder for every modality, on the kept patches only where the plan has a gate.

    Args:
        hold: kept patches attend to the held keys and values of skipped ones.

    Raises:
        InputError: the prompt's placeholders and the features do not match.
    """
    found: list[Rows] = []
    beside = _images(call, inputs)
    for modality in reversed(MODALITIES):
        clips = call.clips if modality == call.family.clip_modality else None
        if clips is None and not has_pixels(inputs, modality):
            continue
        if clips is None and modality in call.family.sparse:
            clips = _gate_inputs(call, inputs)
        mask = call.family.placeholders(call.model, modality, inputs["input_ids"], inputs)
        sample, column = _places(mask)
        with call.report.stage("encode", inputs["input_ids"].device):
            if clips is None and modality == "image" and call.plan.image_gate is not None:
                features = _images_gated(call, inputs, call.plan.image_gate)
            else:
                features = _features(call, modality, inputs, clips, sample, hold, beside)
        _fill_signals(call, modality, features)
        if call.fps and modality == "video":
            features.layout.timed(call.family.frames_per_step(call.model) / call.fps)
        if len(sample) != len(features.layout.position):
            raise InputError(
                f"the prompt has {len(sample)} {modality} placeholders, the {modality}s make "
                f"{len(features.layout.position)} rows; were ids and pixels made by the same processor?"
            )
        gate = call.plan.gate
        home = run_slot(features.layout, gate.run_position) if gate is not None else None
        items = call.family.items(modality, features.layout, sample, column, inputs["input_ids"], clips)
        stock = tuple(clip.stock for clip in call.clips or ()) if clips is call.clips else ()
        gated = call.clips is not None and clips is not None
        found.append(Rows(modality, sample, column, features, items, gated, home, stock))
    return found[::-1]


def _places(mask: Tensor) -> tuple[Tensor, Tensor]:
    """int64 [R] each: the prompt and the column of every placeholder; an hour of video has millions."""
    if len(mask) > 1:
        sample, column = mask.nonzero(as_tuple=True)
        return sample, column
    column = mask[0].nonzero()[:, 0]
    return column.new_zeros(1).expand_as(column), column


def float32(device: torch.device) -> AbstractContextManager[Any]:
    """Without autocast: gates and methods compute in the dtype of their inputs."""
    return torch.autocast(device.type, enabled=False)


def _gate_inputs(call: Call, inputs: dict[str, Any]) -> list[Clip] | None:
    """Clips of the videos of an ordinary processor, after the plan's gate and pathways; None where it has neither."""
    plan, family, device = call.plan, call.family, inputs["input_ids"].device
    clips = None
    if plan.gate is not None:
        with call.report.stage("gate", device), float32(device):
            clips = family.clips(call.model, inputs, plan.gate, call.fps, call.preprocess)
        if any(math.isnan(clip.seconds) and len(clip.pts) > 1 for clip in clips):
            call.report.note(
                f"the frames a second of the videos are unknown, so times count on {UNKNOWN_FPS:g}; say wrap(..., fps=)"
            )
    if plan.pathways:
        with call.report.stage("pathway", device), float32(device):
            seen = family.clips(call.model, inputs, None, call.fps, call.preprocess, plan.pathways)
        for clip, other in zip(clips or (), seen, strict=False):
            clip.signals.update(other.signals)
        clips = clips or seen
    return clips


def _images(call: Call, inputs: dict[str, Any]) -> list[Item]:
    """The images of the prompts, where they share with videos a budget that binds inside the encoder."""
    family, model = call.family, call.model
    if call.plan.thinner is None or not {"image", "video"} <= family.thins or not has_pixels(inputs, "image"):
        return []
    sample = family.placeholders(model, "image", inputs["input_ids"], inputs).nonzero()[:, 0]
    return items_of("image", family.full_clips(model, "image", inputs, call.fps), sample)


def _images_gated(call: Call, inputs: dict[str, Any], gate: ImageGate) -> Features:
    """Features of the images' kept cells."""
    with float32(inputs["input_ids"].device):
        clips, shown = gate_images(call.family, call.model, inputs, gate, call.preprocess)
    features = encode_images(call.family, call.model, clips, shown, call.plan.wants)
    if call.plan.gate is None:
        for name in ("motion", "scene"):  # nothing moved, and there were no frames
            del features.signals[name]
    return features


def _features(
    call: Call,
    modality: str,
    inputs: dict[str, Any],
    clips: list[Clip] | None,
    sample: Tensor,
    hold: bool,
    beside: list[Item],
) -> Features:
    """Features of one modality: with a method inside the encoder, of the kept patches, or of the stock encoder.

    Args:
        beside: items that share a budget inside the encoder; videos, which come first, are added.
    """
    plan, family, model = call.plan, call.family, call.model
    if plan.thinner is not None and modality in family.thins:
        full = family.full_clips(model, modality, inputs, call.fps) if clips is None else clips
        if not any(item.modality == modality for item in beside):
            beside += items_of(modality, full, sample)
        thin = thinning(plan, modality, beside, call.report)
        if thin is not None:
            features = family.encode_clips(model, full, plan.wants, thin)
            if clips is None:
                for name in ("motion", "scene"):  # there was no gate
                    del features.signals[name]
            return features
    if clips is not None and (plan.gate is not None or call.clips is not None):
        reuse = plan.gate is not None and plan.gate.apply == "reuse"
        if call.carry is not None:
            return family.encode_clips(model, clips, plan.wants, hold=hold, carry=call.carry)
        features = encode_each_once(family, model, clips, plan.wants, reuse, call.memory, hold and not reuse)
        if reuse:
            kept, cells = sum(int(c.gate.keep.sum()) for c in clips), sum(c.gate.keep.size for c in clips)
            call.report.note(f"apply=reuse: {kept} of {cells} patch groups were projected, the encoder ran on all")
        return features
    features = family.encode(model, modality, inputs, plan.wants)
    features.signals |= family.pathway_rows(model, modality, inputs, clips or [], features)
    return features


def _fill_signals(call: Call, modality: str, features: Features) -> None:
    """Without a gate: motion = inf, scene = 0. Without pathway signals: surprise = inf."""
    n, device = len(features.x), features.x.device
    if call.plan.gate is not None:
        features.signals.setdefault("motion", torch.full((n,), math.inf, device=device, dtype=torch.float32))
        features.signals.setdefault("scene", torch.zeros(n, dtype=torch.long, device=device))
    for name in sorted(call.plan.seen - set(features.signals)):
        features.signals[name] = torch.full((n,), math.inf, device=device, dtype=torch.float32)
        call.report.note(f"{name}: {modality}s have none; their tokens count as wholly new")
