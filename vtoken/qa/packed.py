"""Several questions behind one prefill of the video, packed in one row: each attends to the video and to itself.

The video is the same for all of them, and a causal model computes it without looking at what follows. So the prompt up
to the questions is prefilled once; then the questions follow one another in one row, each with the positions
that it would have alone, under a mask that hides them from one another.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vtoken.data.report import Report
from vtoken.engine.prepare import Prepared
from vtoken.engine.state.prefix import Prefix
from vtoken.families.compat import accepts_outputs, attention_of, handed

VIDEO = -1  # owner of the columns that every question sees
# settings of generate that do not change a greedy answer
GREEDY_SAFE_KEYS = frozenset(
    ("max_new_tokens", "max_length", "bos_token_id", "eos_token_id", "pad_token_id", "use_cache", "repetition_penalty")
    + ("temperature", "top_k", "top_p", "min_p", "top_h", "typical_p", "epsilon_cutoff", "eta_cutoff", "length_penalty")
    + ("transformers_version", "_from_model_config", "_commit_hash", "_original_object_hash")
)
ONES = frozenset({"num_beams", "num_return_sequences", "num_beam_groups"})


@dataclass(frozen=True)
class Greedy:
    """How greedy answers end.

    Attributes:
        limit: most new tokens.
        stops: ids that end an answer.
        penalty: repetition penalty, 1 for none.
    """

    limit: int
    stops: frozenset[int]
    penalty: float


def greedy(model: Any, options: dict[str, Any]) -> Greedy | None:
    """The rules of ``model.generate(**options)`` where it is plain greedy search that ``pack`` can do, else None.

    ``pack`` needs full attention in every layer, under a mask of its own: no sliding windows, no linear attention, no
    flash attention.
    """
    config = settings(model, options)
    if config is None or config.do_sample or not config.max_new_tokens:
        return None
    plain = type(config)()
    for name, value in vars(config).items():
        idle = value is None or value is False or value == getattr(plain, name, None) or (name in ONES and value == 1)
        if name not in GREEDY_SAFE_KEYS and not idle:
            return None
    text = model.config.get_text_config()
    layers = set(getattr(text, "layer_types", None) or ["full_attention"])
    if layers != {"full_attention"} or getattr(text, "sliding_window", None) is not None:
        return None
    if attention_of(model) not in ("sdpa", "eager") or not accepts_outputs(model):
        return None
    penalty = config.repetition_penalty
    return Greedy(config.max_new_tokens, stops(model, options), 1.0 if penalty is None else penalty)


def settings(model: Any, options: dict[str, Any]) -> Any:
    """The generation config of a call; None where the options hold what is none of its settings."""
    if "generation_config" in options:
        return None
    config = copy.deepcopy(model.generation_config)
    return None if config.update(**options) else config


def stops(model: Any, options: dict[str, Any]) -> frozenset[int]:
    """Ids that end an answer."""
    config = options.get("generation_config") or model.generation_config
    found = options.get("eos_token_id", config.eos_token_id)
    if isinstance(found, Tensor):
        found = found.tolist()
    return frozenset() if found is None else frozenset({found} if isinstance(found, int) else found)


@torch.no_grad()
def pack(
    model: Any,
    ready: Prepared,
    columns: int,
    tails: Sequence[Tensor],
    rules: Greedy,
    batch: int,
    report: Report,
    show: Callable[[int], None],
) -> list[Tensor]:
    """Greedy answers to several questions behind one prefix.

    Args:
        ready: one whole prompt of batch size 1, after the plan.
        columns: columns of the original prompt that all prompts share; text alone follows.
        tails: int64 [n] each, n > 0: the ids of every prompt behind the shared columns.
        batch: questions that run together.
        report: gets the milliseconds of "prefill" and "generate".
        show: called with the number of answers before each batch.

    Returns:
        int64 [m] on the CPU for each question, the end token included where there is one.
    """
    device = ready.stock["input_ids"].device
    with report.stage("prefill", device):
        prefix = Prefix.of(model, ready, columns)
    out: list[Tensor] = []
    for first in range(0, len(tails), batch):
        show(first)
        some = [t.to(device) for t in tails[first : first + batch]]
        with prefix.behind() as cache:
            out += _answers(prefix, cache, some, rules, report)
    return out


def _answers(prefix: Prefix, cache: Any, tails: list[Tensor], rules: Greedy, report: Report) -> list[Tensor]:
    """Answers of one batch; the cache holds the prefix, and what it gains is the caller's to take off."""
    model, device, dtype = prefix.model, prefix.ids.device, prefix.model.dtype
    stored = int(cache.get_mask_sizes(0, 0)[0])
    lengths = torch.tensor([len(t) for t in tails], device=device)
    asking = torch.arange(len(tails), device=device)
    owner = asking.repeat_interleave(lengths)
    place = torch.cat([torch.arange(len(t), device=device) for t in tails])
    ids, last = torch.cat(tails), lengths.cumsum(0) - 1
    columns = torch.full((stored,), VIDEO, device=device)
    found: list[list[int]] = [[] for _ in tails]
    stage = "prefill"
    while len(asking):
        columns = torch.cat([columns, owner])
        with report.stage(stage, device):
            logits = model(
                input_ids=ids[None],
                position_ids=prefix.start + place,
                attention_mask=_mask(columns, owner, dtype),
                use_cache=True,
                logits_to_keep=last,
                **handed(model, {"past_key_values": cache}),
            ).logits[0]
            if rules.penalty != 1:
                seen = [torch.cat([prefix.ids, tails[q], prefix.ids.new_tensor(found[q])]) for q in asking.tolist()]
                logits = _penalised(logits, seen, rules.penalty)
            token = logits.float().argmax(-1)
        for q, t in zip(asking.tolist(), token.tolist(), strict=True):
            found[q].append(t)
        going = [i for i, q in enumerate(asking.tolist()) if not _ended(found[q], rules)]
        asking, ids = asking[going], token[going]
        owner, last = asking, torch.arange(len(going), device=device)
        place = lengths[asking] + max(map(len, found)) - 1
        stage = "generate"
    return [torch.tensor(tokens) for tokens in found]


def _mask(columns: Tensor, owner: Tensor, dtype: torch.dtype) -> Tensor:
    """[1, 1, Q, K] to add to attention scores: a token sees the video and the earlier tokens of its own question.

    Args:
        columns: int64 [K], the question of every column in the cache, or ``VIDEO``.
        owner: int64 [Q], the question of every token that is computed; they are the last Q columns.
    """
    k, q = len(columns), len(owner)
    before = torch.arange(k, device=owner.device) <= torch.arange(k - q, k, device=owner.device)[:, None]
    seen = (columns == VIDEO) | (columns == owner[:, None]) & before
    mask = torch.zeros(q, k, dtype=dtype, device=owner.device)
    return mask.masked_fill_(~seen, torch.finfo(dtype).min)[None, None]


def _penalised(logits: Tensor, seen: list[Tensor], penalty: float) -> Tensor:
    """float32 [n, V]: logits in which the ids that a question has seen (int64 [m] each) are less likely."""
    from transformers import RepetitionPenaltyLogitsProcessor

    change: Any = RepetitionPenaltyLogitsProcessor(penalty)
    return torch.cat([change(ids[None], row[None].float()) for ids, row in zip(seen, logits, strict=True)])


def _ended(tokens: list[int], rules: Greedy) -> bool:
    return tokens[-1] in rules.stops or len(tokens) >= rules.limit
