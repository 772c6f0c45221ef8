"""Whole models of transformers: every private or young function of theirs that vtoken calls, and wrappers around them.

The calls about vision towers are in ``vtoken.encoders.compat``. Each function here has a contract test in
``tests/families/test_compat.py``.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from vtoken.encoders.compat import device_of, dtype_of, present
from vtoken.errors import UnsupportedError

__all__ = ["base", "core", "device_of", "dtype_of", "input_device", "present"]

CACHE = "past_key_values"  # the KV cache among arguments inside vtoken, and of transformers before 5.24
CACHE_NAMES = (CACHE, "cache")  # transformers 5.24 renames it, also for layers and outputs


def core(model: Any) -> Any:
    """The Hugging Face model inside ``torch.compile(model)`` and inside PEFT, whose adapters stay in its layers.

    Raises:
        UnsupportedError: PEFT with prompts (prompt tuning, prefix tuning, P-tuning), which puts rows of its own before
            the prompt.
    """
    while True:
        if hasattr(model, "_orig_mod"):
            model = model._orig_mod
        elif hasattr(model, "peft_config") and hasattr(model, "get_base_model"):
            for name, config in model.peft_config.items():
                if getattr(config, "is_prompt_learning", False):
                    raise UnsupportedError(
                        f"PEFT adapter {name!r} ({type(config).__name__}) puts learned rows before the prompt, which "
                        "vtoken cannot cut beside the visual tokens; use LoRA or another adapter inside the layers"
                    )
            model = model.get_base_model()
        else:
            return model


def base(model: Any) -> Any:
    """The model without its language-model head, which holds the vision tower."""
    return core(model).base_model


def input_device(model: Any) -> torch.device:
    """The device on which a model expects ``input_ids``: that of its input embeddings.

    Where accelerate has offloaded the weights it is the device that they are brought to; ``model.device`` is "meta"
    there, and may be another device where the model lies on several.
    """
    return device_of(core(model).get_input_embeddings())


def accepts_outputs(model: Any) -> bool:
    """Whether the stock ``forward`` takes features that were encoded before (``mm_encoder_outputs``)."""
    return "mm_encoder_outputs" in inspect.signature(type(core(model)).forward).parameters


def features(model: Any, modality: str, inputs: dict[str, Any]) -> Any:
    """The stock ``get_image_features`` or ``get_video_features`` on the arguments that it takes."""
    owner = base(model)
    function = getattr(owner, f"get_{modality}_features")
    accepted = inspect.signature(function).parameters
    call = {k: v for k, v in inputs.items() if k in accepted and v is not None}
    for old, new in (_IMAGES, _IMAGES[::-1]):
        if modality == "image" and new in accepted and call.keys().isdisjoint(_IMAGES) and inputs.get(old) is not None:
            call[new] = inputs[old]
    with present(owner):  # newline rows and the like are weights of the model itself
        return function(**call, return_dict=True)


def weight_of(owner: nn.Module, name: str) -> Tensor:
    """A weight that a module itself owns, such as ``image_newline``, also where accelerate has offloaded it."""
    with present(owner):
        return getattr(owner, name).clone()


def outputs(parts: Any, deepstack: Sequence[Any] | None = None) -> Any:
    """The output object of a vision encoder that holds features, with DeepStack rows where there are any."""
    if deepstack is None:
        from transformers.modeling_outputs import BaseModelOutputWithPooling

        return BaseModelOutputWithPooling(pooler_output=parts)
    from transformers.models.qwen3_vl.modeling_qwen3_vl import BaseModelOutputWithDeepstackFeatures

    return BaseModelOutputWithDeepstackFeatures(pooler_output=parts, deepstack_features=deepstack)  # type: ignore[arg-type]


def positions(model: Any, inputs: dict[str, Any], generating: bool) -> Tensor | None:
    """Position ids of the whole prompt of a model with M-RoPE: [4, B, N] for ``generate``, [3, B, N] for ``forward``.

    Args:
        inputs: arguments of the call; nothing in it is changed.
        generating: whether they are those of ``generate``.

    Returns:
        None where the model counts positions, or where they are among the inputs.
    """
    own = core(model)
    if inputs.get("position_ids") is not None or not hasattr(own.base_model, "get_rope_index"):
        return None
    if generating:
        known = {k: v for k, v in inputs.items() if k not in CACHE_NAMES}
        return own._prepare_position_ids_for_generation(inputs["input_ids"], known)
    function = own.base_model.compute_3d_position_ids
    accepted = inspect.signature(function).parameters
    return function(**{name: None if name in CACHE_NAMES else inputs.get(name) for name in accepted})


def reads_types(model: Any) -> bool:
    """Whether a model with M-RoPE finds images and videos by ``mm_token_type_ids``; Qwen2.5-Omni does by the ids."""
    return "mm_token_type_ids" in inspect.signature(base(model).get_rope_index).parameters


def omni_names(inputs: dict[str, Any]) -> dict[str, Any]:
    """Arguments of Qwen2.5-Omni's ``forward`` under the names that its ``get_rope_index`` has for them."""
    audio = inputs.get("feature_attention_mask")
    return {
        "second_per_grids": inputs.get("video_second_per_grid"),
        "audio_seqlens": inputs.get("audio_feature_lengths") if audio is None else audio.sum(-1),
        "use_audio_in_video": bool(inputs.get("use_audio_in_video")),
    }


