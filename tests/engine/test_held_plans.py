"""Plans that hold: what every slot shows; the same answers in batches, packed, with beams and in a second turn."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import vtoken
from tests.families.prepared import prepared
from tests.families.tiny import FAMILIES, model_of, moving_block
from tests.families.tokenizer import tokenizer_of
from vtoken.data.report import CellState
from vtoken.engine.prepare import prepare

NAMES = ["qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_5", "llava_onevision", "llava_next_video"]
PLAIN = "grt:tau=None,second=None"
QUESTIONS = ["what moves?", "what is it, red or green?", "why?"]


def inputs_of(name: str, *clips: np.ndarray) -> dict[str, Tensor]:
    samples = [[("text", 5), ("video", clip), ("text", 4 + i)] for i, clip in enumerate(clips)]
    return FAMILIES[name].inputs(model_of(name), samples)


def block(name: str, frames: int = 8, seed: int = 1) -> np.ndarray:
    return moving_block(frames, *FAMILIES[name].size, seed=seed)


def noise(name: str, frames: int = 6) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (frames, *FAMILIES[name].size, 3), dtype=np.uint8)


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_every_slot_shows_the_newest_row_of_its_cell(name: str) -> None:
    """Without second rows and with homes at the start: the map is the gate's, forward filled."""
    model, inputs = model_of(name), inputs_of(name, block(name))
    with vtoken.wrapped(model, "grt | hold:tau=0.0,second=None,home=start"):
        ready = prepared(model, inputs)
        report = model.vtoken.call(model)
    assert ready.hold is not None and not report.report.notes
    rows = ready.kept[0].rows
    layout, shows = rows.features.layout, ready.hold.shows[0]
    newest: dict[tuple[int, int], int] = {}
    computed = set(ready.cut.slots[0].tolist())
    for place, column in enumerate(rows.column.tolist()):
        if bool(layout.structural[place]):
            assert int(shows[column]) == column
            continue
        cell = tuple(layout.position[place, 1:].tolist())
        if column in computed:
            newest[cell] = column
        assert int(shows[column]) == newest[cell]
    assert int((shows != torch.arange(len(shows))).sum()) > 0


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_nothing_skipped_is_the_stock_model(name: str) -> None:
    model, inputs = model_of(name), inputs_of(name, noise(name))
    stock = model(**inputs).logits
    tokens = model.generate(**inputs, max_new_tokens=4, do_sample=False)
    with vtoken.wrapped(model, "grt:threshold=0,noise_cap=1,tau=None,second=None"):
        torch.testing.assert_close(model(**inputs).logits, stock, atol=1e-5, rtol=1e-5)
        assert torch.equal(model.generate(**inputs, max_new_tokens=4, do_sample=False), tokens)
        assert model.vtoken.report.tokens == model.vtoken.report.cells


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("plan", ["grt", PLAIN, "grt:second=0 | divprune:keep=0.6"])
@torch.no_grad()
def test_batches_and_beams_are_each_row_alone(name: str, plan: str) -> None:
    model = model_of(name)
    clips = block(name), block(name, seed=2)
    together, width = inputs_of(name, *clips), 0
    ways = {"greedy": {}, "beams": {"num_beams": 3, "num_return_sequences": 2}}
    with vtoken.wrapped(model, plan):
        for way, options in ways.items():
            width = together["input_ids"].shape[1]
            made = model.generate(**together, max_new_tokens=4, do_sample=False, **options)[:, width:]
            for b, clip in enumerate(clips):
                samples = [[("text", 5), ("video", clip), ("text", 4 + b)]]
                single = FAMILIES[name].inputs(model, samples)
                single["input_ids"] = together["input_ids"][b : b + 1, together["attention_mask"][b].bool()]
                row = model.generate(**single, max_new_tokens=4, do_sample=False, **options)
                row = row[:, single["input_ids"].shape[1] :]
                n = len(row)
                assert torch.equal(made[b * n : (b + 1) * n], row), way
        assert model.vtoken.report.tokens < model.vtoken.report.cells


@pytest.mark.parametrize("name", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl", "llava_onevision", "llava_next_video", "llava"])
@pytest.mark.parametrize("plan", ["grt", PLAIN, "grt | divprune:keep=0.6"])
def test_packed_questions_are_those_of_one_ask_each(name: str, plan: str) -> None:
    model, clip = model_of(name), block("qwen2_vl")
    options: dict[str, Any] = {"native_fps": 4, "fps": "native", "max_new_tokens": 5, "plan": plan}
    together = vtoken.ask_many(model, tokenizer_of(model), clip, QUESTIONS, **options)
    for question, answer in zip(QUESTIONS, together, strict=True):
        alone = vtoken.ask(model, tokenizer_of(model), clip, question, **options)
        assert answer.tokens.tolist() == alone.tokens.tolist()
        assert answer.report.tokens == alone.report.tokens < alone.report.cells
        held = int((answer.cell_state == CellState.HELD).sum())
        assert held > 0 and int((answer.cell_state == CellState.KEPT).sum()) == answer.report.tokens


@pytest.mark.parametrize("name", ["qwen2_5_vl", "qwen3_vl", "llava_onevision"])
@torch.no_grad()
def test_a_held_cache_goes_on_with_a_second_turn(name: str) -> None:
    """The second turn on the cache is the whole conversation at once."""
    model, inputs = model_of(name), inputs_of(name, block(name))
    more = torch.tensor([[60, 61, 62]])
    with vtoken.wrapped(model, PLAIN):
        first = model.generate(**inputs, max_new_tokens=3, do_sample=False, return_dict_in_generate=True)
        ids = torch.cat([first.sequences, more], dim=1)
        second = model.generate(input_ids=ids, past_key_values=first.past_key_values, max_new_tokens=3, do_sample=False)
        whole = dict(inputs) | {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        for kind in ("mm_token_type_ids", "token_type_ids"):
            if kind in whole:
                extra = ids.shape[1] - whole[kind].shape[1]
                whole[kind] = torch.nn.functional.pad(whole[kind], (0, extra))
        at_once = model.generate(**whole, max_new_tokens=3, do_sample=False)
    assert torch.equal(second, at_once)


@torch.no_grad()
@pytest.mark.parametrize("attention", ["flash_attention_2", "flash_attention_3", "kernels-community/flash-attn"])
@pytest.mark.parametrize("plan", ["grt", "hold:tau=0.05"])
def test_a_model_that_cannot_hold_drops_and_names_the_way_out(attention: str, plan: str) -> None:
    model, inputs = model_of("qwen2_5_vl"), inputs_of("qwen2_5_vl", block("qwen2_5_vl"))
    text = model.config.get_text_config()
    before = text._attn_implementation
    try:
        with vtoken.wrapped(model, plan):
            text._attn_implementation = attention
            call = model.vtoken.call(model)
            ready = prepare(call, dict(inputs), generating=False)
    finally:
        text._attn_implementation = before
    assert ready.hold is None and ready.drops
    (note,) = [n for n in call.report.notes if "hold cannot run here" in n]
    assert f"attn_implementation={attention!r} takes no mask" in note and "attn_implementation='sdpa' does" in note
    assert ("skipped cells are dropped" if plan == "grt" else "what is not computed is dropped") in note


@torch.no_grad()
def test_hold_is_off_on_request() -> None:
    model, inputs = model_of("qwen2_5_vl"), inputs_of("qwen2_5_vl", block("qwen2_5_vl"))
    with vtoken.wrapped(model, "grt:hold=off"):
        model(**inputs)
        assert prepared(model, inputs).hold is None
