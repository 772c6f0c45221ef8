"""Compiling the Triton twins before they are needed."""

from __future__ import annotations

import torch

from vtoken.errors import InputError
from vtoken.kernels import attention, bipartite, cosine, coverage, dispatch, dpc_knn, dpp, kcenter, merge
from vtoken.kernels.held import held_attention
from vtoken.kernels.held_columns import HeldColumns

ROWS, WIDTH = 256, 64


def warm_up(device: torch.device | str = "cuda", dtype: torch.dtype = torch.bfloat16) -> list[str]:
    """Run every fused operation once on small tensors; the names of the twins that fell back to plain torch there.

    Twins are otherwise compiled by the first call that needs them, which takes seconds. Triton compiles anew for other
    dtypes, widths and some sizes, so that a later call may still compile. Where plain torch runs, little is done.

    Args:
        device: where the model is.
        dtype: of the model.

    Raises:
        InputError: torch does not know the device, or it is not there.
    """
    try:
        draw = torch.Generator().manual_seed(0)
        x = torch.randn(ROWS, WIDTH, generator=draw).to(device, dtype)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"device={device}: {error}; name one that torch has, such as cuda:0") from error
    row = torch.arange(ROWS, device=x.device)
    heads = x.view(ROWS, 1, WIDTH)
    attention.received_attention(heads, heads, WIDTH**-0.5)
    attention.cls_attention(heads[:1], heads, WIDTH**-0.5)
    bipartite.bipartite_match(x[None], row[:1] + ROWS // 4)
    cosine.paired_cosine(x, row[:-1], row[1:])
    coverage.greedy_coverage(x.float().abs(), 4)
    dpc_knn.dpc_knn(x[None], 8, 5)
    dpp.greedy_dpp(x, 8)
    kcenter.kcenter(x, 8)
    merge.merge_tokens([x], row, row[: ROWS // 2 + 1] * 2, x[:, 0].float().abs() + 1, row[: ROWS // 2] * 2)
    angle = torch.zeros(1, WIDTH, device=x.device)
    columns = HeldColumns(row[None], row[None] * 0, row[None] >= 0, angle.cos(), angle.sin(), ROWS, False)
    states = x.view(1, 1, ROWS, WIDTH)
    held_attention(states[:, :, :1], states, states, columns, WIDTH**-0.5)
    return dispatch.failed_on(x.device)
