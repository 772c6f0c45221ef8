"""Positions of Qwen2-VL and Qwen2.5-VL: "stock" as transformers counts today, "trained" as it did up to 4.57."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import vtoken
from tests.families.oracle import language_model
from tests.families.prepared import prepared
from tests.families.tiny import FAMILIES, Clip, model_of, moving_block
from tests.families.tokenizer import tokenizer_of
from vtoken.data.report import log_once
from vtoken.engine.positions import rope_positions, trained, trained_alone
from vtoken.errors import InputError

NAMES = ["qwen2_vl", "qwen2_5_vl"]
LAYOUTS: dict[str, Any] = {
    "video": [[("text", 5), ("video", 12), ("text", 6)]],
    "slow": [[("text", 5), ("video", Clip(moving_block(8, 84, 112), fps=0.5)), ("text", 6)]],
    "fast": [[("text", 5), ("video", Clip(moving_block(16, 84, 112), fps=8.0)), ("text", 6)]],
    "image": [[("text", 5), ("image", None), ("text", 6)]],
    "mixed": [[("text", 2), ("image", None), ("text", 3), ("video", 20), ("text", 1), ("video", 4), ("text", 6)]],
    "batch": [
        [("text", 9), ("video", 14), ("text", 6)],
        [("text", 2), ("image", None), ("text", 3)],
        [("text", 4)],
    ],
}


def old_rule(model: Any, inputs: dict[str, Tensor]) -> list[np.ndarray]:
    """Per prompt [3, n], written from the rule: every piece starts behind the largest position before it.

    A piece of text counts on in all three rows. A picture has (time, row, column) behind its start; Qwen2.5-VL's time
    is the second of the step times ``tokens_per_second``, cut to a whole number.
    """
    config, ids = model.config, inputs["input_ids"].numpy()
    vision = config.vision_config
    scale = getattr(vision, "tokens_per_second", None)
    images = iter(inputs.get("image_grid_thw", torch.zeros(0, 3)).tolist())
    videos = iter(inputs.get("video_grid_thw", torch.zeros(0, 3)).tolist())
    lengths = iter(inputs.get("second_per_grid_ts", torch.ones(len(inputs.get("video_grid_thw", [])))).tolist())
    out = []
    for b, row in enumerate(ids):
        row = row[inputs["attention_mask"][b].numpy() == 1]
        places, i = [], 0
        while i < len(row):
            start = max((max(p) for p in places), default=-1) + 1
            if row[i] not in (config.image_token_id, config.video_token_id):
                places.append((start, start, start))
                i += 1
                continue
            video = row[i] == config.video_token_id
            t, h, w = next(videos if video else images)
            second = next(lengths) if video else 0
            for step in range(t):
                time = int(np.float32(step) * np.float32(second) * scale) if scale else step
                for y in range(h // 2):
                    for x in range(w // 2):
                        places.append((start + time, start + y, start + x))
            i += t * h * w // 4
        out.append(np.array(places).T)
    return out


def seen(name: str, inputs: dict[str, Tensor], plan: str, positions: str, generating: bool) -> list[Tensor]:
    """Position ids that the language model is given, call by call."""
    model, found = model_of(name), list[Tensor]()
    hook = language_model(model).register_forward_pre_hook(
        lambda _, __, kwargs: found.append(kwargs["position_ids"]), with_kwargs=True
    )
    try:
        with torch.no_grad(), vtoken.wrapped(model, plan, positions=positions):
            if generating:
                model.generate(**inputs, max_new_tokens=3, do_sample=False)
            else:
                model(**inputs)
    finally:
        hook.remove()
    return found


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("generating", [False, True])
def test_trained_positions_are_those_of_the_old_rule(name: str, layout: str, generating: bool) -> None:
    model = model_of(name)
    inputs = FAMILIES[name].inputs(model, LAYOUTS[layout])
    wanted = old_rule(model, inputs)
    first, *steps = seen(name, inputs, "none", "trained", generating)
    for b, want in enumerate(wanted):
        n = want.shape[1]
        assert first[-3:, b, -n:].tolist() == want.tolist()
        if first.shape[0] == 4:
            assert first[0, b, -n:].tolist() == list(range(n))
        for i, step in enumerate(steps):  # answers count on behind the largest position
            assert step[-3:, b, -1].tolist() == [want.max() + 1 + i] * 3


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_kept_tokens_have_them_too(name: str, layout: str) -> None:
    model = model_of(name)
    inputs = FAMILIES[name].inputs(model, LAYOUTS[layout])
    wanted, found = old_rule(model, inputs), seen(name, inputs, "random:keep=0.4", "trained", True)
    first = torch.cat(found[:2], -1)  # all columns but the last, then the last
    with vtoken.wrapped(model, "random:keep=0.4"):
        slots = prepared(model, inputs).cut.slots
    for b, want in enumerate(wanted):
        whole = np.zeros((3, inputs["input_ids"].shape[1]), int)
        whole[:, -want.shape[1] :] = want
        kept = whole[:, [int(s) for s in slots[b] if inputs["attention_mask"][b, s]]]
        assert first[-3:, b, -kept.shape[1] :].tolist() == kept.tolist()
        assert found[2][-3:, b, -1].tolist() == [want.max() + 1] * 3


@pytest.mark.parametrize("name", NAMES)
def test_forward_leaves_the_state_for_a_loop_of_ones_own(name: str) -> None:
    """Decoding by hand behind ``forward`` counts on under the same rule."""
    model = model_of(name)
    inputs = FAMILIES[name].inputs(model, LAYOUTS["video"])
    with torch.no_grad(), vtoken.wrapped(model, "none", positions="trained"):
        tokens = model.generate(**inputs, max_new_tokens=4, do_sample=False)[0, inputs["input_ids"].shape[1] :]
        out, mine = model(**inputs), []
        for _ in range(4):
            mine.append(int(out.logits[0, -1].argmax()))
            out = model(input_ids=torch.tensor([[mine[-1]]]), past_key_values=out.past_key_values)
    assert mine == tokens.tolist()


@pytest.mark.parametrize("name", NAMES)
def test_stock_is_bit_identical_and_says_once_when_the_rules_differ(name: str, caplog: Any) -> None:
    model = model_of(name)
    video, image = (FAMILIES[name].inputs(model, LAYOUTS[layout]) for layout in ("mixed", "image"))
    want = model(**video).logits
    log_once.cache_clear()
    with caplog.at_level(logging.WARNING, "vtoken"), vtoken.wrapped(model, "none"):
        model(**image)
        assert not caplog.records
        for _ in range(3):
            assert torch.equal(model(**video).logits, want)
        assert len(caplog.records) == 1 and "positions='trained'" in caplog.text
    log_once.cache_clear()
    caplog.clear()
    with caplog.at_level(logging.WARNING, "vtoken"), vtoken.wrapped(model, "none", positions="trained"):
        assert not torch.equal(model(**video).logits, want)
    assert not caplog.records


@pytest.mark.parametrize("name", ["qwen3_vl", "qwen3_5", "glm4v", "llava"])
@torch.no_grad()
def test_other_families_have_one_rule(name: str) -> None:
    model, family = model_of(name), FAMILIES[name]
    inputs = family.inputs(model, family.layouts()["video" if "video" in family.modalities else "image"])
    with vtoken.wrapped(model, "none", positions="trained"):
        trained = model(**inputs).logits
    assert torch.equal(trained, model(**inputs).logits)


@pytest.mark.parametrize("name", NAMES)
def test_ask_uses_the_trained_rule(name: str) -> None:
    """Also for a model that was wrapped with stock positions, packed, in batches and alone."""
    model, found = model_of(name), list[Tensor]()
    clip = moving_block(32, 84, 112)
    options: dict[str, Any] = {"native_fps": 4, "fps": "native", "max_new_tokens": 1}
    hook = language_model(model).register_forward_pre_hook(
        lambda _, __, kwargs: found.append(kwargs["position_ids"]), with_kwargs=True
    )

    def last(positions: str | None, questions: list[str], plan: str, wrap: bool) -> int:
        """The position of a question's last id."""
        found.clear()
        given = options | ({} if positions is None else {"positions": positions}) | {"plan": plan}
        vtoken.wrap(model, "none", positions="stock") if wrap else None
        vtoken.ask_many(model, tokenizer_of(model), clip, questions, **given)
        vtoken.unwrap(model) if wrap else None
        return int(found[-1][-3:, 0, -1].max())

    try:
        for questions, plan in ((["what moves?"], "none"), (["who?", "why?"], "grt")):
            trained = last(None, questions, plan, wrap=False)
            assert trained == last(None, questions, plan, wrap=True) > last("stock", questions, plan, wrap=False)
    finally:
        hook.remove()
    with pytest.raises(InputError, match="positions='old'"):
        vtoken.ask(model, tokenizer_of(model), clip, "what?", positions="old", **options)
    with pytest.raises(InputError, match="positions='old'"):
        vtoken.wrap(model, "none", positions="old")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("generating", [False, True])
def test_they_need_no_stock_positions(name: str, layout: str, generating: bool) -> None:
    model = model_of(name)
    inputs = FAMILIES[name].inputs(model, LAYOUTS[layout])
    found = trained_alone(model, inputs, generating)
    stock, deltas = rope_positions(model, inputs, generating)
    if layout == "batch":  # the stock model fills the columns of padding
        assert found is None
        return
    assert found is not None and stock is not None and deltas is not None
    own = trained(model, inputs, stock)
    assert torch.equal(found[0], own)
    if torch.equal(own, stock):
        assert torch.equal(found[1], deltas)
    ends = own[-3:].amax((0, 2)) + 1 - inputs["input_ids"].shape[1]
    assert found[1].tolist() == ends[:, None].tolist()
