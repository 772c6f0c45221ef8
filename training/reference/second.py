"""A second family for the same recipe: Qwen2.5-VL's classes, whose time is in M-RoPE and not in the text.

It starts from the reference model. The tower is the same function but for its positional table: zero-mean weights make
RMSNorm what LayerNorm was, a gate of ones makes its MLP the old one, and one more block adds the bias that the patch
embedding lacks. The language model takes over all matrices; between its layers stand as many new ones, which start as
nothing. Time, which the reference model reads from stamps, has to be learned: its states teach the new model's.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention as attend

from vtoken.reference import model as shape

FAMILY = "qwen2_5_vl"
RATE = 8  # positions a second: one a time step at 16 frames a second


def is_one(model: Any) -> bool:
    """Whether a model is of the second family."""
    return model.config.model_type == FAMILY


def config(words: Any, layers: int, depth: int) -> Any:
    """Qwen2_5_VLConfig with the widths of the reference model; a window of the tower is a whole 112x112 frame."""
    from transformers import Qwen2_5_VLConfig

    given = shape.config(words, layers, depth)
    vision = {n: v for n, v in given.vision_config.to_dict().items() if n in VISION}
    vision |= {"fullatt_block_indexes": [depth - 1], "window_size": 112, "tokens_per_second": RATE}
    text = {n: v for n, v in given.text_config.to_dict().items() if n in TEXT}
    pairs = given.text_config.head_dim // 2
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1] * pairs}  # as the reference model's
    ids = {f"{n}_token_id": getattr(given, f"{n}_token_id") for n in ("image", "video", "vision_start", "vision_end")}
    return Qwen2_5_VLConfig(
        vision_config=vision, text_config=text | {"rope_parameters": rope}, tie_word_embeddings=False, **ids
    )


VISION = ("hidden_size", "hidden_act", "intermediate_size", "num_heads", "out_hidden_size", "patch_size")
VISION += ("spatial_merge_size", "temporal_patch_size", "depth")
TEXT = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "eos_token_id")
TEXT += ("num_key_value_heads", "max_position_embeddings", "rms_norm_eps", "pad_token_id", "bos_token_id")


def build(words: Any, seed: int, teacher: Any, heads: list[tuple[Tensor, Tensor]], layers: int) -> Any:
    """The model as it starts, float32.

    Args:
        teacher: the reference model.
        heads: size of its queries and keys before their norm, float32 [heads] each, by layer.
        layers: of the language model, the teacher's or twice as many.
    """
    from transformers import Qwen2_5_VLForConditionalGeneration

    torch.manual_seed(seed)
    given = teacher.config
    depth = given.vision_config.depth + 1
    model: Any = Qwen2_5_VLForConditionalGeneration(config(words, layers, depth))
    with torch.no_grad():
        _tower(model.model.visual, teacher.model.visual)
        mine, theirs = model.model.language_model, teacher.model.language_model
        mine.embed_tokens.load_state_dict(theirs.embed_tokens.state_dict())
        mine.norm.load_state_dict(theirs.norm.state_dict())
        model.lm_head.load_state_dict(teacher.lm_head.state_dict())
        each = layers // len(theirs.layers)
        for i, layer in enumerate(mine.layers):
            if i % each == each - 1:
                _copied(layer, theirs.layers[i // each], *heads[i // each])
            else:
                _fresh(layer)
    return model


def _copied(layer: Any, given: Any, q_size: Tensor, k_size: Tensor) -> None:
    """A layer of the reference model; what its norm of queries and keys divided by becomes a constant of each head."""
    layer.mlp.load_state_dict(given.mlp.state_dict())
    layer.input_layernorm.load_state_dict(given.input_layernorm.state_dict())
    layer.post_attention_layernorm.load_state_dict(given.post_attention_layernorm.state_dict())
    own, old = layer.self_attn, given.self_attn
    own.o_proj.weight.copy_(old.o_proj.weight)
    for name, norm, size in (("q_proj", old.q_norm, q_size), ("k_proj", old.k_norm, k_size)):
        scale = (norm.weight[None] / size[:, None]).flatten()
        getattr(own, name).weight.copy_(getattr(old, name).weight * scale[:, None])
    own.v_proj.weight.copy_(old.v_proj.weight)
    for name in ("q_proj", "k_proj", "v_proj"):
        getattr(own, name).bias.zero_()


def _fresh(layer: Any) -> None:
    for name, p in layer.named_parameters():
        if "layernorm" in name:
            p.fill_(1)
        elif p.dim() < 2 or "o_proj" in name or "down_proj" in name:
            p.zero_()
        else:
            p.normal_(0, p.shape[1] ** -0.5)


def _tower(own: Any, old: Any) -> None:
    """The reference model's blocks behind one that adds the bias of its patch embedding and its mean place."""
    width = own.patch_embed.proj.out_channels
    centre = torch.eye(width) - 1 / width  # every sum that enters the stream has mean zero, so that no norm subtracts
    weight = old.patch_embed.proj.weight
    own.patch_embed.proj.weight.copy_((centre @ weight.flatten(1)).view_as(weight))
    first = own.blocks[0]
    for linear in (first.attn.qkv, first.attn.proj, first.mlp.gate_proj, first.mlp.up_proj, first.mlp.down_proj):
        linear.weight.normal_(0, linear.in_features**-0.5)
        linear.bias.zero_()
    first.attn.qkv.weight[2 * width :].zero_()
    first.mlp.down_proj.weight.zero_()
    first.attn.proj.bias.copy_(centre @ (old.patch_embed.proj.bias + old.pos_embed.weight.mean(0)))
    for block, given in zip(own.blocks[1:], old.blocks, strict=True):
        block.norm1.weight.copy_(given.norm1.weight)
        block.norm2.weight.copy_(given.norm2.weight)
        _linear(block.attn.qkv, given.attn.qkv, given.norm1.bias)
        _linear(block.attn.proj, given.attn.proj, out=centre)
        _linear(block.mlp.gate_proj, given.mlp.linear_fc1, given.norm2.bias)
        _linear(block.mlp.down_proj, given.mlp.linear_fc2, out=centre)
        block.mlp.up_proj.weight.zero_()
        block.mlp.up_proj.bias.fill_(1)
    own.merger.ln_q.weight.copy_(old.merger.norm.weight)
    _linear(own.merger.mlp[0], old.merger.linear_fc1, old.merger.norm.bias.repeat(4))
    _linear(own.merger.mlp[2], old.merger.linear_fc2)


