"""`vtoken.measure`: one question about one video under one plan, against all tokens."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import torch

from vtoken import families
from vtoken.bench.attention import Seen, watched
from vtoken.bench.fidelity import Asked, measured
from vtoken.bench.fidelity_reading import Reading
from vtoken.engine.check import check
from vtoken.engine.prepare import prepare
from vtoken.errors import InputError
from vtoken.methods.plan import Plan, PlanLike
from vtoken.qa.api import BUDGETS, questions_of
from vtoken.qa.cache import ClipMemory


def measure(
    model: Any,
    processor: Any,
    video: Any,
    question: str,
    plan: PlanLike,
    *,
    attention: bool = True,
    new_tokens: int = 16,
    **options: Any,
) -> Reading:
    """How near a plan's next tokens are to those with all tokens, and how much they attend to visual tokens.

    The model answers greedily with all tokens; then the plan reads its own prompt and is led along that answer.

    Args:
        model, processor, video, question: as for ``vtoken.ask``.
        plan: stages, as for ``vtoken.ask``.
        attention: also measure ``mdi``, ``aei`` and ``visual_mass``; None where the answer has one token or the plan
            acts inside the language model, whose layers see different columns.
        new_tokens: longest answer.
        **options: a budget (``keep``, ``tokens`` or ``per_second``) and the options of ``vtoken.ask`` but those of
            ``generate``.

    Returns:
        ``Reading``; the caution of its ``mdi`` holds: the ratio falls with the number of visual tokens by itself, so
        compare it at equal counts only.

    Raises:
        InputError, VideoError, UnsupportedError: as ``vtoken.ask``.
    """
    if new_tokens < 1:
        raise InputError(f"new_tokens={new_tokens} must be at least 1")
    budget = {name: options.pop(name) for name in BUDGETS if options.get(name) is not None}
    chosen = check(Plan.parse(plan, **budget), families.of(model))
    options.setdefault("memory", ClipMemory())
    asked = Asked(model, processor, video, question, options | {"do_sample": False, "num_beams": 1})
    stock, free = asked.led("none", None, new_tokens)
    seen = _columns(asked, chosen) if attention and not chosen.acts_inside else None
    with watched(model, seen) if seen is not None else nullcontext():
        told, led = asked.led(chosen, stock.tokens, len(stock.tokens))
    place = {"video": str(video) if isinstance(video, str) else "video", "question": question}
    place |= {"fps": float(options.get("fps") or 0), "plan": str(chosen)}
    one = measured(place, stock, told, str(chosen), free, led)
    found = {} if seen is None else seen.table(layers=_layers(model))
    return replace(one, **{name: value or None for name, value in found.items()})


def _layers(model: Any) -> int:
    return int(model.config.get_text_config(decoder=True).num_hidden_layers)


def _columns(asked: Asked, plan: Plan) -> Seen:
    """Which columns are visual in the prompt that the language model's layers see."""
    question = questions_of(asked.model, asked.processor, asked.video, [asked.question], plan=plan, **asked.options)
    with torch.no_grad():
        ready = prepare(question.call(0, 1), question.inputs(0, 1), generating=True)
    visual = torch.zeros(ready.width, dtype=torch.bool)
    for kept in ready.kept:
        visual[kept.rows.column.cpu()] = True
    return Seen(visual if ready.hold is not None else visual[ready.cut.slots[0].cpu()])
