"""Every image and every video of a prompt is reduced as it would be alone, with its share of the budget."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import vtoken
from tests.catalogue import MERGERS, PRUNERS, Row, label
from tests.families.oracle import visual_mask
from tests.families.tiny import FAMILIES, Clip, TinyFamily, model_of, moving_block
from vtoken.data.budget import Budget
from vtoken.data.tokens import Tokens
from vtoken.engine.encode import encode
from vtoken.engine.prepare import prepare
from vtoken.engine.question import special_ids
from vtoken.errors import UnsupportedError
from vtoken.methods import registry
from vtoken.methods.plan import Plan
from vtoken.methods.reducer import Context
from vtoken.pruners.catp import CATP

ANSWER = 4  # ids of text behind the last item, which methods read as the question


def items_of(family: TinyFamily, kinds: tuple[str, str], seed: int = 0) -> list[tuple[str, Clip]]:
    """Two different items of noise, which leave no method a tie that rounding would decide."""
    rng = np.random.default_rng(seed)
    out = []
    for kind in kinds:
        frames = 1 if kind == "image" else family.frames
        out.append((kind, Clip(rng.integers(0, 256, (frames, *family.size, 3), dtype=np.uint8))))
    return out


def prompt(name: str, items: list[tuple[str, Clip]]) -> dict[str, Tensor]:
    """The prompt of these items, with two ids between them and the same question behind them."""
    layout: list[tuple[str, Any]] = [("text", 3)]
    for item in items:
        layout += [item, ("text", 2)]
    inputs = FAMILIES[name].inputs(model_of(name), [[*layout, ("text", ANSWER)]])
    inputs["input_ids"][0, -ANSWER - 2 :] = torch.arange(60, 62 + ANSWER)
    return inputs


def reduced(name: str, inputs: dict[str, Tensor], plan: Plan) -> tuple[Tensor, dict[str, Tensor], int, int]:
    """Columns that stay among the visual ones, features by modality, tokens before and after."""
    model = model_of(name)
    with vtoken.wrapped(model, plan, fps=2.0):
        call = model.vtoken.call(model)
        with torch.no_grad():
            ready = prepare(call, dict(inputs), generating=False)
    visual = visual_mask(model, inputs["input_ids"])[0]
    kept = torch.zeros_like(visual)
    kept[ready.cut.slots[0]] = True
    return kept[visual], {k.rows.modality: k.parts[0] for k in ready.kept}, call.report.cells, call.report.tokens


def shares(sizes: list[int], keep: float) -> list[int]:
    """The budget of each item, written anew: proportional, whole, in all exact, at least one."""
    everything = max(len(sizes), math.floor(Fraction(str(keep)) * sum(sizes) + Fraction(1, 2)))
    exact = [Fraction(everything * n, sum(sizes)) for n in sizes]
    out = [max(1, math.floor(e)) for e in exact]
    for i in sorted(range(len(sizes)), key=lambda i: (out[i] - exact[i], i))[: everything - sum(out)]:
        out[i] += 1
    return out


def compare(name: str, kinds: tuple[str, str], method: Any, keep: float, takes_budget: bool = True) -> None:
    items = items_of(FAMILIES[name], kinds)
    whole = Plan.parse(method, keep=keep) if takes_budget else Plan.parse(method)
    together, features, cells, tokens = reduced(name, prompt(name, items), whole)
    singles = [prompt(name, [item]) for item in items]
    sizes = [reduced(name, one, Plan())[2] for one in singles]
    assert sum(sizes) == cells
    order = sorted(range(len(items)), key=lambda i: items[i][0])  # of equal remainders an image's comes first
    dealt = shares([sizes[i] for i in order], keep)
    budget = [dealt[order.index(i)] for i in range(len(items))]
    start, taken = 0, {"image": 0, "video": 0}
    for single, (kind, _), k in zip(singles, items, budget, strict=True):
        alone = Plan.parse(method, tokens=k) if takes_budget else whole
        kept, own, _, count = reduced(name, single, alone)
        assert count >= 1 and (not takes_budget or count == k)
        assert torch.equal(together[start : start + len(kept)], kept), "other columns stay"
        start += len(kept)
        shown = "image" if kind not in own else kind  # InternVL and SmolVLM show videos as images
        mine = features[shown][taken[shown] : taken[shown] + len(own[shown])]
        taken[shown] += len(own[shown])
        torch.testing.assert_close(mine, own[shown], atol=1e-4, rtol=1e-4)
    assert start == len(together) and all(taken[m] == len(x) for m, x in features.items())


PAIRS = [("image", "image"), ("video", "video"), ("image", "video"), ("video", "image")]


def takes(name: str, kinds: tuple[str, str]) -> bool:
    """Whether the family's processor makes the same of an item alone and beside others."""
    family = FAMILIES[name]
    if name == "llava_onevision" and kinds == ("image", "image"):  # several images are not tiled
        return False
    return family.takes([[(kind, None) for kind in kinds]])


