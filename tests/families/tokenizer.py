"""A character tokenizer for the tiny models, with the family's placeholders as special tokens."""

from __future__ import annotations

from typing import Any

from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

SPECIAL = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")


def tokenizer_of(model: Any) -> PreTrainedTokenizerFast:
    """Real Hugging Face tokenizer whose ids fit ``model``; unknown characters become id 40."""
    config, ids = model.config, {}
    for name in SPECIAL:
        if getattr(config, name, None) is not None:
            ids[getattr(config, name)] = f"<|{name}|>"
    size = config.get_text_config().vocab_size
    characters = iter("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789 .,:?!<>\n")
    words = {i: ids.get(i) or (next(characters, f"w{i}") if i >= 40 else f"w{i}") for i in range(size)}
    core = Tokenizer(models.WordLevel({w: i for i, w in words.items()}, unk_token=words[40]))
    core.pre_tokenizer = pre_tokenizers.Split(Regex(r"."), "isolated")
    out = PreTrainedTokenizerFast(tokenizer_object=core)
    out.add_special_tokens({"additional_special_tokens": list(ids.values())})
    return out
