"""Tiny random checkpoints of the real classes, processor included, in folders that vLLM can load."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import transformers as hf
from safetensors.torch import load_file, save_file

from tests.families import configs
from tests.families.configs import EOS, PAD, VOCAB
from tests.qa.processors import template_of, tokenizer_of

ROPE = {"rope_type": "default", "rope_theta": 10000.0}
TEXT = {
    "max_position_embeddings": 16384,
    "hidden_size": 128,
    "intermediate_size": 160,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
POSITIONS = {"qwen2_5_vl": 16_384, "qwen3_vl": 4096, "qwen3_vl_moe": 4096, "llava_onevision": 4096}
SIZE = {"shortest_edge": 56 * 56, "longest_edge": 448 * 448}  # pixels of a picture or frame


def qwen2_5_vl() -> Any:
    name, config = configs.qwen2_5_vl()
    config.vision_config.out_hidden_size = 128
    return name, config, {"mrope_section": [4, 6, 6]}


def qwen3_vl() -> Any:
    name, config = configs.qwen3_vl()
    config.vision_config.out_hidden_size = 128
    return name, config, {"mrope_section": [4, 6, 6], "mrope_interleaved": True}


def qwen3_vl_moe() -> Any:
    name, config = configs.qwen3_vl_moe()
    config.vision_config.out_hidden_size = 128
    config.text_config.moe_intermediate_size = 32  # no matrix of experts is square: transformers tells layouts by sizes
    config.text_config.norm_topk_prob = True  # which published configs say and vLLM asks for
    return name, config, {"mrope_section": [4, 6, 6], "mrope_interleaved": True}


def llava_onevision() -> Any:
    """Frames of 9 x 9 patches and 5 x 5 cells: an odd grid, and pixels beyond the last patch, as in the real one."""
    name, config = configs.llava_onevision()
    config.vision_config.image_size = side = 130
    config.image_grid_pinpoints = [[side * a, side * b] for a in (1, 2) for b in (1, 2)]
    config.text_config.architectures = ["Qwen2ForCausalLM"]  # which vLLM asks for
    return name, config, {}


SPECS = {f.__name__: f for f in (qwen2_5_vl, qwen3_vl, qwen3_vl_moe, llava_onevision)}


def save(name: str, folder: Path) -> Path:
    """A checkpoint of a family, written once: vLLM's CPU attention takes no heads below 32 values."""
    if (folder / "config.json").is_file():
        return folder
    kind, config, rope = SPECS[name]()
    text = config.text_config
    for field, value in TEXT.items():
        setattr(text, field, value)
    text.max_position_embeddings = POSITIONS[name]
    text.head_dim, text.rope_parameters = 32, ROPE | rope
    text.num_hidden_layers, text.vocab_size, text.layer_types = 3, VOCAB, ["full_attention"] * 3
    model = configs.make((kind, config), 0)
    model.generation_config = hf.GenerationConfig(eos_token_id=EOS, pad_token_id=PAD)
    model.save_pretrained(folder)
    published(folder / "model.safetensors")
    processor(name, config).save_pretrained(folder)
    return folder


def published(path: Path) -> None:
    """Write weights as the published checkpoints have them, which vLLM loads; transformers 5 writes them otherwise."""
    weights, tower = load_file(path), "vision_tower.vision_model."
    if not any(tower in key for key in weights):
        weights = {key.replace("vision_tower.", tower): value for key, value in weights.items()}
    experts = [key for key in weights if ".experts." in key]
    weights |= {key: weights[key].transpose(1, 2).contiguous() for key in experts}
    save_file(weights, path, {"format": "pt"})


def processor(name: str, config: Any) -> Any:
    """The family's own processor, with a tokenizer of characters."""
    tokenizer = tokenizer_of(name, False)
    tokenizer.pad_token = tokenizer.eos_token
    return (onevision if name == "llava_onevision" else qwen)(name, config, tokenizer)


def onevision(name: str, config: Any, tokenizer: Any) -> Any:
    side = config.vision_config.image_size
    pixels = {"size": {"height": side, "width": side}, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    return hf.LlavaOnevisionProcessor(
        image_processor=hf.LlavaOnevisionImageProcessor(image_grid_pinpoints=config.image_grid_pinpoints, **pixels),
        video_processor=hf.LlavaOnevisionVideoProcessor(**pixels),
        tokenizer=tokenizer,
        num_image_tokens=(side // config.vision_config.patch_size) ** 2,
        vision_feature_select_strategy="full",
        chat_template=template_of(name),
    )


def qwen(name: str, config: Any, tokenizer: Any) -> Any:
    vision = config.vision_config
    patches = {"patch_size": vision.patch_size, "merge_size": 2, "temporal_patch_size": 2}
    kind, video, size, half = hf.Qwen2_5_VLProcessor, hf.Qwen2VLVideoProcessor, SIZE, {}
    if name != "qwen2_5_vl":
        kind, video = hf.Qwen3VLProcessor, hf.Qwen3VLVideoProcessor
        size = {"shortest_edge": 4096, "longest_edge": 448 * 448 * 64}
        half = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}  # one norm for both in vLLM
    return kind(
        image_processor=hf.Qwen2VLImageProcessor(size=SIZE, **patches, **half),
        video_processor=video(size=size, **patches),
        tokenizer=tokenizer,
        chat_template=template_of(name),
    )