IMAGES = ("internvl", "smolvlm")  # whose frames are images: test_frames_that_are_images
CASES = [(n, k) for n in FAMILIES for k in PAIRS if takes(n, k) and not (n in IMAGES and "video" in k)]


@pytest.mark.parametrize(("name", "kinds"), CASES)
def test_all_families(name: str, kinds: tuple[str, str]) -> None:
    ran = 0
    for method, keep in (("evs", 0.4), ("divprune", 0.3), ("dpc_knn", 0.3), ("cls", 0.5), ("uniform", 0.02)):
        try:
            compare(name, kinds, method, keep)
            ran += 1
        except UnsupportedError:
            assert method == "cls"
    assert ran >= 4


# catp reads the text between an item and the next one: test_text_between_items
ROWS = [row for row in PRUNERS + MERGERS if row["name"] not in ("none", "surprise", "vscan", "catp", "learned")]


@pytest.mark.parametrize("name", ["qwen3_vl", "llava_next_video"])
@pytest.mark.parametrize("row", ROWS, ids=label)
def test_all_methods(row: Row, name: str) -> None:
    method = registry.build(row["name"], **row["options"])
    try:
        compare(name, ("image", "video"), method, 0.4, method.needs_budget)
    except UnsupportedError:
        assert row["signals"]


