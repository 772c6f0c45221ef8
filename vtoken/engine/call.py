"""What the engine is asked to do in one call of a model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from vtoken.data.report import Report
from vtoken.encoders.carry import Carry
from vtoken.families.clips import Memory
from vtoken.families.family import Family
from vtoken.families.features import Clip
from vtoken.methods.plan import Plan
from vtoken.video.preprocess import Preprocessor


@dataclass
class Call:
    """One call of a model under a plan.

    Attributes:
        model: the Hugging Face model itself, without PEFT or torch.compile around it.
        family: its family.
        plan: the plan of this call.
        fps: sampling rate of the videos that a processor made, frames a second; None if unknown.
        preprocess: how that processor resizes and normalises; None for the family's preset.
        clips: the gated clips of all prompts in order, where videos were gated while they were decoded.
        question: per prompt int64 [M], ids of the question; None where the text of the prompt says it.
        questions: per prompt the text of the question, for signals that are functions of it; None where unknown.
        signals: those that only the user can give, see ``methods/signals.py``.
        positions: "stock" as the installed transformers counts, or "trained"; see ``positions.trained``.
        answer: most new tokens behind the prompt, which need room in the model's context.
        carry: what earlier chunks of the one video left in the encoder, where the clip is a chunk.
        memory: gives the features of clips that were encoded for an earlier plan.
        stateful: whether the stock model's own state (rope deltas) is left as a stock call would leave it.
        report: tokens and milliseconds of this call.
    """

    model: Any
    family: Family
    plan: Plan
    fps: float | None = None
    preprocess: Preprocessor | None = None
    clips: list[Clip] | None = None
    question: list[Tensor] | None = None
    questions: list[str] | None = None
    signals: Mapping[str, Any] = field(default_factory=dict)
    positions: str = "stock"
    answer: int = 0
    memory: Memory | None = None
    carry: Carry | None = None
    stateful: bool = False
    report: Report = field(default_factory=Report)

    def __post_init__(self) -> None:
        self.report.plan = str(self.plan)
