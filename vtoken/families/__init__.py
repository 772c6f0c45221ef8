"""The model families that vtoken can wrap, one row each."""

from __future__ import annotations

from torch import nn

from vtoken.errors import InputError
from vtoken.families.base import Family
from vtoken.families.llava import CLIP, SIGLIP, Llava, LlavaNext, LlavaOnevision, VideoLlava
from vtoken.families.others import Idefics, Mistral, Square
from vtoken.families.qwen import Glm4v, Qwen, Qwen3, Qwen35, VideoLlama3

_IMAGE, _VIDEO, _BOTH = frozenset({"image"}), frozenset({"video"}), frozenset({"image", "video"})
_PIXELS = ("pixel_values", "pixel_values_videos", "image_sizes", "image_sizes_videos", "batch_num_images")
_TILES = ("pixel_values", "pixel_attention_mask")
_ATTENTION = frozenset({"received_attention", "keys"})

FAMILIES: dict[str, Family] = {
    f.name: f
    for f in (
        Llava("llava", "LLaVA-1.5", CLIP, sparse=_IMAGE, drops=_PIXELS, clip_modality="image"),
        LlavaNext("llava_next", "LLaVA-NeXT", CLIP, drops=_PIXELS),
        LlavaNext("llava_next_video", "LLaVA-NeXT-Video", CLIP, sparse=_VIDEO, drops=_PIXELS),
        LlavaOnevision("llava_onevision", "LLaVA-OneVision", SIGLIP, sparse=_VIDEO, tensor=_VIDEO, drops=_PIXELS),
        VideoLlava("video_llava", "Video-LLaVA", CLIP, tensor=_BOTH, drops=(*_PIXELS, "pixel_values_images")),
        Qwen("qwen2_vl", "Qwen2-VL", _ATTENTION, sparse=_VIDEO),
        Qwen("qwen2_5_vl", "Qwen2.5-VL", _ATTENTION, sparse=_VIDEO),
        Qwen3("qwen3_vl", "Qwen3-VL", _ATTENTION, sparse=_VIDEO),
        Qwen35("qwen3_5", "Qwen3.5", _ATTENTION, sparse=_VIDEO),
        Square("internvl", "InternVL", CLIP, tensor=_BOTH, drops=_PIXELS),
        Idefics("idefics3", "Idefics3", SIGLIP, drops=_TILES),
        Idefics("smolvlm", "SmolVLM", SIGLIP, drops=_TILES),
        Square("gemma3", "Gemma3", SIGLIP, tensor=_BOTH, drops=_PIXELS),
        Square("paligemma", "PaliGemma", SIGLIP, tensor=_BOTH, drops=_PIXELS),
        VideoLlama3("video_llama_3", "VideoLLaMA3", _ATTENTION),
        Glm4v("glm4v", "GLM-4V", _ATTENTION, no_beams=_VIDEO),
        Mistral("mistral3", "Mistral3", drops=_PIXELS),
    )
}


def of(model: nn.Module) -> Family:
    """The family of a model.

    Raises:
        InputError: the model is no vision language model that vtoken knows.
    """
    kind = getattr(getattr(model, "config", None), "model_type", None)
    if kind in FAMILIES and hasattr(model, "generate"):
        return FAMILIES[kind]
    what = f"{type(model).__name__} (model_type {kind!r})"
    if kind in FAMILIES:
        raise InputError(f"{what} has no generate(); wrap the ...ForConditionalGeneration model that holds it")
    raise InputError(f"{what} is no vision language model that vtoken knows; it knows {', '.join(FAMILIES)}")


__all__ = ["FAMILIES", "Family", "of"]
