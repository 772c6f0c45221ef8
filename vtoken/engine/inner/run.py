"""The hooks of one call, in one thread: what kind of forward each is, and who handles its layers."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from vtoken.engine.inner import masks
from vtoken.engine.inner.cache import length_of, record_of
from vtoken.engine.inner.continuing import Continuing
from vtoken.engine.inner.held import held_by
from vtoken.engine.inner.reading import Reading
from vtoken.engine.inner.setup import Setup
from vtoken.errors import InputError, UnsupportedError
from vtoken.families.compat import cache_of


class Run:
    """The hooks of one call of a model. They ignore forwards of other threads.

    Another thread that has just looked up a hook may call it after it was removed, then without ``kwargs``.
    """

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        self.thread = threading.get_ident()
        self.state: Reading | Continuing | None = None
        self.ids: Tensor | None = None  # of the prompt
        self.read = False  # whether the prompt was read

    def hooks(self) -> list[Any]:
        """Register the hooks; their handles."""
        setup = self.setup
        handles = [
            setup.base.register_forward_pre_hook(self._begin, with_kwargs=True),
            setup.base.register_forward_hook(self._end, always_call=True),
            setup.layers[-1].register_forward_hook(self._last),
        ]
        if setup.adds_features:
            handles.append(setup.decoder.register_forward_pre_hook(self._features, with_kwargs=True))
        for i in range(setup.first_layer(), len(setup.layers)):
            handles.append(setup.layers[i].register_forward_pre_hook(self._before(i), with_kwargs=True))
        return handles

    def _mine(self) -> Reading | Continuing | None:
        return self.state if threading.get_ident() == self.thread else None

    def _begin(self, module: nn.Module, args: tuple, kwargs: dict[str, Any] | None = None) -> None:
        """Before the base model."""
        if threading.get_ident() != self.thread:
            return
        self.state = None
        given = inspect.signature(module.forward).bind_partial(*args, **(kwargs or {})).arguments
        given |= given.pop("kwargs", {})
        ids, cache, setup = given.get("input_ids"), cache_of(given), self.setup
        like = given.get("inputs_embeds") if ids is None else ids
        if like is None:
            return
        samples, queries = like.shape[:2]
        if cache is not None and length_of(cache) > 0:
            record = record_of(cache)
            if record is not None:
                self.state = Continuing(setup, record, cache, queries, given.get("attention_mask"))
            elif setup.visual is not None and not self.read:
                raise UnsupportedError(
                    "images and videos cannot join a conversation in a filled KV cache; pass the whole prompt"
                )
        elif (setup.stages or setup.evictors) and self._reads_prompt(ids, samples, queries):
            if held := held_by(cache):
                real = held.real_rows
                assert real is not None
            else:
                real = masks.real_columns(given.get("attention_mask"), samples, queries, like.device)
            self.state = Reading(setup, torch.where(real, torch.arange(queries, device=like.device), -1), not self.read)
            self.read = True

    def _reads_prompt(self, ids: Tensor | None, samples: int, queries: int) -> bool:
        """Whether a forward without a filled cache reads the prompt, with or without what was generated since."""
        visual = self.setup.visual
        assert visual is not None
        if queries < visual.width and not self.read:
            raise UnsupportedError(
                f"the model was given {queries} of {visual.width} columns of the prompt, but methods inside it need "
                "the whole prompt at once; do not set prefill_chunk_size"
            )
        if samples % visual.samples and not self.read:
            raise InputError(f"a batch of {samples} rows does not fit {visual.samples} samples with visual tokens")
        if queries < visual.width or samples % visual.samples:
            return False  # another prompt, such as the unconditional one of guidance
        if ids is not None:
            prompt = ids[:, : visual.width]
            if self.ids is not None and not torch.equal(prompt, self.ids):
                return False
            self.ids = prompt
        if self.read and (self.setup.evictors or any(s.method.cuts_cache for s in self.setup.stages)):
            raise UnsupportedError(
                "a method that takes rows out of the cache cannot generate without one; use use_cache=True"
                + ("" if self.setup.evictors else ", or cut_cache=False")
            )
        return True

    def _end(self, module: nn.Module, args: tuple, out: Any) -> None:
        if threading.get_ident() == self.thread:
            self.state = None

    def _features(self, module: nn.Module, args: tuple, kwargs: dict[str, Any] | None = None) -> Any:
        """Take the features that a model adds between its first layers, to add them to the rows that are left."""
        state = self._mine()
        if not isinstance(state, Reading) or kwargs is None or kwargs.get("deepstack_visual_embeds") is None:
            return None
        state.features = kwargs["visual_pos_masks"], list(kwargs["deepstack_visual_embeds"])
        return args, kwargs | {"deepstack_visual_embeds": None}

    def _before(self, layer: int) -> Callable[..., Any]:
        def hook(module: nn.Module, args: tuple, kwargs: dict[str, Any] | None = None) -> Any:
            state = self._mine()
            if state is None or kwargs is None:
                return None
            if len(args) != 1 or "position_embeddings" not in kwargs:
                raise UnsupportedError(f"{type(module).__name__} is called in a way that vtoken does not know")
            hidden, kwargs = state.before(layer, args[0], kwargs)
            return (hidden,), kwargs

        return hook

    def _last(self, module: nn.Module, args: tuple, out: Any) -> Any:
        state = self._mine()
        if not isinstance(state, Reading):
            return None
        hidden = state.finish(out[0] if isinstance(out, tuple) else out)
        return (hidden, *out[1:]) if isinstance(out, tuple) else hidden
