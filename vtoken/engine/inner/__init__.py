"""Visual tokens that leave or fuse inside the language model, by hooks between its layers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from typing import Any

import torch

from vtoken.encoders.taps import registering
from vtoken.engine.inner.cache import active, record_of
from vtoken.engine.inner.cut import Stage
from vtoken.engine.inner.evict import Evictor
from vtoken.engine.inner.record import LINE, Record, Visual
from vtoken.engine.inner.run import Run
from vtoken.engine.inner.setup import Setup
from vtoken.families.compat import cache_of
from vtoken.methods.inner import LayerContext
from vtoken.methods.plan import Plan
from vtoken.methods.reducer import Context

__all__ = ["LINE", "Record", "Visual", "check_layers", "continues", "installed"]


@contextmanager
def installed(
    model: Any, plan: Plan | None = None, visual: Visual | None = None, context: Context | None = None
) -> Iterator[Record]:
    """Run the plan's methods inside the language model in every forward of this thread within the block.

    A cache that was cut in such a block is continued in a later one, with or without ``visual``.

    Args:
        model: a Hugging Face model for conditional generation.
        plan: its ``inner`` methods run; None to continue a cut cache only.
        visual: the visual tokens of the prompt, as the language model is given it; None for a prompt without any.
        context: seconds, totals, notes and extras, one entry an item; see ``Context``.

    Yields:
        the record, filled once the prompt has been read.

    Raises:
        InputError: a method's layer does not fit the model, or the batch does not fit ``visual``.
        UnsupportedError: the model or the call is one for which the answer would be wrong.
    """
    depth = len(model.get_decoder().layers)
    record = Record(0 if visual is None else visual.width, [None] * depth, shift=[None] * depth)
    stages, evictors = [], []
    if plan is not None and visual is not None:
        given = {f.name: getattr(context, f.name) for f in fields(Context)} if context is not None else {}
        own = LayerContext(**given, depth=depth)
        own.extra = {**own.extra, "norm": model.get_decoder().norm}
        own.norm = model.get_decoder().norm
        own.total = own.total or visual.tokens.batch.diff().tolist()
        stages = [Stage(method, plan.inner_count(method, own), visual, own) for method in plan.inner]
        evictors = [Evictor(method, visual, own) for method in plan.evictions]
    run = Run(Setup(model, stages, evictors, visual, record))
    before = getattr(active, "run", None)
    with registering:
        handles = run.hooks()
    active.run = run
    try:
        yield record
    finally:
        active.run = before
        with registering:
            for handle in handles:
                handle.remove()


def continues(model: Any, inputs: dict[str, Any]) -> bool:
    """Whether a call goes on with a cache that was cut inside the model, outside of any block of this thread."""
    run = getattr(active, "run", None)
    running = run is not None and run.setup.base is model.base_model
    return not running and record_of(cache_of(inputs)) is not None


def check_layers(model: Any, plan: Plan) -> None:
    """Refuse a plan whose methods cannot run inside a model, before it is given anything.

    Raises:
        InputError: a method's layer does not fit the model.
        UnsupportedError: its layers or attention are of a kind in which a method cannot run.
    """
    visual, context = Visual.of(torch.ones(1, 1, dtype=torch.bool)), LayerContext(depth=len(model.get_decoder().layers))
    stages = [Stage(method, None, visual, context) for method in plan.inner]
    Setup(model, stages, [Evictor(method, visual, context) for method in plan.evictions], visual, Record(1, []))
