"""The random stand-ins are of the right class and give exactly the tokens that the geometry promises."""

from __future__ import annotations

import pytest
import torch

from vtoken.bench.models import IMAGE, SMALL, VIDEO, random_model
from vtoken.families import of
from vtoken.families.geometry import GEOMETRIES, Geometry

ONE_A_FAMILY = {g.family: g for g in GEOMETRIES.values()}


@pytest.mark.parametrize("geometry", ONE_A_FAMILY.values(), ids=list(ONE_A_FAMILY))
def test_stock_features_match_the_geometry(geometry: Geometry) -> None:
    model = random_model(geometry)
    assert of(model).name == geometry.family
    v = geometry.vision
    if v.image:
        frames, side = 2, v.image
        pixels = torch.randn(frames, 3, side, side)
        if geometry.family == "llava":
            out = model.base_model.get_image_features(pixels, return_dict=True)
        else:
            out = model.base_model.get_video_features(pixels[None], return_dict=True)
        newline = geometry.family == "llava_onevision"
        height = width = side
    else:
        frames, rows, columns = 4, 4, 6
        height, width = rows * v.patch, columns * v.patch
        grid = torch.tensor([[frames // v.frames, rows, columns]])
        pixels = torch.randn(int(grid.prod()), 3 * v.frames * v.patch**2)
        out = model.base_model.get_video_features(pixels, video_grid_thw=grid, return_dict=True)
        newline = False
    rows_out = sum(p.shape[:-1].numel() for p in out.pooler_output)
    assert rows_out == geometry.tokens(height, width, frames) + newline
    assert out.pooler_output[0].shape[-1] == SMALL.text


def test_equal_seeds_give_equal_weights() -> None:
    geometry = GEOMETRIES["qwen2.5-vl-3b"]
    first, again, other = (random_model(geometry, seed=s).state_dict() for s in (0, 0, 1))
    assert all(torch.equal(first[k], again[k]) for k in first)
    assert not all(torch.equal(first[k], other[k]) for k in first)
    assert IMAGE != VIDEO
