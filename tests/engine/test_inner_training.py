"""Training with methods inside the language model: losses, gradients and checkpoints."""

from __future__ import annotations

import pytest
import torch

from tests.engine.inner_cases import built, deep, inside, prompts
from tests.engine.test_inner_generation import oracle_of

PLAN = "fastv:layer=2,keep=0.5 | llavolta:layer=4,keep=0.5"


def right_padded(family, model):
    """The two prompts, padded on the right, and labels on everything but padding."""
    batch = prompts(family, model)
    out = {k: v for k, v in batch.items() if v.shape[:2] != batch["input_ids"].shape}
    real = batch["attention_mask"].bool()
    for name, value in batch.items():
        if value.shape == real.shape:
            rows = [torch.cat([v[r], v.new_zeros(int((~r).sum()))]) for v, r in zip(value, real, strict=True)]
            out[name] = torch.stack(rows)
    out["labels"] = out["input_ids"].masked_fill(out["attention_mask"] == 0, -100)
    return out


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl", "qwen3_vl", "qwen3_5", "internvl"])
def test_loss_equals_the_oracle(name, side):
    """A label behind a token that left is predicted by the row that really stands before it."""
    family, model = built(name)
    batch = right_padded(family, model) if side == "right" else prompts(family, model)
    labels = batch.pop("labels", batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100))
    plan = PLAN.replace("layer=2", "layer=3") if name == "qwen3_5" else PLAN
    with torch.no_grad(), inside(model, plan, batch):
        logits = model(**batch).logits
    assert logits.shape[:2] == labels.shape
    for b in range(2):
        alone = prompts(family, model, only=b)
        oracle, sample = oracle_of(model, alone, plan)
        wanted, column = oracle.logits(sample)
        ids = alone["input_ids"][0]
        own = logits[b][batch["attention_mask"][b].bool()]
        expected = torch.searchsorted(column, torch.arange(len(ids)), right=True) - 1
        predicted = torch.nn.functional.cross_entropy(own[:-1], ids[1:])
        oracle_loss = torch.nn.functional.cross_entropy(wanted[expected[:-1]], ids[1:])
        torch.testing.assert_close(predicted, oracle_loss, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("name", ["llava", "qwen3_vl"])
def test_gradients_with_and_without_checkpointing(name):
    family = deep(name)
    model = family.build().train()
    batch = right_padded(family, model)
    found = []
    for checkpointing in (False, True):
        if checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.zero_grad()
        torch.manual_seed(0)
        with inside(model, PLAN, batch):
            loss = model(**batch, use_cache=False).loss
        loss.backward()
        found.append((loss.detach(), [p.grad.clone() for p in model.parameters() if p.grad is not None]))
    assert torch.equal(found[0][0], found[1][0])
    assert len(found[0][1]) == len(found[1][1]) > 20
    assert all(torch.equal(a, b) for a, b in zip(found[0][1], found[1][1], strict=True))


def test_dropped_features_get_no_gradient_from_later_layers():
    """Everything leaves before layer 1, so that only layer 0 reads the image."""
    family = deep("llava", layers=2)
    model = family.build()
    batch = prompts(family, model, only=0)
    with inside(model, "flow:layer=1", batch):
        out = model(**batch, use_cache=False)
    out.logits[0, -1].sum().backward()
    assert float(model.model.multi_modal_projector.linear_2.weight.grad.abs().sum()) > 0
    with inside(model, "flow:layer=1", batch) as record:
        model(**batch)
    assert record.visual == [36, 0]
