"""How clips and a question become the ids of a prompt, with a placeholder for every cell of the clips."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from vtoken.errors import InputError
from vtoken.families.compat import reads_types
from vtoken.families.family import Family
from vtoken.families.features import Clip, Picture
from vtoken.qa.tokenize import UserText, tokenizer_of


@dataclass(frozen=True)
class Chat:
    """The parts of a prompt besides the question.

    Attributes:
        system: text of a system turn; None for none.
        history: earlier turns, as ``{"role": ..., "content": text}``; the videos are in the first user turn.
        options: arguments of the chat template, such as ``enable_thinking=False``.
    """

    system: str | None = None
    history: Sequence[Mapping[str, str]] = ()
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for turn in self.history:
            known = isinstance(turn, Mapping) and turn.get("role") in ("user", "assistant")
            if not known or not isinstance(turn.get("content"), str):
                raise InputError(f"history={turn!r}: each turn is {{'role': 'user' or 'assistant', 'content': text}}")


class Written(NamedTuple):
    """How one video or image enters a prompt: its modality, the ids that a chat template writes for it, the ids that
    take their place, and further arguments of ``generate``."""

    modality: str
    marks: list[int]
    ids: list[int] | Tensor
    extra: dict[str, Any]


def prompts(
    family: Family,
    model: Any,
    processor: Any,
    shown: Clip | Sequence[Clip | Picture],
    questions: Sequence[str],
    chat: Chat | None = None,
) -> list[dict[str, Any]]:
    """Arguments of ``generate`` for each question about the same clips and pictures, a placeholder for every cell.

    The ids are those of the checkpoint's own processor: its chat template, its begin token, once.

    Raises:
        InputError: the processor belongs to another family, or its chat template takes no video.
    """
    written = []
    for one in [shown] if isinstance(shown, Clip) else shown:
        if isinstance(one, Clip):
            written.append(Written(family.clip_modality, *family.prompt(model, tokenizer_of(processor), one)))
        else:
            written.append(Written("image", one.marks, one.ids, {}))
    return [_prompt(family, model, processor, written, question, chat or Chat()) for question in questions]


def _prompt(
    family: Family,
    model: Any,
    processor: Any,
    written: list[Written],
    question: str,
    chat: Chat,
) -> dict[str, Any]:
    plain, places = _placed(family, processor, written, question, chat)
    parts: list[Tensor] = []
    end, rope = 0, hasattr(model.base_model, "get_rope_index")
    for place, one in zip(places, written, strict=True):
        shown = torch.as_tensor(one.ids)
        if rope and parts and place == end and shown[0] == parts[-1][-1]:
            raise InputError(
                f"the chat template of {type(processor).__name__} writes two {one.modality}s with nothing between "
                f"them, which {family.title} counts as one; use the checkpoint's own template"
            )
        parts += [torch.tensor(plain[end:place], dtype=torch.long), shown]
        end = place + len(one.marks)
    input_ids = torch.cat([*parts, torch.tensor(plain[end:], dtype=torch.long)])[None]
    names = {name for one in written for name in one.extra}
    extra = {name: torch.cat([one.extra[name] for one in written if name in one.extra]) for name in sorted(names)}
    ones = torch.ones(1, 1, dtype=torch.long).expand_as(input_ids)  # a long video has millions of columns
    out: dict[str, Any] = {"input_ids": input_ids, "attention_mask": ones, **extra}
    if rope and reads_types(model):
        types = torch.zeros(input_ids.shape, dtype=torch.int32)
        for kind, name in ((1, "image_token_id"), (2, "video_token_id")):
            types.masked_fill_(input_ids == getattr(model.config, name), kind)
        out["mm_token_type_ids"] = types
    return out


def around(
    family: Family, model: Any, processor: Any, question: str, chat: Chat | None = None
) -> tuple[Tensor, Tensor]:
    """int64 [a], [b]: the ids before the one video of a prompt, and those behind it, for a video that is still read.

    Raises:
        InputError: as in ``prompts``.
    """
    mark = getattr(model.config, f"{family.clip_modality}_token_id")
    written = [Written(family.clip_modality, [mark], [], {})]
    plain, (place,) = _placed(family, processor, written, question, chat or Chat())
    return torch.tensor(plain[:place], dtype=torch.long), torch.tensor(plain[place + 1 :], dtype=torch.long)


def _placed(
    family: Family, processor: Any, written: list[Written], question: str, chat: Chat
) -> tuple[list[int], list[int]]:
    """The ids of a prompt with the template's marks in it, and where the marks of each item begin."""
    tokenizer = tokenizer_of(processor)
    user = UserText(tokenizer)
    text = _template(processor, tokenizer, written, question, chat, user)
    begin = getattr(tokenizer, "bos_token", None)
    plain = user.ids(text, special=not (begin and text.startswith(begin)))
    kinds = {w.modality: w.marks for w in written}
    places = [
        (i, kind) for i in range(len(plain)) for kind, marks in kinds.items() if plain[i : i + len(marks)] == marks
    ]
    if [kind for _, kind in places] != [w.modality for w in written]:
        marks = ", ".join("".join(map(str, tokenizer.convert_ids_to_tokens(w.marks))) for w in written)
        raise InputError(
            f"the prompt of {type(processor).__name__} has {len(places)} places for videos and images, {len(written)} "
            f"expected ({marks}); is it the processor of this {family.title} model, and does its template take them?"
        )
    return plain, [place for place, _ in places]


