"""Plans with methods inside the language model, through wrap, ask and ask_many, alone and behind other stages."""

from __future__ import annotations

import json
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache

import vtoken
from tests.engine.inner_cases import STACKS, built, deep, inside, prompts
from tests.engine.inner_oracle import Oracle, Sample, oracle_tokens
from tests.families.oracle import visual_mask
from tests.families.prepared import prepared
from tests.families.tiny import moving_block
from tests.families.tokenizer import tokenizer_of
from vtoken.data.report import CellState
from vtoken.engine.inner import LINE, installed
from vtoken.engine.inside import visual_of
from vtoken.engine.uncut import fill_padding
from vtoken.errors import InputError, UnsupportedError
from vtoken.methods.plan import Plan

NAMES = ["llava", "qwen2_5_vl", "qwen3_vl"]
GREEDY: dict[str, Any] = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False}
FASTV = "fastv:layer=1,keep=0.5"
BEHIND = "divprune:keep=0.5 | fastv:layer=2,keep=0.5"


def moving(name: str, only: int | None = None) -> tuple[Any, dict[str, Tensor]]:
    """Two prompts about clips in which a gate finds something to skip."""
    family, model = built(name)
    layout = []
    for b in range(2):
        clip = moving_block(6, *family.size, seed=b + 1)
        visual = [("video", clip)] if family.video else [("image", frame[None]) for frame in clip]
        layout.append([("text", 5 + b), *visual, ("text", 4 + b)])
    return model, family.inputs(model, layout, only=only)


def sliced(sample: Sample, keep: Tensor) -> Sample:
    """The sample without the columns outside ``keep`` (int64 [k])."""
    visual = sample.visual.long().cumsum(0) - 1
    rows = visual[keep[sample.visual[keep]]]
    return replace(
        sample,
        embeds=sample.embeds[keep],
        positions=None if sample.positions is None else sample.positions[:, keep],
        visual=sample.visual[keep],
        deepstack=[level[rows] for level in sample.deepstack],
        block=None if sample.block is None else sample.block[keep],
        prompt=len(keep),
    )


def behind(model: Any, inputs: dict[str, Tensor], plan: str, gated: bool) -> tuple[Oracle, Sample]:
    """The oracle of the inner methods on one prompt after the other stages; a gated encoder's features as they are."""
    with vtoken.wrapped(model, plan):
        ready = prepared(model, inputs)
    keep = ready.cut.slots[0]
    oracle = Oracle(model, Plan.parse(plan))
    sample = sliced(oracle.sample(inputs, visual_mask(model, inputs["input_ids"])), keep)
    if gated:
        sample.embeds = sample.embeds.clone()
        sample.embeds[sample.visual] = ready.kept[0].parts[0]
        levels = ready.kept[0].stacks
        sample.deepstack = [levels[f"deepstack.{i}"][0] for i in range(len(levels))]
    oracle.grid = ready.reduced.left.position
    return oracle, sample


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_alone_it_is_what_the_hooks_give(name: str) -> None:
    family, model = built(name)
    batch = prompts(family, model)
    with inside(model, FASTV, batch):
        logits, tokens = model(**batch).logits, model.generate(**batch, **GREEDY)
    with vtoken.wrapped(model, FASTV):
        assert torch.equal(model(**batch).logits, logits)
        assert torch.equal(model.generate(**batch, **GREEDY), tokens)
    assert not torch.equal(model(**batch).logits, logits)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "plan", [BEHIND, "grt:hold=off | pyramiddrop", "divprune:keep=0.6 | pyramiddrop | fastv:layer=5"]
)
@torch.no_grad()
def test_behind_other_stages_it_equals_the_oracle(name: str, plan: str) -> None:
    gated = plan.startswith("grt")
    family, model = built(name)

    def of(only: int | None) -> dict[str, Tensor]:
        return moving(name, only)[1] if gated else prompts(family, model, only)

    batch = of(None)
    width = batch["input_ids"].shape[1]
    oracles = [behind(model, of(b), plan, gated) for b in range(2)]
    with vtoken.wrapped(model, plan):
        out = model.generate(**batch, **GREEDY, return_dict_in_generate=True, output_logits=True)
        report = model.vtoken.report
        beams = model.generate(**batch, **GREEDY, num_beams=3, num_return_sequences=2)
        assert torch.equal(model.generate(**batch, **GREEDY, use_cache=False), out.sequences)
        logits = model(**batch).logits
        for b in range(2):
            alone = of(b)
            torch.testing.assert_close(out.logits[0][b], model(**alone).logits[0, -1], atol=2e-4, rtol=1e-4)
            torch.testing.assert_close(logits[b, -1], model(**alone).logits[0, -1], atol=2e-4, rtol=1e-4)
            own = model.generate(**alone, **GREEDY, num_beams=3, num_return_sequences=2)
            assert torch.equal(beams[2 * b : 2 * b + 2, width:], own[:, alone["input_ids"].shape[1] :])
    for b, (oracle, sample) in enumerate(oracles):
        torch.testing.assert_close(out.logits[0][b], oracle.logits(sample)[0][-1], atol=2e-4, rtol=1e-4)
        assert torch.equal(out.sequences[b, width:], oracle_tokens(oracle, sample, 4))
    assert torch.equal(out.sequences[:, :width], batch["input_ids"])
    assert torch.equal(beams[:, :width], batch["input_ids"].repeat_interleave(2, 0))
    assert report.tokens < report.cells and report.inside[0] == report.tokens > report.inside[-1]
    assert 0 < report.flops < 1 and 0 < report.cache < 1