_IMAGES = ("pixel_values_images", "pixel_values")  # of Video-LLaVA, in older versions of transformers and in newer


@lru_cache
def _cache_name(kind: type) -> str:
    return next((n for n in reversed(CACHE_NAMES) if n in inspect.signature(kind.forward).parameters), CACHE)


def cache_of(found: Any) -> Any:
    """The KV cache among arguments of a model or layer (a mapping), or in its output; None where there is none."""
    if not isinstance(found, Mapping):
        return next((c for n in reversed(CACHE_NAMES) if (c := getattr(found, n, None)) is not None), None)
    # the new name first: outputs of transformers 5.24 are mappings that warn where the old one is looked up
    return next((found[n] for n in reversed(CACHE_NAMES) if found.get(n) is not None), None)


def received(model: Any, inputs: dict[str, Any]) -> dict[str, Any]:
    """Arguments that a user gave to a model, with the cache under the name that vtoken uses."""
    name = _cache_name(type(core(model)))
    if name not in inputs or name == CACHE:
        return inputs
    return {n: v for n, v in inputs.items() if n not in CACHE_NAMES} | {CACHE: inputs[name]}


def handed(model: Any, inputs: dict[str, Any]) -> dict[str, Any]:
    """The same arguments with the cache under the name that a model takes."""
    name = _cache_name(type(core(model)))
    if CACHE not in inputs or name == CACHE:
        return inputs
    return {n: v for n, v in inputs.items() if n != CACHE} | {name: inputs[CACHE]}


def behind(model: Any, cache: Any) -> dict[str, Any]:
    """The arguments with which a model or its base model reads on behind a cache, and fills it."""
    return handed(model, {CACHE: cache, "use_cache": True})


def handing(model: Any, function: Callable[..., Any]) -> Callable[..., Any]:
    """A method of a model that takes arguments under vtoken's names."""
    return lambda **inputs: function(**handed(model, inputs))


def attention_of(model: Any) -> str:
    """The attention implementation of the language model: "sdpa", "eager", "flash_attention_2", ..."""
    return core(model).config.get_text_config()._attn_implementation


def tile_counts(model: Any, sizes: Tensor, images: Tensor | None) -> list[int]:
    """Tiles of each anyres image, as the stock ``get_image_features`` counts them.

    Args:
        sizes: integers [n, 2], height and width of each image.
        images: images of each sample where the processor gives them; samples with several are not tiled.
    """
    owner = base(model)
    count: Any = inspect.getmodule(type(owner)).image_size_to_num_patches  # type: ignore[union-attr]
    patched = [True] * len(sizes) if images is None else [int(m) == 1 for m in images for _ in range(int(m))]
    config = owner.config
    return [
        count(image_size=s, grid_pinpoints=config.image_grid_pinpoints, patch_size=config.vision_config.image_size)
        if wanted
        else 1
        for s, wanted in zip(sizes, patched, strict=True)
    ]


def pack(model: Any, tiles: list[Tensor], sizes: Tensor, newline: Tensor) -> list[Tensor]:
    """The stock ``pack_image_features`` of anyres images with only the arguments that this family's takes.

    Args:
        tiles: [count, patches, D] for each image.
        newline: [D], the row at the end of every line.
    """
    owner = base(model)
    function = owner.pack_image_features
    options = {
        "vision_feature_select_strategy": getattr(owner.config, "vision_feature_select_strategy", None),
        "vision_aspect_ratio": getattr(owner.config, "vision_aspect_ratio", None),
    }
    accepted = inspect.signature(function).parameters
    call = {k: v for k, v in options.items() if k in accepted and v is not None}
    return function(tiles, sizes, image_newline=newline, **call)[0]


def cached_file(name: str, file: str) -> str | None:
    """Path of a file of a checkpoint, a hub id or a folder; None where the checkpoint has no such file."""
    from transformers.utils.hub import cached_file as found

    return found(name, file, _raise_exceptions_for_missing_entries=False)
