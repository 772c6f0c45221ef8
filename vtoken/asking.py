"""ask: a video file and a question in, an answer out; the video is decoded, gated and cut in one pass."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vtoken import families
from vtoken.errors import InputError, UnsupportedError
from vtoken.families.base import Clip, Family
from vtoken.plan import Plan, PlanLike
from vtoken.report import Report
from vtoken.session import CLIPS, PLAN, REPORT, Session, check
from vtoken.types import Frames, GateMap, Grid
from vtoken.video import open_video
from vtoken.video.preprocess import Preprocessor
from vtoken.wrapping import wrapped

CHUNK = 32


@dataclass
class Answer:
    """What ``ask`` returns.

    Attributes:
        text: the answer.
        report: tokens and milliseconds by stage, sampled frames, caps that bound.
        clip: what the gate kept, for overlays; its pixel rows are gone.
        tokens: int64 [n], ids of the answer.
    """

    text: str
    report: Report
    clip: Clip
    tokens: Tensor

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
        **generate: further arguments of ``model.generate``; ``max_new_tokens`` is 128 and greedy by default.

    Raises:
        InputError: no question, a processor of another family, or an argument that makes no sense.
        VideoError: the video cannot be read.
        UnsupportedError: the plan or ``ask`` itself cannot serve this family.
    """
    if video is None:
        raise InputError("video=None: ask needs a video; for text alone call model.generate")
    if not isinstance(question, str) or not question.strip():
        raise InputError(f"question={question!r} must be some text")
    family, session = families.of(model), vars(model).get("vtoken")
    if plan is None and (keep, tokens, per_second) != (None, None, None) and isinstance(session, Session):
        plan = session.plan
    if plan is not None or not isinstance(session, Session):
        chosen = check(Plan.parse("grt" if plan is None else plan, keep, tokens, per_second), family)
    else:
        chosen = session.plan
    if family.clip_modality not in family.sparse:
        raise UnsupportedError(
            f"vtoken.ask does not know how {family.title} takes a video; call model.generate with what its own "
            "processor makes"
        )
    report = Report(str(chosen))
    preprocess = _preprocessor(family, model, processor)
    clip = read_clip(video, preprocess, chosen, report, fps, start, end, backend, native_fps, max_frames, _dtype(model))
    inputs = prompt(family, model, processor, clip, question)
    inputs = {n: v.to(model.device) if isinstance(v, Tensor) else v for n, v in inputs.items()}
    options: dict[str, Any] = {"max_new_tokens": 128, "do_sample": False} | generate
    call = inputs | options | {CLIPS: [clip], PLAN: chosen, REPORT: report}
    if isinstance(session, Session):
        out = model.generate(**call)
    else:
        with wrapped(model, chosen):
            out = model.generate(**call)
    sequences = out if isinstance(out, Tensor) else out.sequences
    new = sequences[0, inputs["input_ids"].shape[1] :]
    clip.rows = clip.rows[:0]
    return Answer(_tokenizer(processor).decode(new, skip_special_tokens=True).strip(), report, clip, new.cpu())


def read_clip(
    video: Any,
    preprocess: Preprocessor,
    plan: Plan,
    report: Report,
    fps: float | str = 2.0,
    start: float | None = None,
    end: float | None = None,
    backend: str = "auto",
    native_fps: float | None = None,
    max_frames: int | None = None,
    dtype: torch.dtype = torch.float32,
) -> Clip:
    """Decode, gate and cut a video in one pass; only pixels of kept cells stay in memory.

    Raises:
        VideoError: the video cannot be read or has no frame in the part asked for.
        InputError: see ``open_video``.
    """
    reader = open_video(video, fps=fps, start=start, end=end, backend=backend, chunk=CHUNK, native_fps=native_fps)
    with reader:
        seconds = _length(reader)
        rate = reader.fps or reader.native_fps
        if max_frames is not None and seconds is not None and rate is not None:
            if max_frames < 1:
                raise InputError(f"max_frames={max_frames} must be at least 1")
            if seconds * rate > max_frames + 0.5:
                report.note(f"frame cap: max_frames={max_frames} lowers fps={rate:g} to {max_frames / seconds:.4g}")
                reader.fps = rate = max_frames / seconds
        if rate is not None and reader.native_fps is not None:
            rate = min(rate, reader.native_fps)
        frames = None if seconds is None or rate is None else max(1, round(seconds * rate))
        height, width = reader.size
        grid = preprocess.grid(height, width, frames)
        for note in preprocess.notes(height, width, frames):
            report.note(note)
        reader.chunk = max(grid.frames, reader.chunk - reader.chunk % grid.frames)
        maps, rows, pts = _stream(reader, preprocess, plan, grid, report, dtype)
        for note in reader.notes:
            report.note(note)
    report.frames.append(pts.tolist())
    spacing = float(np.diff(pts).mean()) if len(pts) > 1 else 1 / rate if rate else 1.0
    return Clip(torch.cat(rows), grid, GateMap.concatenate(maps), pts, float(pts[-1] - pts[0]) + spacing)


