"""Run the stock model on what a plan leaves: ``forward`` once, or the prefill here and ``generate`` behind it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from vtoken.engine.assisted import is_assisted, with_prefilled
from vtoken.engine.cache import DYNAMIC, mark
from vtoken.engine.call import Call
from vtoken.engine.clock import Clock
from vtoken.engine.columns import columns_of, moved
from vtoken.engine.hold.inputs import generate_inputs, hold_inputs
from vtoken.engine.inside import inside
from vtoken.engine.labelled import labelled
from vtoken.engine.prefill import behind_prefill, ends, new_tokens, prefill, repeat
from vtoken.engine.prepare import ENCODER, Prepared, placeholder_ids, prepare
from vtoken.engine.uncut import as_uncut, fill_padding
from vtoken.errors import UnsupportedError
from vtoken.families.compat import cache_of, handing, received

PER_COLUMN = ("attention_mask", "position_ids", "token_type_ids", "mm_token_type_ids")


def forward(call: Call, inputs: dict[str, Any], stock: Callable[..., Any]) -> Any:
    """``forward`` of the stock model on the cut prompt; logits and labels are those of the columns that stay.

    An output that is no tuple has them as ``vtoken_columns``, int64 [B, n], -1 for padding.

    Args:
        inputs: arguments of ``forward`` with pixels, or with ids whose clips are in ``call``.
        stock: the model's own ``forward``.
    """
    given, stock = received(call.model, dict(inputs)), handing(call.model, stock)
    ready = prepare(call, given, generating=False)
    if ready.drops and isinstance(ready.inputs.get("logits_to_keep"), Tensor):
        ready.inputs["logits_to_keep"] = moved(ready, ready.inputs["logits_to_keep"])
    arguments = ready.inputs
    if ready.hold is not None:
        arguments = hold_inputs(call.model, arguments, ready.hold, ready.stock["position_ids"])
    with inside(call, ready), call.report.stage("prefill", ready.inputs["input_ids"].device):
        out = stock(**arguments)
    _leave_state(call, ready)
    call.report.measure_memory(ready.inputs["input_ids"].device)
    if ready.drops and ready.hold is None:
        made = out if isinstance(out, tuple) else [cache_of(out)]
        caches = [value for value in made if hasattr(value, "get_seq_length")]
        _mark_dropped(ready, *caches, given.get("past_key_values"))
    labels = ready.inputs.get("labels")
    out = out if labels is None else labelled(out, labels)
    if not isinstance(out, tuple):
        out.vtoken_columns = columns_of(ready)
    return out


@torch.no_grad()
def generate(call: Call, inputs: dict[str, Any], stock: Callable[..., Any]) -> Any:
    """``generate`` of the stock model behind the cut prompt.

    Where tokens were dropped the prompt is prefilled here; ``generate`` gets the original ids and a cache that counts
    the dropped columns. Lengths, logits processors, stopping criteria, streamers and sequences are then those of the
    original prompt. Methods inside the language model need the whole prompt at once, so with them ``generate`` gets the
    cut prompt, and ``as_uncut`` gives the rest the original one.

    Args:
        inputs: arguments of ``generate`` by name, with ``input_ids`` [B, N].
        stock: the model's own ``generate``.
    """
    inputs, stock = _with_mask(call.model, received(call.model, dict(inputs))), handing(call.model, stock)
    prompt = {n: inputs.pop(n) for n in list(inputs) if _of_prompt(call, n)}
    call.answer = new_tokens(_settings(call.model, inputs), prompt["input_ids"].shape[1])
    encoder = {n: inputs[n] for n in ("past_key_values", *ENCODER) if inputs.get(n) is not None}
    ready = prepare(call, prompt | encoder, generating=True)
    device = ready.inputs["input_ids"].device
    whole = not ready.drops and not _cannot_repeat(call, ready, inputs)
    if whole or (call.plan.acts_inside and ready.hold is None) or _repeats_visual_end(call, ready, inputs):
        _refuse_beams(call, ready, inputs)
        clock = Clock(call.report)
        inputs["logits_processor"] = [*(inputs.get("logits_processor") or []), clock]
        inputs |= {n: v for n, v in ready.inputs.items() if n not in inputs}
        if ready.drops:
            marks = torch.tensor([i for i in placeholder_ids(call.model) if i is not None], device=device)
            inputs["input_ids"] = fill_padding(
                inputs["input_ids"], inputs.get("attention_mask"), prompt["input_ids"], marks
            )
        with inside(call, ready):
            out = as_uncut(stock, inputs, prompt["input_ids"], _settings(call.model, inputs))
        clock.stop(device)
        if ready.drops:
            _mark_dropped(ready, cache_of(out), inputs.get("past_key_values"))
    else:
        config = _settings(call.model, inputs)
        assisted = is_assisted(config, inputs)
        given = inputs.pop("past_key_values", None)
        last = not (assisted or config.prefill_chunk_size)  # then `generate` reads the last column's positions alone
        with inside(call, ready):
            with call.report.stage("prefill", device):
                if ready.hold is not None:
                    behind = _held(call, ready, config, given)
                else:
                    filled = prefill(call, ready, config, given)
                    behind = behind_prefill(call, ready, prompt, last) | {"past_key_values": filled}
                if last:  # it would copy all of them at every step
                    behind["position_ids"] = behind["position_ids"][..., -1:].clone()
            _drop_cache_kind(call.model, inputs)
            inputs |= behind | {"use_cache": True}
            if assisted:
                inputs = with_prefilled(config, inputs, prompt)
            ready.stock.pop("position_ids", None)
            with call.report.stage("generate", device):
                out = stock(**inputs)
        if ready.hold is None:
            _mark_dropped(ready, behind["past_key_values"], given)
    _leave_state(call, ready)
    call.report.measure_memory(device)
    return out


def _drop_cache_kind(model: Any, inputs: dict[str, Any]) -> None:
    """The cache is there: no setting may ask ``generate`` for another one."""
    inputs.pop("cache_implementation", None)
    if inputs.get("generation_config") is not None:
        inputs["generation_config"] = copy.deepcopy(inputs["generation_config"])
        inputs["generation_config"].cache_implementation = None
    if model.generation_config.cache_implementation is not None:  # fills what a config leaves open
        inputs["cache_implementation"] = None


def _mark_dropped(ready: Prepared, *caches: Any) -> None:
    for cache in caches:
        mark(cache, ready.width - min(len(s) for s in ready.cut.slots))


def _leave_state(call: Call, ready: Prepared) -> None:
    if call.stateful and ready.rope_deltas is not None:
        call.model.base_model.rope_deltas = ready.rope_deltas


def _held(call: Call, ready: Prepared, config: Any, given: Any) -> dict[str, Any]:
    """Prefill a prompt whose skipped cells are held, and give the arguments with which ``generate`` goes on."""
    if given is not None or config.cache_implementation not in DYNAMIC:
        raise UnsupportedError(
            "hold fills a KV cache of its own; leave out past_key_values and cache_implementation, or use hold=off"
        )
    assert ready.hold is not None
    first = {n: v for n, v in ready.inputs.items() if n not in ("position_ids", "labels")}
    found = generate_inputs(call.model, first, ready.hold, ready.stock, whole=call.plan.acts_inside)
    repeat(found["past_key_values"], config, len(found["input_ids"]))
    return found


def _of_prompt(call: Call, name: str) -> bool:
    """Whether an argument of ``generate`` describes the prompt, so that the prefill takes it."""
    return name in ("input_ids", *PER_COLUMN, *call.family.drops, *call.family.sound)


def _with_mask(model: Any, inputs: dict[str, Any]) -> dict[str, Any]:
    """Arguments with the attention mask that ``generate`` would infer from padding ids."""
    ids = inputs.get("input_ids")
    if inputs.get("attention_mask") is None and ids is not None:
        config = _settings(model, inputs)
        ends = config.eos_token_id
        ends = [ends] if isinstance(ends, int) else list(ends or [])
        pad = config.pad_token_id
        if pad is not None and pad not in ends and bool((ids == pad).any()):
            inputs["attention_mask"] = (ids != pad).long()
    return inputs


def _settings(model: Any, inputs: dict[str, Any]) -> Any:
    """The generation config of a call: what was passed, over the model's own."""
    given = inputs.get("generation_config")
    config = copy.deepcopy(model.generation_config)
    if given is not None:
        config.update(**{n: v for n, v in given.to_dict().items() if v is not None})
    config.update(**{n: v for n, v in inputs.items() if hasattr(config, n) and n != "generation_config"})
    return config


