"""What a call of ``generate`` is set to, before the prompt is prefilled."""

from __future__ import annotations

import copy
from typing import Any


def drop_cache_kind(model: Any, inputs: dict[str, Any]) -> None:
    """The cache is there: no setting may ask ``generate`` for another one."""
    inputs.pop("cache_implementation", None)
    if inputs.get("generation_config") is not None:
        inputs["generation_config"] = copy.deepcopy(inputs["generation_config"])
        inputs["generation_config"].cache_implementation = None
    if model.generation_config.cache_implementation is not None:  # fills what a config leaves open
        inputs["cache_implementation"] = None


def new_tokens(config: Any, width: int) -> int:
    """Most new tokens behind a prompt of ``width`` columns."""
    if config.max_new_tokens is not None:
        return config.max_new_tokens
    return 20 if config.max_length is None else max(1, config.max_length - width)  # 20 as generate does


def with_mask(model: Any, inputs: dict[str, Any]) -> dict[str, Any]:
    """Arguments with the attention mask that ``generate`` would infer from padding ids."""
    ids = inputs.get("input_ids")
    if inputs.get("attention_mask") is None and ids is not None:
        config = settings(model, inputs)
        ends = config.eos_token_id
        ends = [ends] if isinstance(ends, int) else list(ends or [])
        pad = config.pad_token_id
        if pad is not None and pad not in ends and bool((ids == pad).any()):
            inputs["attention_mask"] = (ids != pad).long()
    return inputs


def settings(model: Any, inputs: dict[str, Any]) -> Any:
    """The generation config of a call: what was passed, over the model's own."""
    given = inputs.get("generation_config")
    config = copy.deepcopy(model.generation_config)
    if given is not None:
        config.update(**{n: v for n, v in given.to_dict().items() if v is not None})
    config.update(**{n: v for n, v in inputs.items() if hasattr(config, n) and n != "generation_config"})
    return config
