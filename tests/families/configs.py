"""Tiny random models: one function a family, giving (model class name, config) of the real transformers classes.

Patch sizes are the real ones (14 or 16 px), so that pixel gates see cells of their real size; everything else is
as small as the architecture allows. Token ids below ``TEXT`` are special, the rest is text.
"""

from __future__ import annotations

from typing import Any

import torch
import transformers as hf
from torch import Tensor, nn

PAD, EOS, BOS, IMAGE, VIDEO, START, END, BREAK = range(8)
AUDIO, AUDIO_START, AUDIO_END = 29, 30, 31
FAKE, GLOBAL, VIDEO_START, VIDEO_END, NEWLINE, TILE = 8, 9, 10, 11, 12, 13  # TILE + r * 4 + c names a tile's place
TEXT, VOCAB = 32, 256

Spec = tuple[str, Any]


def _dict(**values: Any) -> dict[str, Any]:
    """A dict whose values the type checker takes for anything."""
    return values


def _text(**extra: Any) -> dict[str, Any]:
    base = _dict(vocab_size=VOCAB, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4)
    base |= _dict(num_key_value_heads=2, max_position_embeddings=4096, pad_token_id=PAD, bos_token_id=BOS)
    return base | _dict(eos_token_id=EOS, tie_word_embeddings=False) | extra


def _vit(image_size: int, layers: int = 3, **extra: Any) -> dict[str, Any]:
    base = _dict(hidden_size=32, intermediate_size=64, num_hidden_layers=layers, num_attention_heads=4)
    return base | _dict(image_size=image_size, patch_size=14) | extra


def _clip(image_size: int, **extra: Any) -> Any:
    return hf.CLIPVisionConfig(**_vit(image_size, projection_dim=32, **extra))


def _siglip(image_size: int, **extra: Any) -> Any:
    return hf.SiglipVisionConfig(**_vit(image_size, vision_use_head=False, **extra))


def llava() -> Spec:
    vision, text = _clip(84), hf.LlamaConfig(**_text())
    return "LlavaForConditionalGeneration", hf.LlavaConfig(
        vision_config=vision, text_config=text, image_token_index=IMAGE, image_seq_length=36, vision_feature_layer=-2
    )


def llava_siglip() -> Spec:
    text = hf.Qwen2Config(**_text())
    return "LlavaForConditionalGeneration", hf.LlavaConfig(
        vision_config=_siglip(84),
        text_config=text,
        image_token_index=IMAGE,
        image_seq_length=36,
        vision_feature_select_strategy="full",
    )


def llava_onevision() -> Spec:
    # 5x5 patches: an odd grid, so that pooling to 3x3 interpolates as 27x27 -> 14x14 does in the real model
    text = hf.Qwen2Config(**_text())
    return "LlavaOnevisionForConditionalGeneration", hf.LlavaOnevisionConfig(
        vision_config=_siglip(70),
        text_config=text,
        image_token_index=IMAGE,
        video_token_index=VIDEO,
        image_grid_pinpoints=[[70, 70], [70, 140], [140, 70], [140, 140]],
    )


def _mrope(**extra: Any) -> dict[str, Any]:
    rope = _dict(rope_type="default", rope_theta=10000.0, mrope_section=[4, 2, 2]) | extra
    return _dict(rope_parameters=rope)


def _qwen_ids() -> dict[str, Any]:
    return _dict(image_token_id=IMAGE, video_token_id=VIDEO, vision_start_token_id=START, vision_end_token_id=END)


def qwen2_vl() -> Spec:
    vision = _dict(depth=3, embed_dim=32, hidden_size=64, num_heads=4, mlp_ratio=2, patch_size=14)
    return "Qwen2VLForConditionalGeneration", hf.Qwen2VLConfig(
        text_config=_text(**_mrope()), vision_config=vision, **_qwen_ids()
    )


def qwen2_5_vl() -> Spec:
    # windows of 2x2 merged cells; layers 1 and 3 see the whole frame
    vision = _dict(depth=4, hidden_size=32, intermediate_size=64, num_heads=4, out_hidden_size=64, patch_size=14)
    vision |= _dict(window_size=56, fullatt_block_indexes=[1, 3], tokens_per_second=2)
    return "Qwen2_5_VLForConditionalGeneration", hf.Qwen2_5_VLConfig(
        text_config=_text(**_mrope()), vision_config=vision, **_qwen_ids()
    )


