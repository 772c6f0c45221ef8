"""ask: a video file and a question in, an answer out; the video is decoded, gated and cut in one pass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from vtoken import families
from vtoken.data.report import Report
from vtoken.engine.session import Session, check
from vtoken.errors import InputError, UnsupportedError
from vtoken.families.family import Family
from vtoken.families.features import Clip
from vtoken.methods.plan import Plan, PlanLike
from vtoken.qa.answer import Answer, Asked, by_batches, together
from vtoken.qa.cache import ClipMemory
from vtoken.qa.prompt import prompts, tokenizer_of
from vtoken.qa.read import Progress, Sampling, read_clip
from vtoken.video.preprocess import Preprocessor
from vtoken.video.processors import read_processor


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
    memory: ClipMemory | None = None,
    **generate: Any,
) -> list[Answer]:
    """Answer several questions about one video, which is decoded, gated, encoded and, if it can be, prefilled once.

    Greedy answers share one prefill of the video and run packed behind it (``packing``); the ids are those of ``ask``,
    up to rounding. Where that cannot be, ``generate`` runs on batches of whole prompts: for a plan that looks at the
    question, other ways to generate, layers with a sliding window or linear attention.

    Args:
        questions: texts of the user's turns.
        batch: questions that run together.
        memory: what earlier calls about the same video kept of it, and where this one keeps it; see ``ClipMemory``.

    The other arguments and errors are those of ``ask``. Tokens of a report are those of one question's prompt; its
    milliseconds are one question's even share, so that the reports of all questions add up to the call.
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
    sampling = Sampling(fps, start, end, backend, native_fps, max_frames)

    def make(report: Report) -> Clip:
        preprocess = _preprocessor(family, model, processor)
        return read_clip(video, preprocess, chosen, report, sampling, _dtype(model), progress)

    memory = memory or ClipMemory()
    clip, read = memory.read((model, processor, video), chosen, sampling, make)
    told = prompts(family, model, processor, clip, questions)
    options = {"max_new_tokens": 128, "do_sample": False} | generate
    asked = Asked(model, tokenizer_of(processor), clip, told, chosen, read, options, batch, memory, progress)
    return together(asked, family) or by_batches(asked)


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
        return family.preprocess(model, read_processor(processor))
    except UnsupportedError:  # image processors that tile; frames of a video are never tiled
        return family.preprocess(model)


def _dtype(model: Any) -> torch.dtype:
    return model.dtype if model.dtype.is_floating_point else torch.float32
