"""The two calls of a held prompt: the inputs of a model's ``forward``, and those of its ``generate``."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from vtoken.data.hold import HoldMap
from vtoken.engine.hold import support
from vtoken.engine.hold.mask import prefill_mask
from vtoken.engine.hold.rotary import rotary_of
from vtoken.engine.hold.tables import Tables
from vtoken.errors import InputError, UnsupportedError
from vtoken.families.compat import handed

KEEP_TURNED = 4 << 30  # bytes of turned keys and values up to which they are kept where both forms can run


def hold_inputs(
    model: Any, inputs: dict[str, Any], hold: HoldMap, positions: Tensor, turned_bytes: int = KEEP_TURNED
) -> dict[str, Any]:
    """Arguments of ``forward`` with which attention sees the held columns of a cut prompt.

    Args:
        model: a Hugging Face model with a language model inside, or a language model.
        inputs: arguments of the cut prompt, whose columns are ``hold.columns()``: ``input_ids`` or ``inputs_embeds``
            [B, R, ...], and ``attention_mask`` [B, R] where samples have different numbers of rows.
        hold: what the stock prompt's columns show.
        positions: positions of the stock prompt's columns: [B, C], or [3, B, C] or [4, B, C] for M-RoPE (the text row
            first).
        turned_bytes: keep turned keys and values up to this size; beyond it queries are turned at every decoding step,
            where ``attention.install(model)`` was called.

    Returns:
        A copy with ``position_ids`` of the rows, an empty ``HoldCache`` as ``past_key_values`` and the prefill's mask
        as ``attention_mask``. Where nothing is held or hidden, ``inputs`` as they are.

    Raises:
        InputError: a cut that is not the map's, or positions of another shape.
        UnsupportedError: a model that cannot hold (``support.supports`` says why), or a filled cache.
    """
    cache = inputs.get("past_key_values")
    if cache is not None and cache.get_seq_length() > 0:
        raise UnsupportedError("a held prompt starts a cache of its own; pass it without past_key_values")
    given = _given(inputs)
    hold = hold.to(given.device)
    if positions.shape[-2] == 1:
        positions = positions.expand(*positions.shape[:-2], len(hold.shows), -1)
    row_column = _row_columns(hold, given.shape[:2], inputs.get("attention_mask"))
    if hold.is_identity(_padding(inputs, hold)):
        return _stock(inputs, positions)
    support.check(model.config)
    tables = _tables(model, hold, row_column, positions)
    text = model.config.get_text_config(decoder=True)
    from vtoken.engine.hold.cache import HoldCache

    out = inputs | {"position_ids": _gather(positions, row_column.clamp(min=0))}
    query = text._attn_implementation == support.ATTENTION and support.window(text) is None  # held_attention has none
    query = query and _turned(text, tables, _dtype(model)) > turned_bytes
    out["past_key_values"] = held = HoldCache(model.config, tables, query)
    held.row_column, held.real_rows = row_column, row_column >= 0
    out["attention_mask"] = _mask(text, tables, row_column, inputs.get("attention_mask"), _dtype(model))
    return out


def generate_inputs(
    model: Any,
    inputs: dict[str, Any],
    hold: HoldMap,
    stock: dict[str, Any],
    turned_bytes: int = KEEP_TURNED,
    whole: bool = False,
) -> dict[str, Any]:
    """Run the prefill of a held prompt, all but its last token, and give the arguments with which ``generate`` goes on.

    ``generate`` takes no 4-D mask, so the prompt is filled in beforehand, once for all beams and return sequences. What
    it returns starts with the stock prompt's ids, and logits processors see these.

    Args:
        model, inputs, hold, turned_bytes: as in ``hold_inputs``; samples are padded on the left, and ``inputs`` holds
            what the model's ``forward`` takes for the cut prompt, ``mm_encoder_outputs`` included.
        stock: ``input_ids`` [B, C], ``position_ids`` [B, C], [3, B, C] or [4, B, C] and ``attention_mask`` [B, C] or
            None of the stock prompt.
        whole: run the last token too and take its column back, for methods inside the language model, which look at
            it; without layers of linear attention, which cannot take it back.

    Returns:
        ``input_ids``, ``attention_mask``, ``position_ids`` and the filled ``past_key_values``; where nothing is held or
        hidden, ``inputs`` as they are.

    Raises:
        InputError, UnsupportedError: as in ``hold_inputs``, or a prompt whose last column is not computed.
    """
    ids, positions, mask = stock["input_ids"], stock["position_ids"], stock.get("attention_mask")
    hold = hold.to(ids.device)
    if hold.is_identity(mask):
        return _stock(inputs, positions)
    last = ids.shape[1] - 1
    if not bool(hold.rows[:, last].all()) or bool((hold.shows[:, :last] == last).any()):
        raise UnsupportedError(
            "hold needs prompts that end with text and are padded on the left: the last column must be computed"
        )
    if whole:
        first = hold_inputs(model, _bare(inputs), hold, positions, turned_bytes=1 << 62)
    else:
        head = HoldMap(hold.shows[:, :last])
        first = hold_inputs(model, _without_last(inputs), head, positions[..., :last], turned_bytes)
    cache = first.get("past_key_values")
    assert cache is not None
    with torch.no_grad():
        model.base_model(**handed(model.base_model, first), use_cache=True)
    if whole:
        cache.forget_last()
    seen = cache.column_mask(torch.ones_like(ids) if mask is None else mask)
    return {"input_ids": ids, "position_ids": positions, "attention_mask": seen, "past_key_values": cache}


def decoder_of(model: Any) -> nn.Module:
    """The language model inside a model."""
    for inner in (model, model.base_model):
        for name in ("language_model", "text_model"):
            if isinstance(found := getattr(inner, name, None), nn.Module):
                return found
    return model.base_model


def _given(inputs: dict[str, Any]) -> Tensor:
    return inputs["inputs_embeds"] if inputs.get("input_ids") is None else inputs["input_ids"]


def _stock(inputs: dict[str, Any], positions: Tensor) -> dict[str, Any]:
    """Models that count positions count them as they do without vtoken; M-RoPE positions need the ids of the grids."""
    return dict(inputs) if positions.dim() == 2 else {"position_ids": positions} | inputs


def _without_last(inputs: dict[str, Any]) -> dict[str, Any]:
    """The cut prompt without its last column; what is no column stays."""
    given = _given(inputs)
    batch, length = given.shape[:2]
    out = _bare(inputs)
    for name, value in out.items():
        if isinstance(value, Tensor) and value.shape[:2] == (batch, length):
            out[name] = value[:, : length - 1]
    return out


def _bare(inputs: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in inputs.items() if k not in ("position_ids", "labels", "past_key_values", "use_cache")}


def _row_columns(hold: HoldMap, shape: torch.Size, mask: Any) -> Tensor:
    """int64 [B, R], the stock column of every row, -1 for padding."""
    rows, (batch, width) = hold.rows, shape
    if len(rows) != batch:
        raise InputError(f"the map has {len(rows)} samples, the inputs {batch}")
    if mask is not None and (not isinstance(mask, Tensor) or mask.shape != shape):
        raise InputError("the attention_mask of a cut prompt that is held must be [batch, rows]")
    real = torch.ones(shape, dtype=torch.bool, device=rows.device) if mask is None else mask.to(rows.device) != 0
    if not torch.equal(real.sum(1), rows.sum(1)):
        raise InputError(
            f"the cut prompts have {real.sum(1).tolist()} tokens, the map computes {rows.sum(1).tolist()}; cut "
            "the prompt at hold.columns()"
        )
    out = rows.new_full((batch, width), -1, dtype=torch.long)
    out[real] = rows.nonzero()[:, 1]
    return out


def _tables(model: Any, hold: HoldMap, row_column: Tensor, positions: Tensor) -> Tables:
    bare = positions[-3:] if positions.dim() == 3 else positions
    rotary = rotary_of(decoder_of(model), bare.dim())
    batch, width = row_column.shape
    number = hold.shows.new_full(hold.shows.shape, -1)
    real = row_column >= 0
    sample = torch.arange(batch, device=real.device)[:, None].expand(-1, width)
    number[sample[real], row_column[real]] = torch.arange(width, device=real.device).expand(batch, -1)[real]
    slots = torch.where(hold.shows < 0, -1, number.gather(1, hold.shows.clamp(min=0)))
    return Tables.of(slots, _gather(bare, row_column.clamp(min=0)), bare, rotary)


def _gather(positions: Tensor, column: Tensor) -> Tensor:
    return positions.gather(-1, column if positions.dim() == 2 else column.expand(len(positions), -1, -1))


def _padding(inputs: dict[str, Any], hold: HoldMap) -> Tensor | None:
    """Left padding [B, C] of the stock prompt where the cut has as many columns, so that nothing was cut."""
    mask = inputs.get("attention_mask")
    return mask if mask is not None and mask.shape == hold.shows.shape else None


def _mask(text: Any, tables: Tables, row_column: Tensor, cut: Tensor | None, dtype: torch.dtype) -> Any:
    """The mask of all layers, or one for each kind of layer where a model has several."""
    kinds, window = set(getattr(text, "layer_types", None) or ()), support.window(text)

    def within(columns: int | None) -> Any:
        return prefill_mask(tables, row_column, text._attn_implementation, dtype, columns)

    if not kinds & {"linear_attention", "sliding_attention"}:
        return within(window)
    out = {"full_attention": within(None)}
    if "linear_attention" in kinds:
        padded = cut is not None and not bool((cut != 0).all())
        out["linear_attention"] = cut if padded else None
    if "sliding_attention" in kinds:
        out["sliding_attention"] = within(window)
    return out


def _dtype(model: Any) -> torch.dtype:
    return model.dtype


def _turned(text: Any, tables: Tables, dtype: torch.dtype) -> int:
    """Bytes of the keys and values of all stored columns."""
    head = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    types = getattr(text, "layer_types", None) or ["full_attention"] * text.num_hidden_layers
    full = sum(kind != "linear_attention" for kind in types)
    return 2 * full * heads * head * tables.source.numel() * dtype.itemsize
