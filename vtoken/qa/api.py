"""ask: videos and a question in, an answer out; every video is decoded, gated and cut in one pass."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import Any

from vtoken import families
from vtoken.data.report import Report
from vtoken.engine.check import check, on_model
from vtoken.engine.wrap import session_of
from vtoken.errors import InputError, UnsupportedError
from vtoken.families.chunks import Early
from vtoken.families.compat import core
from vtoken.families.family import Family
from vtoken.families.features import Clip
from vtoken.methods.plan import DEFAULT, Plan, PlanLike
from vtoken.qa.answer import Answer, Questions, answer_batches, answer_packed
from vtoken.qa.cache import ClipMemory
from vtoken.qa.media import Image, Video, media_of
from vtoken.qa.prompt import Chat, prompts, question_ids
from vtoken.qa.read import Progress, Sampling, count_cells, read_clip
from vtoken.qa.tokenize import tokenizer_of
from vtoken.video.preprocess import Preprocessor
from vtoken.video.processors import read_processor

BUDGETS = ("keep", "tokens", "per_second")


def ask(model: Any, processor: Any, video: Any, question: str, **options: Any) -> Answer:
    """Answer a question about a video.

    Args:
        model: a Hugging Face video model, wrapped or not.
        processor: its processor, or its tokenizer.
        video: whatever ``open_video`` takes (a path, bytes, a file object, frames, a folder), ``vtoken.Image``, or a
            list of videos and images in the order in which the prompt shows them.
        question: text of the user's turn; control tokens in it stay text.
        **options: those of ``ask_many``.

    Raises:
        InputError: no question, a processor of another family, or an argument that makes no sense.
        VideoError: the video cannot be read.
        UnsupportedError: the plan or ``ask`` itself cannot serve this family.
    """
    return ask_many(model, processor, video, [question], **options)[0]


def ask_many(
    model: Any,
    processor: Any,
    video: Any,
    questions: Sequence[str],
    *,
    plan: PlanLike | None = None,
    sampling: Sampling | None = None,
    system: str | None = None,
    history: Sequence[Mapping[str, str]] = (),
    chat_template_kwargs: Mapping[str, Any] | None = None,
    positions: str = "trained",
    signals: Mapping[str, Any] | None = None,
    batch: int = 16,
    progress: Progress | None = None,
    memory: ClipMemory | None = None,
    **options: Any,
) -> list[Answer]:
    """Answer several questions about one video, which is decoded, gated, encoded and, where possible, prefilled once.

    Greedy answers share one prefill of the video and run packed behind it (``packed``); the ids are those of ``ask``,
    up to rounding. Otherwise ``generate`` runs on batches of whole prompts: for a plan that reads the
    question, other ways to generate, layers with a sliding window or linear attention.

    Args:
        questions: texts of the user's turns.
        plan: stages for this call; default the plan of the wrapped model, else "grt", under a budget "grt | divprune".
        sampling: which frames are read; its fields can be given as keywords, as in ``fps=10, end=60``.
        system: text of a system turn.
        history: earlier turns, ``{"role": "user" or "assistant", "content": text}``; the video is in the first one.
        chat_template_kwargs: arguments of the chat template, such as ``{"enable_thinking": False}``.
        positions: of Qwen2-VL and Qwen2.5-VL, "trained" as their checkpoints were trained, or "stock" as the
            installed transformers counts.
        signals: what only you can give to a method, see ``vtoken.wrap``.
        batch: questions that run together.
        progress: called with a stage ("decode", then "encode") and its share done, 0 to 1; an exception ends it.
        memory: shared by calls about the same video, so that it is read and encoded once; see ``ClipMemory``.
        **options: ``keep``, ``tokens`` or ``per_second``, the budget of ``plan``; fields of ``Sampling``; and
            arguments of ``model.generate``. Without a ``generation_config``, ``max_new_tokens`` is 128 and decoding is
            greedy by default.

    Tokens of a report are those of one question's prompt; its milliseconds are one question's even share, so that the
    reports of all questions add up to the call. Errors are those of ``ask``.
    """
    asked = questions_of(
        model,
        processor,
        video,
        questions,
        plan=plan,
        sampling=sampling,
        system=system,
        history=history,
        chat_template_kwargs=chat_template_kwargs,
        positions=positions,
        signals=signals,
        batch=batch,
        progress=progress,
        memory=memory,
        **options,
    )
    return answer_packed(asked) or answer_batches(asked)


def questions_of(
    model: Any,
    processor: Any,
    video: Any,
    questions: Sequence[str],
    *,
    plan: PlanLike | None = None,
    sampling: Sampling | None = None,
    system: str | None = None,
    history: Sequence[Mapping[str, str]] = (),
    chat_template_kwargs: Mapping[str, Any] | None = None,
    positions: str = "trained",
    signals: Mapping[str, Any] | None = None,
    batch: int = 16,
    progress: Progress | None = None,
    memory: ClipMemory | None = None,
    **options: Any,
) -> Questions:
    """The call of ``ask_many`` after the video was read and before anything is answered; arguments are the same."""
    _check(video, questions, batch, positions)
    budget = {name: options.pop(name, None) for name in BUDGETS}
    sampling = _sampling(sampling or Sampling(), options)
    inner = core(model)
    family = families.of(inner)
    chosen = plan_of(family, model, plan, budget, signals or {})
    if family.clip_modality not in family.sparse:
        raise UnsupportedError(
            f"vtoken.ask does not know how {family.title} takes a video; call model.generate with what its own "
            "processor makes"
        )
    media = _media(video, chosen)
    checked = Report()
    chosen = on_model(chosen, inner, checked)
    alike = family.clip_modality == "image"  # frames of a video enter the prompt as images do
    pixels = family.images(inner, processor, [m.load() for m in media if isinstance(m, Image) and not alike])

    def make(one: Video | Image, report: Report) -> Clip:
        preprocess = preprocessor_of(family, inner, processor)
        if isinstance(one, Video):
            early = early_of(family, inner, chosen) if memory is None else None
            return read_clip(one.source, preprocess, chosen, report, sampling, progress, early)
        still = read_clip([one.load()], preprocess, chosen, Report(), Sampling("native"))
        return replace(still, seconds=0.0)

    kept = memory or ClipMemory()
    videos = [m for m in media if isinstance(m, Video) or alike]
    clips, read = kept.read((model, processor, video), videos, chosen, sampling, make)
    read = replace(read, notes=[*checked.notes, *read.notes])
    chat = Chat(system, history, chat_template_kwargs or {})
    order, shown = iter(clips), iter(pixels.items if pixels else ())
    written = prompts(
        family,
        inner,
        processor,
        [next(order if alike or isinstance(m, Video) else shown) for m in media],
        questions,
        chat,
    )
    if pixels:
        written = [one | pixels.inputs for one in written]
    return Questions(
        model,
        family,
        tokenizer_of(processor),
        clips,
        written,
        list(questions),
        [question_ids(processor, question) for question in questions],
        chosen,
        read,
        settings_of(inner, options),
        batch,
        kept,
        progress,
        positions,
        signals or {},
    )


def _sampling(sampling: Sampling, options: dict[str, Any]) -> Sampling:
    """The sampling with what the options say of it, which is taken out of them."""
    frames = {f.name: options.pop(f.name) for f in fields(Sampling) if f.name in options}
    if frames.get("num_frames") is not None and frames.get("fps") is not None:
        raise InputError(f"fps={frames['fps']} and num_frames={frames['num_frames']}: give one of them")
    return replace(sampling, **frames)


def _media(video: Any, plan: Plan) -> list[Video | Image]:
    """What is shown, where the plan can take it."""
    media = media_of(video)
    if not any(isinstance(m, Video) for m in media):
        raise InputError("ask needs a video beside its images; for images alone call model.generate")
    if plan.resizer is not None and len(media) > 1:
        raise InputError(
            f"plan {str(plan)!r}: {plan.resizer.name} is a baseline for one video; {len(media)} are shown here"
        )
    return media


def early_of(family: Family, model: Any, plan: Plan) -> Early | None:
    """What encodes a video while it is read, where nothing about it depends on the whole video."""
    if plan.thinner is not None or (plan.gate is not None and plan.gate.reuses):
        return None
    return family.early(model, plan.wants, plan.hold is not None)


def read_for(
    model: Any, processor: Any, video: Any, plan: PlanLike, sampling: Sampling, **budget: Any
) -> tuple[list[Clip], Report]:
    """A video under the gate of a plan, and the report of its reading; ``cache.Given`` hands it to ``ask_many``.

    Args:
        model: only its class and configuration count, so ``load.skeleton`` will do.

    Raises:
        VideoError, InputError, UnsupportedError: see ``ask``.
    """
    inner = core(model)
    family = families.of(inner)
    report = Report()
    chosen = on_model(check(Plan.parse(plan, **budget), family), inner, report)
    return [read_clip(video, preprocessor_of(family, inner, processor), chosen, report, sampling)], report


def cells_of(model: Any, processor: Any, video: Any, sampling: Sampling) -> int:
    """Cells that the frames of a video make, by its packets and without decoding: the most tokens that it can have.

    Raises:
        VideoError: the video cannot be read.
        InputError: see ``open_video``.
    """
    inner = core(model)
    return count_cells(video, preprocessor_of(families.of(inner), inner, processor), sampling)


def _check(video: Any, questions: Sequence[str], batch: int, positions: str) -> None:
    if video is None:
        raise InputError("video=None: ask needs a video; for text alone call model.generate")
    for question in questions:
        if not isinstance(question, str) or not question.strip():
            raise InputError(f"question={question!r} must be some text")
    if batch < 1:
        raise InputError(f"batch={batch} must be at least 1")
    if positions not in ("trained", "stock"):
        raise InputError(f"positions={positions!r} must be 'trained' or 'stock'")


def plan_of(
    family: Family, model: Any, plan: PlanLike | None, budget: dict[str, Any], signals: Mapping[str, Any]
) -> Plan:
    """The plan of a call: its own, else that of the wrapped model, else the default."""
    session = session_of(model) or session_of(core(model))
    if plan is None and session is not None and not any(v is not None for v in budget.values()):
        return session.plan
    own = session.plan if session is not None else DEFAULT
    return check(Plan.parse(own if plan is None else plan, **budget), family, signals)


def settings_of(model: Any, options: dict[str, Any]) -> dict[str, Any]:
    """Arguments of ``generate``: greedy, and 128 new tokens unless the caller or the model's own config says."""
    if "generation_config" in options:
        return options
    defaults: dict[str, Any] = {"do_sample": False}
    own = model.generation_config
    if "max_length" not in options and own.max_new_tokens is None and own.max_length in (None, 20):  # 20: as generate
        defaults["max_new_tokens"] = 128
    return defaults | options


def preprocessor_of(family: Family, model: Any, processor: Any) -> Preprocessor:
    """Settings of the processor where it has some, else the family's."""
    has_pixels = any(getattr(processor, n, None) is not None for n in ("video_processor", "image_processor"))
    if not has_pixels:
        return family.preprocess(model)
    try:
        return family.preprocess(model, read_processor(processor))
    except UnsupportedError:  # image processors that tile; frames of a video are never tiled
        return family.preprocess(model)
