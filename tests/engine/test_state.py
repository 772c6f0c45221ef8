"""A video that is read in chunks: the same logits for every cut, those of one prompt, and nothing left behind."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.engine.chunks import MOST, PLANS, STEPS, SYSTEM, chunks, clip_of, ids_of, plan_of, question_of, state_of
from tests.families.tiny import model_of
from tests.families.tokenizer import tokenizer_of
from vtoken import families
from vtoken.data.hold import HoldMap
from vtoken.engine.call import Call
from vtoken.engine.hold.inputs import hold_inputs
from vtoken.engine.prepare import prepare
from vtoken.engine.splice import Cut, cut_inputs
from vtoken.errors import InputError, UnsupportedError
from vtoken.methods.hold import FeatureGate
from vtoken.qa.prompt import Chat, prompts

TOLERANCE = 1e-5


def close(a: Tensor, b: Tensor, tolerance: float = TOLERANCE) -> None:
    torch.testing.assert_close(a, b, atol=tolerance, rtol=tolerance)


@cache
def at_once(name: str, plan: str) -> Tensor:
    return state_of(name, plan).logits(question_of(name)[1])


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("name", MOST)
@settings(max_examples=2)
@given(borders=st.sets(st.integers(1, STEPS - 1)))
def test_every_cut_into_chunks_gives_the_same_logits(name: str, plan: str, borders: set[int]) -> None:
    ends = [0, *sorted(borders), STEPS]
    state = state_of(name, plan, [b - a for a, b in zip(ends, ends[1:], strict=False)])
    close(state.logits(question_of(name)[1]), at_once(name, plan))


def whole_prompt(name: str, plan: str) -> tuple[Any, dict[str, Any]]:
    """The prompt of ``ask`` after the plan, and its arguments before it."""
    model = model_of(name)
    clip = clip_of(name, plan)
    chosen = plan_of(name, plan)
    stages = [replace(s, run_position="start") if hasattr(s, "run_position") else s for s in chosen.stages]
    call = Call(model, families.of(model), replace(chosen, stages=tuple(stages)))
    call.clips, call.positions = [clip], "trained"
    (inputs,) = prompts(families.of(model), model, tokenizer_of(model), clip, ["what moves?"], Chat(system=SYSTEM))
    with torch.no_grad():
        return prepare(call, inputs, generating=True), inputs


@pytest.mark.parametrize("plan", ["none", "grt:hold=off,merge=none"])
@pytest.mark.parametrize("name", MOST)
def test_chunks_equal_the_prompt_of_ask(name: str, plan: str) -> None:
    """Another path of the library: positions from the stock ids, one prompt, one forward, no cache."""
    ready, _ = whole_prompt(name, plan)
    inputs = {n: v for n, v in ready.inputs.items() if n not in ("attention_mask", "mm_token_type_ids")}
    with torch.no_grad():
        expected = model_of(name)(**inputs, logits_to_keep=1).logits[0, -1]
    state = state_of(name, plan, [3, 1, 4])
    close(state.logits(question_of(name)[1]), expected)


def lag_map(name: str, plan: str) -> tuple[Any, dict[str, Any], Tensor, Tensor, Tensor]:
    """The held prompt by the functions for whole clips: what each column shows, and the step of each column."""
    model = model_of(name)
    family = families.of(model)
    clip, chosen = clip_of(name, plan), plan_of(name, plan)
    (inputs,) = prompts(family, model, tokenizer_of(model), clip, ["what moves?"], Chat(system=SYSTEM))
    with torch.no_grad():
        features = family.encode_clips(model, [clip], frozenset(), hold=True)
    visual = family.placeholders(model, family.clip_modality, inputs["input_ids"], inputs)[0]
    place = visual.nonzero().squeeze(1)
    content = ~features.layout.structural
    shape = tuple((features.layout.position[content].max(0).values + 1).tolist())
    slot = content.long().cumsum(0) - 1
    inside = content[features.index]
    stage = chosen.reducers[-1]
    rule = FeatureGate(tau=stage.tau, second=stage.second, home="lag", second_home="lag")  # type: ignore[attr-defined]
    position = features.layout.position[features.index][inside]
    held = rule(features.x[inside], position, shape)  # type: ignore[arg-type]
    shows = torch.arange(len(visual))
    shows[place[content]] = place[content][held.shows]
    step = torch.full((len(visual),), -1)
    step[place[content]] = features.layout.position[content][:, 0].long()
    for i in range(1, len(step)):  # a step's stamp stands before its cells, its end mark behind them
        step[i] = step[i] if visual[i] and step[i] >= 0 else step[i - 1]
    known = features.index[inside]
    x = features.x[inside][held.source]
    stacks = {n: v[inside][held.source] for n, v in features.signals.items() if n.startswith("deepstack.")}
    assert torch.equal(slot[known], (position.long() * torch.tensor([shape[1] * shape[2], shape[2], 1])).sum(1))
    if not bool(content.all()):  # the newline at the end of a OneVision video
        x = torch.cat([x, features.x[~inside]])
    return inputs, {"x": x, "stacks": stacks, "features": features}, shows, step, visual


@pytest.mark.parametrize("plan", PLANS[2:])
@pytest.mark.parametrize("name", ["qwen2_vl", "qwen2_5_vl", "qwen3_5", "llava_onevision", "llava_next_video"])
def test_held_chunks_equal_a_held_prompt_whose_rows_see_what_was_computed_by_then(name: str, plan: str) -> None:
    """The whole clip by ``FeatureGate`` and ``HoldCache``, with one more rule in the mask of its prefill."""
    model = model_of(name)
    family = families.of(model)
    inputs, given, shows, step, visual = lag_map(name, plan)
    hold = HoldMap(shows[None])
    columns = hold.columns()[0]
    from vtoken.engine.positions import counted, rope_positions, trained

    positions, _ = rope_positions(model, inputs, True)
    positions = counted(None, inputs["input_ids"]) if positions is None else trained(model, inputs, positions)
    bare = {"input_ids": inputs["input_ids"], "position_ids": positions}
    cut = cut_inputs(bare, Cut([columns], [columns]), 0, right=False)
    f = given["features"]
    packed = family.pack(family.clip_modality, f, [given["x"]])
    cut["mm_encoder_outputs"] = {family.clip_modality: packed}
    head = hold_inputs(model, {n: cut[n] for n in ("input_ids", "mm_encoder_outputs")}, hold, positions)
    home = step[shows]  # the step at which the row of each column is computed
    behind = int(visual.nonzero().max()) + 1
    when = torch.where(torch.arange(len(step)) >= behind, STEPS, step)
    tables = head["past_key_values"].tables
    seen = home[tables.column[0]] <= when[columns][:, None]
    mask = head["attention_mask"]
    rest = mask["full_attention"] if isinstance(mask, dict) else mask
    rest = rest & seen[None, None]
    head["attention_mask"] = mask | {"full_attention": rest} if isinstance(mask, dict) else rest
    with torch.no_grad():
        expected = model(**head, logits_to_keep=1).logits[0, -1]
    close(state_of(name, plan, [2, 5, 1]).logits(question_of(name)[1]), expected, 2e-5)


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("name", MOST)
def test_questions_leave_nothing_behind(name: str, plan: str) -> None:
    state = state_of(name, plan, [3, 2])
    alone = state_of(name, plan, [3, 2])
    tail, options = question_of(name)[1], {"max_new_tokens": 4, "do_sample": False}
    first, bytes_before, stored = state.ask(tail, options), state.nbytes, state.stored
    state.logits(ids_of("why is it so?", name))
    assert state.ask(tail, options).tolist() == first.tolist() and len(first) == 4
    assert (state.nbytes, state.stored, state.clock) == (bytes_before, stored, alone.clock)
    for one in (state, alone):
        one.push(chunks(clip_of(name, plan), [3, 2, 3])[2])
    assert torch.equal(state.logits(tail), alone.logits(tail))
    close(state.logits(tail), at_once(name, plan))


@pytest.mark.parametrize("name", MOST)
def test_an_answer_is_greedy_by_its_own_logits(name: str) -> None:
    """``generate`` on the filled cache, against one logits call a token."""
    state, ids = state_of(name, "grt", [4, 4]), question_of(name)[1]
    found = state.ask(ids, {"max_new_tokens": 4, "do_sample": False})
    for token in found.tolist():
        assert int(state.logits(ids).argmax()) == token
        ids = torch.cat([ids, torch.tensor([token])])


@pytest.mark.parametrize("name", ["qwen2_5_vl", pytest.param("qwen3_5", marks=pytest.mark.slow)])
def test_two_states_and_a_plain_generate_do_not_disturb_each_other(name: str) -> None:
    from tests.families.tiny import FAMILIES

    model, tail = model_of(name), question_of(name)[1]
    inputs = FAMILIES[name].inputs(model, [[("text", 5), ("video", 4), ("text", 4)]])
    options: dict[str, Any] = {"max_new_tokens": 3, "do_sample": False}
    plain = model.generate(**inputs, **options)
    one, two = state_of(name, "grt", [2]), state_of(name, "none", [1])
    for chunk, other in zip(
        chunks(clip_of(name, "grt"), [2, 3, 3])[1:], chunks(clip_of(name, "none"), [1, 4, 3])[1:], strict=True
    ):
        one.push(chunk)
        assert torch.equal(model.generate(**inputs, **options), plain)
        two.push(other)
        two.ask(tail, options)
    close(one.logits(tail), at_once(name, "grt"))
    close(two.logits(tail), at_once(name, "none"))
    assert torch.equal(model.generate(**inputs, **options), plain)


def test_the_two_rules_for_text_behind_a_video_differ() -> None:
    tail = question_of("qwen2_5_vl")[1]
    trained, stock = (state_of("qwen2_5_vl", "none", [4, 4], positions=rule) for rule in ("trained", "stock"))
    assert stock.clock.next < trained.clock.next
    assert (stock.logits(tail) - trained.logits(tail)).abs().max() > 1e-3


@pytest.mark.parametrize("name", ["qwen2_vl", "qwen3_vl", "qwen3_5", "llava_next_video"])
@pytest.mark.parametrize("plan", ["none", "grt"])
def test_taken_columns_equal_masked_ones(name: str, plan: str) -> None:
    """Eviction against the same question under a mask that hides these columns."""
    state, tail = state_of(name, plan, [4, 4]), question_of(name)[1]
    stays = torch.rand(state.stored, generator=torch.Generator().manual_seed(1)) < 0.6
    with state.closed() as start:
        from vtoken.engine.state.tail import text_positions

        n = int(state.cache.get_seq_length())
        seen = torch.cat([stays, torch.ones(n - len(stays), dtype=torch.bool)])
        mask: Any = torch.cat([seen.expand(len(tail), -1), torch.ones(len(tail), len(tail)).tril().bool()], 1)[
            None, None
        ]
        if name == "qwen3_5":
            mask = {"full_attention": mask, "linear_attention": None}
        places = text_positions(state.cache, start, len(tail), "cpu")
        model = model_of(name)
        with torch.no_grad():
            expected = model(
                input_ids=tail[None],
                attention_mask=mask,
                position_ids=places,
                past_key_values=state.cache,
                logits_to_keep=1,
            ).logits[0, -1]
    before = state.logits(tail)
    state.keep(stays.nonzero().squeeze(1))
    assert state.stored == int(stays.sum())
    if plan == "none":  # with hold the last step's rows are computed at the question, and see what is left
        close(state.logits(tail), expected)
    assert (state.logits(tail) - before).abs().max() > 1e-3


def test_what_cannot_run_on_chunks_is_refused() -> None:
    name = "qwen3_vl"
    for plan, word in (
        ("cdpruner:keep=0.5", "question"),
        ("fastv", "language model"),
        ("grt:recall=2", "leave that option out"),
        ("hold:tau=0 | divprune:keep=0.5", "leave the stage hold out"),
        ("grt:anchors=(1,reuse)", "leave that option out"),
    ):
        with pytest.raises(UnsupportedError, match=word):
            state_of(name, plan)
    with pytest.raises(UnsupportedError, match="in chunks"):
        replace_family()
    state = state_of(name, "grt")
    empty = chunks(clip_of(name, "grt"), [0])[0]
    with pytest.raises(InputError, match="time step"):
        state.push(empty)


def replace_family() -> None:
    from vtoken.engine.state.clock import Clock

    Clock.of(model_of("smolvlm"))
