"""The stage ``hold``: which tokens of a clip stay rows."""

from __future__ import annotations

import math

import pytest
import torch

from vtoken.data.tokens import Tokens
from vtoken.methods.reducer import Context
from vtoken.methods.registry import build


def clip() -> Tokens:
    """Four steps of two cells: the first cell stays, the second changes at step 2; a scene starts at step 3."""
    first, second, other = torch.eye(3)
    x = torch.stack([first, second, first, second, first, other, first, other])
    position = torch.tensor([[t, 0, c] for t in range(4) for c in range(2)])
    scene = torch.tensor([0, 0, 0, 0, 0, 0, 1, 1])
    return Tokens.of(x, position, scene=scene)


@pytest.mark.parametrize(("options", "left"), [({}, [0, 1, 5]), ({"restart": True}, [0, 1, 5, 6, 7])])
def test_a_scene_starts_anew_only_where_it_is_asked_to(options: dict[str, bool], left: list[int]) -> None:
    out = build("hold", tau=0.1, **options).reduce(clip(), None, Context())
    assert sorted(out.position[:, 0].mul(2).add(out.position[:, 2]).tolist()) == left
    shown = [out.position[i, 0].item() for i in out.source]
    assert shown == [0, 0, 0, 0, 0, 2, *([3, 3] if options else [0, 2])]


@pytest.mark.parametrize("options", [{"tau": 0.1}, {"keep": 0.25}])
def test_an_image_holds_nothing(options: dict[str, float]) -> None:
    """Also one whose tiles are numbered like time steps; a video of one step only where there is a budget."""
    alike = torch.ones(8, 3)
    tiles = torch.tensor([[t, 0, c] for t in range(2) for c in range(4)])
    image = Tokens.of(alike, tiles, torch.full((8,), math.nan))
    context = Context(seconds=[0.0])
    assert len(build("hold", **options).reduce(image, None, context)) == 8
    assert bool(context.notes) == ("keep" in options)
    step = Tokens.of(alike, torch.tensor([[0, 0, c] for c in range(8)]))
    assert len(build("hold", **options).reduce(step, None, Context(seconds=[0.5]))) == 8
    video = Tokens.of(alike, tiles)
    assert len(build("hold", tau=0.1).reduce(video, None, Context(seconds=[0.5]))) == 4
