"""Projection of patch rows against the convolution it stands for."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from vtoken.encoders.project import project


class Adapted(nn.Conv2d):
    """A convolution that does more than its weights say, as a low-rank adapter does."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) + 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "layer", [nn.Conv2d(3, 8, 4, 4), Adapted(3, 8, 4, 4), nn.Conv3d(3, 8, (2, 4, 4), (2, 4, 4), bias=False)]
)
def test_rows_equal_the_convolution(layer, dtype):
    layer = layer.to(dtype)
    images = torch.randn(5, *layer.weight.shape[1:])
    expected = layer(images.to(dtype)).flatten(1)
    got = project(layer, images.flatten(1))
    assert got.dtype == dtype
    assert (got - expected).abs().max() <= (1e-5 if dtype == torch.float32 else 0.05)
