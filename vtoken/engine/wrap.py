"""wrap and unwrap: run a plan inside ``forward`` and ``generate`` of a stock Hugging Face model."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from types import MethodType
from typing import Any

from vtoken import families
from vtoken.engine import run
from vtoken.engine.cache import refuse_cut
from vtoken.engine.encode import MODALITIES
from vtoken.engine.inner import check_layers, continues, installed
from vtoken.engine.kv import Kv
from vtoken.engine.labelled import labelled
from vtoken.engine.session import Session
from vtoken.errors import InputError, UnsupportedError
from vtoken.families.compat import accepts_outputs, core
from vtoken.families.family import has_pixels
from vtoken.methods.eviction import Eviction
from vtoken.methods.plan import DEFAULT, Plan, PlanLike
from vtoken.video.processors import read_processor

METHODS = ("forward", "generate")
BATCHED = ("generate_batch", "init_continuous_batching", "continuous_batching_context_manager")


def wrap(
    model: Any,
    plan: PlanLike = DEFAULT,
    *,
    keep: float | None = None,
    tokens: int | None = None,
    per_second: float | None = None,
    fps: float | None = None,
    processor: Any = None,
    positions: str = "stock",
    signals: Mapping[str, Any] | None = None,
    kv: str | Eviction | None = None,
) -> Any:
    """Run a plan inside a model's ``forward`` and ``generate``, in place; ``unwrap`` takes it back.

    Args:
        model: a Hugging Face ...ForConditionalGeneration model of a known family, also in a PEFT or torch.compile
            wrapper.
        plan: text such as ``"grt | divprune"``, a method, a list of methods or a ``Plan``; by default ``"grt"``, and
            ``"grt | divprune"`` under a budget.
        keep, tokens, per_second: shared budget, at most one: share of the stock model's visual tokens, tokens in
            all, or tokens for each second of video.
        fps: sampling rate of videos passed as ``pixel_values_videos``, where the inputs do not hold it.
        processor: the processor in use, if it normalises otherwise than the family's checkpoints do; only gates use
            it.
        positions: of Qwen2-VL and Qwen2.5-VL: "stock" as the installed transformers counts, bit for bit, or "trained"
            as their checkpoints were trained, where text behind a video comes after the video's time.
        signals: what only you can give to a method, by name: a tensor, a list with one for each sample, or a function
            ``(tokens, question) -> tensor``; ``vtoken methods`` lists what each method takes.
        kv: what becomes of the KV cache of ``generate``. A method of the kind "cache", such as "value_norm",
            "key_norm", "tar_van" or "snapkv:keep=0.25", takes visual rows out of it once the prompt has been read, as
            at the end of the plan; "fp8", "int8" and "int4" store its rows quantised, where transformers can.

    Returns:
        The same model, with ``model.vtoken`` (see ``Session``).

    Raises:
        InputError: no known family, already wrapped, unknown method, or a budget that makes no sense.
        UnsupportedError: the plan cannot run on this family, or not with this ``kv``.
        MissingExtraError: the package that quantises is not installed.
    """
    inner = core(model)
    family = families.of(inner)
    if session_of(model) is not None or session_of(inner) is not None:
        raise InputError(
            "this model is already wrapped; assign model.vtoken.plan to change the plan, or call vtoken.unwrap first"
        )
    if fps is not None and not (fps > 0 and fps != float("inf")):
        raise InputError(f"fps={fps} must be a positive number of frames a second")
    if not accepts_outputs(inner):
        raise UnsupportedError("vtoken needs transformers >= 5.18: this model's forward takes no mm_encoder_outputs")
    if positions not in ("trained", "stock"):
        raise InputError(f"positions={positions!r} must be 'trained' or 'stock'")
    preprocess = None if processor is None else read_processor(processor)
    own = Kv.of(kv, inner)
    session = Session(family, Plan.parse(plan, keep, tokens, per_second), fps, preprocess, positions, signals, own)
    if session.plan.acts_inside:
        check_layers(inner, session.plan)
    stock = {name: getattr(model, name) for name in METHODS}
    session.placed = {name: Placed(inner, session, stock[name], name) for name in METHODS}
    session.placed |= {name: Bypass(name) for name in BATCHED if hasattr(model, name)}
    session.before = {name: vars(model).get(name) for name in session.placed}
    vars(model).update(session.placed, vtoken=session)  # past the __setattr__ of wrappers
    return model


def unwrap(model: Any) -> Any:
    """Restore every attribute of a wrapped model as it was.

    Raises:
        InputError: the model is not wrapped, or something else has replaced ``forward`` or ``generate`` since.
    """
    session = session_of(model)
    if session is None:
        raise InputError(f"this {type(model).__name__} is not wrapped")
    for name in session.placed:
        if vars(model).get(name) is not session.placed[name]:
            raise InputError(
                f"model.{name} is no longer what vtoken.wrap put there: {vars(model).get(name)!r} replaced it; take "
                "that back first (for example accelerator.unwrap_model(model)), then call vtoken.unwrap"
            )
    for name, before in session.before.items():
        if before is None:
            del vars(model)[name]
        else:
            vars(model)[name] = before
    del vars(model)["vtoken"]
    return model


@contextmanager
def wrapped(model: Any, plan: PlanLike = DEFAULT, **options: Any) -> Iterator[Any]:
    """``wrap`` for the length of a block."""
    wrap(model, plan, **options)
    try:
        yield model
    finally:
        unwrap(model)


def session_of(model: Any) -> Session | None:
    """The session of a wrapped model, or None."""
    found = vars(model).get("vtoken")
    return found if isinstance(found, Session) else None


class Placed:
    """The replacement of a model's ``forward`` or ``generate``; it can be copied and pickled with the model."""

    def __init__(self, model: Any, session: Session, stock: Any, name: str) -> None:
        self.model, self.session, self.stock, self.name = model, session, stock, name
        self.__wrapped__, self.__doc__ = stock, stock.__doc__  # inspect.signature follows the first

    def __getstate__(self) -> dict[str, Any]:
        stock, own = self.stock, isinstance(self.stock, MethodType)
        if own and getattr(type(stock.__self__), self.name, None) is stock.__func__:
            stock = stock.__self__  # a method by name: the copy's is the copy's own
        else:
            own = False
        return {"model": self.model, "session": self.session, "name": self.name, "stock": stock, "own": own}

    def __setstate__(self, state: dict[str, Any]) -> None:
        stock, name = state["stock"], state["name"]
        if state["own"]:
            stock = getattr(type(stock), name).__get__(stock)
        self.__init__(state["model"], state["session"], stock, name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        import torch

        return torch.compiler.disable(self._run)(*args, **kwargs)

    def _run(self, *args: Any, **kwargs: Any) -> Any:
        inputs = _bind(self.stock, args, kwargs)
        if self.name == "generate" and inputs.get("inputs") is not None:
            inputs["input_ids"] = inputs.pop("inputs")
        refuse_cut(inputs)
        if self.name == "generate":
            self.session.kv.fill(inputs)
        if not any(has_pixels(inputs, m) for m in MODALITIES):
            with installed(self.model) if continues(self.model, inputs) else nullcontext():
                out = self.stock(**inputs)  # text, or a step of generate, whose pixels were encoded before
            labels = inputs.get("labels") if self.name == "forward" else None
            return out if labels is None else labelled(out, labels)
        call = self.session.call(self.model)
        out = getattr(run, self.name)(call, inputs, self.stock)
        self.session.report = call.report
        return out


class Bypass:
    """In place of a method that would run the model past its plan."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        raise UnsupportedError(
            f"model.{self.name} takes ids alone and makes positions of its own, so it would run past the plan of a "
            "wrapped model; call model.generate with a batch, vtoken.ask_many, or vtoken.unwrap first"
        )


def _bind(function: Any, args: tuple, kwargs: dict[str, Any]) -> dict[str, Any]:
    if not args:
        return dict(kwargs)
    names = list(inspect.signature(function).parameters)
    return {**dict(zip(names, args, strict=False)), **kwargs}
