"""The question of a prompt: the text that methods weigh tokens by."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vtoken.engine.call import Call
from vtoken.engine.encode import Rows
from vtoken.engine.masks import padding

if TYPE_CHECKING:
    from vtoken.engine.rows import Unit


def question_embeddings(call: Call, inputs: dict[str, Any], rows: list[Rows], owner: list[int]) -> list[Tensor]:
    """Embeddings [M, D] of the question of each unit's prompt.

    The question is what ``ask`` was given. In the prompt of an ordinary processor it is the text between the last
    visual token and the end of that turn; where there is none, all text of the prompt. Special tokens are no text.

    Args:
        rows: placeholder rows of every modality.
        owner: the prompt of each unit.
    """
    ids, table = inputs["input_ids"], call.model.get_input_embeddings()
    if call.question is not None:
        found = [q.to(ids.device) for q in call.question]
    else:
        visual = torch.zeros_like(ids, dtype=torch.bool)
        for r in rows:
            visual[r.sample, r.column] = True
        mask = padding(inputs)
        real = torch.ones_like(visual) if mask is None else mask.bool()
        special = torch.tensor(sorted(special_ids(call.model)), device=ids.device)
        ends = torch.tensor(sorted(end_ids(call.model)), device=ids.device)
        found = [_span(ids[b], visual[b], real[b], special, ends) for b in range(len(ids))]
    embedded = [table(q).detach() for q in found]
    return [embedded[b] for b in owner]


def paired_embeddings(
    call: Call, inputs: dict[str, Any], units: Sequence[Unit], question: list[Tensor]
) -> list[Tensor]:
    """Embeddings [M, D] of the text between each unit and the next one of its prompt, without special tokens.

    The question, where that text is empty, where a unit is the last one of its prompt, and where a prompt has one.

    Args:
        units: images and videos.
        question: embeddings of the question of each.
    """
    ids, table = inputs["input_ids"], call.model.get_input_embeddings()
    special = torch.tensor(sorted(special_ids(call.model)), device=ids.device)
    columns = [u.rows.column[u.start : u.stop] for u in units]
    spans = [(int(c.min()), int(c.max()) + 1) if len(c) else (0, 0) for c in columns]
    found = list(question)
    for u, unit in enumerate(units):
        end = spans[u][1]
        later = [s for v, (s, _) in enumerate(spans) if units[v].sample == unit.sample and s >= end > 0]
        if later:
            text = ids[unit.sample, end : min(later)]
            text = text[~torch.isin(text, special)]
            found[u] = table(text).detach() if len(text) else found[u]
    return found


def _span(ids: Tensor, visual: Tensor, real: Tensor, special: Tensor, ends: Tensor) -> Tensor:
    """int64 [M]: ids of the question of one prompt [N]."""
    text = real & ~visual & ~torch.isin(ids, special)
    last = int(visual.nonzero().max()) if bool(visual.any()) else -1
    behind = text.clone()
    behind[: last + 1] = False
    if not bool(behind.any()):
        return ids[text] if bool(text.any()) else ids[real & ~visual]
    first = int(behind.nonzero().min())
    over = (torch.isin(ids, ends) & real).nonzero().squeeze(1)
    over = over[over > first]
    if len(over):
        behind[int(over[0]) :] = False
    return ids[behind]


def special_ids(model: Any) -> set[int]:
    """Ids that a config names: placeholders, marks around pictures, begin, end and padding."""
    config = model.config
    found: set[int] = set(end_ids(model))
    for source in (config, config.get_text_config(), model.generation_config):
        for name, value in vars(source).items():
            if name.endswith(("_token_id", "_token_index")) and isinstance(value, int):
                found.add(value)
    return found


def end_ids(model: Any) -> set[int]:
    """Ids that end a turn."""
    found: set[int] = set()
    for source in (model.generation_config, model.config, model.config.get_text_config()):
        value = getattr(source, "eos_token_id", None)
        found |= {value} if isinstance(value, int) else set(value or ())
    return found
