"""wrap and unwrap: run a plan inside ``forward`` and ``generate`` of a stock Hugging Face model.

The prompt is cut in id space before the model sees it: placeholders, masks, positions and feature rows shrink
together, and the unmodified model runs on the result.
"""

from __future__ import annotations

import functools
import inspect
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from vtoken import families
from vtoken.data.report import Report
from vtoken.engine import encode as encoding
from vtoken.engine.session import CLIPS, Session
from vtoken.engine.splice import Cut
from vtoken.errors import InputError, UnsupportedError
from vtoken.families.family import has_pixels
from vtoken.methods.plan import Plan, PlanLike
from vtoken.video.processors import read_processor

_inside = threading.local()


def wrap(
    model: Any,
    plan: PlanLike = "grt",
    *,
    keep: float | None = None,
    tokens: int | None = None,
    per_second: float | None = None,
    fps: float | None = None,
    processor: Any = None,
) -> Any:
    """Run a plan inside a model's ``forward`` and ``generate``, in place; ``unwrap`` takes it back.

    Args:
        model: a Hugging Face ...ForConditionalGeneration model of a known family.
        plan: text such as ``"grt | divprune"``, a method, a list of methods or a ``Plan``.
        keep, tokens, per_second: shared budget, at most one: share of the stock model's visual tokens, tokens in
            all, or tokens for each second of video.
        fps: sampling rate of videos passed as ``pixel_values_videos``, where the inputs do not tell it.
        processor: the processor in use, if it normalises otherwise than the family's checkpoints do; only gates look
            at it.

    Returns:
        The same model, with ``model.vtoken`` (see ``Session``).

    Raises:
        InputError: no known family, already wrapped, unknown method, or a budget that makes no sense.
        UnsupportedError: the plan cannot run on this family.
    """
    family = families.of(model)
    if isinstance(vars(model).get("vtoken"), Session):
        raise InputError(
            "this model is already wrapped; assign model.vtoken.plan to change the plan, or call vtoken.unwrap first"
        )
    if fps is not None and not (fps > 0 and fps != float("inf")):
        raise InputError(f"fps={fps} must be a positive number of frames a second")
    if not _accepts_outputs(model):
        raise UnsupportedError("vtoken needs transformers >= 5.18: this model's forward takes no mm_encoder_outputs")
    preprocess = None if processor is None else read_processor(processor)
    session = Session(model, family, Plan.parse(plan, keep, tokens, per_second), fps, preprocess)
    forward, generate = model.forward, model.generate
    model.vtoken = session
    model.forward = functools.wraps(forward)(functools.partial(_forward, model, session, forward))
    model.generate = functools.wraps(generate)(functools.partial(_generate, model, session, generate))
    return model


def unwrap(model: Any) -> Any:
    """Restore every attribute of a wrapped model as it was.

    Raises:
        InputError: the model is not wrapped.
    """
    session = vars(model).get("vtoken")
    if not isinstance(session, Session):
        raise InputError(f"this {type(model).__name__} is not wrapped")
    for name, before in session._stock.items():
        if before is None:
            delattr(model, name)
        else:
            setattr(model, name, before)
    del model.vtoken
    return model


@contextmanager
def wrapped(model: Any, plan: PlanLike = "grt", **options: Any) -> Iterator[Any]:
    """``wrap`` for the length of a block."""
    wrap(model, plan, **options)
    try:
        yield model
    finally:
        unwrap(model)


def _forward(model: Any, session: Session, stock: Any, *args: Any, **kwargs: Any) -> Any:
    if getattr(_inside, "report", None) is not None:
        return _timed_forward(_inside.report, stock, args, kwargs)
    inputs = _bind(stock, args, kwargs)
    _refuse_pruned_cache(inputs)
    if not _visual(inputs):
        return stock(**inputs)
    Report.reset_memory(model.device)
    inputs, cut, report = session.prepare(model, inputs, generating=False)
    with report.stage("prefill", model.device):
        out = stock(**inputs)
    _finish(session, report, model)
    _mark(getattr(out, "past_key_values", None), cut)
    return out


