"""The guided predictor: V-JEPA 2's own predictor, block-causal by frame, with guidance before each block."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from vtoken.errors import InputError
from vtoken.thinkjepa.pyramid import Pyramid
from vtoken.thinkjepa.streams import Streams


class GuidedPredictor(nn.Module):
    """Latents of past frames in, latents of the frames that follow out.

    Args:
        core: a ``VJEPA2Predictor`` of transformers, of a checkpoint or fresh (``fresh_predictor``).
        guide: guidance, or None for the predictor alone.
        causal: a token sees its own and earlier frames; False is V-JEPA 2's own full attention.
    """

    def __init__(self, core: nn.Module, guide: Pyramid | None = None, causal: bool = True) -> None:
        super().__init__()
        self.core, self.guide, self.causal = core, guide, causal
        config: Any = core.config
        self.patches = (config.crop_size // config.patch_size) ** 2

    def forward(self, past: Tensor, steps: int, streams: Streams | None = None) -> Tensor:
        """Predict.

        Args:
            past: float [B, T, P, D], latents of T time steps (tubelets) of P patches.
            steps: time steps to predict, right after the past.
            streams: the thinker's states; None for no guidance.

        Returns:
            float [B, steps, P, D].

        Raises:
            InputError: another number of patches than the core has positions for, no steps, or streams of another
                batch.
        """
        b, t, p, _ = past.shape
        if p != self.patches or steps < 1 or t < 1:
            raise InputError(f"{t} past and {steps} future steps of {p} patches; this predictor has {self.patches}")
        if streams is not None and len(streams) != b:
            raise InputError(f"guidance of {len(streams)} samples for {b} of past latents; each sample needs its own")
        core: Any = self.core
        embed = core.embeddings
        context = embed.predictor_embeddings(past.flatten(1, 2))
        query = embed.mask_tokens[1 % embed.num_mask_tokens].expand(b, steps * p, -1)
        x = torch.cat([context, query], dim=1)  # in order of position, so nothing is to be sorted
        mask = block_causal(t + steps, p, x.device) if self.causal else None
        read = self.guide.read(streams) if self.guide is not None and streams is not None else None
        turn = rotation(core.layer[0].attention, x)
        for i, layer in enumerate(core.layer):
            if self.guide is not None and read is not None:
                x = self.guide.apply(i, x, read)
            x = run_layer(layer, x, turn, mask)
        return core.proj(core.layernorm(x[:, t * p :])).view(b, steps, p, -1)


def fresh_predictor(config: Any, seed: int = 0) -> nn.Module:
    """A ``VJEPA2Predictor`` from nothing: truncated normal of 0.02, residual branches over the root of 2 * layer."""
    from transformers.models.vjepa2.modeling_vjepa2 import VJEPA2Predictor

    core: Any = VJEPA2Predictor(config)
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in core.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02, generator=random)
                if module.bias is not None:
                    module.bias.zero_()
        core.embeddings.mask_tokens.zero_()
        for i, layer in enumerate(core.layer, 1):
            layer.attention.proj.weight.div_((2 * i) ** 0.5)
            layer.mlp.fc2.weight.div_((2 * i) ** 0.5)
    return core


def block_causal(steps: int, patches: int, device: torch.device | None = None) -> Tensor:
    """bool [N, N] for N = steps * patches: True where the query's frame is not before the key's."""
    frame = torch.arange(steps, device=device).repeat_interleave(patches)
    return frame[:, None] >= frame[None, :]


def rotation(attention: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    """Cosine and sine [N, head] of V-JEPA 2's rotary embedding for tokens 0 to N - 1, all three axes in one."""
    rest = attention.attention_head_size - attention.d_dim - attention.h_dim - attention.w_dim
    cos, sin = [], []
    for ids, size in zip(
        attention.get_position_ids(x), (attention.d_dim, attention.h_dim, attention.w_dim), strict=True
    ):
        omega = 1.0 / 10000 ** (torch.arange(size // 2, dtype=x.dtype, device=x.device) / (size / 2))
        # tiled, not interleaved as the pairs are: the checkpoints were trained so
        angle = (ids[:, None] * omega).repeat(1, 2)
        cos.append(angle.cos())
        sin.append(angle.sin())
    cos.append(x.new_ones(x.shape[1], rest))
    sin.append(x.new_zeros(x.shape[1], rest))
    return torch.cat(cos, 1), torch.cat(sin, 1)


def run_layer(layer: Any, x: Tensor, turn: tuple[Tensor, Tensor], mask: Tensor | None) -> Tensor:
    """One block of the stock predictor under a mask, which its own forward does not take."""
    attention = layer.attention
    normed = layer.norm1(x)
    shape = (*x.shape[:2], attention.num_attention_heads, attention.attention_head_size)
    q, k, v = (part(normed).view(shape).transpose(1, 2) for part in (attention.query, attention.key, attention.value))
    dropout = attention.dropout_prob if layer.training else 0.0
    y = scaled_dot_product_attention(
        _rotate(q, turn), _rotate(k, turn), v, attn_mask=mask, dropout_p=dropout, scale=attention.scaling
    )
    x = layer.drop_path(attention.proj(y.transpose(1, 2).reshape(x.shape))) + x
    return layer.drop_path(layer.mlp(layer.norm2(x))) + x


def _rotate(x: Tensor, turn: tuple[Tensor, Tensor]) -> Tensor:
    cos, sin = turn
    even, odd = x.unflatten(-1, (-1, 2)).unbind(-1)
    return x * cos + torch.stack((-odd, even), -1).flatten(-2) * sin
