"""The contracts of ``wrap`` for every family: identity, oracle, cache, batches, beams, positions, and a clean unwrap."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

import vtoken
from tests.families.oracle import language_model, oracle_generate, oracle_logits
from tests.families.tiny import FAMILIES, model_of
from vtoken.errors import InputError, UnsupportedError
from vtoken.types import Budget

CASES = [(name, layout) for name, family in FAMILIES.items() for layout in family.layouts()]
BATCHES = [(name, layout) for name, layout in CASES if len(FAMILIES[name].layouts()[layout]) > 1]
DROP = "random:keep=0.4"


def inputs_of(name: str, layout: str, seed: int = 0) -> dict[str, Tensor]:
    return FAMILIES[name].inputs(model_of(name), FAMILIES[name].layouts()[layout], seed)


def kept_mask(model: Any, inputs: dict[str, Tensor], generating: bool = False) -> Tensor:
    """bool [B, N]: the columns that the wrapped model keeps."""
    _, cut, _ = model.vtoken.prepare(model, dict(inputs), generating)
    keep = torch.zeros_like(inputs["input_ids"], dtype=torch.bool)
    for b, slots in enumerate(cut.slots):
        keep[b, slots] = True
    return keep


def rows_of(logits: Tensor, inputs: dict[str, Tensor], counts: list[int]) -> list[Tensor]:
    """Logits of each sample without padding on the left."""
    return [row[len(row) - n :] for row, n in zip(logits, counts, strict=True)]


@pytest.mark.parametrize(("name", "layout"), CASES)
@torch.no_grad()
def test_nothing_dropped_is_bit_identical(name: str, layout: str) -> None:
    model, inputs = model_of(name), inputs_of(name, layout)
    logits = model(**inputs).logits
    tokens = model.generate(**inputs, max_new_tokens=4, do_sample=False)
    with vtoken.wrapped(model, "none"):
        assert torch.equal(model(**inputs).logits, logits)
        assert torch.equal(model.generate(**inputs, max_new_tokens=4, do_sample=False), tokens)
        report = model.vtoken.report
    assert report.tokens == report.cells > 0


@pytest.mark.parametrize(("name", "layout"), CASES)
@torch.no_grad()
def test_dropped_equals_sliced_language_model(name: str, layout: str) -> None:
    model, inputs = model_of(name), inputs_of(name, layout)
    with vtoken.wrapped(model, DROP):
        keep = kept_mask(model, inputs)
        logits = model(**inputs).logits
        generated = model.generate(**inputs, max_new_tokens=4, do_sample=False)
    assert 0 < int((~keep).sum())
    expected = oracle_logits(model, inputs, keep)
    for own, want in zip(rows_of(logits, inputs, [len(e) for e in expected]), expected, strict=True):
        torch.testing.assert_close(own, want, atol=1e-4, rtol=1e-5)
    width = inputs["input_ids"].shape[1]
    assert torch.equal(generated[:, :width], inputs["input_ids"])
    assert torch.equal(generated[:, width:], oracle_generate(model, inputs, keep, 4))
