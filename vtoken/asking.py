"""ask: a video file and a question in, an answer out; the video is decoded, gated and cut in one pass."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vtoken import families
from vtoken.errors import InputError, UnsupportedError
from vtoken.families.base import Clip, Family
from vtoken.plan import Plan, PlanLike
from vtoken.prompts import prompt, stack, tokenizer_of
from vtoken.reading import Progress, Sampling, read_clip
from vtoken.report import Report
from vtoken.session import CLIPS, PLAN, REPORT, Session, check, pad_id
from vtoken.video.preprocess import Preprocessor
from vtoken.wrapping import wrapped


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


def ask(
    model: Any,
    processor: Any,
    video: Any,
    question: str,
    *,
    fps: float | str = 2.0,
    start: float | None = None,
    end: float | None = None,
    plan: PlanLike | None = None,
    keep: float | None = None,
    tokens: int | None = None,
    per_second: float | None = None,
    backend: str = "auto",
    native_fps: float | None = None,
    max_frames: int | None = None,
    progress: Progress | None = None,
    **generate: Any,
) -> Answer:
    """Answer a question about a video.

    Args:
        model: a Hugging Face video model, wrapped or not.
        processor: its processor, or its tokenizer.
        video: whatever ``open_video`` takes.
        question: text of the user's turn.
        fps: frames a second to sample, or "native".
        start, end: part of the video, seconds.
        plan: stages for this call; default the plan of the wrapped model, else "grt".
        keep, tokens, per_second: budget that goes with ``plan``.
        backend, native_fps: see ``open_video``.
        max_frames: most frames to sample; if it binds, ``fps`` is lowered and the report says so.
        progress: called with a stage ("decode", then "encode") and its share done, 0 to 1; an exception ends it.
        **generate: further arguments of ``model.generate``; ``max_new_tokens`` is 128 and greedy by default.

    Raises:
        InputError: no question, a processor of another family, or an argument that makes no sense.
        VideoError: the video cannot be read.
        UnsupportedError: the plan or ``ask`` itself cannot serve this family.
    """
    options = {"keep": keep, "tokens": tokens, "per_second": per_second, "fps": fps, "start": start, "end": end}
    options |= {"backend": backend, "native_fps": native_fps, "max_frames": max_frames, "plan": plan}
    options["progress"] = progress
    return ask_many(model, processor, video, [question], **options, **generate)[0]


def ask_many(
    model: Any,
    processor: Any,
    video: Any,
    questions: Sequence[str],
    *,
    plan: PlanLike | None = None,
    keep: float | None = None,
    tokens: int | None = None,
    per_second: float | None = None,
    batch: int = 16,
    fps: float | str = 2.0,
    start: float | None = None,
    end: float | None = None,
    backend: str = "auto",
    native_fps: float | None = None,
    max_frames: int | None = None,
    progress: Progress | None = None,
    **generate: Any,
) -> list[Answer]:
    """Answer several questions about one video, which is decoded and gated once and encoded once a batch.

    Args:
        questions: texts of the user's turns.
        batch: prompts that run together.

    The other arguments and errors are those of ``ask``. The reports of a batch share its milliseconds evenly.
    """
    if video is None:
        raise InputError("video=None: ask needs a video; for text alone call model.generate")
    for question in questions:
        if not isinstance(question, str) or not question.strip():
            raise InputError(f"question={question!r} must be some text")
    if batch < 1:
        raise InputError(f"batch={batch} must be at least 1")
    family, session = families.of(model), vars(model).get("vtoken")
    chosen = _plan(family, session, plan, keep, tokens, per_second)
    if family.clip_modality not in family.sparse:
        raise UnsupportedError(
            f"vtoken.ask does not know how {family.title} takes a video; call model.generate with what its own "
            "processor makes"
        )
    read = Report(str(chosen))
    sampling = Sampling(fps, start, end, backend, native_fps, max_frames)
    clip = read_clip(video, _preprocessor(family, model, processor), chosen, read, sampling, _dtype(model), progress)
    prompts = [prompt(family, model, processor, clip, q) for q in questions]
    out: list[Answer] = []
    options = {"max_new_tokens": 128, "do_sample": False} | generate
    for first in range(0, len(prompts), batch):
        if progress is not None:
            progress("encode", first / len(prompts))
        out += _answer(model, processor, clip, prompts[first : first + batch], chosen, read, options, len(prompts))
    clip.rows = clip.rows[:0]
    return out


def _answer(
    model: Any,
    processor: Any,
    clip: Clip,
    prompts: list[dict[str, Any]],
    plan: Plan,
    read: Report,
    options: dict[str, Any],
    questions: int,
) -> list[Answer]:
    """Answers of one batch of prompts about one clip."""
    inputs = stack(prompts, pad_id(model))
    inputs = {n: v.to(model.device) if isinstance(v, Tensor) else v for n, v in inputs.items()}
    report = Report(str(plan))
    call = inputs | options | {CLIPS: [clip] * len(prompts), PLAN: plan, REPORT: report}
    if isinstance(vars(model).get("vtoken"), Session):
        made = model.generate(**call)
    else:
        with wrapped(model, plan):
            made = model.generate(**call)
    sequences = made if isinstance(made, Tensor) else made.sequences
    new = sequences[:: len(sequences) // len(prompts), inputs["input_ids"].shape[1] :].cpu()
    texts = tokenizer_of(processor).batch_decode(new, skip_special_tokens=True)
    fates, report.fates = [fate.numpy() for fate in report.fates], []
    share = _share(report, read, len(prompts), questions)
    return [
        Answer(t.strip(), copy.deepcopy(share), clip, ids, fate) for t, ids, fate in zip(texts, new, fates, strict=True)
    ]


def _share(report: Report, read: Report, prompts: int, questions: int) -> Report:
    """One prompt's part of a batch, and one question's part of reading the clip."""
    counts = ("cells", "encoded", "tokens", "prompt")
    for name in counts:
        setattr(report, name, getattr(report, name) // prompts)
    report.milliseconds = {stage: ms / questions for stage, ms in read.milliseconds.items()} | {
        stage: ms / prompts for stage, ms in report.milliseconds.items()
    }
    report.frames = read.frames
    for note in read.notes:
        report.note(note)
    return report


def _plan(
    family: Family,
    session: Session | None,
    plan: PlanLike | None,
    keep: float | None,
    tokens: int | None,
    per_second: float | None,
) -> Plan:
    """The plan of a call: its own, else that of the wrapped model, else "grt"."""
    given = (keep, tokens, per_second) != (None, None, None)
    if isinstance(session, Session) and plan is None:
        return check(Plan.parse(session.plan, keep, tokens, per_second), family) if given else session.plan
    return check(Plan.parse("grt" if plan is None else plan, keep, tokens, per_second), family)


def _preprocessor(family: Family, model: Any, processor: Any) -> Preprocessor:
    """Settings of the processor where it has some, else the family's."""
    has_pixels = any(getattr(processor, n, None) is not None for n in ("video_processor", "image_processor"))
    if not has_pixels:
        return family.preprocess(model)
    try:
        return family.preprocess(model, Preprocessor.from_processor(processor))
    except UnsupportedError:  # image processors that tile; frames of a video are never tiled
        return family.preprocess(model)


def _dtype(model: Any) -> torch.dtype:
    return model.dtype if model.dtype.is_floating_point else torch.float32
