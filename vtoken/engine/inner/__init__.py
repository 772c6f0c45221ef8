"""Visual tokens that leave or fuse inside the language model, by hooks between its layers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from typing import Any

from vtoken.engine.inner.cache import active
from vtoken.engine.inner.cut import Stage
from vtoken.engine.inner.evict import Evictor
from vtoken.engine.inner.record import LINE, Record, Visual
from vtoken.engine.inner.run import Run
from vtoken.engine.inner.setup import Setup
from vtoken.methods.inner import LayerContext
from vtoken.methods.plan import Plan
from vtoken.methods.reducer import Context

__all__ = ["LINE", "Record", "Visual", "installed"]


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
    handles = run.hooks()
    active.run = run
    try:
        yield record
    finally:
        active.run = before
        for handle in handles:
            handle.remove()
