"""The thinker: what chosen decoder layers of a vision-language model hold while it reads and while it writes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from vtoken.errors import InputError
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
        self._inputs: list[tuple[Tensor | None, Tensor | None]] = []

    def begin(self, ids: Tensor | None, mask: Tensor | None) -> None:
        """A forward of the whole model starts."""
        self._inputs.append((ids, mask))
        self._calls.append({})

    def hear(self, layer: int, states: Tensor) -> None:
        """One layer of this forward is done."""
        if self._calls:
            self._calls[-1][layer] = states.detach()

    def streams(self) -> Streams:
        """States by stream: the first forward is the prefill, each later one a generated token.

        Padding is masked, and so is everything from a sample's end token on, so that a row of a batch holds what the
        sample alone would.

        Raises:
            InputError: nothing was heard.
        """
        if not self._calls or not self._calls[0]:
            raise InputError("the thinker was not heard: call model.generate once while listening")
        first, *later = (torch.stack([call[i] for i in self._layers], 1) for call in self._calls)
        (_, mask), *fed = self._inputs
        real = torch.ones(len(first), first.shape[2], dtype=torch.bool, device=first.device)
        if mask is not None:
            if mask.dim() != 2 or mask.shape != real.shape:
                raise InputError(f"attention mask of the prefill is {list(mask.shape)}, [B, {real.shape[1]}] expected")
            real = mask.bool()
        written = torch.cat(later, 2) if later else first[:, :, :0]
        return Streams({"prefill": first, "generated": written}, {"prefill": real, "generated": self._written(fed)})

    def _written(self, fed: list[tuple[Tensor | None, Tensor | None]]) -> Tensor:
        ids = [i[:, -1:] for i, _ in fed if i is not None]
        device = next(iter(self._calls[0].values())).device
        if not ids:
            batch = len(next(iter(self._calls[0].values())))
            return torch.zeros(batch, 0, dtype=torch.bool, device=device)
        tokens = torch.cat(ids, 1)
        ended = torch.isin(tokens, torch.tensor(self._ends, device=tokens.device, dtype=tokens.dtype))
        return ended.cumsum(1) == 0


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
        heard.begin(kwargs.get("input_ids", args[0] if args else None), kwargs.get("attention_mask"))

    def catch(layer: int):
        def hook(_: Any, __: Any, output: Any) -> None:
            heard.hear(layer, output if isinstance(output, Tensor) else output[0])

        return hook

    hooks = []
    try:
        hooks.append(model.register_forward_pre_hook(begin, with_kwargs=True))
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
    return heard.streams(), out if isinstance(out, Tensor) else out.sequences
