"""What a model must answer when tokens are dropped, computed without vtoken.

The stock model runs once on everything; a hook records what its language model is given (embeddings with the visual
features in place, M-RoPE positions, DeepStack rows, Gemma 4's rows of every layer). Those rows are then sliced, and the
language model and its head run on one sample at a time: no padding, no cache, no encoder, no ids. Nothing here is
shared with the code under test.

Positions of kept tokens are the original three M-RoPE rows where the family has them, beside a contiguous text row
(the mask code reads gaps in it as packed sequences), else contiguous. Gemma3 lets the tokens of one image see each
other, Gemma 4 too in its layers with a window, PaliGemma all of the prompt; their masks are written out. Gemma3's
sliding window counts distances in the sequence it is given, so its tiny config has a window longer than any sequence.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor


@dataclass
class Row:
    """One sample's language model inputs, padding removed and dropped tokens sliced away.

    Attributes:
        embeds: [n, D].
        mrope: [3, n] original positions, None for 1-D positions.
        visual: bool [n], the tokens that DeepStack adds to; None without DeepStack.
        deepstack: one [visual tokens, D] a layer.
        block: int [n], tokens with the same number (from 0) see each other in both directions; None if causal.
        layers: [n, L, d], what Gemma 4 adds to a token's row in every layer; else None.
    """

    embeds: Tensor
    mrope: Tensor | None
    visual: Tensor | None
    deepstack: list[Tensor]
    block: Tensor | None
    layers: Tensor | None = None

    def append(self, model: Any, token: Tensor) -> None:
        """Add a generated token: the next position on every row of the last one, text, causal."""
        self.embeds = torch.cat([self.embeds, model.get_input_embeddings()(token[None])])
        if self.layers is not None:
            self.layers = torch.cat([self.layers, language_model(model).get_per_layer_inputs(token[None, None])[0]])
        if self.mrope is not None:
            self.mrope = torch.cat([self.mrope, self.mrope[:, -1:] + 1], dim=1)
        if self.visual is not None:
            self.visual = torch.cat([self.visual, self.visual.new_zeros(1)])
        if self.block is not None:
            self.block = torch.cat([self.block, self.block.new_full((1,), -1)])


def language_model(model: Any) -> Any:
    inner = model.model
    return inner.language_model if hasattr(inner, "language_model") else inner.text_model


def visual_mask(model: Any, input_ids: Tensor) -> Tensor:
    """bool [B, N]: placeholders of images and videos."""
    ids = [getattr(model.config, name, None) for name in ("image_token_id", "video_token_id")]
    return torch.isin(input_ids, torch.tensor([i for i in ids if i is not None]))


def random_keep(model: Any, inputs: dict[str, Tensor], share: float, seed: int = 0) -> Tensor:
    """bool [B, N]: all text and a random ``share`` of the visual placeholders."""
    generator = torch.Generator().manual_seed(seed)
    ids = inputs["input_ids"]
    return ~visual_mask(model, ids) | (torch.rand(ids.shape, generator=generator) < share)


def capture(model: Any, inputs: dict[str, Tensor]) -> tuple[dict[str, Any], Tensor]:
    """What the stock model hands to its language model, and the stock logits [B, N, V]."""
    seen: dict[str, Any] = {}
    hook = language_model(model).register_forward_pre_hook(lambda _, __, kwargs: seen.update(kwargs), with_kwargs=True)
    try:
        with torch.no_grad():
            logits = model(**inputs, use_cache=False).logits
    finally:
        hook.remove()
    return seen, logits


def rows(model: Any, inputs: dict[str, Tensor], keep: Tensor) -> list[Row]:
    """The sliced language model inputs of every sample; ``keep`` bool [B, N] is ignored on padding."""
    seen, _ = capture(model, inputs)
    keep = keep & inputs["attention_mask"].bool()
    positions, visual = seen.get("position_ids"), seen.get("visual_pos_masks")
    mrope = positions[-3:] if positions is not None and positions.ndim == 3 else None
    out = []
    for b in range(len(keep)):
        at = keep[b].nonzero().squeeze(1)
        deepstack = []
        if visual is not None:
            owner = visual.nonzero()  # (sample, place) of every DeepStack row
            mine = (owner[:, 0] == b) & keep[b, owner[:, 1]]
            deepstack = [layer[mine] for layer in seen["deepstack_visual_embeds"]]
        out.append(
            Row(
                seen["inputs_embeds"][b, at],
                None if mrope is None else mrope[:, b, at],
                None if visual is None else visual[b, at],
                deepstack,
                _blocks(model, inputs, b, at),
                None if seen.get("per_layer_inputs") is None else seen["per_layer_inputs"][b, at],
            )
        )
    return out


def _blocks(model: Any, inputs: dict[str, Tensor], b: int, at: Tensor) -> Tensor | None:
    family, types = model.config.model_type, inputs.get("token_type_ids")
    if family == "gemma4":
        types = inputs.get("mm_token_type_ids")
    if types is None or family not in ("gemma3", "gemma4", "paligemma"):
        return None
    if family == "paligemma":  # type 0 is the prefix
        return torch.where(types[b, at] == 0, 0, -1)
    image = types[b] > 0
    starts = image & ~torch.cat([image.new_zeros(1), image[:-1]])
    return torch.where(image, starts.long().cumsum(0) - 1, -1)[at]


@torch.no_grad()
def run(model: Any, row: Row) -> Tensor:
    """Logits [n, V] of one sliced sample."""
    n = len(row.embeds)
    text = torch.arange(n)[None] + (model.config.model_type == "paligemma")  # PaliGemma counts from 1
    positions: Tensor = text if row.mrope is None else torch.cat([text[None], row.mrope[:, None]])
    kwargs: dict[str, Any] = {}
    if row.visual is not None:
        kwargs |= {"visual_pos_masks": row.visual[None], "deepstack_visual_embeds": row.deepstack}
    if row.layers is not None:
        kwargs["per_layer_inputs"] = row.layers[None]
    mask: Any = None
    if row.block is not None:
        same = (row.block[:, None] == row.block[None]) & (row.block >= 0)[None]
        causal = torch.ones(n, n, dtype=torch.bool).tril()
        mask = (causal | same)[None, None]
        if model.config.model_type in ("gemma3", "gemma4"):
            assert n <= model.config.text_config.sliding_window
            whole = mask if model.config.model_type == "gemma3" else causal[None, None]
            mask = {"full_attention": whole, "sliding_attention": mask}
    hidden = language_model(model)(
        inputs_embeds=row.embeds[None], position_ids=positions, attention_mask=mask, use_cache=False, **kwargs
    ).last_hidden_state
    return model.lm_head(hidden)[0]


def oracle_logits(model: Any, inputs: dict[str, Tensor], keep: Tensor) -> list[Tensor]:
    """Logits [kept tokens, V] of each sample when the tokens outside ``keep`` (bool [B, N]) are not there."""
    return [run(model, row) for row in rows(model, inputs, keep)]


@torch.no_grad()
def oracle_generate(model: Any, inputs: dict[str, Tensor], keep: Tensor, count: int) -> Tensor:
    """int64 [B, count]: greedy tokens, everything computed anew for each of them."""
    out = []
    for row in rows(model, inputs, keep):
        tokens = []
        for _ in range(count):
            token = run(model, row)[-1].argmax()
            tokens.append(token)
            row.append(model, token)
        out.append(torch.stack(tokens))
    return torch.stack(out)


@torch.no_grad()
def oracle_scores(model: Any, inputs: dict[str, Tensor], keep: Tensor, tokens: Tensor) -> Tensor:
    """float [B * r]: summed log-probability of given continuations, int64 [B * r, n], r of them a sample in order.

    Equals ``sequences_scores`` of a beam search with length_penalty=0, whose every beam has its own cache.
    """
    samples = rows(model, inputs, keep)
    each = len(tokens) // len(samples)
    out = []
    for i, continuation in enumerate(tokens):
        row = replace(samples[i // each])
        start = len(row.embeds)
        for token in continuation[:-1]:
            row.append(model, token)
        scores = run(model, row)[start - 1 :].log_softmax(-1)
        out.append(scores.gather(1, continuation[:, None]).sum())
    return torch.stack(out)
