"""The session of a wrapped model: from the arguments of a call to those with which the stock model runs."""

from __future__ import annotations

import inspect
from collections.abc import Collection
from typing import Any

from torch import Tensor, nn

from vtoken.data.report import Report
from vtoken.engine import encode as encoding
from vtoken.engine import reduce as stages
from vtoken.engine.splice import Cut, cut_inputs, is_right_padded
from vtoken.errors import UnsupportedError
from vtoken.families.family import Family
from vtoken.methods.gate import Gate
from vtoken.methods.plan import Plan, PlanLike
from vtoken.video.preprocess import Preprocessor

# keywords of generate and forward that only vtoken uses
CLIPS = "vtoken_clips"  # clips that were gated while they were decoded
PLAN = "vtoken_plan"  # the plan of this one call
REPORT = "vtoken_report"  # the report to fill
MEMORY = "vtoken_memory"  # gives the features of clips that were encoded for another plan


class Session:
    """What ``model.vtoken`` is: the plan of a wrapped model and the report of its last call.

    Attributes:
        plan: the plan in force; assign text or a Plan to change it.
        family: what is known of the model's family.
        fps: sampling rate of the videos that an ordinary processor hands over, frames a second; None if unknown.
        preprocess: how that processor resizes and normalises; None for the family's preset.
        report: tokens and milliseconds of the last call.
    """

    def __init__(
        self, model: nn.Module, family: Family, plan: Plan, fps: float | None, preprocess: Preprocessor | None
    ) -> None:
        self.family, self.fps, self.report = family, fps, Report(str(plan))
        self.preprocess = preprocess
        self._stock = {name: vars(model).get(name) for name in ("forward", "generate")}
        self.plan = plan

    @property
    def plan(self) -> Plan:
        return self._plan

    @plan.setter
    def plan(self, plan: PlanLike) -> None:
        self._plan = check(Plan.parse(plan), self.family)

    def prepare(self, model: nn.Module, inputs: dict[str, Any], generating: bool) -> tuple[dict[str, Any], Cut, Report]:
        """Encode, reduce and cut: the arguments with which the stock model runs."""
        plan, family = inputs.pop(PLAN, None) or self._plan, self.family
        clips, report = inputs.pop(CLIPS, None), inputs.pop(REPORT, None) or Report(str(plan))
        memory = inputs.pop(MEMORY, None)
        _refuse(inputs)
        positions = _positions(model, inputs, generating)
        rows = encoding.encode(family, model, plan, inputs, clips, self.fps, self.preprocess, report, memory)
        cut = stages.reduce(family, model, plan, inputs, rows, report)
        inputs = {k: v for k, v in inputs.items() if k not in family.drops}
        if positions is not None:
            inputs["position_ids"] = positions
        removed = cut.removed(inputs["input_ids"].shape[1])
        if removed or any(len(s) < inputs["input_ids"].shape[1] for s in cut.slots):
            right = not generating and is_right_padded(inputs.get("attention_mask"))
            inputs = cut_inputs(inputs, cut, pad_id(model), right)
        if generating:
            _refuse_beams(model, inputs, family, rows)
        inputs["mm_encoder_outputs"] = stages.outputs(family, rows)
        mask = inputs.get("attention_mask")
        report.prompt = int(mask.sum()) if mask is not None else inputs["input_ids"].numel()
        return inputs, cut, report


def check(plan: Plan, family: Family, signals: Collection[str] = ()) -> Plan:
    """The plan, if it can run on the family.

    Args:
        signals: names of the signals that the user gives, see ``Context.given``.

    Raises:
        InputError: no stage uses one of those signals.
        UnsupportedError: a stage needs what the family cannot give; the message names an alternative.
    """
    plan.check_given(signals)
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
        given = {"text", *signals} | family.gives | Gate.gives | plan.seen  # a plan checks its gate
        if lacks := stage.lacks(given):
            raise UnsupportedError(
                f"plan {str(plan)!r}: {stage.name} needs {' and '.join(lacks)}, which {family.title} does not give; "
                "'divprune' and 'evs' run on every family"
            )
    return plan


def _positions(model: Any, inputs: dict[str, Any], generating: bool) -> Tensor | None:
    """Positions of the whole prompt for M-RoPE families; others count, as the stock model does."""
    if inputs.get("position_ids") is not None or not hasattr(model.base_model, "get_rope_index"):
        return None
    if generating:
        known = {k: v for k, v in inputs.items() if k != "past_key_values"}
        return model._prepare_position_ids_for_generation(inputs["input_ids"], known)
    function = model.base_model.compute_3d_position_ids
    accepted = inspect.signature(function).parameters
    return function(**{name: None if name == "past_key_values" else inputs.get(name) for name in accepted})


def pad_id(model: Any) -> int:
    """An id for padding columns that is no placeholder."""
    config = model.config
    placeholders = {getattr(config, f"{m}_token_id", None) for m in encoding.MODALITIES}
    for source in (model.generation_config, config, config.get_text_config()):
        pad = getattr(source, "pad_token_id", None)
        if isinstance(pad, int) and pad >= 0 and pad not in placeholders:
            return pad
    return next(i for i in range(3) if i not in placeholders)


def _refuse(inputs: dict[str, Any]) -> None:
    if inputs.get("input_ids") is None or inputs.get("inputs_embeds") is not None:
        raise UnsupportedError("a wrapped model needs input_ids with its images or videos, not inputs_embeds")
    cache = inputs.get("past_key_values")
    if cache is not None and cache.get_seq_length() > 0:
        raise UnsupportedError(
            "images and videos cannot join a conversation in a filled KV cache; pass the whole prompt"
        )


def _refuse_beams(model: Any, inputs: dict[str, Any], family: Family, rows: list[encoding.Rows]) -> None:
    config = inputs.get("generation_config") or model.generation_config
    beams = max(inputs.get(n) or getattr(config, n, None) or 1 for n in ("num_beams", "num_return_sequences"))
    for r in rows if beams > 1 else ():
        if r.modality in family.no_beams:
            raise UnsupportedError(
                f"{family.title} cannot beam search over {r.modality}s, wrapped or not; use num_beams=1 and "
                "num_return_sequences=1"
            )
        lengths = {len(p) for p in r.parts if len(p)}
        if r.modality in family.tensor and len(lengths) > 1:
            raise UnsupportedError(
                f"{family.title} holds its features in one tensor, so beams and num_return_sequences need the same "
                f"number of tokens in every sample; here {sorted(lengths)}. Use tokens=..., or one sample at a time"
            )
