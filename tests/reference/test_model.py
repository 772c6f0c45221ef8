"""The reference model: tokenizer, prompts as ``vtoken.ask`` writes them, and the weights that ship."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import vtoken
from training.reference import batches as packing
from training.reference import language
from training.reference.pairs import rows_of
from vtoken.errors import InputError
from vtoken.families import of
from vtoken.reference import WEIGHTS, data
from vtoken.reference import model as shape
from vtoken.reference.questions import ask_image


@pytest.fixture(scope="module")
def words() -> Any:
    return shape.tokenizer()


@pytest.fixture(scope="module")
def tiny(words: Any) -> Any:
    return shape.build(words, layers=2, depth=1).eval()


def test_every_word_of_the_data_is_in_the_vocabulary(words: Any) -> None:
    for seed in range(40):
        for q in data.questions(data.clip(seed, "train")):
            ids = words(q.text + " " + q.answer, add_special_tokens=False)["input_ids"]
            assert words.unk_token_id not in ids
            assert words.decode(words(q.answer)["input_ids"]) == q.answer
    assert words.unk_token_id in words("zebra")["input_ids"]
    assert words("<1.5 seconds>")["input_ids"] == [words.convert_tokens_to_ids("1.5")]


def test_batched_vision_equals_the_stock_tower(tiny: Any) -> None:
    rows = rows_of(data.clip(1, "train").pixels[:6])
    mine = shape.vision_forward(tiny, rows)
    stock = tiny.model.visual(rows, grid_thw=torch.tensor([[3, 8, 8]])).pooler_output
    assert torch.allclose(mine, stock, atol=1e-5)


def test_rows_are_those_of_the_preprocessor(tiny: Any) -> None:
    images = data.clip(1, "train").pixels[:4]
    preprocess = of(tiny).preprocess(tiny)
    with vtoken.open_video(images, native_fps=16) as reader:
        frames = next(iter(reader))
    grid = preprocess.grid(112, 112, 4)
    assert (grid.rows, grid.columns, grid.frames) == (4, 4, 2)
    assert torch.allclose(preprocess.pixel_values(frames, grid), rows_of(images), atol=1e-6)


@pytest.mark.parametrize("fps", [1, 4, 16])
def test_packed_questions_see_what_ask_sends(tiny: Any, words: Any, fps: int) -> None:
    """Logits of a question among others in one row equal those of the stock model on the prompt of ``ask``."""
    one = packing.item(tiny, 0, fps, 2, "validation")
    packer = packing.Packer(tiny, words)
    asked = [q for group in one.questions.values() for q in group][:5]
    batch = packer.pack([one], [asked], 1.0, torch.Generator())
    pixels, stock = data.clip(0, "validation").pixels, []
    hook = tiny.lm_head.register_forward_hook(lambda module, inputs, output: stock.append(output[0, -1]))
    try:
        for q in asked:
            vtoken.ask(tiny, words, pixels, q.text, plan="none", fps=fps, native_fps=16, max_new_tokens=1)
    finally:
        hook.remove()
    with torch.no_grad():
        last, *_ = language.forward(tiny, batch, 0)
        for (row, first, _, q), logits in zip(batch.tasks, stock, strict=True):
            assert torch.allclose(tiny.lm_head(last[row, first]), logits, atol=2e-4), q.text


def test_dropping_keeps_positions_and_labels_together(tiny: Any, words: Any) -> None:
    items = [packing.item(tiny, s, 4, 2) for s in (0, 1)]
    packer = packing.Packer(tiny, words)
    rng = np.random.default_rng(0)
    chosen = [packing.choose(i, rng) for i in items]
    whole = packer.pack(items, chosen, 1.0, torch.Generator())
    some = packer.pack(items, chosen, 0.3, torch.Generator().manual_seed(1))
    assert some.order is not None
    assert whole.embeds.shape[1] - some.embeds.shape[1] == 128 - some.order.shape[1]
    for b, order in enumerate(some.order):
        assert torch.equal(some.labels["time"][b], whole.labels["time"][b][order])
        assert torch.equal(some.embeds[b, some.visual[b]], items[b].features[order])
        places = some.positions[:, b, some.visual[b]]
        assert torch.equal(places, whole.positions[:, b, whole.visual[b][order]])


needs_weights = pytest.mark.skipif(
    not (WEIGHTS / "model.safetensors").is_file(), reason="the reference weights are missing"
)


@needs_weights
def test_the_weights_load_both_ways_and_fit_the_wheel() -> None:
    from transformers import AutoModelForImageTextToText

    model, processor = vtoken.load("reference", device="cpu")
    other = AutoModelForImageTextToText.from_pretrained(str(WEIGHTS), dtype=torch.float32)
    for (name, a), (_, b) in zip(model.state_dict().items(), other.state_dict().items(), strict=True):
        assert torch.equal(a, b), name
    assert 2e6 <= sum(p.numel() for p in model.parameters()) <= 1e7
    assert sum(f.stat().st_size for f in WEIGHTS.rglob("*") if f.is_file()) <= 12 * 2**20
    assert processor is not None


@needs_weights
def test_the_model_answers() -> None:
    model, processor = vtoken.load("reference", device="cpu")
    right = total = 0
    for seed in range(3):
        clip = data.clip(seed, "validation")
        asked = {q.task: q for q in data.questions(clip)}
        for q in asked.values():
            answer = vtoken.ask(model, processor, clip.pixels, q.text, fps=16, native_fps=16, plan="none")
            right += answer.text == q.answer
            total += 1
    assert right / total >= 0.85, f"{right} of {total}"


@needs_weights
def test_the_model_answers_about_images() -> None:
    model, words = vtoken.load("reference", device="cpu")
    right = total = 0
    for seed in range(6):
        clip = data.clip(seed, "validation")
        rows = rows_of(np.stack([clip.frame(10)] * 2))
        for q in ask_image(clip.script, 10):
            content = [{"type": "image"}, {"type": "text", "text": q.text}]
            text = words.apply_chat_template(
                [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
            )
            ids = words(text.replace("<|image_pad|>", "<|image_pad|>" * 16), return_tensors="pt")["input_ids"]
            kinds = (ids == model.config.image_token_id).int()
            grid = torch.tensor([[1, 8, 8]])
            out = model.generate(
                ids, mm_token_type_ids=kinds, pixel_values=rows, image_grid_thw=grid, max_new_tokens=4, do_sample=False
            )
            right += words.decode(out[0, ids.shape[1] :], skip_special_tokens=True).strip() == q.answer
            total += 1
    assert right / total >= 0.9, f"{right} of {total}"


def test_missing_weights_are_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("vtoken.qa.load.WEIGHTS", tmp_path)
    with pytest.raises(InputError, match="weights are missing"):
        vtoken.load("reference")
