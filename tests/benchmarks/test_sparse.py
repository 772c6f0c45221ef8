"""Block-sparse attention as the benchmark registers it: a mask of blocks, and causal attention where all is seen."""

from __future__ import annotations

import pytest
import torch
from torch.nn.attention.flex_attention import flex_attention

from benchmarks import sparse


@pytest.mark.parametrize("window", [64, 1 << 20])
def test_a_row_attends_to_the_first_block_and_its_window(window: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sparse, "WINDOW", window)
    monkeypatch.setattr(sparse, "compiled", lambda: flex_attention)
    sparse.block_mask.cache_clear()
    g = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, heads, 300, 16, generator=g) for heads in (4, 2, 2))
    row, column = torch.arange(300)[:, None], torch.arange(300)
    seen = (column <= row) & ((row - column < window) | (column < sparse.FIRST))
    wide = (part.repeat_interleave(2, 1) for part in (k, v))
    expected = torch.nn.functional.scaled_dot_product_attention(q, *wide, attn_mask=seen, scale=0.25)
    got, _ = sparse.block_sparse(None, q, k, v, None, 0.25)  # type: ignore[arg-type]
    torch.testing.assert_close(got, expected.transpose(1, 2), atol=1e-5, rtol=1e-5)
    sparse.block_mask.cache_clear()