def _stream(
    reader: Any, preprocess: Preprocessor, plan: Plan, grid: Grid, report: Report, dtype: torch.dtype
) -> tuple[list[GateMap], list[Tensor], np.ndarray]:
    gate = plan.gate.stream(grid) if plan.gate is not None else None
    maps, rows, pts = [], [], []
    chunks, steps = iter(reader), 0
    while True:
        with report.stage("decode"):
            frames: Frames | None = next(chunks, None)
        if frames is None:
            break
        with report.stage("gate"):
            if gate is None:
                part = GateMap.full(grid.steps(len(frames)), grid.rows, grid.columns)
                part.reference += steps
            else:
                part = gate.push(_planes(frames, preprocess, grid, plan), frames.pts)
                if len(frames) % grid.frames:
                    part = GateMap.concatenate([part, gate.finish()])
        with report.stage("decode"):
            rows.append(preprocess.cells(frames, grid, part.keep).to(dtype))
        maps.append(part)
        pts.append(frames.pts)
        steps += len(part.keep)
    return maps, rows, np.concatenate(pts)


def _planes(frames: Frames, preprocess: Preprocessor, grid: Grid, plan: Plan) -> np.ndarray:
    if plan.gate is not None and plan.gate.signal == "rgb":
        return np.stack([preprocess.resize(frames.rgb(i), grid) for i in range(len(frames))])
    return np.stack([preprocess.luma(plane, grid) for plane in frames.luma])


def prompt(family: Family, model: Any, processor: Any, clip: Clip, question: str) -> dict[str, Any]:
    """Arguments of ``generate`` for one clip and one question, with a placeholder for every cell.

    Raises:
        InputError: the processor belongs to another family.
    """
    tokenizer = _tokenizer(processor)
    marks, ids, extra = family.prompt(model, tokenizer, clip)
    text = _template(processor, tokenizer, family, tokenizer.convert_ids_to_tokens(marks), question)
    plain = tokenizer(text, add_special_tokens=not getattr(processor, "chat_template", None))["input_ids"]
    places = [i for i in range(len(plain)) if plain[i : i + len(marks)] == marks]
    if len(places) != 1:
        raise InputError(
            f"the prompt of {type(processor).__name__} has {len(places)} places for a {family.clip_modality} "
            f"({''.join(map(str, tokenizer.convert_ids_to_tokens(marks)))}), 1 expected; is it the processor of "
            f"this {family.title} model?"
        )
    before, after = plain[: places[0]], plain[places[0] + len(marks) :]
    input_ids = torch.tensor([before + ids + after])
    out: dict[str, Any] = {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids), **extra}
    if "video_grid_thw" in extra:
        out["mm_token_type_ids"] = 2 * (input_ids == model.config.video_token_id).int()
    return out


def _template(processor: Any, tokenizer: Any, family: Family, marks: list[str], question: str) -> str:
    owner = next((o for o in (processor, tokenizer) if getattr(o, "chat_template", None)), None)
    if owner is None:  # base models have no template
        return f"{''.join(marks)}\n{question}"
    content = [{"type": family.clip_modality}, {"type": "text", "text": question}]
    return owner.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False)


def _tokenizer(processor: Any) -> Any:
    tokenizer = getattr(processor, "tokenizer", processor)
    if not hasattr(tokenizer, "convert_ids_to_tokens"):
        raise InputError(f"processor={type(processor).__name__} is neither a processor nor a tokenizer")
    return tokenizer


def _preprocessor(family: Family, model: Any, processor: Any) -> Preprocessor:
    """Settings of the processor where it has some, else the family's."""
    has_pixels = any(getattr(processor, n, None) is not None for n in ("video_processor", "image_processor"))
    if not has_pixels:
        return family.preprocess(model)
    try:
        return family.preprocess(model, Preprocessor.from_processor(processor))
    except UnsupportedError:  # image processors that tile; frames of a video are never tiled
        return family.preprocess(model)


def _length(reader: Any) -> float | None:
    """Seconds that will be read, or None where the file does not say."""
    if reader.duration is None:
        return None
    return min(reader.end, reader.duration) - reader.start


def _dtype(model: Any) -> torch.dtype:
    return model.dtype if model.dtype.is_floating_point else torch.float32
