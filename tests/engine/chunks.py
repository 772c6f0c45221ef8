"""Clips cut into chunks, and states that read them, for tests of ``engine.state``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.families.tiny import model_of, moving_block
from tests.families.tokenizer import tokenizer_of
from vtoken import families
from vtoken.data.frames import GateMap
from vtoken.data.report import Report
from vtoken.engine.check import on_model
from vtoken.engine.state.video import VideoState
from vtoken.families.features import Clip
from vtoken.methods.plan import Plan
from vtoken.qa.prompt import Chat, around
from vtoken.qa.read import Sampling, read_clip

NAMES = [
    "qwen2_vl",
    "qwen2_5_vl",
    "qwen3_vl",
    "qwen3_vl_moe",
    "qwen3_5",
    "qwen3_5_moe",
    "llava_onevision",
    "llava_next_video",
]
FAST = {"qwen2_5_vl", "qwen3_vl", "llava_onevision"}
MOST = [n if n in FAST else pytest.param(n, marks=pytest.mark.slow) for n in NAMES]  # the others differ little
PLANS = ["none", "grt:hold=off,merge=none", "grt", "grt | hold:tau=0.05,second=0.1"]
STEPS = 8
SYSTEM = "look"


def plan_of(name: str, plan: str) -> Plan:
    return on_model(Plan.parse(plan), model_of(name), Report())


@cache
def clip_of(name: str, plan: str, fps: float = 4) -> Clip:
    """A block that moves over a still background, then rests, so that runs of all lengths are there."""
    model = model_of(name)
    family = families.of(model)
    preprocess = family.preprocess(model)
    if preprocess.merge > 1:  # 3 x 3 cells
        side = 3 * preprocess.patch * preprocess.merge
        preprocess = replace(preprocess, resize_to="exact", size=(side, side))
    video = moving_block(STEPS * preprocess.temporal, 56, 84, seed=3)
    rest = len(video) * 5 // 8
    video[rest:] = video[rest]
    sampling = Sampling(fps="native", native_fps=fps)
    return read_clip(video, preprocess, plan_of(name, plan), Report(), sampling)


def chunks(clip: Clip, counts: Sequence[int]) -> list[Clip]:
    """The clip as chunks of so many time steps; references count from its start, as a gate's stream gives them."""
    out, start = [], 0
    kept = clip.gate.keep.reshape(len(clip.gate.keep), -1).sum(1)
    ends = np.concatenate([[0], kept.cumsum()]) * (len(clip.rows) // int(kept.sum()))
    frames = clip.grid.frames
    for n in counts:
        stop = start + n
        gate = GateMap(*(getattr(clip.gate, f.name)[start:stop] for f in fields(GateMap)))
        pts = clip.pts[start * frames : stop * frames]
        out.append(replace(clip, gate=gate, rows=clip.rows[ends[start] : ends[stop]], pts=pts))
        start = stop
    return out


def question_of(name: str, text: str = "what moves?") -> tuple[Tensor, Tensor]:
    model = model_of(name)
    return around(families.of(model), model, tokenizer_of(model), text, Chat(system=SYSTEM))


def state_of(name: str, plan: str, counts: Sequence[int] | None = None, **options: Any) -> VideoState:
    """A state that has read the clip in chunks of so many time steps; one chunk by default."""
    model = model_of(name)
    head, _ = question_of(name)
    state = VideoState(model, families.of(model), plan_of(name, plan), tokenizer_of(model), head, **options)
    clip = clip_of(name, plan)
    for chunk in chunks(clip, counts if counts is not None else [len(clip.gate.keep)]):
        state.push(chunk)
    return state


def ids_of(text: str, name: str) -> Tensor:
    return torch.tensor(tokenizer_of(model_of(name))(text, add_special_tokens=False)["input_ids"])
