"""Assisted decoding (a draft model, prompt lookup) behind a prompt that vtoken prefilled."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from vtoken.engine.cache import STATIC
from vtoken.engine.positions import counted, rope_positions
from vtoken.errors import InputError
from vtoken.families.compat import CACHE_NAMES, cache_of

COLUMNS = ("attention_mask", "token_type_ids", "mm_token_type_ids")
MODE = ("streamer", "assistant_model", "assistant_tokenizer", "tokenizer", "synced_gpus")


def is_assisted(config: Any, inputs: dict[str, Any]) -> bool:
    """Whether ``generate`` with these arguments and this merged generation config runs assisted decoding.

    Raises:
        InputError: beside a static cache, which cannot take tokens back.
    """
    assisted = config.get_generation_mode(inputs.get("assistant_model")).value == "assisted_generation"
    cache = cache_of(inputs)
    if assisted and (config.cache_implementation in STATIC or "Static" in type(cache).__name__):
        raise InputError(
            "a static cache cannot take back tokens of a draft; leave out cache_implementation= and past_key_values=, "
            "or assistant_model= and prompt_lookup_num_tokens="
        )
    return assisted


def with_prefilled(config: Any, inputs: dict[str, Any], prompt: dict[str, Any]) -> dict[str, Any]:
    """Arguments of ``generate`` that continue a prefilled prompt with assisted decoding.

    The assisted decoding of transformers runs the whole prompt in its first step, also where a cache is given.

    Args:
        config: the merged generation config.
        inputs: arguments of ``generate``, with the cache.
        prompt: arguments that describe the original prompt.
    """
    from transformers import StoppingCriteriaList, StopStringCriteria

    out = {n: v for n, v in inputs.items() if n != "custom_generate"}
    mode = {n: out.pop(n) for n in MODE if out.get(n) is not None}
    if "streamer" in mode:
        out["streamer"] = mode["streamer"]  # generate itself gives it the prompt
    if "assistant_model" in mode:
        out["assistant_model"] = mode["assistant_model"]
    if config.stop_strings is not None and "tokenizer" in mode:  # a custom function gets no tokenizer
        stop = StopStringCriteria(mode["tokenizer"], config.stop_strings)
        out["stopping_criteria"] = StoppingCriteriaList([*(out.get("stopping_criteria") or []), stop])
        out["stop_strings"] = None

    def decode(model: Any, input_ids: Tensor, **options: Any) -> Any:
        assisted: Callable[..., Any] = type(model)._assisted_decoding
        return assisted(_Prefilled(model, prompt), input_ids, **options | mode)

    return out | {"custom_generate": decode}


class _Prefilled:
    """A model as assisted decoding calls it: the first step runs the columns that the cache lacks."""

    def __init__(self, model: Any, prompt: dict[str, Any]) -> None:
        self._model, self._prompt = model, prompt

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def __call__(self, *args: Any, **options: Any) -> Any:
        return self._model(*args, **options)

    def prepare_inputs_for_generation(self, input_ids: Tensor, **options: Any) -> dict[str, Any]:
        """Arguments of ``forward`` for the columns behind the cache."""
        if options.get("is_first_iteration"):
            options["next_sequence_length"] = input_ids.shape[1] - cache_of(options).get_seq_length()
        return self._model.prepare_inputs_for_generation(input_ids, **options)

    def _get_candidate_generator(self, **options: Any) -> Any:
        """What drafts. A draft model runs the original ids without pixels, as transformers has it."""
        given = self._prompt
        positions, _ = rope_positions(self._model, given, generating=True)
        if positions is None:
            positions = counted(given.get("attention_mask"), given["input_ids"])
        own = {n: v for n, v in options["model_kwargs"].items() if n not in ("mm_encoder_outputs", *CACHE_NAMES)}
        own |= {n: given[n] for n in COLUMNS if given.get(n) is not None} | {"position_ids": positions}
        return self._model._get_candidate_generator(**options | {"model_kwargs": own})