def _repeats_visual_end(call: Call, ready: Prepared, inputs: dict[str, Any]) -> bool:
    """Whether beams or return sequences meet a prompt that ends with an image or a video."""
    config = _settings(call.model, inputs)
    copies = max(config.num_beams or 1, config.num_return_sequences or 1)
    return copies > 1 and ready.hold is None and any(any(ends(k, ready.width)) for k in ready.kept)


def _cannot_repeat(call: Call, ready: Prepared, inputs: dict[str, Any]) -> bool:
    """Whether ``generate`` would fail to repeat features for beams: those of an empty DeepStack."""
    config = _settings(call.model, inputs)
    stacks = [getattr(out, "deepstack_features", None) for out in ready.inputs["mm_encoder_outputs"].values()]
    return max(config.num_beams or 1, config.num_return_sequences or 1) > 1 and [] in stacks


def _refuse_beams(call: Call, ready: Prepared, inputs: dict[str, Any]) -> None:
    """Raises UnsupportedError: beams over features that ``generate`` cannot repeat."""
    config, family = _settings(call.model, inputs), call.family
    if max(config.num_beams or 1, config.num_return_sequences or 1) > 1:
        for r in (k.rows for k in ready.kept):
            if r.modality in family.no_beams:
                raise UnsupportedError(
                    f"{family.title} cannot beam search over {r.modality}s, wrapped or not; use num_beams=1 and "
                    "num_return_sequences=1"
                )
