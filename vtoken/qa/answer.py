"""From prompts about one clip to answers: packed behind one prefill where that can be, else batch by batch."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vtoken.data.report import Report
from vtoken.engine.session import CLIPS, MEMORY, PLAN, REPORT, Session, pad_id
from vtoken.engine.wrap import wrapped
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
        clip: what the gate kept, for overlays; its pixel rows are gone.
        tokens: int64 [n], ids of the answer.
        fate: uint8 [T, h, w], what became of every token that the stock model would have had, by ``FATES`` (skipped by
            the gate, dropped, merged into another one, kept), for overlays. Its grid is the language model's, which is
            coarser than the gate's where a family pools.
    """

    text: str
    report: Report
    clip: Clip
    tokens: Tensor
    fate: np.ndarray

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True)
class Asked:
    """One call of ``ask_many`` after the video was read."""

    model: Any
    tokenizer: Any
    clip: Clip
    prompts: list[dict[str, Any]]
    plan: Plan
    read: Report
    options: dict[str, Any]
    batch: int
    memory: ClipMemory
    progress: Progress | None

    def inputs(self, prompts: list[dict[str, Any]], report: Report) -> dict[str, Any]:
        """Arguments of a wrapped ``generate`` for some of the prompts."""
        stacked, device = stack(prompts, pad_id(self.model)), self.model.device
        stacked = {n: v.to(device) if isinstance(v, Tensor) else v for n, v in stacked.items()}
        memory = self.memory.recall(report, device)
        return stacked | {CLIPS: [self.clip] * len(prompts), PLAN: self.plan, REPORT: report, MEMORY: memory}

    def tell(self, answered: int) -> None:
        if self.progress is not None:
            self.progress("encode", answered / len(self.prompts))

    def answers(self, ids: list[Tensor], reports: list[Report], fates: list[Tensor]) -> list[Answer]:
        """What ``ask_many`` returns; the clip goes without its pixels."""
        texts = self.tokenizer.batch_decode(ids, skip_special_tokens=True)
        clip = replace(self.clip, rows=self.clip.rows[:0])
        made = zip(texts, ids, reports, fates, strict=True)
        return [Answer(text.strip(), report, clip, one, fate.numpy()) for text, one, report, fate in made]


def together(asked: Asked, family: Family) -> list[Answer] | None:
    """Answers behind one prefill of the video; None where that cannot be."""
    model, told = asked.model, asked.prompts
    rules = greedy(model, asked.options) if len(told) > 1 else None
    if rules is None:
        return None
    ids = [p["input_ids"][0] for p in told]
    columns = _shared(ids)
    visual = family.placeholders(model, family.clip_modality, told[0]["input_ids"], told[0])[0]
    if bool(visual[columns:].any()):
        return None
    report, session = Report(str(asked.plan)), vars(model).get("vtoken")
    Report.reset_memory(model.device)
    if not isinstance(session, Session):
        session = Session(model, family, asked.plan, None, None)
    with torch.no_grad():
        inputs, cut, _ = session.prepare(model, asked.inputs(told[:1], report), generating=True)
    if cut.asked:
        return None
    length = int((cut.slots[0] < columns).sum())
    tails = [i[columns:] for i in ids]
    found = pack(model, inputs, length, tails, rules, asked.batch, report, asked.tell)
    report.measure_memory(model.device)
    session.report, n = report, len(told)
    reports = [_share(asked, report, 1, n, length + len(tail)) for tail in tails]
    fates, report.fates = report.fates * n, []
    return asked.answers(found, reports, fates)


def _shared(ids: list[Tensor]) -> int:
    """Columns that all prompts begin with; at least one is left to each."""
    width = min(map(len, ids)) - 1
    same = torch.stack([i[:width] == ids[0][:width] for i in ids]).all(0)
    return int(same.int().cumprod(0).sum())


def by_batches(asked: Asked) -> list[Answer]:
    """Answers of the stock ``generate``, batch by batch."""
    out: list[Answer] = []
    for first in range(0, len(asked.prompts), asked.batch):
        asked.tell(first)
        out += _batch(asked, asked.prompts[first : first + asked.batch])
    return out


def _batch(asked: Asked, told: list[dict[str, Any]]) -> list[Answer]:
    """Answers to some of the questions, by the stock ``generate``."""
    model, report = asked.model, Report(str(asked.plan))
    call = asked.inputs(told, report) | asked.options
    with nullcontext() if isinstance(vars(model).get("vtoken"), Session) else wrapped(model, asked.plan):
        made = model.generate(**call)
    sequences = made if isinstance(made, Tensor) else made.sequences
    new = sequences[:: len(sequences) // len(told), call["input_ids"].shape[1] :].cpu()
    ends, n = stops(model, asked.options), len(told)
    widths = [p["input_ids"].shape[1] for p in told]
    gone = (sum(widths) - report.prompt) // n
    reports = [_share(asked, report, n, n, width - gone) for width in widths]
    fates, report.fates = report.fates, []
    return asked.answers([_until(ids, ends) for ids in new], reports, fates)


def _until(ids: Tensor, stops: frozenset[int]) -> Tensor:
    """The ids of an answer up to its end token; what follows pads a batch."""
    end = next((i for i, token in enumerate(ids.tolist()) if token in stops), len(ids))
    return ids[: end + 1]


def _share(asked: Asked, report: Report, prompts: int, questions: int, columns: int) -> Report:
    """One question's report.

    Args:
        report: of a run; its counts are those of ``prompts`` prompts, ``questions`` share its milliseconds.
        columns: length of the question's prompt.
    """
    read, everyone = asked.read, len(asked.prompts)
    once = () if asked.plan.thinner else ("encode",)  # that every run takes from the first one
    spent = {stage: ms / everyone for stage, ms in read.milliseconds.items()}
    spent |= {stage: ms / (everyone if stage in once else questions) for stage, ms in report.milliseconds.items()}
    return replace(
        report,
        cells=report.cells // prompts,
        encoded=report.encoded // prompts,
        tokens=report.tokens // prompts,
        prompt=columns,
        milliseconds=spent,
        frames=[list(times) for times in read.frames],
        notes=list(dict.fromkeys([*report.notes, *read.notes])),
        fates=[],
    )
