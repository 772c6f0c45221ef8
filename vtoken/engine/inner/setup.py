"""The language model of a call and the methods inside it: which layers they look at, and what the model cannot do."""

from __future__ import annotations

import inspect
from typing import Any

from vtoken.engine.inner import masks
from vtoken.engine.inner.cut import Stage
from vtoken.engine.inner.evict import Evictor
from vtoken.engine.inner.probe import attention_of
from vtoken.engine.inner.record import Record, Visual
from vtoken.errors import UnsupportedError
from vtoken.methods.inner import SIGNALS, Inner


class Setup:
    """What the hooks of one call share.

    Args:
        model: a model for conditional generation.
        stages: methods with their budgets, in order.
        evictors: methods that take rows out of the cache afterwards.
        visual: the prompt's visual tokens; None where a cut cache is continued.
        record: what the run fills.

    Attributes:
        how: the attention implementation.
        looked_at: layer whose input is kept -> the last layer before which a method asks for it.

    Raises:
        UnsupportedError: the model or its attention is of a kind that the methods cannot run in.
    """

    def __init__(
        self, model: Any, stages: list[Stage], evictors: list[Evictor], visual: Visual | None, record: Record
    ) -> None:
        self.decoder = model.get_decoder()
        self.base = model.base_model
        self.layers: list[Any] = list(self.decoder.layers)
        self.how: str = self.decoder.config._attn_implementation
        self.stages, self.evictors, self.visual, self.record = stages, evictors, visual, record
        self.looked_at: dict[int, int] = {}
        if self.how not in ("eager", "sdpa") and not masks.is_flash(self.how):
            raise UnsupportedError(
                f"methods inside the language model do not run with attn_implementation={self.how!r}; use 'sdpa', "
                "'eager' or 'flash_attention_2'"
            )
        if self.decoder.config.model_type == "gemma4_text":
            raise UnsupportedError(
                "methods inside the language model do not run in Gemma 4, whose layers share keys and take a row of "
                "their own for every token; methods after the encoder do, such as 'divprune'"
            )
        for stage in stages:
            self._check(stage)

    def _check(self, stage: Stage) -> None:
        method = stage.method
        if method.positions != "keep":
            self._check_positions(method)
        if not (method.looks or method.wants & SIGNALS):
            return
        for boundary in stage.boundaries:
            layer = self.source(method, boundary)
            if layer is None and not method.looks_later:
                raise UnsupportedError(
                    f"{method}: no attention layer before layer {boundary} of this model, so there is nothing to score "
                    "with; name a later layer, or use a method without attention, such as llavolta"
                )
            if layer is not None:
                stage.sighted.add(boundary)
            if layer is not None and layer < boundary:
                self.looked_at[layer] = max(boundary, self.looked_at.get(layer, 0))

    def _check_positions(self, method: Inner) -> None:
        rope = getattr(self.decoder.config, "rope_parameters", None) or {}
        rotary = getattr(self.decoder, "rotary_emb", None)
        plain = rotary is not None and list(inspect.signature(rotary.forward).parameters) == ["x", "position_ids"]
        moving = rope.get("rope_type") in ("dynamic", "longrope")  # frequencies follow the largest position
        if not plain or moving or "mrope_section" in rope:
            raise UnsupportedError(
                f"{method}: exact positions are counted anew, which needs plain 1-D rotary positions; leave exact=True "
                "out"
            )

    def source(self, method: Inner, boundary: int) -> int | None:
        """The attention layer at which a method looks before a layer; None where there is none."""
        if method.source == "here" and attention_of(self.layers[boundary]) is not None:
            return boundary
        return next((i for i in range(boundary - 1, -1, -1) if attention_of(self.layers[i]) is not None), None)

    @property
    def adds_features(self) -> bool:
        """Whether the model adds visual features between its first layers."""
        return hasattr(self.decoder, "_deepstack_process")

    def first_layer(self) -> int:
        """The first layer that needs a hook."""
        early = any(s.method.cuts_cache or s.method.wants_start for s in self.stages)
        if self.visual is None or self.evictors or early or self.adds_features:
            return 0
        needed = [*self.looked_at, *(b for s in self.stages for b in s.boundaries)]
        return min(needed, default=len(self.layers))
