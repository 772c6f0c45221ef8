"""What a scorer learns from: prompts about DenseQA clips, and what the frozen model makes of all their tokens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from vtoken import families
from vtoken.data.report import Report
from vtoken.engine.call import Call
from vtoken.engine.inner.probe import Seen
from vtoken.engine.prepare import Prepared, prepare
from vtoken.families.compat import core
from vtoken.methods.plan import Plan
from vtoken.pruners.learned import places
from vtoken.qa.prompt import prompts, stack, tokenizer_of
from vtoken.qa.read import Sampling, read_clip
from vtoken.reference import data
from vtoken.reference.world import SPAN

IGNORE = -100  # a label that does not count
ALL = "mmtok:keep=1"  # keeps every token, and has the question embedded


@dataclass
class Lesson:
    """Some prompts with their answers.

    Attributes:
        ready: the prompts, encoded, with all visual tokens.
        labels: int64 [B, L], ``IGNORE`` before the answers.
        x, place, text: per prompt the visual tokens [n, D], their places [n, 3] and the embedded question [m, D].
        columns: per prompt int64 [n], the columns of its visual tokens.
        received: per prompt float32 [n], attention that each gets in the guidance layer from the rows that say the
            answer; sums to 1.
        logits: float32 [B, L, V] with all tokens.
    """

    ready: Prepared
    labels: Tensor
    x: list[Tensor]
    place: list[Tensor]
    text: list[Tensor]
    columns: list[Tensor]
    received: list[Tensor]
    logits: Tensor


def batch(
    model: Any, words: Any, fps: float, clips: int, questions: int, r: np.random.Generator, split: str = "train"
) -> tuple[dict[str, Any], Tensor]:
    """Arguments of ``forward`` for questions about some clips with their answers, and labels int64 [B, L].

    Rows are padded on the left.
    """
    family, tokenizer = families.of(core(model)), tokenizer_of(words)
    rows, labels, found = [], [], []
    for _ in range(clips):
        one = data.clip(int(r.integers(SPAN)), split)
        frames, _ = data.frames(one, fps)
        clip = read_clip(
            frames, family.preprocess(core(model)), Plan.parse("none"), Report(), Sampling(fps, native_fps=fps)
        )
        asked = chosen(data.questions(one), questions, r)
        for q, row in zip(asked, prompts(family, core(model), words, clip, [q.text for q in asked]), strict=True):
            answer = torch.tensor(
                [tokenizer(q.answer, add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id]]
            )
            labels.append(torch.cat([torch.full_like(row["input_ids"], IGNORE), answer], 1))
            row["input_ids"] = torch.cat([row["input_ids"], answer], 1)
            row["attention_mask"] = torch.ones_like(row["input_ids"])
            if "mm_token_type_ids" in row:
                row["mm_token_type_ids"] = pad(row["mm_token_type_ids"], (0, answer.shape[1]))
            rows.append(row)
            found.append(clip)
    inputs = stack(rows, tokenizer.pad_token_id)
    width = inputs["input_ids"].shape[1]
    return inputs | {"clips": found}, torch.cat([pad(x, (width - x.shape[1], 0), value=IGNORE) for x in labels])


def chosen(questions: list[Any], n: int, r: np.random.Generator) -> list[Any]:
    """n questions, every task as likely as any other."""
    tasks = {q.task: [x for x in questions if x.task == q.task] for q in questions}
    names = list(tasks)
    return [tasks[t][int(r.integers(len(tasks[t])))] for t in (names[int(r.integers(len(names)))] for _ in range(n))]


@torch.no_grad()
def lesson(model: Any, inputs: dict[str, Any], labels: Tensor, layer: int) -> Lesson:
    """Run the frozen model on prompts with all tokens.

    Args:
        inputs, labels: see ``batch``.
        layer: decoder layer whose attention is the label.
    """
    inner, inputs = core(model), dict(inputs)
    device = inner.get_input_embeddings().weight.device
    call = Call(inner, families.of(inner), Plan.parse(ALL), clips=inputs.pop("clips"), positions="trained")
    given = {n: v.to(device) if isinstance(v, Tensor) else v for n, v in inputs.items()}
    ready = prepare(call, given, generating=False)
    ready.inputs["use_cache"] = False
    tokens, context = ready.reduced.left, ready.reduced.context
    units = ready.reduced.units
    assert context.text is not None and [u.sample for u in units] == list(range(len(labels)))
    x = [tokens.x[a:b] for a, b in pairwise(tokens.ends)]
    place = [places(tokens.sample(b)) for b in range(tokens.samples)]
    columns = [u.rows.column[u.rows.features.index[u.tokens].to(u.rows.column.device)] for u in units]
    with captured(inner, layer) as seen:
        logits = inner(**ready.inputs).logits.float()
    says = pad(labels[:, 1:] != IGNORE, (0, 1)).to(device)  # a row gives the next token
    received = [_received(seen[0], b, column, says[b]) for b, column in enumerate(columns)]
    return Lesson(ready, labels.to(device), x, place, list(context.text), columns, received, logits)


@contextmanager
def captured(model: Any, layer: int) -> Iterator[list[Seen]]:
    """What one decoder layer is given while the model runs."""
    decoder = model.get_decoder().layers[layer]
    seen: list[Seen] = []

    def look(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        hidden = args[0] if args else kwargs["hidden_states"]
        mask = kwargs.get("attention_mask")
        at = torch.arange(hidden.shape[1], device=hidden.device).expand(len(hidden), -1)
        seen.append(Seen(module, hidden, kwargs["position_embeddings"], mask, at))

    hook = decoder.register_forward_pre_hook(look, with_kwargs=True)
    try:
        yield seen
    finally:
        hook.remove()


def _received(seen: Seen, b: int, columns: Tensor, says: Tensor) -> Tensor:
    """Attention of some rows, bool [L], on the visual tokens, summed over heads and rows: float32 [n], sum 1."""
    visual = torch.zeros_like(says)
    visual[columns] = True
    view, column = seen.view(b, len(says), visual, int(columns.max()) + 1, None)
    weight = view.attention(says[column].nonzero().squeeze(1)).sum((0, 1))
    place = torch.searchsorted(column, columns)
    mine = weight[place]
    return mine / mine.sum().clamp(min=1e-12)


@contextmanager
def weighed(model: Any, ready: Prepared, columns: Sequence[Tensor], share: Sequence[Tensor]) -> Iterator[None]:
    """While the model runs, visual columns have the logarithm of their share added to their attention logits."""
    decoder = model.get_decoder()
    ids = ready.inputs["input_ids"]
    mask = ready.inputs.get("attention_mask")
    n = ids.shape[1]
    hidden = torch.ones(n, n, dtype=torch.bool, device=ids.device).triu(1)
    base = torch.zeros(len(ids), 1, n, n, device=ids.device).masked_fill(hidden, -1e4)
    if mask is not None:
        base = base.masked_fill(mask[:, None, None] == 0, -1e4)
    bias = torch.stack(
        [
            torch.zeros(n, device=ids.device).index_put((column,), part.clamp(min=1e-9).log())
            for column, part in zip(columns, share, strict=True)
        ]
    )
    whole = base + bias[:, None, None]

    def replace(module: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        return args, kwargs | {"attention_mask": whole}

    hook = decoder.register_forward_pre_hook(replace, with_kwargs=True)
    try:
        yield
    finally:
        hook.remove()