@pytest.mark.parametrize("name", ["internvl", "gemma3", "llava_onevision"])
@torch.no_grad()
def test_beams_of_ragged_prompts_in_families_with_one_tensor(name: str) -> None:
    family, model = built(name)
    kind = "video" if name == "llava_onevision" else "image"
    layout = [[("text", 5), (kind, None), ("text", 4)], [("text", 3), (kind, None), (kind, None), ("text", 6)]]
    batch, options = family.inputs(model, layout), GREEDY | {"num_beams": 2}
    with vtoken.wrapped(model, BEHIND):
        made = model.generate(**batch, **options)[:, batch["input_ids"].shape[1] :]
        for b in range(2):
            alone = family.inputs(model, layout, only=b)
            assert torch.equal(model.generate(**alone, **options)[0, alone["input_ids"].shape[1] :], made[b])


@pytest.mark.parametrize("name", STACKS)
@pytest.mark.parametrize("plan", ["flow:layer=3", "random:keep=0.4 | flow:layer=3"])
@torch.no_grad()
def test_every_placeholder_left_is_a_token_or_structural(name: str, plan: str) -> None:
    family, model = built(name)
    batch = prompts(family, model)
    with vtoken.wrapped(model, plan):
        ready = prepared(model, batch, generating=True)
    visual = visual_of(Plan.parse(plan), ready)
    found = torch.zeros(ready.inputs["input_ids"].shape, dtype=torch.long)
    found.index_put_((visual.owner[visual.tokens.sample_of], visual.column), torch.tensor(1), accumulate=True)
    extra = visual.structural
    found.index_put_((extra[:, 0], extra[:, 1]), torch.tensor(1), accumulate=True)
    assert torch.equal(found, visual_mask(model, ready.inputs["input_ids"]).long())
    lines = {int(n) for n in extra[:, 2] if n >= 0}
    assert lines <= set(visual.tokens.signals[LINE].tolist())


