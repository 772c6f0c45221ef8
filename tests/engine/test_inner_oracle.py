"""Methods inside the language model against an oracle that calls its layers one by one, on every decoder stack."""

from __future__ import annotations

import pytest
import torch

from tests.engine.inner_cases import PLANS, STACKS, built, inside, prompts, visual_of
from tests.engine.inner_oracle import Oracle, oracle_tokens
from vtoken.methods.plan import Plan

NEW = 4
FAST = [(stack, PLANS[(3 * i + j * 7) % len(PLANS)]) for i, stack in enumerate(STACKS) for j in range(2)]
ALL = [(stack, plan) for stack in STACKS for plan in PLANS if (stack, plan) not in FAST]


def check(stack: str, plan: str) -> None:
    """Batch of two padded prompts: prefill logits, greedy tokens with and without a cache, equal the oracle's."""
    family, model = built(stack)
    batch = prompts(family, model)
    width = batch["input_ids"].shape[1]
    options = {"max_new_tokens": NEW, "min_new_tokens": NEW, "do_sample": False}
    with torch.no_grad():
        with inside(model, plan, batch) as record:
            out = model.generate(**batch, **options, return_dict_in_generate=True, output_logits=True)
        with inside(model, plan, batch):
            plain = model.generate(**batch, **options, use_cache=False)
    assert torch.equal(out.sequences, plain)
    assert min(record.visual) < len(visual_of(model, batch).column)
    for b in range(2):
        alone = prompts(family, model, only=b)
        visual = visual_of(model, alone)
        mask = torch.zeros_like(alone["input_ids"], dtype=torch.bool)
        mask[0, visual.column] = True
        oracle = Oracle(model, Plan.parse(plan))
        sample = oracle.sample(alone, mask, visual.tokens.position)
        logits, _ = oracle.logits(sample)
        torch.testing.assert_close(out.logits[0][b], logits[-1], atol=20 * family.tolerance, rtol=1e-4)
        assert torch.equal(out.sequences[b, width:], oracle_tokens(oracle, sample, NEW))


@pytest.mark.parametrize(("stack", "plan"), FAST)
def test_generation_equals_the_oracle(stack, plan):
    check(stack, plan)


@pytest.mark.slow
@pytest.mark.parametrize(("stack", "plan"), ALL)
def test_generation_equals_the_oracle_everywhere(stack, plan):
    check(stack, plan)