def qwen3_vl() -> Spec:
    vision = _dict(depth=4, hidden_size=32, intermediate_size=64, num_heads=4, out_hidden_size=64, patch_size=16)
    vision |= _dict(num_position_embeddings=64, deepstack_visual_indexes=[0, 2])
    text = _text(num_hidden_layers=3, head_dim=16, **_mrope(mrope_interleaved=True))
    return "Qwen3VLForConditionalGeneration", hf.Qwen3VLConfig(text_config=text, vision_config=vision, **_qwen_ids())


def _experts(**extra: Any) -> dict[str, Any]:
    return _dict(moe_intermediate_size=48, num_experts_per_tok=2) | extra


def qwen3_vl_moe() -> Spec:
    vision = _dict(depth=4, hidden_size=32, intermediate_size=64, num_heads=4, out_hidden_size=64, patch_size=16)
    vision |= _dict(num_position_embeddings=64, deepstack_visual_indexes=[0, 2])
    text = _text(num_hidden_layers=3, head_dim=16, **_mrope(mrope_interleaved=True), **_experts(num_experts=4))
    name, config = "Qwen3VLMoeForConditionalGeneration", hf.Qwen3VLMoeConfig
    return name, config(text_config=text, vision_config=vision, tie_word_embeddings=False, **_qwen_ids())


def qwen2_5_omni_thinker() -> Spec:
    # the part of Qwen2.5-Omni that sees, hears and writes; its tower is Qwen2.5-VL's
    vision = _dict(depth=4, hidden_size=32, intermediate_size=64, num_heads=4, out_hidden_size=64, patch_size=14)
    vision |= _dict(window_size=56, fullatt_block_indexes=[1, 3])
    audio = _dict(d_model=32, encoder_layers=1, encoder_attention_heads=4, encoder_ffn_dim=64, output_dim=64)
    text = _text(**_mrope())
    return "Qwen2_5OmniThinkerForConditionalGeneration", hf.Qwen2_5OmniThinkerConfig(
        text_config=text,
        vision_config=vision,
        audio_config=audio,
        image_token_index=IMAGE,
        video_token_index=VIDEO,
        audio_token_index=AUDIO,
        audio_start_token_id=AUDIO_START,
        audio_end_token_id=AUDIO_END,
        position_id_per_seconds=25,
        **_dict(vision_start_token_id=START, vision_end_token_id=END),
    )


def llava_next() -> Spec:
    return "LlavaNextForConditionalGeneration", hf.LlavaNextConfig(
        vision_config=_clip(56),
        text_config=hf.MistralConfig(**_text(sliding_window=None)),
        image_token_index=IMAGE,
        image_grid_pinpoints=[[56, 112], [112, 56], [112, 112]],
        image_seq_length=16,
    )


def llava_next_video() -> Spec:
    return "LlavaNextVideoForConditionalGeneration", hf.LlavaNextVideoConfig(
        vision_config=_clip(84),
        text_config=hf.LlamaConfig(**_text()),
        image_token_index=IMAGE,
        video_token_index=VIDEO,
        image_grid_pinpoints=[[84, 168], [168, 84]],
        image_seq_length=36,
        video_seq_length=9,
    )


def video_llava() -> Spec:
    return "VideoLlavaForConditionalGeneration", hf.VideoLlavaConfig(
        vision_config=_clip(56),
        text_config=hf.LlamaConfig(**_text()),
        image_token_index=IMAGE,
        video_token_index=VIDEO,
    )


def qwen3_5() -> Spec:
    vision = _dict(depth=3, hidden_size=32, intermediate_size=64, num_heads=4, out_hidden_size=64, patch_size=16)
    linear = _dict(linear_key_head_dim=8, linear_value_head_dim=8, linear_num_key_heads=2, linear_num_value_heads=4)
    text = _text(num_hidden_layers=3, head_dim=32, **_mrope(mrope_interleaved=True, partial_rotary_factor=0.5))
    text |= linear | _dict(layer_types=["linear_attention", "linear_attention", "full_attention"])
    return "Qwen3_5ForConditionalGeneration", hf.Qwen3_5Config(
        text_config=text, vision_config=vision | _dict(num_position_embeddings=64), **_qwen_ids()
    )


