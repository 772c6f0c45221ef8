"""From the arguments of a call to those with which the stock model runs: encode, reduce, cut the prompt."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from vtoken.data.hold import HoldMap
from vtoken.engine.call import Call
from vtoken.engine.check import why_not_held
from vtoken.engine.context import note_context
from vtoken.engine.encode import MODALITIES, encode
from vtoken.engine.masks import check_masks, padding, why_not_masked
from vtoken.engine.positions import counted, rope_positions, trained, trained_alone
from vtoken.engine.reduce import Kept, Reduced, reduce
from vtoken.engine.splice import Cut, cut_inputs, is_right_padded, with_first_labels
from vtoken.errors import UnsupportedError
from vtoken.families.family import has_pixels

ENCODER = ("vision_feature_layer", "vision_feature_select_strategy", "vision_aspect_ratio")  # arguments of a call


@dataclass
class Prepared:
    """A prompt after the plan.

    Attributes:
        inputs: arguments for the stock ``forward``: the cut prompt, positions, and the features as
            ``mm_encoder_outputs``.
        cut: the columns of the prompt that stay.
        kept: the features of each modality.
        width: columns of the prompt before the cut.
        stock: ids and mask of the prompt before the cut; its positions too, where columns are held.
        reduced: what the stages after the encoder left.
        right: whether the cut prompt is padded on the right.
        hold: which column every column shows; None where skipped cells are dropped.
        rope_deltas: of M-RoPE families: what the stock model adds to count on behind the prompt; None for others.
    """

    inputs: dict[str, Any]
    cut: Cut
    kept: list[Kept]
    width: int
    reduced: Reduced
    right: bool = False
    rope_deltas: Tensor | None = None
    stock: dict[str, Any] = field(default_factory=dict)
    hold: HoldMap | None = None

    @property
    def drops(self) -> bool:
        """Whether any column left."""
        return self.cut.drops(self.width)


def prepare(call: Call, inputs: dict[str, Any], generating: bool) -> Prepared:
    """Encode, reduce and cut.

    Args:
        inputs: arguments of ``forward`` or ``generate`` with ``input_ids`` [B, N].
        generating: for ``generate``, whose prompts are padded on the left; ``forward`` also takes training batches.

    Raises:
        UnsupportedError: the arguments leave no ids to cut.
        InputError: see ``encode``.
    """
    _refuse(call, inputs)
    check_masks(inputs, generating)
    width = inputs["input_ids"].shape[1]
    hold = call.plan.hold
    if hold is not None and (why := why_not_held(call.model, call.plan) or why_not_masked(inputs)):
        call.report.note(f"hold cannot run here ({why}): what is not computed is dropped")
        hold = None
    if hold is not None and generating and _ends_visual(call, inputs):
        call.report.note("hold needs text behind the last image or video: what is not computed is dropped")
        hold = None
    rows = encode(call, inputs, hold is not None)
    reduced = reduce(call, inputs, rows, hold)
    cut, kept = reduced.cut, reduced.kept
    brief = reduced.hold is None and cut.drops(width)  # an hour has millions of positions, and few are left
    positions, deltas = _positions(call, inputs, generating, torch.int32 if brief else torch.long)
    mask = padding(inputs)
    stock: dict[str, Any] = {"input_ids": inputs["input_ids"], "attention_mask": mask}
    if reduced.hold is not None:
        places = counted(mask, inputs["input_ids"]) if positions is None else positions
        stock["position_ids"] = inputs.get("position_ids", places)
    inputs = {k: v for k, v in inputs.items() if k not in call.family.drops}
    if positions is not None:
        inputs["position_ids"] = positions
        del positions  # cut below, and of no use then
    right = not generating and is_right_padded(inputs.get("attention_mask"))
    if cut.drops(width):
        cut, labels = with_first_labels(cut, inputs)
        inputs = inputs if labels is None else inputs | {"labels": labels}
        inputs = cut_inputs(inputs, cut, pad_id(call.model), right)
        if brief and inputs.get("position_ids") is not None:
            inputs["position_ids"] = inputs["position_ids"].long()
    inputs["mm_encoder_outputs"] = {k.rows.modality: k.pack(call) for k in kept}
    mask = padding(inputs)
    lengths = mask.sum(1).tolist() if mask is not None else [inputs["input_ids"].shape[1]] * len(cut.slots)
    call.report.prompt = sum(lengths)
    note_context(call, lengths, cut, kept)
    return Prepared(inputs, cut, kept, width, reduced, right, deltas, stock, reduced.hold)


def _ends_visual(call: Call, inputs: dict[str, Any]) -> bool:
    """Whether a prompt ends with an image or a video."""
    return any(
        bool(call.family.placeholders(call.model, m, inputs["input_ids"], inputs)[:, -1].any())
        for m in MODALITIES
        if has_pixels(inputs, m) or (call.clips is not None and m == call.family.clip_modality)
    )


def _positions(
    call: Call, inputs: dict[str, Any], generating: bool, dtype: torch.dtype
) -> tuple[Tensor | None, Tensor | None]:
    """Positions of the whole prompt under the rule of the call, and rope deltas; see ``rope_positions``."""
    own = trained_alone(call.model, inputs, generating, dtype) if call.positions == "trained" else None
    if own is not None:
        return own
    positions, deltas = rope_positions(call.model, inputs, generating)
    return (None, None) if positions is None else _chosen(call, inputs, positions, deltas)


def _chosen(call: Call, inputs: dict[str, Any], stock: Tensor, deltas: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Positions and rope deltas under the rule of the call; a warning once where a stock call would change by it."""
    own = trained(call.model, inputs, stock)
    if torch.equal(own, stock):
        return stock, deltas
    if call.positions == "stock":
        call.report.note(
            "text behind a video has positions inside the video's time, as transformers >= 5.3 counts; the checkpoints "
            "of Qwen2-VL and Qwen2.5-VL were trained otherwise: vtoken.wrap(..., positions='trained')"
        )
        return stock, deltas
    mask = padding(inputs)
    real = torch.ones_like(inputs["input_ids"]) if mask is None else mask
    largest = own[-3:].amax(0).masked_fill(real == 0, -1).amax(1)
    return own, (largest + 1 - real.sum(1))[:, None]