def _linear(own: nn.Linear, old: nn.Linear, shift: Tensor | None = None, out: Tensor | None = None) -> None:
    """The old layer behind a norm that shifts its output by ``shift``, and before a matrix."""
    weight, bias = old.weight, old.bias if shift is None else old.bias + old.weight @ shift
    own.weight.copy_(weight if out is None else out @ weight)
    own.bias.copy_(bias if out is None else out @ bias)


def vision_forward(model: Any, rows: Tensor) -> Tensor:
    """As ``vtoken.reference.model.vision_forward``: float32 [steps * 64, 1176] to [steps * 16, SIDE]."""
    from transformers import vision_utils as hf
    from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import apply_rotary_pos_emb_vision

    visual = model.model.visual
    x = (rows @ visual.patch_embed.proj.weight.flatten(1).T).view(-1, 64, visual.patch_embed.proj.out_channels)
    cos, sin = visual.rotary_pos_emb(x, hf.get_vision_position_ids(torch.tensor([[1, 8, 8]]), 2, kwargs={}))
    for block in visual.blocks:
        attention = block.attn
        qkv = attention.qkv(block.norm1(x)).view(len(x), 64, 3, attention.num_heads, -1)
        q, k, v = qkv.unbind(2)
        q, k = apply_rotary_pos_emb_vision(q, k, cos, sin)
        y = attend(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))
        x = x + attention.proj(y.transpose(1, 2).reshape(x.shape))
        x = x + block.mlp(block.norm2(x))
    return visual.merger(x.reshape(-1, x.shape[-1]))


@torch.no_grad()
def head_sizes(teacher: Any, embeds: Tensor, positions: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Root mean square of the reference model's queries and keys before their norm, float32 [heads] each, by layer."""
    found: list[tuple[Tensor, Tensor]] = []
    hooks = []
    for layer in teacher.model.language_model.layers:
        own: list[Tensor] = []
        for norm in (layer.self_attn.q_norm, layer.self_attn.k_norm):
            hooks.append(norm.register_forward_pre_hook(lambda _, x, own=own: own.append(_size(x[0]))))
        found.append(own)  # type: ignore[arg-type]
    teacher.model.language_model(inputs_embeds=embeds, position_ids=positions, use_cache=False)
    for hook in hooks:
        hook.remove()
    return [(own[0], own[1]) for own in found]


def _size(x: Tensor) -> Tensor:
    """float32 [heads], the root mean square of [B, N, heads, side]."""
    return x.float().pow(2).mean((0, 1, 3)).sqrt()
