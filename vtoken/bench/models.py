"""Small random models of the real transformers classes, with the patch geometry of the model they stand for.

Token counts, patches and code paths are those of the full model; layers and widths are not, and the weights are
random. So tokens and time can be measured without a download, while an answer is noise.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from vtoken.families.geometry import Geometry

PAD, EOS, BOS, IMAGE, VIDEO, START, END = range(7)
HEAD = 64
SPECIAL = ("<pad>", "<eos>", "<bos>", "<image>", "<video>", "<|vision_start|>", "<|vision_end|>")
VOCAB = len(SPECIAL) + 256


@dataclass(frozen=True)
class Size:
    """Layers and widths (multiples of 64) of the vision tower and of the language model."""

    vision_layers: int
    vision: int
    text_layers: int
    text: int


SMALL = Size(2, 128, 1, 128)
MEDIUM = Size(4, 256, 6, 512)


def random_model(of: Geometry, size: Size = SMALL, seed: int = 0) -> Any:
    """A random float32 model on the CPU in eval mode, of the class and with the patches of a geometry."""
    import torch
    import transformers as hf

    name, config = _BUILDERS[of.family](hf, of, size)
    config._attn_implementation = "sdpa"
    torch.manual_seed(seed)
    model = getattr(hf, name)(config).float().eval()
    generation = model.generation_config
    generation.pad_token_id, generation.eos_token_id, generation.bos_token_id = PAD, EOS, BOS
    return model


def byte_tokenizer() -> Any:
    """A tokenizer for these models: one id a byte, after the special ids."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate([*SPECIAL, *letters])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(SPECIAL))
    names = {"pad_token": SPECIAL[PAD], "eos_token": SPECIAL[EOS], "bos_token": SPECIAL[BOS]}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)


def describe(of: Geometry, size: Size) -> str:
    """One line on the random encoder, beside the one that it stands for."""
    v = of.vision
    return (
        f"encode: random encoder of {size.vision_layers} layers x {size.vision} with the patches of {of.name} "
        f"(whose own has {v.layers} x {v.hidden})"
    )


def _text(size: Size, **extra: Any) -> dict[str, Any]:
    sizes = {
        "vocab_size": VOCAB,
        "hidden_size": size.text,
        "intermediate_size": 4 * size.text,
        "num_hidden_layers": size.text_layers,
        "num_attention_heads": size.text // HEAD,
        "num_key_value_heads": max(1, size.text // HEAD // 4),
        "max_position_embeddings": 2**20,
        "pad_token_id": PAD,
        "bos_token_id": BOS,
        "eos_token_id": EOS,
        "tie_word_embeddings": False,
    }
    return sizes | extra


def _vision(of: Geometry, size: Size, layers: int) -> dict[str, Any]:
    return {
        "hidden_size": size.vision,
        "intermediate_size": 4 * size.vision,
        "num_hidden_layers": layers,
        "num_attention_heads": size.vision // HEAD,
        "image_size": of.vision.image,
        "patch_size": of.vision.patch,
    }


def _clip(hf: Any, of: Geometry, size: Size) -> Any:
    # the features are taken before the last layer
    return hf.CLIPVisionConfig(**_vision(of, size, size.vision_layers + 1), projection_dim=size.vision)


def _llava(hf: Any, of: Geometry, size: Size) -> tuple[str, Any]:
    side = of.vision.image // of.vision.patch
    return "LlavaForConditionalGeneration", hf.LlavaConfig(
        vision_config=_clip(hf, of, size),
        text_config=hf.LlamaConfig(**_text(size)),
        image_token_index=IMAGE,
        image_seq_length=side**2,
    )


def _llava_next_video(hf: Any, of: Geometry, size: Size) -> tuple[str, Any]:
    side, edge = of.vision.image // of.vision.patch, of.vision.image
    return "LlavaNextVideoForConditionalGeneration", hf.LlavaNextVideoConfig(
        vision_config=_clip(hf, of, size),
        text_config=hf.LlamaConfig(**_text(size)),
        image_token_index=IMAGE,
        video_token_index=VIDEO,
        image_grid_pinpoints=[[edge, 2 * edge], [2 * edge, edge]],
        image_seq_length=side**2,
        video_seq_length=(side // of.pool) ** 2,
    )


def _llava_onevision(hf: Any, of: Geometry, size: Size) -> tuple[str, Any]:
    edge = of.vision.image
    return "LlavaOnevisionForConditionalGeneration", hf.LlavaOnevisionConfig(
        vision_config=hf.SiglipVisionConfig(**_vision(of, size, size.vision_layers), vision_use_head=False),
        text_config=hf.Qwen2Config(**_text(size)),
        image_token_index=IMAGE,
        video_token_index=VIDEO,
        image_grid_pinpoints=[[edge, edge], [edge, 2 * edge], [2 * edge, edge]],
    )


def _qwen_ids() -> dict[str, int]:
    return {
        "image_token_id": IMAGE,
        "video_token_id": VIDEO,
        "vision_start_token_id": START,
        "vision_end_token_id": END,
    }


def _mrope(**extra: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [8, 12, 12], **extra}}


def _qwen2_vl(hf: Any, of: Geometry, size: Size) -> tuple[str, Any]:
    vision = {"depth": size.vision_layers, "embed_dim": size.vision, "hidden_size": size.text, "mlp_ratio": 4}
    vision |= {"num_heads": size.vision // HEAD, "patch_size": of.vision.patch}
    return "Qwen2VLForConditionalGeneration", hf.Qwen2VLConfig(
        text_config=_text(size, **_mrope()), vision_config=vision, **_qwen_ids()
    )


def _tower(of: Geometry, size: Size) -> dict[str, Any]:
    sizes = {"depth": size.vision_layers, "hidden_size": size.vision, "num_heads": size.vision // HEAD}
    return sizes | {"out_hidden_size": size.text, "patch_size": of.vision.patch}


def _qwen2_5_vl(hf: Any, of: Geometry, size: Size) -> tuple[str, Any]:
    v = of.vision
    # the last layer attends over the whole frame, the others within windows, as one layer in eight does at full size
    vision = _tower(of, size) | {
        "intermediate_size": size.vision * 8 // 3,
        "fullatt_block_indexes": [size.vision_layers - 1],
    }
    vision |= {"window_size": v.window * v.merge * v.patch, "tokens_per_second": 2}
    return "Qwen2_5_VLForConditionalGeneration", hf.Qwen2_5_VLConfig(
        text_config=_text(size, **_mrope()), vision_config=vision, **_qwen_ids()
    )


def _qwen3_vl(hf: Any, of: Geometry, size: Size) -> tuple[str, Any]:
    vision = _tower(of, size) | {"intermediate_size": 4 * size.vision, "num_position_embeddings": 2304}
    vision |= {"deepstack_visual_indexes": [0]}
    text = _text(size, head_dim=HEAD, **_mrope(mrope_interleaved=True))
    return "Qwen3VLForConditionalGeneration", hf.Qwen3VLConfig(text_config=text, vision_config=vision, **_qwen_ids())


_BUILDERS = {
    "llava": _llava,
    "llava_next_video": _llava_next_video,
    "llava_onevision": _llava_onevision,
    "qwen2_vl": _qwen2_vl,
    "qwen2_5_vl": _qwen2_5_vl,
    "qwen3_vl": _qwen3_vl,
}
