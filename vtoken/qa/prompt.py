"""How a clip and a question become the ids of a prompt, with a placeholder for every cell of the clip."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from vtoken.errors import InputError
from vtoken.families.family import Family
from vtoken.families.features import Clip


def prompts(family: Family, model: Any, processor: Any, clip: Clip, questions: Sequence[str]) -> list[dict[str, Any]]:
    """Arguments of ``generate`` for each question about one clip, with a placeholder for every cell.

    Raises:
        InputError: the processor belongs to another family.
    """
    written = family.prompt(model, tokenizer_of(processor), clip)
    return [_prompt(family, model, processor, written, question) for question in questions]


def _prompt(
    family: Family, model: Any, processor: Any, written: tuple[list[int], list[int], dict[str, Any]], question: str
) -> dict[str, Any]:
    tokenizer, (marks, ids, extra) = tokenizer_of(processor), written
    text = _template(processor, tokenizer, family, tokenizer.convert_ids_to_tokens(marks), question)
    plain = tokenizer(text, add_special_tokens=not getattr(processor, "chat_template", None))["input_ids"]
    places = [i for i in range(len(plain)) if plain[i : i + len(marks)] == marks]
    if len(places) != 1:
        raise InputError(
            f"the prompt of {type(processor).__name__} has {len(places)} places for a {family.clip_modality} "
            f"({''.join(map(str, tokenizer.convert_ids_to_tokens(marks)))}), 1 expected; is it the processor of "
            f"this {family.title} model?"
        )
    before, after = plain[: places[0]], plain[places[0] + len(marks) :]
    input_ids = torch.tensor([before + ids + after])
    out: dict[str, Any] = {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids), **extra}
    if "video_grid_thw" in extra:
        out["mm_token_type_ids"] = 2 * (input_ids == model.config.video_token_id).int()
    return out


def _template(processor: Any, tokenizer: Any, family: Family, marks: list[str], question: str) -> str:
    owner = next((o for o in (processor, tokenizer) if getattr(o, "chat_template", None)), None)
    if owner is None:  # base models have no template
        return f"{''.join(marks)}\n{question}"
    content = [{"type": family.clip_modality}, {"type": "text", "text": question}]
    return owner.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False)


def tokenizer_of(processor: Any) -> Any:
    tokenizer = getattr(processor, "tokenizer", processor)
    if not hasattr(tokenizer, "convert_ids_to_tokens"):
        raise InputError(f"processor={type(processor).__name__} is neither a processor nor a tokenizer")
    return tokenizer


def stack(prompts: list[dict[str, Any]], pad_id: int) -> dict[str, Any]:
    """Prompts of one sample each as a batch, padded on the left."""
    width = max(p["input_ids"].shape[1] for p in prompts)
    fill = {"input_ids": pad_id, "attention_mask": 0, "mm_token_type_ids": 0}

    def rows(name: str) -> Tensor:
        if name not in fill:
            return torch.cat([p[name] for p in prompts])
        return torch.cat([pad(p[name], (width - p[name].shape[1], 0), value=fill[name]) for p in prompts])

    return {name: rows(name) for name in prompts[0]}