def qwen3_5_moe() -> Spec:
    _, dense = qwen3_5()
    text = dense.text_config.to_dict() | _experts(num_experts=4, shared_expert_intermediate_size=48)
    for name in ("model_type", "architectures", "intermediate_size"):
        text.pop(name, None)
    vision = dense.vision_config.to_dict()
    vision.pop("model_type", None)
    name, config = "Qwen3_5MoeForConditionalGeneration", hf.Qwen3_5MoeConfig
    return name, config(text_config=text, vision_config=vision, tie_word_embeddings=False, **_qwen_ids())


def internvl() -> Spec:
    return "InternVLForConditionalGeneration", hf.InternVLConfig(
        vision_config=_vit(84),
        text_config=hf.Qwen2Config(**_text()),
        image_token_id=IMAGE,
        image_seq_length=9,
        tie_word_embeddings=False,
    )


def _idefics(config: Any) -> Any:
    return config(vision_config=_vit(84), text_config=hf.LlamaConfig(**_text()), image_token_id=IMAGE, pad_token_id=PAD)


def idefics3() -> Spec:
    return "Idefics3ForConditionalGeneration", _idefics(hf.Idefics3Config)


def smolvlm() -> Spec:
    return "SmolVLMForConditionalGeneration", _idefics(hf.SmolVLMConfig)


def gemma3() -> Spec:
    # A window longer than any sequence here. Distances in a window are counted in the sequence the model is given,
    # so that with a shorter one a model that got fewer tokens rightly differs from one that masks them.
    text = _text(head_dim=16, query_pre_attn_scalar=16, sliding_window=2048, num_hidden_layers=3)
    text |= _dict(layer_types=["sliding_attention", "full_attention", "sliding_attention"])
    return "Gemma3ForConditionalGeneration", hf.Gemma3Config(
        vision_config=_siglip(84),
        text_config=hf.Gemma3TextConfig(**text),
        mm_tokens_per_image=9,
        image_token_index=IMAGE,
        boi_token_index=START,
        eoi_token_index=END,
        tie_word_embeddings=False,
    )


def gemma4() -> Spec:
    # Embeddings of every layer, layers that use the keys of earlier ones, experts, and images whose tokens see each
    # other in the layers with a window; like Gemma3's, the window is longer than any sequence here.
    kinds = ["sliding_attention", "full_attention", "sliding_attention", "full_attention"]
    text = _text(head_dim=16, global_head_dim=32, sliding_window=2048, num_hidden_layers=4, layer_types=kinds)
    text |= _dict(vocab_size_per_layer_input=VOCAB, hidden_size_per_layer_input=8, num_kv_shared_layers=2)
    text |= _dict(use_bidirectional_attention="vision", enable_moe_block=True, num_experts=4, top_k_experts=2)
    vision = _dict(hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4, head_dim=8)
    vision |= _dict(num_key_value_heads=4, patch_size=16, pooling_kernel_size=2, position_embedding_size=64)
    return "Gemma4ForConditionalGeneration", hf.Gemma4Config(
        vision_config=hf.Gemma4VisionConfig(**vision),
        text_config=hf.Gemma4TextConfig(**text, moe_intermediate_size=48),
        image_token_id=IMAGE,
        video_token_id=VIDEO,
        audio_token_id=AUDIO,
        boi_token_id=START,
        eoi_token_id=END,
        tie_word_embeddings=False,
    )


def paligemma() -> Spec:
    return "PaliGemmaForConditionalGeneration", hf.PaliGemmaConfig(
        vision_config=_siglip(84),
        text_config=hf.GemmaConfig(**_text(head_dim=16)),
        image_token_index=IMAGE,
        vocab_size=VOCAB,
        projection_dim=64,
        hidden_size=64,
        tie_word_embeddings=False,
    )


def video_llama_3() -> Spec:
    vision = _dict(hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4, patch_size=14)
    return "VideoLlama3ForConditionalGeneration", hf.VideoLlama3Config(
        vision_config=vision, text_config=hf.Qwen2Config(**_text()), image_token_id=IMAGE, video_token_id=VIDEO
    )


