"""The reference model: Qwen3-VL's classes at 3 million parameters, its tokenizer and its processor files."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vtoken.reference.world import COLOURS, SHAPES, SYMBOLS

SPECIAL = (
    "<|pad|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
TEXT = """user assistant What Which Where How Does does do did is are was the a an in at of on to and or for from
symbol symbols panel show shows shown seconds second order first last comes after before follows many times time lamp
flash flashes half way moving still shape go turn back end colour scene that once it left right up down top middle
bottom yes no none ? , . : between"""
WORDS = TEXT.split()
SIDE = 192  # width of the language model
PATCH = 14
PROCESSORS = {
    "qwen3_vl": ("Qwen3VLProcessor", "Qwen3VLVideoProcessor"),
    "qwen2_5_vl": ("Qwen2_5_VLProcessor", "Qwen2VLVideoProcessor"),
}
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% if m['content'] is string %}{{ m['content'] }}{% else %}{% for c in m['content'] %}"
    "{% if c['type'] == 'video' %}<|vision_start|><|video_pad|><|vision_end|>"
    "{% elif c['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% else %}{{ c['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def vocabulary() -> list[str]:
    """Special tokens, words, symbols, names, digits and one token for every tenth of a second from 0.0 to 9.9."""
    tenths = [f"{i // 10}.{i % 10}" for i in range(100)]
    words = ["[UNK]", *WORDS, *SYMBOLS, *COLOURS, *SHAPES, *"0123456789", *tenths]
    return [*SPECIAL, *dict.fromkeys(words)]


def tokenizer() -> Any:
    """A word-level fast tokenizer; ``<1.5 seconds>``, the mark of a time step, is the one token 1.5."""
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocab = {word: i for i, word in enumerate(vocabulary())}
    inner = Tokenizer(models.WordLevel(vocab, unk_token="[UNK]"))
    inner.normalizer = normalizers.Sequence(
        [normalizers.Replace("<", " "), normalizers.Replace(Regex(" seconds>"), " ")]
    )
    inner.pre_tokenizer = pre_tokenizers.Split(Regex(r"\d+\.\d|\d|[A-Za-z]+|[^\sA-Za-z\d]"), "removed", invert=True)
    out = PreTrainedTokenizerFast(
        tokenizer_object=inner,
        unk_token="[UNK]",
        pad_token="<|pad|>",
        eos_token="<|im_end|>",
        extra_special_tokens=[t for t in SPECIAL if t not in ("<|pad|>", "<|im_end|>")],
    )
    out.chat_template = TEMPLATE
    return out


def config(words: Any, layers: int = 4, depth: int = 3) -> Any:
    """Qwen3VLConfig: 112x112 frames are 8x8 patches of 14 pixels, 4x4 cells a step of two frames."""
    from transformers import Qwen3VLConfig

    ids = {name: words.convert_tokens_to_ids(f"<|{name}|>") for name in ("vision_start", "vision_end")}
    pads = {f"{n}_token_id": words.convert_tokens_to_ids(f"<|{n}_pad|>") for n in ("image", "video")}
    end, pad = words.convert_tokens_to_ids("<|im_end|>"), words.convert_tokens_to_ids("<|pad|>")
    vision = {
        "depth": depth,
        "hidden_size": 128,
        "intermediate_size": 384,
        "num_heads": 4,
        "out_hidden_size": SIDE,
        "patch_size": PATCH,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
        "num_position_embeddings": 64,
        "deepstack_visual_indexes": [],
    }
    text = {
        "vocab_size": len(words),
        "hidden_size": SIDE,
        "intermediate_size": 512,
        "num_hidden_layers": layers,
        "num_attention_heads": 6,
        "num_key_value_heads": 6,
        "head_dim": 32,
        "max_position_embeddings": 32768,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 10000.0,
            "mrope_section": [6, 5, 5],
            "mrope_interleaved": True,
        },
        "tie_word_embeddings": False,
        "pad_token_id": pad,
        "eos_token_id": end,
        "bos_token_id": None,
    }
    return Qwen3VLConfig(
        vision_config=vision,
        text_config=text,
        vision_start_token_id=ids["vision_start"],
        vision_end_token_id=ids["vision_end"],
        tie_word_embeddings=False,
        **pads,
    )


def build(words: Any, seed: int = 0, **sizes: int) -> Any:
    """A fresh model, float32, seeded; tokens of tenths of a second start as smooth functions of their time."""
    from transformers import Qwen3VLForConditionalGeneration

    torch.manual_seed(seed)
    model: Any = Qwen3VLForConditionalGeneration(config(words, **sizes))
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.dim() >= 2 and ("layers" in name or "visual" in name):
                p.normal_(0, p[0].numel() ** -0.5)
        embed = model.get_input_embeddings().weight
        embed.normal_(0, 0.5)
        tenths = torch.arange(100) / 10
        rates = torch.pi * 2 ** torch.linspace(-2, 2, SIDE // 2)
        waves = torch.cat([torch.sin(tenths[:, None] * rates), torch.cos(tenths[:, None] * rates)], 1)
        first = words.convert_tokens_to_ids("0.0")
        embed[first : first + 100] = waves * 0.5
    return model


@torch.no_grad()
def whiten(model: Any, rows: Tensor) -> None:
    """Start the patch embedding at the whitened principal components of patches: fine detail counts from the start."""
    proj = model.model.visual.patch_embed.proj
    mean = rows.mean(0)
    values, vectors = torch.linalg.eigh((rows - mean).T @ (rows - mean) / len(rows))
    values, vectors = values.flip(0), vectors.flip(1)
    n = len(proj.weight)
    basis = vectors[:, :n] / (values[:n] + 0.02).sqrt()
    mix = torch.linalg.qr(torch.randn(n, n)).Q
    proj.weight.copy_((basis @ mix).T.reshape(proj.weight.shape))
    proj.bias.copy_(-(mean @ basis @ mix))


@torch.no_grad()
def scale_features(model: Any, rows: Tensor) -> None:
    """Scale the merger's last layer so that features are as large as word embeddings."""
    last = model.model.visual.merger.linear_fc2
    factor = 0.5 / float(vision_forward(model, rows).std())
    last.weight.mul_(factor)
    last.bias.mul_(factor)