def _generate(model: Any, session: Session, stock: Any, inputs: Tensor | None = None, *args: Any, **kwargs: Any) -> Any:
    if inputs is not None:
        kwargs["input_ids"] = inputs
    kwargs = _bind(stock, (None, *args), kwargs) if args else kwargs
    _refuse_pruned_cache(kwargs)
    if not _visual(kwargs):
        return stock(**kwargs)
    original = kwargs.get("input_ids")
    Report.reset_memory(model.device)
    with torch.no_grad():
        call, cut, report = session.prepare(model, dict(kwargs), generating=True)
    assert original is not None
    removed = original.shape[1] - call["input_ids"].shape[1]
    call = _shorten(call, removed)
    if call.get("streamer") is not None and removed:
        call["streamer"] = _Prompt(call["streamer"], original)
    start = time.perf_counter()
    _inside.report = report
    try:
        out = stock(**call)
    finally:
        _inside.report = None
    report.add("generate", (time.perf_counter() - start) * 1e3 - report.milliseconds.get("prefill", 0.0))
    _finish(session, report, model)
    _mark(kwargs.get("past_key_values"), cut)
    return _restore(out, original, call["input_ids"].shape[1], cut)


def _timed_forward(report: Report, stock: Any, args: tuple, kwargs: dict[str, Any]) -> Any:
    """A step inside generate; the first one is the prefill."""
    if "prefill" in report.milliseconds:
        return stock(*args, **kwargs)
    ids = kwargs.get("input_ids", kwargs.get("inputs_embeds"))
    with report.stage("prefill", ids.device if isinstance(ids, Tensor) else None):
        return stock(*args, **kwargs)


def _finish(session: Session, report: Report, model: Any) -> None:
    report.measure_memory(model.device)
    session.report = report


def _restore(out: Any, original: Tensor, width: int, cut: Cut) -> Any:
    """Put the original prompt back in front of the new tokens."""
    sequences = out if isinstance(out, Tensor) else out.sequences
    prompt = original.repeat_interleave(sequences.shape[0] // original.shape[0], dim=0)
    full = torch.cat([prompt.to(sequences.device), sequences[:, width:]], dim=1)
    if isinstance(out, Tensor):
        return full
    out.sequences = full
    _mark(getattr(out, "past_key_values", None), cut)
    return out


def _shorten(call: dict[str, Any], removed: int) -> dict[str, Any]:
    """Lengths that count the prompt shrink with it."""
    if not removed:
        return call
    for name in ("max_length", "min_length"):
        if call.get(name) is not None:
            call[name] = max(0, call[name] - removed)
    config = call.get("generation_config")
    if config is not None:
        import copy

        config = call["generation_config"] = copy.deepcopy(config)
        if config.max_length is not None and config.max_new_tokens is None:
            config.max_length -= removed
        if config.min_length and config.min_new_tokens is None:
            config.min_length = max(0, config.min_length - removed)
    return call


class _Prompt:
    """A streamer that sees the original prompt instead of the cut one."""

    def __init__(self, streamer: Any, prompt: Tensor) -> None:
        self._streamer, self._prompt = streamer, prompt

    def put(self, value: Tensor) -> None:
        if self._prompt is not None:
            value, self._prompt = self._prompt.cpu(), None
        self._streamer.put(value)

    def end(self) -> None:
        self._streamer.end()


def _bind(function: Any, args: tuple, kwargs: dict[str, Any]) -> dict[str, Any]:
    if not args:
        return dict(kwargs)
    names = list(inspect.signature(function).parameters)
    return {**dict(zip(names, args, strict=False)), **kwargs}


def _visual(inputs: dict[str, Any]) -> bool:
    return inputs.get(CLIPS) is not None or any(has_pixels(inputs, m) for m in encoding.MODALITIES)


def _accepts_outputs(model: Any) -> bool:
    return "mm_encoder_outputs" in inspect.signature(model.forward).parameters


def _refuse_pruned_cache(inputs: dict[str, Any]) -> None:
    dropped = getattr(inputs.get("past_key_values"), "vtoken_dropped", 0)
    if dropped:
        raise UnsupportedError(
            f"this KV cache was made from a prompt that lost {dropped} tokens, so it cannot be continued with the "
            "original ids; start again from the whole prompt without past_key_values"
        )


def _mark(cache: Any, cut: Cut) -> None:
    """Remember on a cache that its prompt was cut."""
    if cache is not None and len(cut.slots):
        longest = max(int(s.max()) + 1 if len(s) else 0 for s in cut.slots)
        dropped = longest - min(len(s) for s in cut.slots)
        if dropped:
            cache.vtoken_dropped = dropped
