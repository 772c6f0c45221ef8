"""Run the stock model on what a plan leaves: ``forward`` once, or the prefill here and ``generate`` behind it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from vtoken.engine.assisted import is_assisted, with_prefilled
from vtoken.engine.cache import DYNAMIC, QUANTISED, counting_dropped, mark, new_cache
from vtoken.engine.call import Call
from vtoken.engine.clock import Clock
from vtoken.engine.columns import columns_of, moved
from vtoken.engine.hold.inputs import generate_inputs, hold_inputs
from vtoken.engine.inside import inside
from vtoken.engine.labelled import labelled
from vtoken.engine.positions import counted
from vtoken.engine.prepare import ENCODER, Prepared, placeholder_ids, prepare, takes
from vtoken.engine.reduce import Kept
from vtoken.engine.splice import Cut, cut_inputs
from vtoken.engine.uncut import as_uncut, fill_padding
from vtoken.errors import UnsupportedError
from vtoken.families.compat import cache_of, handed, handing, received

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
    call.answer = _new_tokens(_settings(call.model, inputs), prompt["input_ids"].shape[1])
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
                    filled = _prefill(call, ready, config, given)
                    behind = _behind(call, ready, prompt, last) | {"past_key_values": filled}
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
    _repeat(found["past_key_values"], config, len(found["input_ids"]))
    return found


def _repeat(cache: Any, config: Any, samples: int) -> None:
    """Repeat a filled cache as ``generate`` repeats its other inputs; it leaves a cache that it is given as it is."""
    copies = max(config.num_beams or 1, config.num_return_sequences or 1)
    if copies > 1:  # linear attention layers have no batch_repeat_interleave
        cache.reorder_cache(torch.arange(samples).repeat_interleave(copies))


def _prefill(call: Call, ready: Prepared, config: Any, given: Any) -> Any:
    """A cache filled with all columns but the last, which ``generate`` runs; it counts the dropped columns."""
    model, kept = call.model, ready.cut.width
    copies = max(config.num_beams or 1, config.num_return_sequences or 1)
    last = [_ends(k, ready.width) for k in ready.kept]
    if copies > 1 and any(map(any, last)):
        raise UnsupportedError(
            "num_beams and num_return_sequences need text behind the last image or video of a cut prompt"
        )
    cache = new_cache(model, config, kept + _new_tokens(config, ready.width)) if given is None else given
    mark(cache, 0)  # one that was emptied
    if call.family.prefix and config.cache_implementation == QUANTISED:
        raise UnsupportedError(
            f"{call.family.title} attends to the whole prompt, whose last column a quantised cache cannot take back; "
            "leave out kv= and cache_implementation="
        )
    if call.family.prefix and not all(hasattr(layer, "crop") for layer in cache.layers):
        raise UnsupportedError(
            f"{call.family.title} attends to the whole prompt, whose last column a static cache cannot take back; "
            "leave out cache_implementation= and past_key_values="
        )
    columns = [torch.arange(kept if call.family.prefix else kept - 1)] * len(ready.cut.slots)
    head = cut_inputs(
        {n: v for n, v in ready.inputs.items() if n != "past_key_values"}, Cut(columns, columns), 0, False
    )
    ids = head.pop("input_ids")
    if head.get("position_ids") is None and takes(model, "position_ids"):
        head["position_ids"] = counted(head.get("attention_mask"), ids)
    if not call.family.prefix:
        head["mm_encoder_outputs"] = {
            k.rows.modality: k.pack(call, [slice(-1) if end else slice(None) for end in ends])
            for k, ends in zip(ready.kept, last, strict=True)
        }
    head["use_cache"] = True
    if takes(model, "logits_to_keep"):
        head["logits_to_keep"] = 1
    head = {n: v for n, v in head.items() if n == "mm_encoder_outputs" or takes(model, n)}
    head = handed(model, head | {"past_key_values": cache})
    arguments = model.prepare_inputs_for_generation(ids, is_first_iteration=True, **head)
    model(**arguments, return_dict=True)
    if call.family.prefix:
        cache.crop(-1)
    _repeat(cache, config, len(ids))
    return counting_dropped(cache, ready.width - kept)


def _new_tokens(config: Any, width: int) -> int:
    """Most new tokens behind a prompt of ``width`` columns."""
    if config.max_new_tokens is not None:
        return config.max_new_tokens
    return 20 if config.max_length is None else max(1, config.max_length - width)  # 20 as generate does


def _behind(call: Call, ready: Prepared, prompt: dict[str, Any], last: bool) -> dict[str, Any]:
    """Arguments of ``generate`` behind the prefill: the original ids, with the last columns those of the cut prompt.

    Args:
        last: the last column's positions will do; else there is one for every id.
    """
    ids, cut = prompt["input_ids"], ready.inputs
    out: dict[str, Any] = {"input_ids": ids}
    tail = {}
    for k in ready.kept:
        ends = _ends(k, ready.width)
        if any(ends):
            tail[k.rows.modality] = k.pack(call, [slice(-1, None) if end else slice(0) for end in ends])
    if tail:
        out["mm_encoder_outputs"] = tail
    mask = cut.get("attention_mask")
    positions = cut.get("position_ids")
    if positions is None:
        positions = counted(mask, cut["input_ids"])
    gone = ids.shape[1] - cut["input_ids"].shape[1]
    out["position_ids"] = positions if last else torch.nn.functional.pad(positions, (gone, 0))
    if mask is None or bool(mask.all()):
        out["attention_mask"] = ids.new_ones(1, 1).expand_as(ids)
    else:
        out["attention_mask"] = torch.nn.functional.pad(mask, (gone, 0))
    return out


def _of_prompt(call: Call, name: str) -> bool:
    """Whether an argument of ``generate`` describes the prompt, so that the prefill takes it."""
    return name in ("input_ids", *PER_COLUMN, *call.family.drops, *call.family.sound)


def _ends(kept: Kept, width: int) -> list[bool]:
    """Whether the last column of each prompt holds a token of this modality."""
    ends = kept.rows.sample[kept.rows.column == width - 1].tolist()
    return [b in ends for b in range(len(kept.parts))]


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
    return copies > 1 and ready.hold is None and any(any(_ends(k, ready.width)) for k in ready.kept)


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
