"""From a Hugging Face processor, its config or a family's name to a Preprocessor."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

from vtoken.errors import InputError, UnsupportedError
from vtoken.video.preprocess import Preprocessor

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
CLIP_336 = Preprocessor("clip", "shortest", (336, 336), (336, 336), CLIP_MEAN, CLIP_STD)
QWEN2 = Preprocessor(
    "qwen",
    "smart",
    mean=CLIP_MEAN,
    std=CLIP_STD,
    merge=2,
    temporal=2,
    min_pixels=128 * 28 * 28,
    max_pixels=768 * 28 * 28,
    max_video_tokens=128_000,
)
# Video settings of the families' published checkpoints; Qwen3-VL's budget of 24,576 cells is for a whole clip
PRESETS: dict[str, Preprocessor] = {
    "llava-1.5": CLIP_336,
    "llava-next": CLIP_336,
    "llava-next-video": CLIP_336,
    "video-llava": replace(CLIP_336, size=(224, 224), crop=(224, 224)),
    "llava-onevision": Preprocessor("clip", "exact", (384, 384)),
    "qwen2-vl": QWEN2,
    "qwen2.5-vl": QWEN2,
    "qwen3-vl": Preprocessor(
        "qwen",
        "smart_clip",
        patch=16,
        merge=2,
        temporal=2,
        min_pixels=4096,
        max_pixels=24_576 * 32 * 32,
        max_video_tokens=768,
    ),
}
SMART = ("Qwen2VLVideoProcessor", "Qwen2VLImageProcessor")
SMART_CLIP = ("Qwen3VLVideoProcessor",)
TILING = ("image_grid_pinpoints", "do_image_splitting", "crop_to_patches", "do_pan_and_scan")
NAMES = (
    "size",
    "crop_size",
    "do_resize",
    "do_center_crop",
    "do_rescale",
    "rescale_factor",
    "do_normalize",
    "image_mean",
    "image_std",
    "resample",
    "patch_size",
    "merge_size",
    "temporal_patch_size",
    "min_pixels",
    "max_pixels",
    "cap_pixels_per_frame",
    "max_video_tokens",
    "do_pad",
)
RESAMPLE = {2: "bilinear", 3: "bicubic"}


def read_processor(source: Any, **changes: Any) -> Preprocessor:
    """Read a Hugging Face image, video or whole processor, its config as a dict, or a family's name.

    Args:
        changes: fields of ``Preprocessor`` to override, for example ``patch=16`` or ``cap_pixels_per_frame=True``.

    Raises:
        UnsupportedError: the processor does something that ``Preprocessor`` does not (tiling, padding).
        InputError: nothing usable was given, or an unknown family or field.
    """
    known = {f.name for f in fields(Preprocessor)}
    if unknown := sorted(set(changes) - known):
        raise InputError(f"unknown field {unknown[0]!r}; known are {', '.join(sorted(known))}")
    if isinstance(source, str):
        name = source.lower().replace("_", "-")
        if name not in PRESETS:
            raise InputError(f"family {source!r} is unknown; known are {', '.join(PRESETS)}")
        return replace(PRESETS[name], **changes)
    config, kind, patch = _config(source)
    if "patch" not in changes and patch is not None:
        changes = {"patch": patch} | changes
    build = _qwen if config.get("merge_size") else _clip
    return replace(build(config, kind), **changes)


def _config(source: Any) -> tuple[dict[str, Any], str, int | None]:
    """The settings that matter, the class name of the processor, and the patch size if a whole processor says it."""
    parts = ("video_processor", "image_processor")
    patch = None
    if isinstance(source, Mapping):
        for part in parts:
            if isinstance(source.get(part), Mapping):
                patch, source = source.get("patch_size"), source[part]
                break
        kind = next((source[k] for k in ("video_processor_type", "image_processor_type") if source.get(k)), "")
        config = dict(source)
    else:
        for part in parts:
            own = getattr(source, part, None)
            if isinstance(own, Mapping):  # settings alone, where the processor itself cannot be built
                return _config(own)
            if own is not None:
                patch, source = getattr(source, "patch_size", None), own
                break
        kind = type(source).__name__
        config = {name: getattr(source, name, None) for name in (*NAMES, *TILING)}
    if not config.get("size"):
        raise InputError(
            f"{type(source).__name__} is no image or video processor (it has no size); give one, its config as a dict, "
            f"or a family: {', '.join(PRESETS)}"
        )
    asked = [name for name in TILING if config.get(name)]
    if asked or config.get(
        "do_pad",
    ):
        raise UnsupportedError(
            f"{kind or 'this processor'} tiles or pads its pictures ({(asked or ['do_pad'])[0]}); "
            "give the family's video processor, or its name"
        )
    return config, kind.removesuffix("Fast").removesuffix("Pil"), patch


def _common(config: dict[str, Any]) -> dict[str, Any]:
    resample = int(config["resample"]) if config.get("resample") is not None else 3
    if resample not in RESAMPLE:
        raise UnsupportedError(f"resample={resample} is not supported; supported are 2 (bilinear) and 3 (bicubic)")
    normalise = config.get("do_normalize") is not False
    rescale = config.get("rescale_factor") if config.get("do_rescale") is not False else None
    return {
        "mean": _channels(config.get("image_mean")) if normalise else None,
        "std": _channels(config.get("image_std")) if normalise else None,
        "rescale": 1.0 if config.get("do_rescale") is False else float(rescale or 1 / 255),
        "resample": RESAMPLE[resample],
    }


def _channels(value: Any) -> tuple[float, ...]:
    return (0.5, 0.5, 0.5) if value is None else tuple(float(v) for v in value)


def _clip(config: dict[str, Any], kind: str) -> Preprocessor:
    size, crop = _edges(config["size"]), None
    if config.get("do_center_crop") and config.get("crop_size"):
        edges = _edges(config["crop_size"])
        crop = (edges["height"], edges["width"])
    if config.get("do_resize") is False:
        return Preprocessor("clip", "keep", crop=crop, **_common(config))
    if size.get("shortest_edge") and not size.get("longest_edge"):
        edge = size["shortest_edge"]
        return Preprocessor("clip", "shortest", (edge, edge), crop, **_common(config))
    if size.get("height") and size.get("width"):
        return Preprocessor("clip", "exact", (size["height"], size["width"]), crop, **_common(config))
    raise UnsupportedError(
        f"{kind or 'this processor'} resizes by {size}; supported are height and width, or shortest_edge"
    )


def _qwen(config: dict[str, Any], kind: str) -> Preprocessor:
    if kind not in SMART + SMART_CLIP:
        known = ", ".join(SMART + SMART_CLIP)
        raise UnsupportedError(
            f"{kind or 'a processor with merge_size but no type'} is not supported; known are {known}"
        )
    clip_wide, size = kind in SMART_CLIP, _edges(config["size"])
    return Preprocessor(
        "qwen",
        "keep" if config.get("do_resize") is False else "smart_clip" if clip_wide else "smart",
        patch=config.get("patch_size") or (16 if clip_wide else 14),
        merge=config["merge_size"],
        temporal=config.get("temporal_patch_size") or 2,
        min_pixels=config.get("min_pixels") or size["shortest_edge"],
        max_pixels=config.get("max_pixels") or size["longest_edge"],
        cap_pixels_per_frame=bool(config.get("cap_pixels_per_frame")),
        max_video_tokens=config.get("max_video_tokens") or (768 if clip_wide else 128_000),
        **_common(config),
    )


def _edges(size: Any) -> dict[str, int]:
    """A size of any form Hugging Face writes as a plain dict; a single number is the shorter side, or a square crop."""
    if isinstance(size, int):
        return {"shortest_edge": size, "height": size, "width": size}
    names = ("height", "width", "shortest_edge", "longest_edge", "min_pixels", "max_pixels")
    read = {n: size[n] if isinstance(size, Mapping) and n in size else getattr(size, n, None) for n in names}
    edges = {n: int(v) for n, v in read.items() if v is not None}
    for old, new in (("min_pixels", "shortest_edge"), ("max_pixels", "longest_edge")):
        if old in edges:
            edges.setdefault(new, edges[old])
    return edges