def glm4v() -> Spec:
    vision = _dict(depth=3, hidden_size=32, intermediate_size=64, num_heads=4, out_hidden_size=64, image_size=112)
    rope = _dict(rope_type="default", rope_theta=10000.0, partial_rotary_factor=0.5, mrope_section=[2, 1, 1])
    ids = _dict(image_token_id=IMAGE, video_token_id=VIDEO, image_start_token_id=START, image_end_token_id=END)
    ids |= _dict(video_start_token_id=VIDEO_START, video_end_token_id=VIDEO_END)
    return "Glm4vForConditionalGeneration", hf.Glm4vConfig(
        text_config=_text(rope_parameters=rope), vision_config=vision | _dict(patch_size=14), **ids
    )


def glm4v_moe() -> Spec:
    _, dense = glm4v()
    rope = _dict(rope_type="default", rope_theta=10000.0, partial_rotary_factor=0.5, mrope_section=[2, 1, 1])
    experts = _experts(n_routed_experts=4, n_shared_experts=1, first_k_dense_replace=1)
    vision = dense.vision_config.to_dict()
    vision.pop("model_type", None)
    ids = _dict(image_token_id=IMAGE, video_token_id=VIDEO, image_start_token_id=START, image_end_token_id=END)
    ids |= _dict(video_start_token_id=VIDEO_START, video_end_token_id=VIDEO_END)
    return "Glm4vMoeForConditionalGeneration", hf.Glm4vMoeConfig(
        text_config=_text(rope_parameters=rope, **experts), vision_config=vision, **ids
    )


def mistral3() -> Spec:
    return "Mistral3ForConditionalGeneration", hf.Mistral3Config(
        vision_config=hf.PixtralVisionConfig(**_vit(224)),
        text_config=hf.MistralConfig(**_text(sliding_window=None)),
        image_token_index=IMAGE,
        tie_word_embeddings=False,
    )


def perception_lm() -> Spec:
    # The real tower is a model of timm, which is not installed; any tower with a CLS token has its shapes.
    vision = _clip(84)
    vision.model_args = {"embed_dim": 32}
    return "PerceptionLMForConditionalGeneration", hf.PerceptionLMConfig(
        vision_config=vision,
        text_config=hf.LlamaConfig(**_text()),
        projector_pooling_ratio=2,
        image_token_id=IMAGE,
        video_token_id=VIDEO,
        tie_word_embeddings=False,
    )


def randomise(model: nn.Module, seed: int) -> None:
    """Give every weight a size at which attention and greedy decoding are not degenerate; special ids never win.

    Linear and convolution weights are normal with std 1.2 / sqrt(fan in) (0.15 at width 64), embeddings normal with
    std 1, vectors (norms, biases) get noise of 0.1. The head's rows of special ids are zero: their logit of 0 loses
    against the largest of 224 random ones, so that greedy decoding neither stops nor emits a placeholder.
    """
    generator = torch.Generator().manual_seed(seed)

    def noise(like: Tensor, std: float) -> Tensor:
        return torch.randn(like.shape, generator=generator) * std

    # Gemma multiplies its embeddings by sqrt(width)
    scale = {id(m.weight): float(getattr(m, "embed_scale", 1)) for m in model.modules() if isinstance(m, nn.Embedding)}
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim < 2:
                parameter.add_(noise(parameter, 0.1))
            elif id(parameter) in scale:
                parameter.copy_(noise(parameter, 1.0 / scale[id(parameter)]))
            else:
                parameter.copy_(noise(parameter, 1.2 / parameter[0].numel() ** 0.5))
        model.get_output_embeddings().weight[:TEXT] = 0  # type: ignore[operator, union-attr]


def make(spec: Spec, seed: int) -> Any:
    """The model of a spec on the CPU in float32, in eval mode, with the weights of ``seed``."""
    name, config = spec
    config._attn_implementation = "sdpa"
    model = getattr(hf, name)(config).float().eval()
    randomise(model, seed)
    generation = model.generation_config
    generation.pad_token_id, generation.eos_token_id, generation.bos_token_id = PAD, EOS, BOS
    return model