def vision_forward(model: Any, rows: Tensor) -> Tensor:
    """Features of whole 112x112 steps in one batch: what ``model.visual`` gives, many times faster on a CPU.

    Args:
        rows: float32 [steps * 64, 1176], in the processor's layout.

    Returns:
        float32 [steps * 16, SIDE].
    """
    from transformers.models.qwen3_vl.modeling_qwen3_vl import apply_rotary_pos_emb_vision

    visual = model.model.visual
    x = rows @ visual.patch_embed.proj.weight.flatten(1).T + visual.patch_embed.proj.bias
    indices, weights, positions = _geometry(visual)
    x = x.view(-1, 64, x.shape[-1]) + (visual.pos_embed(indices) * weights[:, :, None]).sum(1)
    cos, sin = visual.rotary_pos_emb(x, positions)
    for block in visual.blocks:
        attention = block.attn
        qkv = attention.qkv(block.norm1(x)).view(len(x), 64, 3, attention.num_heads, -1)
        q, k, v = qkv.unbind(2)
        q, k = apply_rotary_pos_emb_vision(q, k, cos, sin)
        q, k, v = (a.transpose(1, 2) for a in (q, k, v))
        y = torch.nn.functional.scaled_dot_product_attention(q, k, v)
        x = x + attention.proj(y.transpose(1, 2).reshape(x.shape))
        x = x + block.mlp(block.norm2(x))
    return visual.merger(x.reshape(-1, x.shape[-1]))


def _geometry(visual: Any) -> tuple[Tensor, Tensor, Tensor]:
    from transformers import vision_utils as hf

    grid = torch.tensor([[1, 8, 8]])
    indices, weights = hf.get_vision_interpolation_indices_and_weights(
        grid,
        num_grid_per_side=visual.num_grid_per_side,
        mode=visual.interpolation_mode,
        align_corners=visual.interpolation_align_corners,
        spatial_merge_size=2,
        kwargs={},
    )
    return indices, weights, hf.get_vision_position_ids(grid, 2, kwargs={})


def save(model: Any, words: Any, folder: Path) -> None:
    """Write the checkpoint in float16 with tokenizer and processor files; the folder appears whole or not at all."""
    part = folder.with_name(f".{folder.name}.{os.getpid()}.part")
    shutil.rmtree(part, ignore_errors=True)
    half = type(model)(model.config)
    half.load_state_dict(model.state_dict())
    half.to(torch.float16).save_pretrained(part)
    words.save_pretrained(part)
    for file in part.iterdir():
        file.chmod(0o644)  # safetensors writes for the owner alone
    size = {"shortest_edge": 4096, "longest_edge": 24_576 * 32 * 32}  # as published for Qwen3-VL
    common = {
        "size": size,
        "patch_size": PATCH,
        "merge_size": 2,
        "temporal_patch_size": 2,
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
        "do_sample_frames": False,
        "processor_class": PROCESSORS[model.config.model_type][0],
    }
    images = common | {"image_processor_type": "Qwen2VLImageProcessor"}
    videos = common | {"video_processor_type": PROCESSORS[model.config.model_type][1]}
    (part / "preprocessor_config.json").write_text(json.dumps(images, indent=2) + "\n")
    (part / "video_preprocessor_config.json").write_text(json.dumps(videos, indent=2) + "\n")
    old = folder.with_name(f".{folder.name}.{os.getpid()}.old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        os.replace(folder, old)
    os.replace(part, folder)
    shutil.rmtree(old, ignore_errors=True)
