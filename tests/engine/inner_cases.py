"""Deeper tiny models, prompts and plans for the tests of methods inside the language model."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import torch
from torch import Tensor

from tests.families.configs import Spec
from tests.families.oracle import visual_mask
from tests.families.tiny import FAMILIES, TinyFamily
from vtoken.engine.inner import Visual, installed
from vtoken.methods.plan import Plan

LAYERS = 6
STACKS = (
    "llava",
    "llava_onevision",
    "llava_next",
    "qwen2_vl",
    "qwen2_5_vl",
    "qwen3_vl",
    "qwen3_5",
    "qwen3_vl_moe",
    "qwen2_5_omni_thinker",
    "perception_lm",
    "internvl",
    "smolvlm",
    "gemma3",
    "paligemma",
    "glm4v",
    "mistral3",
)
PLANS = (
    "fastv:layer=3,keep=0.5",
    "pyramiddrop:layer=(2,4),keep=0.3",
    "flow:layer=4",
    "todre_exit:tau=2.0,layer=3",
    "dytok:layer=3,keep=0.4",
    "catp_inner:layer=3,keep=0.4",
    "dart_inner:layer=4,keep=0.6",
    "holitom_inner:layer=3,keep=0.5",
    "sparsevlm:layer=(2,3),keep=0.4",
    "sparsevlm:version=plus,layer=(2,3),keep=0.4",
    "prunevid_inner:layer=2,keep=0.5,cut_cache=False",
    "visiondrop:layer=(2,4),keep=0.4",
    "vscan_inner:keep=0.3",
    "vscan_inner:keep=0.3,exact=True",
    "aim_inner",
    "llavolta:keep=0.3",
    "framefusion:cost=0.5,similarity_lower_bound=0.1",
    "framefusion:cost=0.6,similarity_lower_bound=0.5,ratio_lower_bound=0.3",
    "zipvl:tau=0.6",
    "inside:method=(vidcom2),layer=3,keep=0.5",
    "inside:method=(visionzip),layer=3,keep=0.5",
    "fastv:layer=3,keep=0.5,anchors=1 | flow:layer=5",
)


def deep(name: str, layers: int = LAYERS, **text: Any) -> TinyFamily:
    """A family whose language model has more layers; ``text`` sets fields of its config."""
    family = FAMILIES[name]

    def spec() -> Spec:
        model, config = family.spec()
        inner = config.get_text_config()
        inner.num_hidden_layers = layers
        if kinds := getattr(inner, "layer_types", None):
            inner.layer_types = [kinds[i % len(kinds)] for i in range(layers)]
        for field, value in text.items():
            setattr(inner, field, value)
        return model, config

    return replace(family, spec=spec)


@cache
def built(name: str) -> tuple[TinyFamily, Any]:
    """A deep family and its model, built once a process: for tests that leave it as it is."""
    family = deep(name)
    return family, family.build()


def prompts(family: TinyFamily, model: Any, only: int | None = None, kind: str | None = None) -> dict[str, Tensor]:
    """Two prompts of different length, padded on the left, or one alone."""
    kind = kind or ("video" if family.video and family.name != "glm4v" else "image")
    layout = [[("text", 5), (kind, None), ("text", 4)], [("text", 8), (kind, None), ("text", 6)]]
    return family.inputs(model, layout, only=only)


def visual_of(model: Any, inputs: dict[str, Tensor]) -> Visual:
    """Every placeholder a token, in time steps of four."""
    mask = visual_mask(model, inputs["input_ids"])
    made = Visual.of(mask)
    place = made.tokens.position[:, 2]
    made.tokens.position = torch.stack([place // 4, place * 0, place % 4], 1)
    return made


def inside(model: Any, plan: str | Plan | None, inputs: dict[str, Tensor], **options: Any):
    """``installed`` for the visual tokens of these inputs."""
    return installed(model, Plan.parse(plan, **options) if plan is not None else None, visual_of(model, inputs))


def steps(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """The inputs with positions as generate counts them, for models with 1-D positions: padding does not shift them."""
    mask = inputs["attention_mask"]
    return inputs | {"position_ids": (mask.cumsum(1) - 1).clamp(min=0)}