@pytest.mark.parametrize("name", ["internvl", "idefics3", "smolvlm"])
def test_an_image_with_its_tiles_is_one_item(name: str) -> None:
    """Two images of several tiles, and images of one tile, in two prompts of a batch."""
    model, family = model_of(name), FAMILIES[name]
    small = (family.size[0], family.size[0])
    layout = [
        [("text", 3), ("image", None), ("image", None), ("text", 2), ("image", small), ("text", 2)],
        [("image", small), ("image", small), ("text", 9), ("image", None)],
    ]
    inputs = family.inputs(model, layout)
    with vtoken.wrapped(model, "none"), torch.no_grad():
        (rows,) = encode(model.vtoken.call(model), inputs)
    tile = model.config.image_seq_length if name == "internvl" else model.base_model.image_seq_len
    assert [n // tile for n in rows.items] == [3, 3, 1, 1, 1, 3]
    assert sum(rows.items) == len(rows.sample)


@pytest.mark.parametrize("name", ["internvl", "smolvlm"])
def test_frames_that_are_images(name: str) -> None:
    model, family = model_of(name), FAMILIES[name]
    inputs = family.inputs(model, [[("text", 3), ("image", None), ("video", 4), ("text", 2)]])
    with vtoken.wrapped(model, "none"), torch.no_grad():
        (rows,) = encode(model.vtoken.call(model), inputs)
    tile = min(rows.items)
    assert [n // tile for n in rows.items] == [3, 1, 1, 1, 1]


@pytest.mark.parametrize("name", ["llava_next_video", "llava_onevision", "qwen2_5_vl", "qwen3_vl"])
def test_gated_videos_are_items_of_their_own(name: str) -> None:
    """Behind a gate: two equal videos of a prompt are cut alike, with scenes that do not join."""
    family = FAMILIES[name]
    clip = Clip(moving_block(family.frames, *family.size, seed=4))
    inputs = prompt(name, [("video", clip), ("video", clip)])
    for plan in ("grt", "grt | divprune:tokens=8", "mad | scene"):
        kept, features, *_ = reduced(name, inputs, Plan.parse(plan))
        first, second = kept.chunk(2)
        assert torch.equal(first, second), plan
        a, b = features["video"].chunk(2)
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


@given(st.data())
@settings(max_examples=200, deadline=None)
def test_a_budget_is_dealt_in_proportion(data: st.DataObject) -> None:
    sizes = data.draw(st.lists(st.integers(0, 500), min_size=1, max_size=6))
    owner = data.draw(st.lists(st.integers(0, 2), min_size=len(sizes), max_size=len(sizes)))
    seconds = [data.draw(st.sampled_from([0.0, 3.5])) for _ in sizes]
    budget = data.draw(st.sampled_from([Budget(keep=0.01), Budget(keep=0.5), Budget(tokens=7), Budget(per_second=4)]))
    out = budget.deal(sizes, seconds, owner)
    assert all(0 <= k <= n and (k >= 1) == (n > 0) for k, n in zip(out, sizes, strict=True))
    for one in set(owner):
        mine = [i for i, o in enumerate(owner) if o == one and sizes[i]]
        if not mine:
            continue
        total, length = sum(sizes[i] for i in mine), sum(seconds[i] for i in mine)
        if budget.per_second is None:
            wanted = budget.resolve(total, length)
        elif not length:
            wanted = total
        else:
            known = sum(sizes[i] for i in mine if seconds[i])
            wanted = math.floor(Fraction(budget.resolve(known, length) * total, known) + Fraction(1, 2))
        assert sum(out[i] for i in mine) == min(total, max(len(mine), wanted))
        if wanted >= 50 * len(mine):  # no item is at its least, so all are within one of their share
            assert all(abs(out[i] - Fraction(wanted * sizes[i], total)) <= 1 for i in mine if sizes[i] >= 20)


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl", "qwen3_vl"])
@pytest.mark.parametrize("method", ["tome", "flowcut"])
def test_inside_the_encoder(name: str, method: str) -> None:
    """An image beside a long video keeps its share, and one token at least; budgets a second bind it with the video."""
    kinds = ("image", "video") if "video" in FAMILIES[name].modalities else ("image", "image")
    compare(name, kinds, method, 0.3)
    items = items_of(FAMILIES[name], kinds)
    inputs = prompt(name, items)
    counts = [reduced(name, prompt(name, [item]), Plan())[2] for item in items]
    kept, *_ = reduced(name, inputs, Plan.parse(method, tokens=1))
    assert [int(part.sum()) for part in kept.split(counts)] == [1, 1]
    if kinds[1] == "video":  # 6 frames at 2 a second
        kept, *_ = reduced(name, inputs, Plan.parse(method, per_second=4))
        share = 12 / counts[1]
        everything = math.floor(Fraction(12 * sum(counts), counts[1]) + Fraction(1, 2))
        own = [int(part.sum()) for part in kept.split(counts)]
        assert sum(own) == everything and abs(own[0] - share * counts[0]) < 1


class Listening(CATP):
    """CATP that tells which text it was given."""

    def select(self, tokens: Tokens, k: int, context: Context) -> Tensor:
        assert context.paired is not None and context.text is not None
        HEARD.append((context.paired[context.sample], context.text[context.sample]))
        return super().select(tokens, k, context)


HEARD: list[tuple[Tensor, Tensor]] = []


def test_text_between_items() -> None:
    """Every image has the text up to the next one, the last image and one alone the question."""
    HEARD.clear()
    table = model_of("qwen3_vl").get_input_embeddings()
    items = items_of(FAMILIES["qwen3_vl"], ("image", "image"))
    layout: list[tuple[str, Any]] = [("text", 3), items[0], ("text", 3), items[1], ("text", ANSWER)]
    inputs = FAMILIES["qwen3_vl"].inputs(model_of("qwen3_vl"), [layout])
    ids = inputs["input_ids"][0]
    visual = visual_mask(model_of("qwen3_vl"), inputs["input_ids"])[0].nonzero().squeeze(1)
    middle = int(visual[(visual.diff() > 1).nonzero()[0, 0]]) + 1
    stop = int(visual[visual >= middle][0])
    between = torch.arange(middle, stop)
    ids[-ANSWER:] = torch.arange(60, 60 + ANSWER)
    marks = torch.isin(ids[between], torch.tensor(sorted(special_ids(model_of("qwen3_vl")))))
    words = between[~marks]
    ids[words] = torch.arange(70, 70 + len(words))
    reduced("qwen3_vl", inputs, Plan.parse(Listening(), keep=0.3))
    assert len(HEARD) == 2 and len(words) >= 3
    assert torch.equal(HEARD[0][0], table(ids[words])) and torch.equal(HEARD[0][1], table(ids[-ANSWER:]))
    assert torch.equal(HEARD[1][0], HEARD[1][1])
