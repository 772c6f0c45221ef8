"""Every private or version-fragile call into transformers and its neighbours, in one place."""

from __future__ import annotations

from typing import Any

import torch

from vtoken.errors import UnsupportedError


def core(model: Any) -> Any:
    """The Hugging Face model inside a PEFT wrapper or a ``torch.compile`` module; any other model as it is.

    Raises:
        UnsupportedError: a PEFT method that adds virtual tokens to the prompt.
    """
    inner = getattr(model, "_orig_mod", model)  # torch.compile
    if hasattr(inner, "get_base_model") and hasattr(inner, "peft_config"):
        if getattr(inner.active_peft_config, "is_prompt_learning", False):
            raise UnsupportedError(
                "a PEFT method that adds virtual tokens changes the columns of the prompt; use LoRA or another adapter"
            )
        inner = inner.get_base_model()
    return inner


def input_device(model: Any) -> torch.device:
    """Where a model takes its ids: the device of its embeddings, also where weights are offloaded."""
    embeddings = core(model).get_input_embeddings()
    hook = getattr(embeddings, "_hf_hook", None)
    device = getattr(hook, "execution_device", None)
    return torch.device(device) if device is not None else next(embeddings.parameters()).device
