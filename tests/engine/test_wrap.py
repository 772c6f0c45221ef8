"""The contracts of ``wrap`` for every family: identity, oracle, cache, batches, beams, positions, clean unwrap."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import LogitsProcessor

import vtoken
from tests.families.oracle import language_model, oracle_generate, oracle_logits, oracle_scores
from tests.families.prepared import prepared
from tests.families.tiny import FAMILIES, model_of

CASES = [(name, layout) for name, family in FAMILIES.items() for layout in family.layouts()]
BATCHES = [(name, layout) for name, layout in CASES if len(FAMILIES[name].layouts()[layout]) > 1]
DROP = "random:keep=0.4"


def inputs_of(name: str, layout: str, seed: int = 0) -> dict[str, Tensor]:
    return FAMILIES[name].inputs(model_of(name), FAMILIES[name].layouts()[layout], seed)


def kept_mask(model: Any, inputs: dict[str, Tensor], generating: bool = False) -> Tensor:
    """bool [B, N]: the columns that the wrapped model keeps."""
    cut = prepared(model, inputs, generating).cut
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
    assert int((~keep).sum()) > 0
    expected = oracle_logits(model, inputs, keep)
    for own, want in zip(rows_of(logits, inputs, [len(e) for e in expected]), expected, strict=True):
        torch.testing.assert_close(own, want, atol=max(1e-4, FAMILIES[name].tolerance), rtol=1e-5)
    width = inputs["input_ids"].shape[1]
    assert torch.equal(generated[:, :width], inputs["input_ids"])
    assert torch.equal(generated[:, width:], oracle_generate(model, inputs, keep, 4))


@pytest.mark.parametrize(("name", "layout"), BATCHES)
@torch.no_grad()
def test_batch_row_equals_the_row_alone(name: str, layout: str) -> None:
    """Greedy, seeded sampling and beams; each row alone is the same prompt without its neighbours and padding."""
    model, family = model_of(name), FAMILIES[name]
    samples = with_pixels(name, layout)
    together = family.inputs(model, samples)
    alone = [family.inputs(model, [sample]) for sample in samples]
    for b, single in enumerate(alone):  # the same text, without padding
        single["input_ids"] = together["input_ids"][b : b + 1, together["attention_mask"][b].bool()]
    ways = {
        "greedy": {"do_sample": False},
        "beams": {"do_sample": False, "num_beams": 2, "num_return_sequences": 2},
    }
    with vtoken.wrapped(model, "divprune:keep=0.5"):
        for way, options in ways.items():
            batch = model.generate(**together, max_new_tokens=4, **options)[:, together["input_ids"].shape[1] :]
            for b, single in enumerate(alone):
                row = model.generate(**single, max_new_tokens=4, **options)[:, single["input_ids"].shape[1] :]
                n = len(row)
                assert torch.equal(batch[b * n : (b + 1) * n], row), way


def with_pixels(name: str, layout: str, seed: int = 0) -> list[list[tuple[str, Any]]]:
    """The samples of a layout with their pixels drawn, so that they can be had together and alone."""
    rng = np.random.default_rng(seed)
    family = FAMILIES[name]
    return [
        [(kind, what if kind == "text" else family._clip(kind, what, rng)) for kind, what in sample]
        for sample in family.layouts()[layout]
    ]


class Reseed(LogitsProcessor):
    """Seeds every step, so that the first row of any batch draws the same numbers."""

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        torch.manual_seed(7)
        return scores


@torch.no_grad()
@pytest.mark.parametrize(("name", "layout"), BATCHES)
def test_seeded_sampling_of_a_row(name: str, layout: str) -> None:
    """A row draws what it draws alone: each row is put first in its batch, where the random numbers are the same."""
    model, family = model_of(name), FAMILIES[name]
    samples = with_pixels(name, layout)
    options = {"do_sample": True, "temperature": 0.5, "max_new_tokens": 4, "logits_processor": [Reseed()]}
    with vtoken.wrapped(model, "divprune:keep=0.5"):
        for b, sample in enumerate(samples):
            together = family.inputs(model, [sample, *(s for i, s in enumerate(samples) if i != b)])
            single = family.inputs(model, [sample])
            single["input_ids"] = together["input_ids"][:1, together["attention_mask"][0].bool()]
            batch = model.generate(**together, **options)[0, together["input_ids"].shape[1] :]
            assert torch.equal(batch, model.generate(**single, **options)[0, single["input_ids"].shape[1] :])


MROPE = ["qwen2_vl", "qwen2_5_vl", "qwen2_5_omni_thinker", "qwen3_vl", "qwen3_vl_moe", "qwen3_5", "glm4v", "glm4v_moe"]


@pytest.mark.parametrize(("name", "layout"), [(n, lay) for n, lay in CASES if n in MROPE])
@torch.no_grad()
def test_kept_tokens_keep_their_mrope_positions(name: str, layout: str) -> None:
    model, inputs = model_of(name), inputs_of(name, layout)
    seen: list[Tensor] = []
    hook = language_model(model).register_forward_pre_hook(
        lambda _, __, kwargs: seen.append(kwargs["position_ids"]), with_kwargs=True
    )
    model.generate(**inputs, max_new_tokens=1, do_sample=False)
    with vtoken.wrapped(model, DROP):
        keep = kept_mask(model, inputs, generating=True)
        model.generate(**inputs, max_new_tokens=1, do_sample=False)
    hook.remove()
    stock, *steps = seen
    cut = torch.cat(steps, -1)
    for b, kept in enumerate(keep):
        own = kept & inputs["attention_mask"][b].bool()
        n = int(own.sum())
        assert torch.equal(cut[1:, b, -n:], stock[1:, b, own])
        assert torch.equal(cut[0, b, -n:], torch.arange(n))


@pytest.mark.parametrize("name", [n for n, f in FAMILIES.items() if "image" in f.modalities])
@torch.no_grad()
def test_beam_scores_are_those_of_the_oracle(name: str) -> None:
    """Two images in a sample: a feature that reaches the wrong beam changes the scores."""
    model, inputs = model_of(name), inputs_of(name, "two_images")
    options = {"num_beams": 3, "num_return_sequences": 2, "length_penalty": 0.0, "do_sample": False}
    with vtoken.wrapped(model, DROP):
        keep = kept_mask(model, inputs)
        out = model.generate(**inputs, max_new_tokens=4, return_dict_in_generate=True, output_scores=True, **options)
    new = out.sequences[:, inputs["input_ids"].shape[1] :]
    torch.testing.assert_close(out.sequences_scores, oracle_scores(model, inputs, keep, new), atol=1e-3, rtol=1e-4)
