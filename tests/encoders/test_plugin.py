"""A signal of one's own, a function in one file: on kept patches, on whole images, and in a plan."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor

import vtoken
from tests.encoders.test_qwen import GRID, full, pixel_rows, ragged
from tests.encoders.towers import QWEN, keep_cells, qwen
from tests.families.tiny import FAMILIES, LAYOUTS, model_of
from vtoken import families
from vtoken.data.tokens import Tokens
from vtoken.encoders import qwen as encoder
from vtoken.encoders import signals
from vtoken.encoders.signals import CLS, Tap, signal
from vtoken.errors import InputError, UnsupportedError
from vtoken.methods import registry
from vtoken.methods.reducer import Context, Scorer


@pytest.fixture
def plugin() -> Iterator[None]:
    """What a file of another package holds: a signal and the method that reads it."""

    @signal("long_values", layer=-2)
    def long_values(tap: Tap) -> Tensor:
        return tap.values.float().norm(dim=-1).mean(dim=1)

    @signal("cls_hidden", cls=True)
    def cls_hidden(tap: Tap) -> Tensor:
        return tap.hidden

    @registry.register("long_values")
    @dataclass(kw_only=True)
    class ValueNorm(Scorer):
        """Keeps the tokens with the longest values."""

        needs: ClassVar[frozenset[str]] = frozenset({"long_values"})

        def score(self, tokens: Tokens, context: Context) -> Tensor:
            return tokens.signals["long_values"]

    yield
    for name in ("long_values", "cls_hidden"):
        del signals._signals[name]
    del registry._methods["long_values"]


def values_by_hand(visual: Any, layer: int) -> Tensor:
    """Norm of the values of every cell of a whole input, from the hidden states that a hook on the layer sees."""
    states: list[Tensor] = []
    handle = visual.blocks[layer].register_forward_pre_hook(lambda module, args: states.append(args[0]))
    with torch.no_grad():
        visual(pixel_rows(GRID), grid_thw=GRID)
    handle.remove()
    block = visual.blocks[layer]
    v = block.attn.qkv(block.norm1(states[0])).unflatten(-1, (3, 2, -1))[:, 2]
    return v.norm(dim=-1).mean(1).unflatten(0, (-1, 4)).mean(1).detach()


@pytest.mark.usefixtures("plugin")
@pytest.mark.parametrize("name", [n for n in QWEN if n != "qwen2_5"])
def test_values_on_whole_inputs_and_on_kept_cells(name: str) -> None:
    visual, rows = qwen(name), pixel_rows(GRID)
    found = encoder.encode(visual, rows, GRID, full(), {"long_values", "long_values@0"}).signals
    for key, layer in (("long_values", 1), ("long_values@0", 0)):
        torch.testing.assert_close(found[key], values_by_hand(visual, layer), atol=1e-5, rtol=1e-5)
    keep = ragged()
    got = encoder.encode(visual, keep_cells(rows, keep), GRID, keep, {"long_values@0"}).signals["long_values@0"]
    flat = torch.from_numpy(np.concatenate([k.ravel() for k in keep]))
    torch.testing.assert_close(
        got, found["long_values@0"][flat], atol=1e-5, rtol=1e-5
    )  # the first layer sees no others


@pytest.mark.usefixtures("plugin")
@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl", "qwen3_vl", "internvl", "llava_onevision"])
def test_a_plan_with_the_method_runs(name: str) -> None:
    model = model_of(name)
    inputs = FAMILIES[name].inputs(model, LAYOUTS["image"])
    family = families.of(model)
    assert {"long_values", "long_values@*"} <= family.gives
    assert ("cls_hidden" in family.gives) == (family.taps == CLS)
    with torch.no_grad(), vtoken.wrapped(model, "long_values", tokens=5):
        model(**inputs)
        assert model.vtoken.report.tokens == 5
        features = family.encode(model, "image", inputs, frozenset({"long_values"}))
    assert len(features.signals["long_values"]) == len(features.x)


@pytest.mark.usefixtures("plugin")
def test_families_without_taps_refuse_it_before_anything_runs() -> None:
    with pytest.raises(UnsupportedError, match="long_values needs long_values, which Mistral3 does not give"):
        vtoken.wrap(model_of("mistral3"), "long_values", tokens=5)


def test_bad_signals_are_refused() -> None:
    with pytest.raises(InputError, match="'keys' is taken by vtoken.encoders.signals"):
        signal("keys")(lambda tap: tap.keys)
    with pytest.raises(InputError, match="must be a word"):
        signal("keys@2")(lambda tap: tap.keys)
    signal("too_few")(lambda tap: tap.keys[1:].flatten(1))
    try:
        with pytest.raises(InputError, match="'too_few' gave"):
            encoder.encode(qwen("qwen2"), pixel_rows(GRID), GRID, full(), {"too_few"})
    finally:
        del signals._signals["too_few"]
