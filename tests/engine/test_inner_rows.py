"""Scores without eager attention, signals, structural rows, budgets and the record."""

from __future__ import annotations

import pytest
import torch
from transformers import DynamicCache

from tests.engine.inner_cases import PLANS, STACKS, built, deep, inside, prompts, visual_of
from tests.engine.inner_oracle import Oracle
from tests.families.oracle import visual_mask
from vtoken.data.tokens import Tokens
from vtoken.engine.inner import LINE, Visual, installed
from vtoken.methods.inner import Inner
from vtoken.methods.plan import Plan
from vtoken.methods.registry import register


class Looking(Inner):
    """Keeps all, and remembers what it saw."""

    needs = frozenset({"last_attention", "text_attention", "visual_attention", "keys"})
    looks = True
    needs_budget = False
    found: dict = {}

    def score(self, tokens, context):
        return torch.zeros(len(tokens))

    def select(self, tokens, k, context):
        view = context.look()
        rows = torch.arange(view.rows)
        self.found[context.sample] = (
            {n: v.clone() for n, v in tokens.signals.items()},
            view.attention(rows),
            torch.cat([pad(w, view.rows) for _, w in view.strips(rows)], 1),
            view.attention(view.text, rotary=False, masked=False),
            view.keys(True),
        )
        return torch.arange(len(tokens))


def pad(weight, columns):
    return torch.nn.functional.pad(weight, (0, columns - weight.shape[-1]))


@pytest.mark.parametrize("source", ["before", "here"])
@pytest.mark.parametrize("name", STACKS)
def test_attention_of_a_few_rows_equals_eager_attention(name, source):
    """Every stack, windows and image blocks included, also within a padded batch."""
    family = deep(name, sliding_window=9) if name == "gemma3" else built(name)[0]
    model = family.build() if name == "gemma3" else built(name)[1]
    batch = prompts(family, model)
    method = type("Looking", (Looking,), {"source": source, "name": "looking", "found": {}})(layer=3)
    with torch.no_grad(), installed(model, Plan((method,)), visual_of(model, batch)):
        model(**batch)
    for b in range(2):
        alone = prompts(family, model, only=b)
        visual = visual_of(model, alone)
        oracle, found = Oracle(model, Plan((method,))), dict(method.found)
        seen = method.found[b]
        sample = oracle.sample(alone, visual_mask(model, alone["input_ids"]), visual.tokens.position)
        wanted = {}

        def signals(m, view, columns, tokens, wanted=wanted, own=oracle._signals):
            wanted["view"], wanted["signals"] = view, own(m, view, columns, tokens)
            return wanted["signals"]

        oracle._signals = signals
        oracle.logits(sample)
        view, method.found = wanted["view"], found
        torch.testing.assert_close(seen[1], view.weights(True, True), atol=2e-6, rtol=1e-4)
        torch.testing.assert_close(seen[2], view.weights(True, True), atol=2e-6, rtol=1e-4)
        torch.testing.assert_close(seen[3], view.weights(False, False)[:, view.text], atol=2e-6, rtol=1e-4)
        for signal in ("last_attention", "text_attention", "visual_attention"):
            torch.testing.assert_close(seen[0][signal], wanted["signals"][signal], atol=2e-6, rtol=1e-4)
        if name in ("qwen2_vl", "qwen2_5_vl", "qwen3_vl"):  # padding does not shift their positions
            torch.testing.assert_close(seen[4], view.keys(True), atol=2e-5, rtol=1e-4)


def test_strips_of_any_size_add_up(monkeypatch):
    from vtoken.methods import view as module

    family, model = built("llava")
    batch = prompts(family, model, only=0)
    method = type("Looking", (Looking,), {"name": "looking", "found": {}})(layer=3)
    with torch.no_grad(), installed(model, Plan((method,)), visual_of(model, batch)):
        model(**batch)
        whole = method.found[0]
        for strip in (1, 200, 1000):
            monkeypatch.setattr(module, "STRIP", strip)
            model(**batch)
            torch.testing.assert_close(method.found[0][2], whole[2], atol=1e-6, rtol=1e-5)
            torch.testing.assert_close(
                method.found[0][0]["visual_attention"], whole[0]["visual_attention"], atol=1e-6, rtol=1e-5
            )


