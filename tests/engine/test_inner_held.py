"""Methods inside the language model on held prompts: a row's columns leave with it.

The oracle runs the full prompt: before every layer a held column gets the state of the row that it shows, and from the
layer on at which a row leaves, no one sees its columns. What leaves follows from the layer's own eager attention over
the computed rows.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import vtoken
from tests.engine import held
from tests.engine.inner_cases import built
from tests.engine.inner_oracle import eager
from tests.families.oracle import language_model, visual_mask
from tests.families.prepared import prepared
from tests.families.tiny import FAMILIES, moving_block
from vtoken.data.budget import Budget
from vtoken.data.hold import HoldMap
from vtoken.engine.hold.inputs import generate_inputs, hold_inputs
from vtoken.engine.inner import Visual, installed
from vtoken.methods.plan import Plan

NAMES = ["llava", "qwen2_5_vl", "qwen3_vl"]
ONE, THREE = "fastv:layer=2,keep=0.5", "vscan_inner:layer=1,keep=0.4 | fastv:layer=4,keep=0.5 | flow:layer=5"
NONE = torch.zeros(0, dtype=torch.long)


class Leaving(held.Oracle):
    """The oracle of a held prompt whose rows leave between layers by the attention of the last row."""

    def __init__(self, model: Any, inputs: dict[str, Tensor], hold: HoldMap, plan: str) -> None:
        super().__init__(model, inputs, hold)
        self.methods, self.layers = Plan.parse(plan).inner, list(language_model(model).layers)
        self.visual = visual_mask(model, inputs["input_ids"])
        self.gone: dict[tuple[int, int], Tensor] = {}
        self.left: dict[int, Tensor] = {}

    @torch.no_grad()
    def logits(self, b: int, more: Tensor) -> Tensor:
        given, shows, mask = self.given(b, more)
        place, prompt = torch.arange(len(shows)), int(self.real[b].sum())
        visual = torch.cat([self.visual[b][self.real[b]], torch.zeros(len(more), dtype=torch.bool)])
        before: list[Any] = [None] * len(self.layers)
        state = {"shows": shows}

        def hook(number: int):
            def act(module: Any, args: tuple, kwargs: dict[str, Any]) -> Any:
                hidden = args[0].clone()
                hidden[0] = hidden[0, state["shows"].clamp(min=0)]
                before[number] = hidden, kwargs["position_embeddings"]
                for m, method in enumerate(self.methods):
                    if number in method.boundaries(len(self.layers)):
                        rows = ((state["shows"] == place) & (place < prompt)).nonzero().squeeze(1)
                        if (b, m) not in self.gone:
                            source = number if method.source == "here" else number - 1
                            self.gone[b, m] = self.choose(method, source, before[source], rows, visual)
                        out = torch.isin(state["shows"], self.gone[b, m])
                        state["shows"] = torch.where(out, -1, state["shows"])
                see = mask & (state["shows"] >= 0)[None] | torch.eye(len(place), dtype=torch.bool)
                return (hidden,), kwargs | {"attention_mask": see[None, None]}

            return act

        hooks = [layer.register_forward_pre_hook(hook(i), with_kwargs=True) for i, layer in enumerate(self.layers)]
        try:
            out = language_model(self.model)(**given, attention_mask=mask[None, None]).last_hidden_state[0]
        finally:
            for one in hooks:
                one.remove()
        self.left[b] = self.real[b].nonzero().squeeze(1)[(state["shows"] == place)[:prompt]]
        return self.model.lm_head(out[state["shows"] == place])

    def choose(self, method: Any, source: int, seen: tuple, rows: Tensor, visual: Tensor) -> Tensor:
        """The rows that leave."""
        mine = rows[visual[rows]]
        if method.name == "flow":
            return mine
        hidden, rope = seen
        layer = self.layers[source]
        causal = torch.ones(len(rows), len(rows), dtype=torch.bool).tril()
        with eager(layer.self_attn.config):
            weight = layer.self_attn(
                hidden_states=layer.input_layernorm(hidden[:, rows]),
                position_embeddings=tuple(r.expand(1, -1, -1)[:, rows] for r in rope),
                attention_mask=torch.where(causal, 0.0, torch.finfo(torch.float32).min)[None, None],
            )[1]
        score = weight[0, :, -1, visual[rows]].mean(0)
        return mine[score.argsort(descending=True, stable=True)[Budget(keep=method.keep).resolve(len(mine), 0.0) :]]


def case(name: str, hide: float, batch: bool = True):
    family, model = built(name)
    kind = "video" if family.video else "image"
    size = (lambda n: n) if family.video and family.ragged else (lambda n: None if kind == "image" else 4)
    layout = [[("text", 5), (kind, size(6)), ("text", 4)], [("text", 3), (kind, size(4)), ("text", 9)]]
    inputs = family.inputs(model, layout[: 1 + batch])
    hold = held.random_map(model, inputs, 0.5, hide)
    return model, inputs, hold, held.cut(model, inputs, hold)


def visual(model: Any, first: dict[str, Any]) -> Visual:
    return Visual.of(visual_mask(model, first["input_ids"]) & first["attention_mask"].bool())


def for_generate(model: Any, inputs: dict[str, Any], hold: HoldMap, first: dict[str, Any]) -> dict[str, Any]:
    stock = {n: inputs[n] for n in ("input_ids", "attention_mask")}
    return generate_inputs(model, first, hold, stock | {"position_ids": held.positions(model, inputs)}, whole=True)


@pytest.mark.parametrize("name", [*NAMES, "llava_onevision", "internvl", "mistral3"])
@pytest.mark.parametrize("hide, plan", [(0.0, ONE), (0.3, THREE)])
@torch.no_grad()
def test_forward_equals_the_oracle(name: str, hide: float, plan: str) -> None:
    model, inputs, hold, first = case(name, hide)
    oracle = Leaving(model, inputs, hold, plan)
    with installed(model, Plan.parse(plan), visual(model, first)) as record:
        made = hold_inputs(model, first, hold, held.positions(model, inputs))
        logits = model(**made, use_cache=True).logits
    assert record.cut and record.columns[0] > record.columns[-1]
    for b, own in enumerate(hold.columns()):
        expected = oracle.logits(b, NONE)
        assert len(oracle.left[b]) < len(own)
        got = logits[b, logits.shape[1] - len(own) :][torch.isin(own, oracle.left[b])]
        assert (got - expected).abs().max() < 1e-4


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("hide, batch, plan", [(0.0, True, "flow:layer=1"), (0.3, True, THREE), (0.3, False, ONE)])
@torch.no_grad()
def test_greedy_and_beams_equal_the_oracle(name: str, hide: float, batch: bool, plan: str) -> None:
    model, inputs, hold, first = case(name, hide, batch)
    oracle, width = Leaving(model, inputs, hold, plan), inputs["input_ids"].shape[1]
    beams = {"num_beams": 3, "num_return_sequences": 2, "length_penalty": 0.0, "max_new_tokens": 4}
    with installed(model, Plan.parse(plan), visual(model, first)):
        made = for_generate(model, inputs, hold, first)
        out = model.generate(**made, max_new_tokens=5, do_sample=False)
    assert torch.equal(out[:, width:], oracle.greedy(5))
    with installed(model, Plan.parse(plan), visual(model, first)):
        made = for_generate(model, inputs, hold, first)
        best = model.generate(**made, **beams, return_dict_in_generate=True, output_scores=True)
    assert torch.allclose(best.sequences_scores, oracle.scores(best.sequences[:, width:]), atol=1e-4)


@pytest.mark.parametrize("name", ["qwen2_5_vl", "qwen3_vl", "llava_onevision"])
@torch.no_grad()
def test_a_wrapped_model_equals_the_oracle(name: str) -> None:
    """The whole way from pixels, with second rows and homes in the middle; then a second turn on the cache."""
    _, model = built(name)
    plan, family = "grt:tau=0 | divprune:keep=0.8 | fastv:layer=2,keep=0.5", FAMILIES[name]
    clip = moving_block(8, *family.size, seed=1)
    inputs = family.inputs(model, [[("text", 5), ("video", clip), ("text", 4)]])
    width = inputs["input_ids"].shape[1]
    with vtoken.wrapped(model, plan):
        ready = prepared(model, inputs)
        out = model.generate(**inputs, max_new_tokens=4, do_sample=False, return_dict_in_generate=True)
        report = model.vtoken.report
        more = torch.cat([out.sequences, torch.tensor([[40, 41, 42]])], 1)
        turn = model.generate(input_ids=more, past_key_values=out.past_key_values, max_new_tokens=3, do_sample=False)
    assert ready.hold is not None and not any("hold" in n for n in report.notes)
    assert report.inside[0] == report.tokens > report.inside[-1] > 0
    assert 0 < (report.flops or 0) < 1 and 0 < (report.cache or 0) < 1
    oracle = Leaving(model, inputs, ready.hold, plan)
    given = ready.kept[0]
    place = ready.hold.columns()[0]
    mine = place[oracle.visual[0, place]]
    oracle.seen["inputs_embeds"][0, mine] = given.parts[0].to(oracle.seen["inputs_embeds"])
    if oracle.seen.get("visual_pos_masks") is not None:
        number = oracle.seen["visual_pos_masks"][0].long().cumsum(0) - 1
        for i, level in enumerate(oracle.seen["deepstack_visual_embeds"]):
            level[number[mine]] = given.stacks[f"deepstack.{i}"][0]
    tokens = oracle.greedy(4)
    assert torch.equal(out.sequences[:, width:], tokens)
    behind = torch.cat([tokens[0], torch.tensor([40, 41, 42])])
    for token in turn[0, more.shape[1] :]:
        assert int(oracle.logits(0, behind)[-1].argmax()) == int(token)
        behind = torch.cat([behind, token[None]])


@pytest.mark.parametrize("plan, why", [("grt | snapkv:keep=0.5", "cache"), ("grt | vscan_inner:exact=True", "")])
def test_what_cannot_be_held_is_dropped_with_a_note(plan: str, why: str) -> None:
    _, model = built("llava_onevision")
    clip = moving_block(8, *FAMILIES["llava_onevision"].size, seed=1)
    inputs = FAMILIES["llava_onevision"].inputs(model, [[("text", 5), ("video", clip), ("text", 4)]])
    with vtoken.wrapped(model, plan), torch.no_grad():
        model.generate(**inputs, max_new_tokens=1)
        notes = [n for n in model.vtoken.report.notes if "hold cannot run here" in n]
    assert bool(notes) == bool(why) and all(why in n for n in notes)
