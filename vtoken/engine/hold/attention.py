"""An attention function for held prompts: a prefill that skips later columns, and decoding with the rows alone.

transformers chooses the attention function by the config, which all threads of a process share, so that no call can
bring its own. ``install`` therefore registers a function once and sets it for the language model, as an option. It runs
the stock sdpa, with two differences. Long masked calls are cut into parts, each with the columns that its queries see.
A decoding step over a ``HoldCache`` made with ``query=True`` turns the query: the cache leaves the layer's rows for the
thread it runs in, and the function takes them with the keys that belong to them.
"""

from __future__ import annotations

import threading
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.cache_utils import DynamicLayer
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from vtoken.engine.hold.layer import HoldLayer
from vtoken.engine.hold.support import ATTENTION
from vtoken.engine.hold.tables import Tables
from vtoken.errors import UnsupportedError
from vtoken.kernels.held import held_attention
from vtoken.kernels.held_columns import HeldColumns

PART = 64  # queries of a part at least
PARTS = 6  # more save little and copy the heads of keys more often


class _Step(NamedTuple):
    """Rows that a layer handed over in place of columns."""

    keys: Tensor
    values: Tensor
    columns: HeldColumns
    stored: int


class _Pending(threading.local):
    step: _Step | None = None
    mask: Tensor | None = None  # the last one that was cut into parts, with them; all layers of a call share it
    parts: list[tuple[int, int, int]] | None = None


_pending = _Pending()


def install(model: Any) -> None:
    """Give a model the attention function for held prompts; once, before it is used.

    Registers the implementation ``vtoken_hold`` and sets it for the language model. Other calls of the model, of any
    thread, run the stock sdpa. ``model.set_attn_implementation("sdpa")`` takes it back.

    Raises:
        UnsupportedError: the language model does not run sdpa, or cannot be given another implementation.
    """
    AttentionInterface.register(ATTENTION, attend)
    AttentionMaskInterface.register(ATTENTION, sdpa_mask)
    text = model.config.get_text_config(decoder=True)
    if text._attn_implementation == ATTENTION:
        return
    if text._attn_implementation != "sdpa":
        raise UnsupportedError(
            f"turning queries replaces sdpa, and the language model runs {text._attn_implementation!r}; load it with "
            "attn_implementation='sdpa', or keep the turned keys"
        )
    names = [name for name in model.config.sub_configs if getattr(model.config, name) is text]
    model.set_attn_implementation({names[0]: ATTENTION} if names else ATTENTION)
    if text._attn_implementation != ATTENTION:
        raise UnsupportedError(
            f"{type(model).__name__} cannot be given another attention function; keep the turned keys"
        )


def attend(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, Tensor | None]:
    """The stock sdpa, or held attention where the cache handed over rows; called by transformers."""
    step, _pending.step = _pending.step, None
    if step is None or key.shape != step.keys.shape:  # a step left behind by an exception is ignored
        return _in_parts(module, query, key, value, attention_mask, **kwargs)
    if key is not step.keys or value is not step.values:
        raise UnsupportedError(
            f"{type(module).__name__} changes keys between the cache and attention, so it cannot turn queries; make "
            "the HoldCache with query=False"
        )
    tail = None
    if attention_mask is not None:
        seen = attention_mask[:, 0, -1] if attention_mask.dtype == torch.bool else attention_mask[:, 0, -1] >= 0
        tail = seen[:, step.stored :]
    scale = kwargs.get("scaling")
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    out = held_attention(query, key, value, step.columns, scale, tail)
    return out.transpose(1, 2).contiguous(), None


def _in_parts(
    module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, Tensor | None]:
    if mask is None or mask.dtype != torch.bool or query.shape[2] < 2 * PART:
        return sdpa_attention_forward(module, query, key, value, mask, **kwargs)
    if _pending.mask is not mask or _pending.parts is None:
        _pending.mask, _pending.parts = mask, _parts(mask)
    out = [
        sdpa_attention_forward(
            module, query[:, :, a:b], key[:, :, :end], value[:, :, :end], mask[:, :, a:b, :end], **kwargs
        )[0]
        for a, b, end in _pending.parts
    ]
    return torch.cat(out, dim=1), None


def _parts(mask: Tensor) -> list[tuple[int, int, int]]:
    """(first query, last + 1, columns up to the last one seen) of each part."""
    length = mask.shape[2]
    size = max(PART, -(-length // PARTS))
    bounds = [(a, min(a + size, length)) for a in range(0, length, size)]
    number = torch.arange(1, mask.shape[3] + 1, device=mask.device)
    ends = torch.stack([(mask[:, :, a:b].any(2) * number).amax() for a, b in bounds])
    return [(a, b, max(1, end)) for (a, b), end in zip(bounds, ends.tolist(), strict=True)]


class QueryLayer(HoldLayer):
    """A layer that stores the computed rows, most shown first, and the tokens behind the prompt.

    A single new token goes to ``held_attention`` as it is; for more of them the columns are made for this call.
    """

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """As in ``HoldLayer``; a decoding step is handed over to ``attend``.

        Raises:
            InputError: as in ``HoldLayer``.
            UnsupportedError: the model does not run the attention function of ``install``.
        """
        left, _pending.step = _pending.step, None
        if left is not None and left.columns is self.tables.held:
            raise UnsupportedError("a HoldCache with query=True needs a model on which attention.install was called")
        tables = self.tables
        if not self._filled:
            self._check(key_states)
            self.lazy_initialization(key_states, value_states)
            order = _ordered(tables).to(key_states.device)[:, None, :, None]
            self.keys, self.values = (
                states.gather(2, order.expand(-1, states.shape[1], -1, states.shape[3]))
                for states in (key_states, value_states)
            )
            return tables.keys(self.keys), tables.values(self.values)
        self._expand(len(key_states))
        if len(tables.source) != len(key_states):  # beams: the tables are all layers', repeated by the first
            tables.select(torch.arange(len(tables.source)).repeat_interleave(len(key_states) // len(tables.source)))
        keys, values = DynamicLayer.update(self, key_states, value_states, *args, **kwargs)
        if key_states.shape[2] == 1:
            _pending.step = _Step(keys, values, _columns(tables), tables.source.shape[1])
            return keys, values
        new_keys, new_values = (states[:, :, tables.rows :] for states in (keys, values))
        return torch.cat([tables.keys(keys), new_keys], 2), torch.cat([tables.values(values), new_values], 2)

    @property
    def _tail(self) -> int:
        return self.keys.shape[-2] - self.tables.rows if self.keys is not None and self._filled else 0


def _ordered(tables: Tables) -> Tensor:
    """int64 [B, rows], where each stored row comes from; numbers of sources are those of stored rows from then on."""
    if tables.order is None:
        tables.order = HeldColumns.order(tables.source, tables.visible, tables.rows)
        tables.source = tables.order.argsort(1).gather(1, tables.source)
    return tables.order


def _columns(tables: Tables) -> HeldColumns:
    if tables.held is None:
        tables.held = HeldColumns(
            tables.source,
            tables.turned,
            tables.visible,
            tables.cos,
            tables.sin,
            tables.rows,
            tables.neighbours,
        )
    return tables.held
