"""From prompts about one clip to answers: packed behind one prefill if that is supported, else batch by batch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vtoken.data.report import CellState, Report
from vtoken.engine import run
from vtoken.engine.call import Call
from vtoken.engine.check import why_not_held
from vtoken.engine.prepare import pad_id, prepare
from vtoken.engine.wrap import session_of
from vtoken.families.compat import core, input_device
from vtoken.families.family import Family
from vtoken.families.features import Clip
from vtoken.methods.plan import Plan
from vtoken.qa.cache import ClipMemory
from vtoken.qa.packed import greedy, pack, stops
from vtoken.qa.prompt import stack
from vtoken.qa.read import Progress


@dataclass
class Answer:
    """What ``ask`` returns.

    Attributes:
        text: the answer.
        report: tokens and milliseconds by stage, sampled frames, caps that bound.
        clips: what the gate kept of each video, for overlays; pixel rows are gone. In LLaVA-1.5, where frames are
            images, an image is a clip of one frame.
        tokens: int64 [n], ids of the answer.
        cell_states: per video uint8 [T, h, w], the ``CellState`` of every token that the stock model would have had,
            for overlays. Its grid is the language model's, which is coarser than the gate's where a family pools.
        as_of: of a stream, seconds since it began up to which the answer has seen it; None for a whole video.
    """

    text: str
    report: Report
    clips: list[Clip]
    tokens: Tensor
    cell_states: list[np.ndarray]
    as_of: float | None = None

    @property
    def clip(self) -> Clip:
        """The first video."""
        return self.clips[0]

    @property
    def cell_state(self) -> np.ndarray:
        """The cell states of the first video."""
        return self.cell_states[0]

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True)
class Questions:
    """One call of ``ask_many`` after the video was read.

    Attributes:
        model: as the user gave it, wrapped or not.
        prompts: arguments of ``generate`` for each question.
        questions: their texts.
        ids: per question int64 [M], its own ids.
        read: the report of reading the video.
        options: further arguments of ``generate``.
    """

    model: Any
    family: Family
    tokenizer: Any
    clips: list[Clip]
    prompts: list[dict[str, Any]]
    questions: list[str]
    ids: list[Tensor]
    plan: Plan
    read: Report
    options: dict[str, Any]
    batch: int
    memory: ClipMemory
    progress: Progress | None
    positions: str = "trained"
    signals: Mapping[str, Any] = field(default_factory=dict)

    def call(self, first: int, count: int) -> Call:
        """The engine's call for some of the questions."""
        call = Call(core(self.model), self.family, self.plan)
        call.clips, call.question = self.clips * count, self.ids[first : first + count]
        call.positions, call.signals = self.positions, self.signals
        call.questions = self.questions[first : first + count]
        hold = self.plan.hold is not None and why_not_held(call.model, self.plan) is None
        call.memory = self.memory.recall(call.report, input_device(self.model), hold)
        return call

    def inputs(self, first: int, count: int) -> dict[str, Any]:
        """Arguments of ``generate`` for some of the questions, on the model's device."""
        stacked, device = stack(self.prompts[first : first + count], pad_id(core(self.model))), input_device(self.model)
        return {n: v.to(device) if isinstance(v, Tensor) else v for n, v in stacked.items()}

    def show(self, answered: int) -> None:
        """Move the caller's progress bar."""
        if self.progress is not None:
            self.progress("encode", answered / len(self.prompts))

    def answers(self, ids: list[Tensor], reports: list[Report], states: list[Tensor]) -> list[Answer]:
        """What ``ask_many`` returns; the clip goes without its pixels."""
        texts = self.tokenizer.batch_decode(ids, skip_special_tokens=True)
        clips = [replace(clip, rows=clip.rows[:0]) for clip in self.clips]
        n = len(clips)
        own = [[s.numpy() for s in states[i * n : (i + 1) * n]] for i in range(len(ids))]
        for report, shown in zip(reports, own, strict=True):
            report.held = _held(shown)
        made = zip(texts, ids, reports, own, strict=True)
        return [Answer(text.strip(), report, clips, one, state) for text, one, report, state in made]


