"""`vtoken bench fidelity`: how near a plan's next tokens are to those with all tokens, on a model and video of yours.

No labels are needed: the model answers once with all tokens, and every plan reads its own prompt and is led along that
answer, token by token. Its distribution of each next token is then compared with the one with all tokens.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vtoken import families
from vtoken.bench import machine
from vtoken.bench.accuracy import describe
from vtoken.bench.accuracy_plans import Entry, entries
from vtoken.bench.fidelity_layers import first_layers, held_from, shown
from vtoken.bench.fidelity_reading import Reading
from vtoken.bench.fidelity_report import print_table, to_markdown
from vtoken.engine.check import check
from vtoken.errors import InputError
from vtoken.output.files import folder, write_text
from vtoken.output.progress import progress
from vtoken.qa.api import Answer, ask
from vtoken.qa.cache import ClipMemory
from vtoken.qa.load import load

QUESTIONS = (
    "Describe what happens in this video.",
    "What is the main object, and what does it do?",
    "What has changed between the beginning and the end?",
    "Which text can be read?",
)


class Teacher:
    """A logits processor that keeps the distribution of every next token and, given an answer, leads along it.

    Args:
        answer: int64 [n], the tokens that follow the prompt whatever the model prefers; None to let it choose.

    Attributes:
        steps: float32 [V] each, log-probabilities.
    """

    def __init__(self, answer: Tensor | None = None) -> None:
        self.answer = answer
        self.steps: list[Tensor] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        self.steps.append(scores[0].float().log_softmax(-1).cpu())
        if self.answer is None:
            return scores
        led = torch.full_like(scores, -torch.inf)
        led[:, self.answer[len(self.steps) - 1]] = 0
        return led


def divergence(stock: Tensor, plan: Tensor) -> float:
    """KL(stock || plan) in nats of two log-probabilities [V]; tokens that ``stock`` never says do not count."""
    chance = stock.exp()
    return float(torch.where(chance > 0, chance * (stock - plan), 0).sum())


def run(
    videos: Sequence[str],
    plans: Sequence[str],
    rates: Sequence[float],
    budgets: Sequence[dict[str, Any]],
    *,
    model: str,
    questions: Sequence[str] = QUESTIONS,
    out: str | Path = "fidelity",
    command: str = "vtoken bench fidelity",
    device: str = "auto",
    dtype: str = "auto",
    **options: Any,
) -> list[Reading]:
    """Measure a checkpoint, print the table, and write ``fidelity.jsonl`` and ``report.md`` to ``out``.

    Args:
        videos: files or folders of images.
        budgets: each plan that needs a budget comes once with each.
        model: hub id or folder of a checkpoint, or "reference".
        **options: see ``measure``.

    Raises:
        InputError, VideoError, UnsupportedError: bad arguments, before the model answers.
    """
    made = entries(plans, budgets, ())
    target = folder(out)
    net, processor = load(model, device, dtype)
    found = measure(videos, made, rates, net, processor, questions, **options)
    facts = [f"model {model}, {describe(net)}", f"run on {machine.describe(str(net.device))}"]
    print_table(found, facts)
    write_text(target / "fidelity.jsonl", "".join(json.dumps(asdict(r), ensure_ascii=False) + "\n" for r in found))
    write_text(target / "report.md", to_markdown(found, command, facts))
    print(f"wrote fidelity.jsonl and report.md to {target}")
    return found


def measure(
    videos: Sequence[Any],
    plans: Sequence[Entry],
    rates: Sequence[float],
    model: Any,
    processor: Any,
    questions: Sequence[str] = QUESTIONS,
    *,
    new_tokens: int = 32,
    layers: bool = False,
    **options: Any,
) -> list[Reading]:
    """Every question about every video at every rate: all tokens once, then every plan along that answer.

    Args:
        videos: whatever ``vtoken.ask`` takes.
        new_tokens: longest answer.
        layers: measure plans that hold also by the layer from which hold begins, see ``fidelity_layers``.
        **options: ``start``, ``end``, ``backend``, ``max_frames``, ``native_fps``: see ``vtoken.ask``.

    Raises:
        InputError: no plan, no question, or a bad argument.
        VideoError: a video cannot be read.
        UnsupportedError: a plan that cannot run on the model.
    """
    if not plans or not questions:
        raise InputError("fidelity needs at least one plan and one question")
    if new_tokens < 1:
        raise InputError(f"new_tokens={new_tokens} must be at least 1")
    family, found = families.of(model), []
    for entry in plans:
        check(entry.plan(tokens=1), family)
    with progress(len(videos) * len(rates) * len(questions), "answers") as advance:
        for video in videos:
            name = Path(video).name if isinstance(video, (str, Path)) else "video"
            for fps in rates:
                memory = ClipMemory()  # questions and plans share what they read and encode alike
                given = options | {"fps": fps, "memory": memory, "do_sample": False, "num_beams": 1}
                for question in questions:
                    asked = Asked(model, processor, video, question, given)
                    place = {"video": name, "question": question, "fps": fps}
                    advance(0, f"{name} at {fps:g} fps: {question}")
                    found += _question(asked, plans, place, new_tokens, layers)
                    advance(1, "")
    return found


@dataclass(frozen=True)
class Asked:
    """A question about a video, with what all its runs share."""

    model: Any
    processor: Any
    video: Any
    question: str
    options: dict[str, Any]

    def led(self, plan: Any, answer: Tensor | None, most: int) -> tuple[Answer, list[Tensor]]:
        """The answer under a plan and the log-probabilities of its steps, along ``answer`` where there is one."""
        teacher = Teacher(answer)
        given = self.options | {"plan": plan, "max_new_tokens": most, "logits_processor": [teacher]}
        return ask(self.model, self.processor, self.video, self.question, **given), teacher.steps


def _question(
    asked: Asked, plans: Sequence[Entry], place: dict[str, Any], new_tokens: int, layers: bool
) -> list[Reading]:
    """One question: the answer with all tokens, and every plan along it."""
    stock, free = asked.led("none", None, new_tokens)
    found: list[Reading] = []
    kept: dict[str, int] = {}
    for entry in plans:
        plan = entry.plan(None if entry.like is None else kept[entry.like])
        told, led = asked.led(plan, stock.tokens, len(stock.tokens))
        kept[entry.name] = told.report.tokens
        one = measured(place | {"plan": entry.name}, stock, told, str(plan), free, led)
        found.append(one)
        if layers:
            found += _by_layer(asked, plan, one, stock, free)
    return found


def _by_layer(asked: Asked, plan: Any, one: Reading, stock: Answer, free: list[Tensor]) -> list[Reading]:
    """The readings of a plan by the layer from which hold begins; none where it drops or cannot hold."""
    shows = shown(asked.model, asked.processor, asked.video, asked.question, plan=plan, **asked.options)
    found: list[Reading] = []
    if shows is None:
        return found
    for layer in first_layers(asked.model):
        with held_from(asked.model, shows, layer):
            _, led = asked.led("none", stock.tokens, len(stock.tokens))
        found.append(replace(one, encoded=one.stock, layer=layer, **_apart(free, led)))
    return found


def measured(
    place: dict[str, Any], stock: Answer, told: Answer, stages: str, free: list[Tensor], led: list[Tensor]
) -> Reading:
    """The reading of a plan led along ``stock``; ``free`` and ``led`` are the log-probabilities of both runs."""
    report = told.report
    spent = report.milliseconds
    cost = {"reduce_ms": spent.get("reduce", 0.0), "prefill_ms": spent.get("prefill", 0.0)}
    cost |= {"stock": report.cells, "tokens": report.tokens, "encoded": report.encoded, "notes": report.notes}
    return Reading(**place, stages=stages, answer=stock.text, steps=len(free), **cost, **_apart(free, led))


def _apart(free: list[Tensor], led: list[Tensor]) -> dict[str, Any]:
    apart = [divergence(p, q) for p, q in zip(free, led, strict=True)]
    agree = [bool(p.argmax() == q.argmax()) for p, q in zip(free, led, strict=True)]
    means = {"kl": sum(apart) / len(apart), "agree": sum(agree) / len(agree)}
    return means | {"worst": max(apart), "same": all(agree)}
