"""The reading layer by layer: hold is the engine's own, and weights of runs of one slot change nothing."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import vtoken
from benchmarks import hold_fallback as study
from vtoken.methods.plan import Plan
from vtoken.reference import WEIGHTS, data

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (WEIGHTS / "model.safetensors").is_file(), reason="the reference weights are missing"),
]


@torch.no_grad()
def test_hold_is_the_engines_and_runs_of_one_slot_weigh_nothing() -> None:
    reader, one = study.Reader(), data.clip(3, "validation")
    frames, questions = data.frames(one, study.FPS)[0], data.questions(one)[:3]
    clip = reader.clip(frames, Plan.parse("grt"))
    text, _, starts, tasks = reader.packer._slots([questions])
    first = torch.tensor([first for _, first, _, _ in tasks])
    for plan, way in (("grt", "hold"), ("none", "dropped")):
        read, stock = reader.clip(frames, Plan.parse(plan)), []
        mine = reader._read(read, study.WAYS[way], text, starts)[first]
        hook = reader.model.lm_head.register_forward_hook(lambda m, i, out, stock=stock: stock.append(out[0, -1]))
        try:
            for q in questions:
                options = {"plan": plan, "fps": study.FPS, "native_fps": study.FPS, "max_new_tokens": 1}
                vtoken.ask(reader.model, reader.processor, frames, q.text, **options)
        finally:
            hook.remove()
        assert len(stock) == len(mine)
        for a, b in zip(mine, stock, strict=True):
            assert torch.allclose(a, b, atol=5e-4)
    rows = torch.full_like(clip.shows, -1)
    rows[clip.columns] = torch.arange(len(clip.columns))
    alone = replace(clip, shows=rows)
    plain = reader._read(alone, study.WAYS["dropped"], text, starts)
    for way in ("log run", "smeared", "smeared, log run", "hold"):
        assert torch.allclose(reader._read(alone, study.WAYS[way], text, starts), plain, atol=1e-4), way
    assert not torch.allclose(reader._read(clip, study.WAYS["log run"], text, starts), plain, atol=1e-2)
