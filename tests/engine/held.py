"""Held prompts for tests: random maps, cut inputs, and an oracle that copies states instead of turning keys.

The oracle runs the stock language model on the full prompt. Before every layer the hidden state of a held column is
replaced by that of the column it shows: the stock code then makes its key and value, rotated to the column's own
position. Nothing is shared with the code under test.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from tests.families.oracle import capture, language_model, visual_mask
from vtoken.data.hold import HoldMap


def random_map(model: Any, inputs: dict[str, Tensor], share: float = 0.4, hide: float = 0.0, seed: int = 0) -> HoldMap:
    """A random ``share`` of the visual columns is computed, the others show a random one of these or nothing."""
    generator = torch.Generator().manual_seed(seed)
    ids = inputs["input_ids"]
    visual = visual_mask(model, ids)
    show = []
    for own in visual.sum(1).tolist():
        row = torch.rand(own, generator=generator) < share
        if own:
            row[int(torch.randint(own, (), generator=generator))] = True
        rows = row.nonzero().squeeze(1)
        pick = rows[torch.randint(max(1, len(rows)), (own,), generator=generator)] if own else rows
        pick = torch.where(torch.rand(own, generator=generator) < hide, -1, pick)
        show.append(torch.where(row, torch.arange(own), pick))
    return HoldMap.of(show, visual, inputs["attention_mask"])


def features(model: Any, inputs: dict[str, Tensor]) -> dict[str, Any]:
    """``mm_encoder_outputs`` of the stock encoder."""
    out = {}
    with torch.no_grad():
        for modality, name in (("video", "pixel_values_videos"), ("image", "pixel_values")):
            if name in inputs:
                function = getattr(model.base_model, f"get_{modality}_features")
                accepted = inspect.signature(function).parameters
                named = {n: v for n, v in inputs.items() if n in accepted and n not in ("input_ids", "attention_mask")}
                out[modality] = function(**named, return_dict=True)
    return out


def cut(model: Any, inputs: dict[str, Tensor], hold: HoldMap) -> dict[str, Any]:
    """Arguments of the cut prompt: ids and mask of the rows, padded on the left, and their features."""
    columns = hold.columns()
    width = max(map(len, columns))
    ids = inputs["input_ids"].new_zeros(len(columns), width)
    mask = torch.zeros_like(ids)
    for b, own in enumerate(columns):
        ids[b, width - len(own) :] = inputs["input_ids"][b, own]
        mask[b, width - len(own) :] = 1
    given = features(model, inputs)
    for modality, output in given.items():
        place = inputs["input_ids"] == getattr(model.config, f"{modality}_token_id")
        kept, owner = hold.rows[place], place.nonzero()[:, 0]
        for name in ("pooler_output", "deepstack_features"):
            value = getattr(output, name, None)
            if value is not None:
                setattr(output, name, _slice(value, kept, owner, len(ids), name))
    return {"input_ids": ids, "attention_mask": mask, "mm_encoder_outputs": given}


def _slice(value: Any, kept: Tensor, owner: Tensor, samples: int, name: str) -> Any:
    if name == "deepstack_features":
        return [_slice(layer, kept, owner, samples, "") for layer in value]
    flat = torch.cat([part.reshape(-1, part.shape[-1]) for part in value])
    rows = [flat[kept & (owner == b)] for b in range(samples) if bool((owner == b).any())]
    return rows if isinstance(value, (list, tuple)) else torch.cat(rows)[:, None]  # as images of one row each


def positions(model: Any, inputs: dict[str, Tensor]) -> Tensor:
    """Positions of the whole prompt, as the stock ``generate`` prepares them."""
    return model._prepare_position_ids_for_generation(inputs["input_ids"], dict(inputs))


@contextmanager
def copying(model: Any, shows: list[Tensor]) -> Iterator[None]:
    """Inside, layers of the language model read the state of the shown column; one [n] a sample of the batch."""

    def before(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        hidden = args[0] if args else kwargs["hidden_states"]
        hidden = hidden.clone()
        for b, own in enumerate(shows):
            hidden[b, : len(own)] = hidden[b, own.clamp(min=0)]
        return ((hidden, *args[1:]), kwargs) if args else (args, kwargs | {"hidden_states": hidden})

    layers = language_model(model).layers
    hooks = [layer.register_forward_pre_hook(before, with_kwargs=True) for layer in layers]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


class Oracle:
    """Logits of held prompts by copying states over the full prompt, one sample at a time, without a cache."""

    def __init__(self, model: Any, inputs: dict[str, Tensor], hold: HoldMap) -> None:
        self.model, self.hold = model, hold
        self.seen, _ = capture(model, inputs)
        self.real = inputs["attention_mask"].bool()

    @torch.no_grad()
    def logits(self, b: int, more: Tensor) -> Tensor:
        """[n, V]: of the computed columns of sample b and of the tokens ``more`` (int64 [m]) behind the prompt."""
        given, shows, mask = self.given(b, more)
        with copying(self.model, [shows]):
            hidden = language_model(self.model)(**given, attention_mask=self._masks(mask, shows)).last_hidden_state[0]
        return self.model.lm_head(hidden[shows == torch.arange(len(shows))])

    def given(self, b: int, more: Tensor) -> tuple[dict[str, Any], Tensor, Tensor]:
        """Arguments of the language model for the full prompt, what its columns show, and what they see."""
        seen, at, m = self.seen, self.real[b].nonzero().squeeze(1), len(more)
        embeds = torch.cat([seen["inputs_embeds"][b, at], self.model.get_input_embeddings()(more)])
        n = len(embeds)
        place = torch.full((self.hold.shows.shape[1],), -1)
        place[at] = torch.arange(len(at))
        shows = self.hold.shows[b, at]
        shows = torch.cat([torch.where(shows < 0, -1, place[shows.clamp(min=0)]), torch.arange(len(at), n)])
        given = seen["position_ids"]
        mrope = given[-3:, b, at] if given is not None and given.dim() == 3 else None
        text = torch.arange(n)[None]
        where = text if mrope is None else torch.cat([text[None], self._on(mrope, m)[:, None]])
        extra: dict[str, Any] = {}
        if seen.get("visual_pos_masks") is not None:
            mine = seen["visual_pos_masks"].nonzero()[:, 0] == b
            visual = torch.cat([seen["visual_pos_masks"][b, at], torch.zeros(m, dtype=torch.bool)])
            extra["visual_pos_masks"] = visual[None]
            extra["deepstack_visual_embeds"] = [layer[mine] for layer in seen["deepstack_visual_embeds"]]
        mask = torch.ones(n, n, dtype=torch.bool).tril() & (shows >= 0)[None]
        mask |= torch.eye(n, dtype=torch.bool)  # a hidden column's own row: nothing reads it
        return {"inputs_embeds": embeds[None], "position_ids": where, "use_cache": False, **extra}, shows, mask

    def _masks(self, mask: Tensor, shows: Tensor) -> Any:
        """The mask of every kind of layer; a window counts the columns that are shown."""
        text = self.model.config.get_text_config()
        width, kinds = getattr(text, "sliding_window", None), set(getattr(text, "layer_types", None) or ())
        if width is None:
            return mask[None, None]
        place = (shows >= 0).cumsum(0)
        slid = mask & (place[:, None] - place[None] < width) | torch.eye(len(shows), dtype=torch.bool)
        if not kinds:
            return slid[None, None]
        return {"full_attention": mask[None, None], "sliding_attention": slid[None, None]}

    @staticmethod
    def _on(mrope: Tensor, more: int) -> Tensor:
        return torch.cat([mrope, mrope[:, -1:] + 1 + torch.arange(more)], dim=1)

    def greedy(self, count: int) -> Tensor:
        """int64 [B, count]."""
        out = []
        for b in range(len(self.real)):
            more = torch.zeros(0, dtype=torch.long)
            for _ in range(count):
                more = torch.cat([more, self.logits(b, more)[-1:].argmax(-1)])
            out.append(more)
        return torch.stack(out)

    def scores(self, tokens: Tensor) -> Tensor:
        """float [B * r], summed log-probability of the continuations int64 [B * r, n], r of them a sample."""
        each = len(tokens) // len(self.real)
        out = []
        for i, more in enumerate(tokens):
            log = self.logits(i // each, more[:-1])[-len(more) :].log_softmax(-1)
            out.append(log.gather(1, more[:, None]).sum())
        return torch.stack(out)