@torch.no_grad()
def test_signals_of_the_encoder_go_along() -> None:
    """The same two choices by the encoder's attention, one of them inside: the tokens left are the same."""
    family, model = built("llava")
    alone = prompts(family, model, 0)
    chosen = "cls:keep=0.5 | cls:keep=0.5"
    with vtoken.wrapped(model, chosen):
        wanted = prepared(model, alone).cut.slots[0]
    plan = "cls:keep=0.5 | inside:method=(cls:keep=0.5),signals=encoder,layer=3"
    with vtoken.wrapped(model, plan):
        ready = prepared(model, alone)
        visual = visual_of(Plan.parse(plan), ready)
        with installed(model, Plan.parse(plan), visual, ready.reduced.context) as record:
            model(**ready.inputs)
        model(**alone)
        assert model.vtoken.report.inside == record.visual
    assert torch.equal(ready.cut.slots[0][record.at[3][0]], wanted)


@pytest.mark.parametrize("plan", ["snapkv:keep=0.5", "divprune:keep=0.5 | flow:layer=4 | value_norm:keep=0.5"])
@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_cache_methods(name: str, plan: str) -> None:
    family, model = built(name)
    batch = prompts(family, model)
    with vtoken.wrapped(model, plan):
        made = model.generate(**batch, **GREEDY)[:, batch["input_ids"].shape[1] :]
        report = model.vtoken.report
        for b in range(2):
            alone = prompts(family, model, b)
            assert torch.equal(model.generate(**alone, **GREEDY)[0, alone["input_ids"].shape[1] :], made[b])
    assert report.cache < report.flops


class Seen:
    """A processor, criterion and streamer that writes down the ids that it is given."""

    def __init__(self) -> None:
        self.ids: list[Tensor] = []

    def __call__(self, input_ids: Tensor, scores: Any) -> Any:
        self.ids.append(input_ids)
        return scores

    def put(self, value: Tensor) -> None:
        self.ids.append(value.flatten())

    def end(self) -> None:
        self.ids = [torch.cat(self.ids)[None]]


class Stops(Seen):
    def __call__(self, input_ids: Tensor, scores: Any, **options: Any) -> Any:
        super().__call__(input_ids, scores)
        return torch.zeros(len(input_ids), dtype=torch.bool)


@torch.no_grad()
def test_what_users_pass_is_given_the_original_prompt() -> None:
    family, model = built("qwen2_5_vl")
    alone = prompts(family, model, 0)
    width = alone["input_ids"].shape[1]
    processor, criterion, streamer, prefix = Seen(), Stops(), Seen(), []
    with vtoken.wrapped(model, BEHIND):
        plain = model.generate(**alone, **GREEDY)
        again = model.generate(
            **alone,
            do_sample=False,
            max_length=width + 4,
            min_length=width + 4,
            logits_processor=[processor],
            stopping_criteria=[criterion],
            streamer=streamer,
            prefix_allowed_tokens_fn=lambda b, ids: prefix.append(ids) or list(range(255)),
        )
        looked_up = model.generate(**alone, **GREEDY, prompt_lookup_num_tokens=2)
        static = model.generate(**alone, **GREEDY, cache_implementation="static")
    assert torch.equal(again, plain) and torch.equal(looked_up, plain) and torch.equal(static, plain)
    for ids in (processor.ids[-1], prefix[-1][None]):
        assert torch.equal(ids, plain[:, :-1])
    for ids in (criterion.ids[-1], streamer.ids[-1]):
        assert torch.equal(ids, plain)