def answer_packed(asked: Questions) -> list[Answer] | None:
    """Answers behind one prefill of the video; returns None if packing is unsupported."""
    model, prompts = core(asked.model), asked.prompts
    own = asked.plan.reads_text or any(map(callable, asked.signals.values()))  # the choice may follow the question
    own = own or asked.plan.acts_inside
    rules = greedy(model, asked.options) if len(prompts) > 1 and not own else None
    if rules is None:
        return None
    ids = [p["input_ids"][0] for p in prompts]
    columns = _shared(ids)
    visual = asked.family.placeholders(model, asked.family.clip_modality, prompts[0]["input_ids"], prompts[0])[0]
    if bool(visual[columns:].any()):
        return None
    call = asked.call(0, 1)
    call.answer = rules.limit
    report = call.report
    with torch.no_grad():
        ready = prepare(call, asked.inputs(0, 1), generating=True)
    length = int((ready.cut.slots[0] < columns).sum())
    tails = [i[columns:] for i in ids]
    found = pack(model, ready, columns, tails, rules, asked.batch, report, asked.show)
    report.measure_memory(input_device(asked.model))
    n = len(prompts)
    reports = [share(asked, report, 1, n, length + len(tail)) for tail in tails]
    answers = asked.answers(found, reports, report.cell_states * n)
    remember(asked.model, _whole(asked, report))
    return answers


def _shared(ids: list[Tensor]) -> int:
    """Columns that all prompts begin with; at least one is left to each."""
    width = min(map(len, ids)) - 1
    same = torch.stack([i[:width] == ids[0][:width] for i in ids]).all(0)
    return int(same.int().cumprod(0).sum())


def answer_batches(asked: Questions) -> list[Answer]:
    """Answers of the stock ``generate``, batch by batch."""
    out: list[Answer] = []
    for first in range(0, len(asked.prompts), asked.batch):
        asked.show(first)
        out += _batch(asked, first, min(asked.batch, len(asked.prompts) - first))
    return out


def _batch(asked: Questions, first: int, n: int) -> list[Answer]:
    """Answers to ``n`` of the questions, by the stock ``generate``."""
    call, prompts = asked.call(first, n), asked.prompts[first : first + n]
    report = call.report
    inputs = asked.inputs(first, n)
    width = inputs["input_ids"].shape[1]
    made = run.generate(call, inputs | asked.options, asked.model.generate)
    sequences = made if isinstance(made, Tensor) else made.sequences
    new = sequences[:: len(sequences) // n, width:].cpu()
    ends = stops(core(asked.model), asked.options)
    widths = [p["input_ids"].shape[1] for p in prompts]
    dropped = (sum(widths) - report.prompt) // n
    reports = [share(asked, report, n, n, width - dropped) for width in widths]
    answers = asked.answers([until_end(ids, ends) for ids in new], reports, report.cell_states)
    remember(asked.model, _whole(asked, report))
    return answers


def _held(states: Iterable[Any]) -> int:
    return sum(int((state == CellState.HELD).sum()) for state in states)


def _whole(asked: Questions, report: Report) -> Report:
    """The report of a run with the reading of its videos, not divided by the questions."""
    whole = share(replace(asked, prompts=asked.prompts[:1]), report, 1, 1, report.prompt)
    whole.held, whole.cell_states = _held(report.cell_states), report.cell_states
    return whole


def remember(model: Any, report: Report) -> None:
    """The report of a wrapped model's last call."""
    session = session_of(model) or session_of(core(model))
    if session is not None:
        session.report = report


def until_end(ids: Tensor, stops: frozenset[int]) -> Tensor:
    """The ids of an answer up to its end token; what follows pads a batch."""
    end = next((i for i, token in enumerate(ids.tolist()) if token in stops), len(ids))
    return ids[: end + 1]


def share(asked: Questions, report: Report, prompts: int, questions: int, columns: int) -> Report:
    """One question's report.

    Args:
        report: of a run; its counts are those of ``prompts`` prompts, ``questions`` share its milliseconds.
        columns: length of the question's prompt.
    """
    read, everyone = asked.read, len(asked.prompts)
    once = () if asked.plan.thinner else ("encode",)  # that every run takes from the first one
    spent = {stage: ms / everyone for stage, ms in read.milliseconds.items()}
    for stage, ms in report.milliseconds.items():  # a long video is encoded while it is read
        spent[stage] = spent.get(stage, 0.0) + ms / (everyone if stage in once else questions)
    return replace(
        report,
        cells=report.cells // prompts,
        encoded=report.encoded // prompts,
        tokens=report.tokens // prompts,
        inside=[n // prompts for n in report.inside],
        prompt=columns,
        milliseconds=spent,
        frames=[list(times) for times in read.frames],
        sizes=list(read.sizes),
        notes=list(dict.fromkeys([*report.notes, *read.notes])),
        cell_states=[],
    )
