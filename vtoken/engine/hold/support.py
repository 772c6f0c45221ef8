"""Which language models and attention implementations can hold."""

from __future__ import annotations

from typing import Any

from vtoken.errors import UnsupportedError

ATTENTION = "vtoken_hold"  # the implementation that ``attention.install`` registers
MASKED = ("sdpa", "eager", "flex_attention", ATTENTION)
# the tokens of an image, or of the whole prompt, see each other: a row would see columns that come later
TWO_WAY = ("paligemma", "gemma3", "gemma3n", "gemma4")


def supports(config: Any) -> str | None:
    """Why a model cannot hold, or None where it can.

    Layers with rotary positions hold, those with a sliding window within it. Linear-attention layers see the computed
    rows only, in order, so that a model with both kinds holds in its attention layers.

    Args:
        config: the config of a model or of its language model.
    """
    from transformers import DynamicCache

    text = config.get_text_config(decoder=True)
    names = {str(getattr(c, "model_type", "")).removesuffix("_text") for c in (config, text)}
    if two_way := sorted(names & set(TWO_WAY)):
        return f"{two_way[0]} lets tokens of an image see each other in both directions"
    rope = getattr(text, "rope_parameters", None)
    if not rope:
        return "its positions are not rotary"
    if any(isinstance(value, dict) for value in rope.values()):
        return "its layers rotate positions in different ways"
    kind = rope.get("rope_type", "default")
    if kind in ("dynamic", "longrope"):
        return f"its rotary frequencies ({kind}) depend on the length of the prompt"
    cache = DynamicCache(config=text)
    if "chunked_attention" in (getattr(text, "layer_types", None) or ()) or getattr(text, "attention_chunk_size", None):
        return "some of its layers see chunks of the prompt"
    if any(getattr(cache, "is_dummy", ())):  # transformers 5.18 has no such layers
        return "some of its layers share keys and values with others"
    if all(cache.is_linear):
        return "it has no attention layer that keeps keys and values"
    kinds = {type(layer).__name__ for layer, linear in zip(cache.layers, cache.is_linear, strict=True) if not linear}
    if other := sorted(kinds - {"DynamicLayer", "DynamicSlidingWindowLayer"}):
        return f"its attention layers keep more than keys and values ({other[0]})"
    return None


def window(text: Any) -> int | None:
    """Columns that the layers with a sliding window of a language model see; None where there are none.

    Args:
        text: the config of a language model.
    """
    kinds = getattr(text, "layer_types", None)
    slides = kinds is None or "sliding_attention" in kinds
    return getattr(text, "sliding_window", None) if slides else None


def check(config: Any) -> None:
    """Refuse a model that cannot hold.

    Raises:
        UnsupportedError: the model or its attention implementation; the message names the way out.
    """
    why = supports(config)
    if why is not None:
        raise UnsupportedError(f"hold cannot run on {config.model_type}: {why}; drop the tokens with hold=off")
    attention = config.get_text_config(decoder=True)._attn_implementation
    if attention not in MASKED:
        raise UnsupportedError(
            f"hold needs a mask in the prefill, which attn_implementation={attention!r} does not take; load the model "
            "with attn_implementation='sdpa' (or call model.set_attn_implementation('sdpa')), or use hold=off"
        )
