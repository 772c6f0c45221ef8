"""What a cut prompt costs: the decoder layers' FLOPs and the cache's bytes, as shares of the stock model's."""

from __future__ import annotations

from typing import Any

from vtoken.engine.inner.probe import attention_of
from vtoken.engine.inner.record import Record


def layer_flops(layer: Any, rows: float, columns: float | None = None) -> float:
    """FLOPs of a decoder layer on some rows: two a weight and row, and causal attention at half the square.

    In a layer with experts all of them are counted.

    Args:
        columns: columns that attention sees, where some are held; default ``rows``.
    """
    weights = sum(p.numel() for p in layer.parameters())
    attention = attention_of(layer)
    heads = 0 if attention is None else attention.config.num_attention_heads * attention.head_dim
    return 2 * rows * weights + 2 * rows * (rows if columns is None else columns) * heads


def prompt_flops_share(model: Any, rows: float, columns: float, stock: float) -> float:
    """FLOPs of the decoder layers for a prompt of which every layer has the same rows, of the stock model's.

    Args:
        rows: columns that are computed.
        columns: columns that attention sees, held ones included.
        stock: columns of the stock prompt.
    """
    layers = list(model.get_decoder().layers)
    return sum(layer_flops(x, rows, columns) for x in layers) / sum(layer_flops(x, stock) for x in layers)


def flops_share(model: Any, record: Record, stock: float | None = None) -> float:
    """FLOPs of the decoder layers in reading the prompt, of the stock model's. The methods' own scores are left out.

    Args:
        stock: mean rows of a prompt in the stock model, where the prompt was cut before the model.
    """
    layers = list(model.get_decoder().layers)
    stock = record.stock_rows if stock is None else stock
    whole = sum(layer_flops(layer, stock) for layer in layers)
    seen = record.columns or record.rows
    return sum(layer_flops(layer, n, c) for layer, n, c in zip(layers, record.rows, seen, strict=True)) / whole


def cache_share(model: Any, record: Record, stock: float | None = None) -> float:
    """Bytes of the prompt's keys and values, of the stock model's; layers without softmax attention hold none."""
    stock = record.stock_rows if stock is None else stock
    held = [n for layer, n in zip(model.get_decoder().layers, record.held, strict=True) if attention_of(layer)]
    return sum(held) / max(1.0, stock * len(held))