def test_structural_rows_leave_with_their_line():
    """Newlines at the end of rows of 6 tokens: they are no tokens, and one leaves when its row has no token left."""
    family, model = built("llava")
    batch = prompts(family, model, only=0)
    mask = visual_mask(model, batch["input_ids"])
    place = mask[0].nonzero().squeeze(1)
    newline = place[5::6]
    mask[0, newline] = False
    made = Visual.of(mask)
    line = torch.arange(36).view(6, 6)[:, :5].flatten() // 6
    made.tokens = made.tokens.with_signals(**{LINE: line})
    made.structural = torch.stack([torch.zeros(6, dtype=torch.long), newline, torch.arange(6)], 1)
    for plan, kept in (("flow:layer=3", 0), ("fastv:layer=3,tokens=2", 2)):
        with torch.no_grad(), installed(model, Plan.parse(plan), made) as record:
            model(**batch)
        at = record.at[3][0].tolist()
        lines = {int(c - place[0]) // 6 for c in at if c in made.column.tolist()}
        assert sum(c in made.column.tolist() for c in at) == kept
        assert {int(c - place[0]) // 6 for c in at if c in newline.tolist()} == lines
        assert record.visual == [30, 30, 30, kept, kept, kept]
        assert record.rows[:3] == [45] * 3


def test_one_item_never_takes_the_budget_of_another():
    family, model = built("qwen2_5_vl")
    layout = [[("text", 3), ("image", None), ("text", 2), ("image", None), ("text", 4)]]
    batch = family.inputs(model, layout)
    mask = visual_mask(model, batch["input_ids"])
    column = mask[0].nonzero().squeeze(1)
    n = len(column) // 2
    tokens = Tokens.of(torch.empty(2 * n, 0))
    tokens.batch = torch.tensor([0, n, 2 * n])
    made = Visual(tokens, column, torch.tensor([0, 0]), 1, mask.shape[1])
    with torch.no_grad(), installed(model, Plan.parse("fastv:layer=3,keep=0.5"), made) as record:
        model(**batch)
    kept = set(record.at[3][0].tolist())
    assert sum(c in kept for c in column[:n].tolist()) == sum(c in kept for c in column[n:].tolist()) == n // 2


def test_a_shared_budget_counts_from_the_stock_tokens_and_ends_exactly():
    family, model = built("llava")
    batch = prompts(family, model)
    for plan, counts in (
        ("fastv:layer=2", [36, 36, 9, 9, 9, 9]),
        ("pyramiddrop:layer=(2,4)", [36, 36, 18, 18, 9, 9]),
        ("fastv:layer=1 | holitom_inner:layer=3", [36, 18, 18, 9, 9, 9]),
        ("divprune | fastv:layer=1", [36, 9, 9, 9, 9, 9]),  # divprune acts before the model
    ):
        with torch.no_grad(), inside(model, plan, batch, keep=0.25) as record:
            model(**batch)
        assert record.visual == [2 * c for c in counts]


def test_hidden_states_and_layers_keep_their_shapes():
    family, model = built("llava")
    batch = prompts(family, model)
    n = batch["input_ids"].shape[1]
    with torch.no_grad(), inside(model, "fastv:layer=3,keep=0.5", batch) as record:
        out = model(**batch, output_hidden_states=True)
    assert [h.shape[1] for h in out.hidden_states] == [n, n, n, n, n - 18, n - 18, n]
    assert out.hidden_states[-1].shape == (2, n, 64)
    assert record.rows == [47.5] * 3 + [29.5] * 3
    assert record.mean_visual == 54


def test_layers_see_no_gaps_in_positions():
    """Flash attention reads gaps in a layer's position ids as packed sequences."""
    family, model = built("llava")
    batch, seen = prompts(family, model), []
    with torch.no_grad(), inside(model, "fastv:layer=3,keep=0.5", batch):
        hook = (
            model.get_decoder()
            .layers[4]
            .register_forward_pre_hook(lambda _, args, kwargs: seen.append(kwargs["position_ids"]), with_kwargs=True)
        )
        model(**batch)
        hook.remove()
    assert (seen[0].diff() == 1).all()


def test_an_unpadded_prompt_needs_no_mask():
    family, model = built("llava")
    batch, seen = prompts(family, model, only=0), []
    cache = DynamicCache(config=model.config)
    with torch.no_grad(), inside(model, "fastv:layer=3,keep=0.5", batch):
        hook = (
            model.get_decoder()
            .layers[4]
            .register_forward_pre_hook(lambda _, args, kwargs: seen.append(kwargs["attention_mask"]), with_kwargs=True)
        )
        model(**batch, past_key_values=cache)
        model(input_ids=torch.tensor([[77]]), past_key_values=cache)
        hook.remove()
    assert seen == [None, None]


def test_every_method_is_in_the_matrix():
    from vtoken.methods import registry

    used = {stage.name for plan in PLANS for stage in Plan.parse(plan).inner}
    assert used == set(registry.names("inner"))


def test_a_method_of_one_line():
    """The contract: a dataclass with ``score`` is a method."""
    from dataclasses import dataclass

    from vtoken.methods import registry

    before = dict(registry._methods)
    try:

        @register("norm_inner")
        @dataclass(kw_only=True)
        class Norm(Inner):
            """Keeps the tokens with the largest hidden states."""

            def score(self, tokens, context):
                return tokens.x.float().norm(dim=-1)

        family, model = built("llava")
        batch = prompts(family, model)
        with torch.no_grad(), inside(model, "norm_inner:layer=4,keep=0.25", batch) as record:
            model(**batch)
        assert record.visual == [72] * 4 + [18] * 2
    finally:
        registry._methods.clear()
        registry._methods.update(before)
