"""What `vtoken bench fidelity` measures of one question under one plan."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Reading:
    """One question about one video under one plan, led along the answer with all tokens.

    Attributes:
        video, question, fps, plan: what was asked; ``stages`` is the plan with every option.
        answer: the greedy answer with all tokens, of ``steps`` tokens, its end token included.
        stock, tokens: visual rows of the language model without any reduction, and under the plan.
        encoded: of ``stock``, those whose patches went through the encoder.
        kl: mean over the steps of the Kullback-Leibler divergence of the plan's next token from that with all tokens,
            nats; ``worst`` is the largest.
        agree: share of the steps at which the most likely token is the same.
        same: whether all are: then the plan's own greedy answer is the same one.
        notes: caps, fallbacks and warnings.
        reduce_ms, prefill_ms: milliseconds of the stages after the encoder, the selection of tokens, and of reading the
            prompt.
        mdi, aei: attention of generated tokens on text columns of the prompt over that on visual ones, each a column,
            and the share of text over its share of columns, by depth ("early", "middle", "late"): 1 is balance. None
            where not measured. ``mdi`` falls with the number of visual columns by itself: no goal, and comparable at
            equal counts only.
        visual_mass: share of all attention of generated tokens that is on visual columns, by depth.
        layer: the first layer that holds, where those before it and the encoder compute everything; None for the plan
            itself.
    """

    video: str
    question: str
    fps: float
    plan: str
    stages: str
    answer: str
    steps: int
    stock: int
    tokens: int
    encoded: int
    kl: float
    worst: float
    agree: float
    same: bool
    notes: list[str] = field(default_factory=list)
    layer: int | None = None
    reduce_ms: float = 0.0
    prefill_ms: float = 0.0
    mdi: dict[str, float] | None = None
    aei: dict[str, float] | None = None
    visual_mass: dict[str, float] | None = None
