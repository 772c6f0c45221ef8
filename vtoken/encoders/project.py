"""Patch embedding of any subset of patches: a convolution whose stride is its kernel is a matrix product on rows."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn.functional import linear


def project(convolution: Any, rows: Tensor) -> Tensor:
    """Patch embeddings of flattened patches, in the convolution's dtype.

    On a CPU the product is several times as fast as the convolution. A layer that is more than a plain convolution (an
    adapter, say) is called as it is, on images of one patch.

    Args:
        convolution: Conv2d or Conv3d of a patch embedding.
        rows: [K, C * kernel], in the order in which the convolution reads a patch.

    Returns:
        [K, D].
    """
    weight = convolution.weight
    rows = rows.to(weight.dtype)
    if type(convolution) in (nn.Conv2d, nn.Conv3d):
        return linear(rows, weight.flatten(1), convolution.bias)
    return convolution(rows.reshape(-1, *weight.shape[1:])).flatten(1)