def _template(processor: Any, tokenizer: Any, written: list[Written], question: str, chat: Chat, user: UserText) -> str:
    """The prompt as text, with the marks of videos and images, and control tokens of users set apart."""
    owner = next((o for o in (processor, tokenizer) if getattr(o, "chat_template", None)), None)
    if owner is None:  # base models have no template
        earlier = "".join(f"{user.safe(turn['content'])}\n" for turn in chat.history)
        system = "" if chat.system is None else f"{user.safe(chat.system)}\n"
        marks = "\n".join("".join(tokenizer.convert_ids_to_tokens(w.marks)) for w in written)
        return f"{system}{marks}\n{earlier}{user.safe(question)}"
    turns: list[dict[str, Any]] = [] if chat.system is None else [_turn("system", user.safe(chat.system))]
    turns += [
        _turn(turn["role"], user.safe(turn["content"], answer=turn["role"] == "assistant")) for turn in chat.history
    ]
    turns.append(_turn("user", user.safe(question)))
    first = next(turn for turn in turns if turn["role"] == "user")
    first["content"][:0] = [{"type": w.modality} for w in written]
    options = {"add_generation_prompt": True} | dict(chat.options)
    try:
        return owner.apply_chat_template(turns, tokenize=False, **options)
    except Exception as error:  # a template is a program of its own
        raise InputError(
            f"the chat template of {type(owner).__name__} cannot write videos or images beside a question "
            f"({type(error).__name__}: {error}); give the checkpoint's own processor"
        ) from error


def _turn(role: str, text: str) -> dict[str, Any]:
    return {"role": role, "content": [{"type": "text", "text": text}]}


def question_ids(processor: Any, question: str) -> Tensor:
    """int64 [M]: ids of a question alone."""
    user = UserText(tokenizer_of(processor))
    return torch.tensor(user.ids(user.safe(question)), dtype=torch.long)


def stack(prompts: list[dict[str, Any]], pad_id: int) -> dict[str, Any]:
    """Prompts of one sample each as a batch, padded on the left."""
    if len(prompts) == 1:
        return dict(prompts[0])  # no copy: a long video has millions of columns
    width = max(p["input_ids"].shape[1] for p in prompts)
    fill = {"input_ids": pad_id, "attention_mask": 0, "mm_token_type_ids": 0}

    def rows(name: str) -> Tensor:
        if name not in fill:
            return torch.cat([p[name] for p in prompts])
        return torch.cat([pad(p[name], (width - p[name].shape[1], 0), value=fill[name]) for p in prompts])

    return {name: rows(name) for name in prompts[0]}
