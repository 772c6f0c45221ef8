"""Streams: what the thinker's layers held while it read (`prefill`) and while it wrote (`generated`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from vtoken.errors import InputError
from vtoken.thinkjepa.settings import NAMES


@dataclass
class Streams:
    """Hidden states of a vision-language model at several decoder layers, per sample.

    Attributes:
        tokens: by stream, [B, L, S, D]: samples, levels (decoder layers, low to high), tokens, width.
        masks: by stream, bool [B, S], which tokens are real.

    Raises:
        InputError: a stream is missing, or shapes that do not belong together.
    """

    tokens: dict[str, Tensor]
    masks: dict[str, Tensor]

    def __post_init__(self) -> None:
        for name in NAMES:
            if name not in self.tokens or name not in self.masks:
                raise InputError(f"Streams needs {' and '.join(NAMES)}, got {', '.join(self.tokens) or 'none'}")
            x, mask = self.tokens[name], self.masks[name]
            if x.dim() != 4 or mask.dtype != torch.bool or mask.shape != (len(x), x.shape[2]):
                raise InputError(
                    f"Streams.{name} must be [B, L, S, D] with a bool mask [B, S], got {list(x.shape)} and "
                    f"{mask.dtype} {list(mask.shape)}"
                )
        sizes = {(len(x), x.shape[1], x.shape[3]) for x in self.tokens.values()}
        if len(sizes) > 1:
            raise InputError(f"the streams differ in samples, levels or width: {sorted(sizes)}")

    def __len__(self) -> int:
        return len(self.tokens[NAMES[0]])

    @property
    def levels(self) -> int:
        return self.tokens[NAMES[0]].shape[1]

    @property
    def width(self) -> int:
        return self.tokens[NAMES[0]].shape[3]

    def take(self, samples: Tensor | slice) -> Streams:
        """Some of the samples."""
        return Streams({n: x[samples] for n, x in self.tokens.items()}, {n: m[samples] for n, m in self.masks.items()})

    def float(self) -> Streams:
        """The same in float32."""
        return Streams({n: x.float() for n, x in self.tokens.items()}, self.masks)

    @classmethod
    def stack(cls, parts: Sequence[Streams]) -> Streams:
        """Join samples; shorter ones are padded on the right and masked there.

        Raises:
            InputError: no parts, or parts of different levels or width.
        """
        if not parts:
            raise InputError("Streams.stack needs at least one part")
        tokens, masks = {}, {}
        for name in NAMES:
            longest = max(p.tokens[name].shape[2] for p in parts)
            if len({(p.levels, p.width) for p in parts}) > 1:
                raise InputError("Streams.stack: the parts come from different models or layers")
            rooms = [longest - p.tokens[name].shape[2] for p in parts]
            tokens[name] = torch.cat([pad(p.tokens[name], (0, 0, 0, r)) for p, r in zip(parts, rooms, strict=True)])
            masks[name] = torch.cat([pad(p.masks[name], (0, r)) for p, r in zip(parts, rooms, strict=True)])
        return cls(tokens, masks)


def masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    """Mean over the real tokens: [B, ..., S, D] and bool [B, S] -> [B, ..., D]; zero where there is none."""
    weight = mask.to(x.dtype)
    weight = weight / weight.sum(1, keepdim=True).clamp(min=1)
    return torch.einsum("b...sd,bs->b...d", torch.where(_over(mask, x), x, torch.zeros_like(x)), weight)


def _over(mask: Tensor, x: Tensor) -> Tensor:
    """The mask in the shape of [B, ..., S, 1]."""
    return mask.view(len(mask), *[1] * (x.dim() - 3), mask.shape[1], 1)
