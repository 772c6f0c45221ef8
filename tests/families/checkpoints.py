"""Tiny random checkpoints of the real classes, processor included, in folders that vLLM can load."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import transformers as hf

from tests.families import configs
from tests.families.configs import EOS, PAD, VOCAB
from tests.qa.processors import QWEN, TEMPLATE, tokenizer_of

ROPE = {"rope_type": "default", "rope_theta": 10000.0}
TEXT = {
    "max_position_embeddings": 16384,
    "hidden_size": 128,
    "intermediate_size": 160,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
POSITIONS = {"qwen2_5_vl": 16_384, "qwen3_vl": 4096}
SIZE = {"shortest_edge": 56 * 56, "longest_edge": 448 * 448}  # pixels of a picture or frame


def qwen2_5_vl() -> Any:
    name, config = configs.qwen2_5_vl()
    config.vision_config.out_hidden_size = 128
    return name, config, {"mrope_section": [4, 6, 6]}


def qwen3_vl() -> Any:
    name, config = configs.qwen3_vl()
    config.vision_config.out_hidden_size = 128
    return name, config, {"mrope_section": [4, 6, 6], "mrope_interleaved": True}


def save(name: str, folder: Path) -> Path:
    """A checkpoint of a family, written once: vLLM's CPU attention takes no heads below 32 values."""
    if (folder / "config.json").is_file():
        return folder
    kind, config, rope = {"qwen2_5_vl": qwen2_5_vl, "qwen3_vl": qwen3_vl}[name]()
    text = config.text_config
    for field, value in TEXT.items():
        setattr(text, field, value)
    text.max_position_embeddings = POSITIONS[name]
    text.head_dim, text.rope_parameters = 32, ROPE | rope
    text.num_hidden_layers, text.vocab_size, text.layer_types = 3, VOCAB, ["full_attention"] * 3
    model = configs.make((kind, config), 0)
    model.generation_config = hf.GenerationConfig(eos_token_id=EOS, pad_token_id=PAD)
    model.save_pretrained(folder)
    processor(name, config).save_pretrained(folder)
    return folder


def processor(name: str, config: Any) -> Any:
    """The family's own processor, with a tokenizer of characters."""
    vision = config.vision_config
    patches = {"patch_size": vision.patch_size, "merge_size": 2, "temporal_patch_size": 2}
    template = TEMPLATE.replace("VIDEO", QWEN[0]).replace("IMAGE", QWEN[1])
    kind, video = {
        "qwen2_5_vl": (hf.Qwen2_5_VLProcessor, hf.Qwen2VLVideoProcessor),
        "qwen3_vl": (hf.Qwen3VLProcessor, hf.Qwen3VLVideoProcessor),
    }[name]
    size = SIZE if name == "qwen2_5_vl" else {"shortest_edge": 4096, "longest_edge": 448 * 448 * 64}
    tokenizer = tokenizer_of(name, False)
    tokenizer.pad_token = tokenizer.eos_token
    half = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3} if name == "qwen3_vl" else {}  # one norm for both in vLLM
    return kind(
        image_processor=hf.Qwen2VLImageProcessor(size=SIZE, **patches, **half),
        video_processor=video(size=size, **patches),
        tokenizer=tokenizer,
        chat_template=template,
    )