def test_padding_that_the_cut_made_brings_no_id_of_its_own() -> None:
    ids, prompt = torch.tensor([[0, 0, 40, 9], [8, 40, 7, 9]]), torch.tensor([[40, 40, 40, 40, 9], [8, 40, 40, 7, 9]])
    mask = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]])
    assert fill_padding(ids, mask, prompt, torch.tensor([40])).tolist() == [[9, 9, 40, 9], [8, 40, 7, 9]]
    assert fill_padding(ids, mask, prompt * 0, torch.tensor([40])).tolist() == ids.tolist()


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_a_cut_cache_goes_on_within_wrap_only(name: str) -> None:
    family, model = built(name)
    alone, plan, turn = prompts(family, model, 0), "fastv:layer=3,keep=0.5", torch.tensor([[60, 61, 62]])

    def second(cache: Any, first: Tensor) -> Tensor:
        ids = torch.cat([first, turn], 1)
        return model.generate(input_ids=ids, past_key_values=cache, **GREEDY)

    with inside(model, plan, alone):
        first = model.generate(**alone, **GREEDY, return_dict_in_generate=True)
    with installed(model):
        wanted = second(first.past_key_values, first.sequences)
    with vtoken.wrapped(model, plan):
        own = model.generate(**alone, **GREEDY, return_dict_in_generate=True)
        assert torch.equal(second(own.past_key_values, own.sequences), wanted)
    with pytest.raises(UnsupportedError, match="not wrapped any more"):
        second(own.past_key_values, wanted)
    with vtoken.wrapped(model, BEHIND):
        given = DynamicCache(config=model.config)
        own = model.generate(**alone, **GREEDY, past_key_values=given, return_dict_in_generate=True)
        for cache in (given, own.past_key_values, model(**alone, use_cache=True).past_key_values):
            with pytest.raises(UnsupportedError, match="lost"):
                second(cache, own.sequences)


@pytest.mark.parametrize("name", NAMES)
def test_asked(name: str) -> None:
    """ask_many gives each answer of ask, which is that of the oracle-tested ``generate``; reports count one prompt."""
    _, model = built(name)
    clip, words = moving_block(8, 84, 112, seed=3), tokenizer_of(model)
    questions = ["what moves?", "is it red or is it green?", "why?"]
    options: dict[str, Any] = {"native_fps": 4, "fps": "native", "max_new_tokens": 4}
    plan = "grt:hold=off | divprune:keep=0.5 | fastv:layer=2,keep=0.5"
    together = vtoken.ask_many(model, words, clip, questions, plan=plan, batch=2, **options)
    same = vtoken.ask(model, words, clip, questions[0], plan="grt:hold=off | fastv:layer=2,keep=1.0", **options)
    stock = vtoken.ask(model, words, clip, questions[0], plan="grt:hold=off", **options)
    assert torch.equal(same.tokens, stock.tokens)
    for question, answer in zip(questions, together, strict=True):
        alone = vtoken.ask(model, words, clip, question, plan=plan, **options)
        assert torch.equal(alone.tokens, answer.tokens)
        assert alone.report.inside == answer.report.inside
        assert answer.report.inside[0] == answer.report.tokens
        assert answer.report.inside[-1] - answer.report.tokens // 2 in (0, 1)
    with vtoken.wrapped(model, plan):
        assert torch.equal(vtoken.ask(model, words, clip, questions[0], **options).tokens, together[0].tokens)


def test_hold_gives_way_to_what_empties_the_cache_with_a_note() -> None:
    _, model = built("qwen2_5_vl")
    clip, words = moving_block(8, 84, 112, seed=3), tokenizer_of(model)
    options: dict[str, Any] = {"native_fps": 4, "fps": "native", "max_new_tokens": 3}
    made = [
        vtoken.ask(model, words, clip, "why?", plan=plan, **options)
        for plan in ("grt | snapkv:keep=0.5", "grt:hold=off | snapkv:keep=0.5", "grt | fastv:layer=2,keep=0.5")
    ]
    assert torch.equal(made[0].tokens, made[1].tokens)
    assert [any("hold" in n for n in a.report.notes) for a in made] == [True, False, False]
    held = made[2]
    assert int((held.cell_state == CellState.HELD).sum()) > 0 and held.report.inside[0] > held.report.inside[-1]


@torch.no_grad()
def test_the_report_shows_it_in_one_line() -> None:
    family, model = built("llava")
    batch = prompts(family, model)
    with vtoken.wrapped(model, "fastv:layer=2,keep=0.5"):
        model(**batch)
        report = model.vtoken.report
        model.vtoken.plan = "divprune:keep=0.5"
        model(**batch)
        plain = model.vtoken.report
    assert report.inside == [72, 72, 36, 36, 36, 36]
    line = next(line for line in str(report).splitlines() if line.startswith("inside"))
    assert line.startswith("inside  72 in 2, 36 in 4 layers;") and "FLOPs" in line and "KV cache" in line
    assert json.loads(json.dumps(report.to_dict()))["inside"] == report.inside
    assert plain.inside == [] and plain.flops is None and "inside" not in str(plain)


