"""Questions without a video: the prompt is the stock processor's, the answer the stock model's."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from PIL import Image as pillow

from tests.families.tiny import model_of, moving_block
from tests.qa import processors as real
from vtoken.errors import UnsupportedError
from vtoken.qa.media import Image
from vtoken.qa.plain import NOTE, ask_plain


def made(name: str) -> tuple[Any, Any]:
    model, words = model_of(name), real.tokenizer_of(name, False)
    words.chat_template = real.template_of(name)
    processor = real.processor_of(name, words, [], real.template_of(name))
    processor.video_processor = processor.image_processor  # that of a video needs torchvision
    return model, processor


@pytest.mark.parametrize("name", ["qwen2_5_vl", "qwen3_vl"])
@pytest.mark.parametrize("images", [0, 1, 2])
def test_pictures_and_text_alone_are_the_stock_models(name: str, images: int) -> None:
    model, processor = made(name)
    shown = [pillow.fromarray(moving_block(1, 112, 84, seed=i)[0]) for i in range(images)]
    answer = ask_plain(model, processor, [Image(one) for one in shown], "which?", system="short", max_new_tokens=4)
    turns = [
        {"role": "system", "content": [{"type": "text", "text": "short"}]},
        {"role": "user", "content": [{"type": "image"}] * images + [{"type": "text", "text": "which?"}]},
    ]
    text = processor.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    stock = processor(text=[text], images=shown or None, return_tensors="pt")
    stock["mm_token_type_ids"] = (stock["input_ids"] == model.config.image_token_id).int()
    length = stock["input_ids"].shape[1]
    with torch.no_grad():
        want = model.generate(**stock, max_new_tokens=4, do_sample=False)[0, length:]
    assert answer.tokens.tolist() == want.tolist() and answer.report.prompt == length
    count = int((stock["input_ids"] == model.config.image_token_id).sum())
    assert answer.report.tokens == answer.report.cells == count and (count > 0) == (images > 0)
    assert answer.clips == [] and answer.report.notes == [NOTE]


def test_families_whose_images_are_unknown_are_refused() -> None:
    model, processor = made("llava")
    with pytest.raises(UnsupportedError, match="does not know how"):
        ask_plain(model, processor, [Image(pillow.new("RGB", (9, 9)))], "which?")


def test_progress_can_end_it() -> None:
    def stop(stage: str, share: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ask_plain(*made("qwen2_5_vl"), [], "which?", progress=stop)
