"""``generate`` on a cut prompt, whose lengths, processors, streamer and result are those of the original prompt."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


def as_uncut(stock: Callable[..., Any], inputs: dict[str, Any], prompt: Tensor, config: Any) -> Any:
    """What ``stock(**inputs)`` returns, with the original prompt in front of the new tokens.

    Args:
        stock: ``generate``.
        inputs: its arguments, with the ids of the cut prompt.
        prompt: int64 [B, N], the original ids.
        config: the merged generation config.
    """
    width = inputs["input_ids"].shape[1]
    gone = prompt.shape[1] - width
    if not gone:
        return stock(**inputs)
    given = dict(inputs)
    if config.max_new_tokens is None and config.max_length is not None:
        given["max_length"] = max(1, config.max_length - gone)
    if config.min_length:
        given["min_length"] = max(0, config.min_length - gone)
    if given.get("logits_processor"):
        given["logits_processor"] = [_Processor(one, prompt, width) for one in given["logits_processor"]]
    if given.get("stopping_criteria"):
        given["stopping_criteria"] = [_criterion(one, prompt, width) for one in given["stopping_criteria"]]
    if given.get("prefix_allowed_tokens_fn") is not None:
        given["prefix_allowed_tokens_fn"] = _allowed(given["prefix_allowed_tokens_fn"], prompt, width)
    if given.get("streamer") is not None:
        given["streamer"] = _Streamer(given["streamer"], prompt)
    out = stock(**given)
    if isinstance(out, Tensor):
        return _uncut(out, prompt, width)
    out.sequences = _uncut(out.sequences, prompt, width)
    return out


def fill_padding(ids: Tensor, mask: Tensor | None, prompt: Tensor, placeholders: Tensor) -> Tensor:
    """The cut ids, where padding that the cut made repeats a text id of its row: a repetition penalty then acts alike.

    Args:
        ids, mask: int64 [B, n], the cut prompt, padded on the left; no mask where nothing is padded.
        prompt: int64 [B, N], the original ids.
        placeholders: int64 [k], ids of visual tokens.
    """
    if mask is None:
        return ids
    out = ids.clone()
    for b, row in enumerate(mask.bool()):
        text = ids[b][row & ~torch.isin(ids[b], placeholders)]
        if not bool(row.all()) and len(text) and not bool((prompt[b] == ids[b, 0]).any()):
            out[b, ~row] = text[0]
    return out


def _uncut(ids: Tensor, prompt: Tensor, width: int) -> Tensor:
    """int64 [B * r, N + n]: the original prompts and what follows the cut ones in ``ids``."""
    whole = prompt.repeat_interleave(len(ids) // len(prompt), dim=0)
    return torch.cat([whole.to(ids.device), ids[:, width:]], dim=1)


@dataclass
class _Processor:
    """A logits processor that is given the original ids. transformers reads the arguments of ``__call__``."""

    given: Callable[..., Tensor]
    prompt: Tensor
    width: int

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        return self.given(_uncut(input_ids, self.prompt, self.width), scores)


class _Criterion(_Processor):
    """A stopping criterion that is given the original ids."""

    def __call__(self, input_ids: Tensor, scores: Any, **options: Any) -> Any:
        return self.given(_uncut(input_ids, self.prompt, self.width), scores, **options)


def _criterion(given: Any, prompt: Tensor, width: int) -> Any:
    if not isinstance(getattr(given, "max_length", None), int):
        return _Criterion(given, prompt, width)
    shorter = copy.copy(given)  # of its own type, by which it takes the place of the config's
    shorter.max_length -= prompt.shape[1] - width
    return shorter


def _allowed(given: Callable[[int, Tensor], Any], prompt: Tensor, width: int) -> Callable[[int, Tensor], Any]:
    def allowed(batch_id: int, ids: Tensor) -> Any:
        return given(batch_id, torch.cat([prompt[batch_id].to(ids.device), ids[width:]]))

    return allowed


class _Streamer:
    """A streamer that is given the original prompt first."""

    def __init__(self, given: Any, prompt: Tensor) -> None:
        self.given, self.prompt = given, prompt

    def put(self, value: Tensor) -> None:
        """The prompt, then new tokens."""
        if self.prompt is not None:
            value, self.prompt = self.prompt.cpu(), None
        self.given.put(value)

    def end(self) -> None:
        """End of the answer."""
        self.given.end()