@pytest.mark.parametrize(
    ("name", "plan", "error", "match"),
    [
        ("llava", "fastv:layer=9,keep=0.5", InputError, "layer 9 is not in 0..5"),
        ("qwen2_5_vl", "grt | pyramiddrop:exact=True", UnsupportedError, "1-D rotary"),
        ("qwen3_5", "fastv:layer=2,keep=0.5", UnsupportedError, "no attention layer before"),
    ],
)
def test_what_cannot_run_is_refused_before_a_frame_is_decoded(name: str, plan: str, error: Any, match: str) -> None:
    family, model = built(name)
    with pytest.raises(error, match=match):
        vtoken.ask(model, tokenizer_of(model), "/nowhere/at/all.mp4", "why?", plan=plan)
    with vtoken.wrapped(model, "none"), pytest.raises(error, match=match):
        model.vtoken.plan = plan
        model(**prompts(family, model))
    with pytest.raises(InputError, match="only a gate gives"):
        Plan.parse("inside:method=(scene),layer=2")


def test_a_signal_that_the_encoder_does_not_give() -> None:
    _, model = built("mistral3")
    with pytest.raises(UnsupportedError, match="does not give"):
        vtoken.wrap(model, "inside:method=(hired:keep=0.5),signals=encoder,layer=2")


@torch.no_grad()
def test_threads_share_a_model_and_nothing_stays() -> None:
    family = deep("qwen3_vl")
    model = family.build()
    jobs = [prompts(family, model, b) for b in range(2)]
    vtoken.wrap(model, BEHIND)
    before = sys.getswitchinterval()
    alone = [model.generate(**job, **GREEDY) for job in jobs]

    def one(i: int) -> bool:
        with torch.no_grad():
            return torch.equal(model.generate(**jobs[i % 2], **GREEDY), alone[i % 2])

    sys.setswitchinterval(1e-5)
    try:
        with ThreadPoolExecutor(4) as pool:
            assert all(pool.map(one, range(12)))
    finally:
        sys.setswitchinterval(before)
    vtoken.unwrap(model)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert not {"forward", "generate", "vtoken"} & set(vars(model))


@pytest.mark.parametrize("side", ["left", "right"])
@torch.no_grad()
def test_training_batches(side: str) -> None:
    """The loss of a padded batch is that of its rows alone; scores come from the row before the answer."""
    family, model = built("qwen2_5_vl")
    batch = prompts(family, model)
    if side == "right":
        real = batch["attention_mask"].bool()
        for n, v in list(batch.items()):
            if v.shape == real.shape:
                batch[n] = torch.stack(
                    [torch.cat([x[r], x.new_zeros(int((~r).sum()))]) for x, r in zip(v, real, strict=True)]
                )
    labels = torch.full_like(batch["input_ids"], -100)
    for b in range(2):
        at = batch["attention_mask"][b].nonzero().squeeze(1)[-2:]
        labels[b, at] = batch["input_ids"][b, at]
    with vtoken.wrapped(model, BEHIND):
        whole = model(**batch, labels=labels).loss
        rows = []
        for b in range(2):
            alone = prompts(family, model, b)
            own = torch.full_like(alone["input_ids"], -100)
            own[:, -2:] = alone["input_ids"][:, -2:]
            rows.append(model(**alone, labels=own).loss)
            ready = prepared(model, alone | {"labels": own})
            last = visual_of(Plan.parse(BEHIND), ready).last
            assert last is not None and int(last) == ready.inputs["input_ids"].shape[1] - 3
    torch.testing.assert_close(whole, torch.stack(rows).mean(), atol=1e-4, rtol=1e-4)
