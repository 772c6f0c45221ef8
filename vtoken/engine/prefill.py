"""Prefill of a cut prompt, and the arguments with which ``generate`` goes on behind it."""

from __future__ import annotations

from typing import Any

import torch

from vtoken.engine.cache import QUANTISED, counting_dropped, mark, new_cache
from vtoken.engine.call import Call
from vtoken.engine.positions import counted
from vtoken.engine.prepare import Prepared, takes
from vtoken.engine.reduce import Kept
from vtoken.engine.splice import Cut, cut_inputs
from vtoken.errors import UnsupportedError
from vtoken.families.compat import handed


def prefill(call: Call, ready: Prepared, config: Any, given: Any) -> Any:
    """A cache filled with all columns but the last, which ``generate`` runs; it counts the dropped columns."""
    model, kept = call.model, ready.cut.width
    copies = max(config.num_beams or 1, config.num_return_sequences or 1)
    last = [ends(k, ready.width) for k in ready.kept]
    if copies > 1 and any(map(any, last)):
        raise UnsupportedError(
            "num_beams and num_return_sequences need text behind the last image or video of a cut prompt"
        )
    cache = new_cache(model, config, kept + new_tokens(config, ready.width)) if given is None else given
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
            k.rows.modality: k.pack(call, [slice(-1) if end else slice(None) for end in own])
            for k, own in zip(ready.kept, last, strict=True)
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
    repeat(cache, config, len(ids))
    return counting_dropped(cache, ready.width - kept)


def behind_prefill(call: Call, ready: Prepared, prompt: dict[str, Any], last: bool) -> dict[str, Any]:
    """Arguments of ``generate`` behind the prefill: the original ids, with the last columns those of the cut prompt.

    Args:
        last: the last column's positions will do; else there is one for every id.
    """
    ids, cut = prompt["input_ids"], ready.inputs
    out: dict[str, Any] = {"input_ids": ids}
    tail = {}
    for k in ready.kept:
        own = ends(k, ready.width)
        if any(own):
            tail[k.rows.modality] = k.pack(call, [slice(-1, None) if end else slice(0) for end in own])
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


def ends(kept: Kept, width: int) -> list[bool]:
    """Whether the last column of each prompt holds a token of this modality."""
    samples = kept.rows.sample[kept.rows.column == width - 1].tolist()
    return [b in samples for b in range(len(kept.parts))]


def repeat(cache: Any, config: Any, samples: int) -> None:
    """Repeat a filled cache as ``generate`` repeats its other inputs; it leaves a cache that it is given as it is."""
    copies = max(config.num_beams or 1, config.num_return_sequences or 1)
    if copies > 1:  # linear attention layers have no batch_repeat_interleave
        cache.reorder_cache(torch.arange(samples).repeat_interleave(copies))


def new_tokens(config: Any, width: int) -> int:
    """Most new tokens behind a prompt of ``width`` columns."""
    if config.max_new_tokens is not None:
        return config.max_new_tokens
    return 20 if config.max_length is None else max(1, config.max_length - width)  # 20 as generate does