def pad_id(model: Any) -> int:
    """An id for padding columns that is no placeholder."""
    config = model.config
    placeholders = placeholder_ids(model)
    for source in (model.generation_config, config, config.get_text_config()):
        pad = getattr(source, "pad_token_id", None)
        if isinstance(pad, int) and pad >= 0 and pad not in placeholders:
            return pad
    return next(i for i in range(3) if i not in placeholders)


def placeholder_ids(model: Any) -> set[int | None]:
    """Ids that stand for visual tokens."""
    return {getattr(model.config, f"{m}_token_id", None) for m in MODALITIES}


def takes(model: Any, name: str) -> bool:
    """Whether a model's ``forward`` has an argument."""
    return name in inspect.signature(type(model).forward).parameters


def _refuse(call: Call, inputs: dict[str, Any]) -> None:
    if inputs.get("input_ids") is None or inputs.get("inputs_embeds") is not None:
        raise UnsupportedError("a wrapped model needs input_ids with its images or videos, not inputs_embeds")
    cache = inputs.get("past_key_values")
    if cache is not None and cache.get_seq_length() > 0:
        raise UnsupportedError(
            "images and videos cannot join a conversation in a filled KV cache; pass the whole prompt"
        )
    plan, config = call.plan, call.model.config
    if plan.resizer is not None and call.clips is None:
        raise UnsupportedError(
            f"plan {str(plan)!r}: {plan.resizer.name} sets the size of frames where vtoken reads the video itself "
            "(vtoken.ask, vtoken.Chat); here the processor has made the pixels, so set the size in the processor"
        )
    if plan.gate is None and plan.thinner is None and not plan.wants:
        return
    for name in ENCODER:
        if inputs.get(name) is not None and inputs[name] != getattr(config, name, None):
            raise UnsupportedError(
                f"{name}={inputs[name]!r} differs from the model's config, by which plan {str(plan)!r} reads the "
                f"encoder; set model.config.{name} instead"
            )
