"""The model families that vtoken can wrap, one row each."""

from __future__ import annotations

from torch import nn

from vtoken.encoders.signals import CLS, PATCHES
from vtoken.errors import InputError, UnsupportedError
from vtoken.families.compat import core
from vtoken.families.family import Family
from vtoken.families.gemma4 import Gemma4
from vtoken.families.llava import Llava, VideoLlava
from vtoken.families.others import Idefics, InternVL, Mistral, PerceptionLM, Square
from vtoken.families.pooled import LlavaNext, LlavaOnevision
from vtoken.families.qwen import Glm4v, Omni, Qwen, Qwen3, Qwen35, VideoLlama3

_IMAGE, _VIDEO, _BOTH = frozenset({"image"}), frozenset({"video"}), frozenset({"image", "video"})
_PIXELS = ("pixel_values", "pixel_values_videos", "image_sizes", "image_sizes_videos", "batch_num_images")
_TILES = ("pixel_values", "pixel_attention_mask")

FAMILIES: dict[str, Family] = {
    f.name: f
    for f in (
        Llava("llava", "LLaVA-1.5", CLS, sparse=_IMAGE, thins=_IMAGE, drops=_PIXELS, clip_modality="image"),
        LlavaNext("llava_next", "LLaVA-NeXT", CLS, drops=_PIXELS),
        LlavaNext("llava_next_video", "LLaVA-NeXT-Video", CLS, sparse=_VIDEO, drops=_PIXELS),
        LlavaOnevision("llava_onevision", "LLaVA-OneVision", PATCHES, sparse=_VIDEO, tensor=_VIDEO, drops=_PIXELS),
        VideoLlava("video_llava", "Video-LLaVA", CLS, tensor=_BOTH, drops=(*_PIXELS, "pixel_values_images")),
        Qwen("qwen2_vl", "Qwen2-VL", PATCHES, sparse=_VIDEO, thins=_BOTH),
        Qwen("qwen2_5_vl", "Qwen2.5-VL", PATCHES, sparse=_VIDEO, thins=_BOTH, seconds="second_per_grid_ts"),
        Omni("qwen2_5_omni_thinker", "Qwen2.5-Omni", PATCHES, sparse=_VIDEO, thins=_BOTH),
        Qwen3("qwen3_vl", "Qwen3-VL", PATCHES, sparse=_VIDEO, thins=_BOTH),
        Qwen3("qwen3_vl_moe", "Qwen3-VL-MoE", PATCHES, sparse=_VIDEO, thins=_BOTH),
        Qwen35("qwen3_5", "Qwen3.5", PATCHES, sparse=_VIDEO, thins=_BOTH),
        Qwen35("qwen3_5_moe", "Qwen3.5-MoE", PATCHES, sparse=_VIDEO, thins=_BOTH),
        InternVL("internvl", "InternVL", CLS, tensor=_BOTH, drops=_PIXELS),
        Idefics("idefics3", "Idefics3", PATCHES, drops=_TILES),
        Idefics("smolvlm", "SmolVLM", PATCHES, drops=_TILES),
        Square("gemma3", "Gemma3", PATCHES, tensor=_BOTH, drops=_PIXELS),
        Gemma4("gemma4", "Gemma 4"),
        Square("paligemma", "PaliGemma", PATCHES, tensor=_BOTH, drops=_PIXELS, prefix=True),
        VideoLlama3("video_llama_3", "VideoLLaMA3", PATCHES),
        Glm4v("glm4v", "GLM-4V", PATCHES, no_beams=_VIDEO),
        Glm4v("glm4v_moe", "GLM-4V-MoE", PATCHES, no_beams=_VIDEO),
        Mistral("mistral3", "Mistral3", drops=_PIXELS),
        PerceptionLM("perception_lm", "Perception-LM", tensor=_BOTH, drops=_PIXELS),
    )
}


def of(model: nn.Module) -> Family:
    """The family of a model, also of one inside PEFT or ``torch.compile``.

    Raises:
        InputError: the model is no vision language model that vtoken knows.
        UnsupportedError: a PEFT model with learned prompts; Qwen2.5-Omni of an old transformers.
    """
    model = core(model)
    kind = getattr(getattr(model, "config", None), "model_type", None)
    if kind in FAMILIES and hasattr(model, "generate"):
        family = FAMILIES[kind]
        if isinstance(family, Omni) and not hasattr(model.model, "visual"):
            raise UnsupportedError(
                f"{family.title} is built otherwise in this version of transformers; update it (5.23 is tested)"
            )
        return family
    what = f"{type(model).__name__} (model_type {kind!r})"
    if kind in FAMILIES:
        raise InputError(f"{what} has no generate(); wrap the ...ForConditionalGeneration model that holds it")
    if hasattr(model, "thinker"):
        raise InputError(f"{what} also speaks; wrap its thinker, the part that sees and writes: model.thinker")
    raise InputError(f"{what} is no vision language model that vtoken knows; it knows {', '.join(FAMILIES)}")


__all__ = ["FAMILIES", "Family", "of"]
