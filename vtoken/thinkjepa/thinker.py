"""The thinker: what chosen decoder layers of a vision-language model hold while it reads and while it writes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from vtoken.errors import InputError, UnsupportedError
from vtoken.families.compat import cache_of
from vtoken.thinkjepa.streams import Streams


def spread_layers(depth: int) -> list[int]:
    """The layers of the paper, 0, 4, ... 24, 27 of 28, for a decoder of any depth: every seventh part, and the last."""
    return sorted({*range(0, depth, max(1, round(depth / 7))), depth - 1})


def decoder_layers(model: Any) -> nn.ModuleList:
    """The layers of the language model inside a vision-language model.

    Raises:
        InputError: none are found.
    """
    depth = model.config.get_text_config().num_hidden_layers
    decoder = model.get_decoder() if hasattr(model, "get_decoder") else None
    for owner in (decoder, getattr(decoder, "language_model", None), *model.modules()):
        layers = getattr(owner, "layers", None)
        if isinstance(layers, nn.ModuleList) and len(layers) == depth and hasattr(owner, "embed_tokens"):
            return layers
    raise InputError(f"{type(model).__name__} has no stack of {depth} decoder layers that can be listened to")


class Heard:
    """What the hooks of one ``generate`` caught; ``streams`` puts it together."""

    def __init__(self, model: Any, layers: list[int]) -> None:
        ends = model.generation_config.eos_token_id
        self._ends = [ends] if isinstance(ends, int) else list(ends or [])
        self._layers = layers
        self._calls: list[dict[int, Tensor]] = []
        self._inputs: list[tuple[Tensor | None, Any, Any]] = []

    def begin(self, ids: Tensor | None, mask: Any, cache: Any) -> None:
        """A forward of the whole model starts."""
        self._inputs.append((ids, mask, cache))
        self._calls.append({})

    def hear(self, layer: int, states: Tensor) -> None:
        """One layer of this forward is done."""
        if self._calls:
            self._calls[-1][layer] = states.detach()

    def streams(self, written: int) -> Streams:
        """States by stream: each token that was written and read again is one forward, those before are the prefill.

        The prefill of a wrapped model is more than one forward. Padding is masked, and so is everything from a sample's
        end token on, so that a row of a batch holds what the sample alone would.

        Args:
            written: new tokens of ``generate``, the last of which was not read.

        Raises:
            InputError: nothing was heard.
            UnsupportedError: layers that read a part of the prompt.
        """
        reads = len(self._calls) - max(written - 1, 0)
        if reads < 1 or not self._calls[0]:
            raise InputError("the thinker was not heard: call model.generate once while listening")
        if len({self._calls[0][i].shape[1] for i in self._layers}) > 1:
            raise UnsupportedError(
                "some of these layers read the last column of a prompt alone, as the upper layers of Gemma 4 do; give "
                "layers= below them"
            )
        states = [torch.stack([call[i] for i in self._layers], 1) for call in self._calls]
        read = torch.cat(states[:reads], 2)
        later = torch.cat(states[reads:], 2) if states[reads:] else read[:, :, :0]
        real = torch.cat([_real(s, *given[1:]) for s, given in zip(states[:reads], self._inputs, strict=False)], 1)
        return Streams({"prefill": read, "generated": later}, {"prefill": real, "generated": self._written(reads)})

    def _written(self, reads: int) -> Tensor:
        ids = [ids[:, -1:] for ids, *_ in self._inputs[reads:] if ids is not None]
        device = next(iter(self._calls[0].values())).device
        if not ids:
            batch = len(next(iter(self._calls[0].values())))
            return torch.zeros(batch, 0, dtype=torch.bool, device=device)
        tokens = torch.cat(ids, 1)
        ended = torch.isin(tokens, torch.tensor(self._ends, device=tokens.device, dtype=tokens.dtype))
        return ended.cumsum(1) == 0


def _real(states: Tensor, mask: Any, cache: Any) -> Tensor:
    """bool [B, n]: columns of a part of the prefill, states [B, layers, n, D], that are no padding."""
    batch, _, n, _ = states.shape
    rows = getattr(cache, "real_rows", None)  # of held prompts, whose mask has no row for padding
    if rows is not None and rows.shape[1] == n:
        return rows.to(states.device)
    if mask is None:
        return torch.ones(batch, n, dtype=torch.bool, device=states.device)
    if not isinstance(mask, Tensor) or mask.dim() != 2 or mask.shape[1] < n:
        found = list(mask.shape) if isinstance(mask, Tensor) else type(mask).__name__
        raise InputError(f"attention mask of the prefill is {found}, [B, {n}] or longer expected")
    return mask[:, -n:].bool()


@contextmanager
def listening(model: Any, layers: Sequence[int] | None = None) -> Iterator[Heard]:
    """Listen to decoder layers for the length of a block that calls ``model.generate`` once.

    The model may be wrapped: the states are then those of the cut prompt. Hooks are removed at the end, also after an
    error.

    Args:
        model: a vision-language model.
        layers: decoder layers, 0 the lowest; default ``spread_layers``.

    Raises:
        InputError: a layer that the model does not have.
    """
    stack = decoder_layers(model)
    chosen = sorted(set(spread_layers(len(stack)) if layers is None else layers))
    if not chosen or chosen[0] < 0 or chosen[-1] >= len(stack):
        raise InputError(f"layers={list(chosen)}: this thinker has decoder layers 0 to {len(stack) - 1}")
    heard = Heard(model, chosen)

    def begin(_: Any, args: tuple, kwargs: dict[str, Any]) -> None:
        ids = kwargs.get("input_ids", args[0] if args else None)
        heard.begin(ids, kwargs.get("attention_mask"), cache_of(kwargs))

    def catch(layer: int):
        def hook(_: Any, __: Any, output: Any) -> None:
            heard.hear(layer, output if isinstance(output, Tensor) else output[0])

        return hook

    hooks = []
    try:
        hooks.append(model.base_model.register_forward_pre_hook(begin, with_kwargs=True))  # a held prefill has no head
        hooks += [stack[i].register_forward_hook(catch(i)) for i in chosen]
        yield heard
    finally:
        for hook in hooks:
            hook.remove()


@torch.no_grad()
def think(
    model: Any, inputs: dict[str, Any], layers: Sequence[int] | None = None, max_new_tokens: int = 16
) -> tuple[Streams, Tensor]:
    """Read a prompt and write greedily; what the layers held on the way.

    Args:
        model: a vision-language model, wrapped or not.
        inputs: arguments of ``generate``, padded on the left.
        layers: see ``listening``.
        max_new_tokens: most tokens to write; the last one is written but never read, so it has no states.

    Returns:
        streams of every sample, and int64 [B, N] the sequences that ``generate`` gave.

    Raises:
        InputError: a layer that the model does not have, or ``max_new_tokens`` below 1.
    """
    if max_new_tokens < 1:
        raise InputError(f"max_new_tokens={max_new_tokens} must be at least 1")
    with listening(model, layers) as heard:
        out = model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False, num_beams=1)
    ids = out if isinstance(out, Tensor) else out.sequences
    return heard.streams(ids.shape[1] - inputs["input_ids"].shape[1]), ids
