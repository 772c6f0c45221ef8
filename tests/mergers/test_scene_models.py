"""GRT stage 2 inside wrapped models: the scene signal of every family's rows, exact counts, and nothing for nothing."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import vtoken
from tests.families.tiny import FAMILIES, model_of, moving_block
from vtoken.methods.plan import Plan
from vtoken.reference.synthetic import render

NAMES = ["llava", "llava_next_video", "llava_onevision", "qwen2_vl", "qwen2_5_vl", "qwen3_vl"]
FORCED = "grt:hold=off,merge=none | scene:delta=1,cell_delta=None,anchors=0"  # every scene is like its neighbour


def scenes(name: str, seeds: tuple[int, ...]) -> np.ndarray:
    """A block moves for four frames before each of these backgrounds, one after the other."""
    return np.concatenate(
        [moving_block(4, *FAMILIES[name].size, seed=s) + np.uint8(60 * i) for i, s in enumerate(seeds)]
    )


def prompt(name: str, clip: np.ndarray) -> tuple[Any, dict[str, Tensor]]:
    model, family = model_of(name), FAMILIES[name]
    video = "video" in family.modalities
    visual = [("video", clip)] if video else [("image", frame[None]) for frame in clip]
    return model, family.inputs(model, [[("text", 5), *visual, ("text", 4)]])


def run(name: str, clip: np.ndarray, plan: str) -> tuple[Tensor, int]:
    model, inputs = prompt(name, clip)
    with vtoken.wrapped(model, plan), torch.no_grad():
        return model(**inputs).logits, model.vtoken.report.tokens


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_rows_know_their_scene(name):
    model, inputs = prompt(name, scenes(name, (1, 2)))
    gate = Plan.parse("grt:hold=off").gate
    assert gate is not None
    with vtoken.wrapped(model, "grt:hold=off"):
        family = model.vtoken.family
        found = family.clips(model, inputs, gate, None, None)
        features = family.encode_clips(model, found * 2, frozenset())
    assert len(set(found[0].gate.scene.tolist())) == 2
    visual = ~features.layout.structural[features.index]
    step = features.layout.position[features.index[visual], 0].long()
    steps = len(found[0].gate.scene)
    expected = torch.tensor([*found[0].gate.scene.tolist(), *(found[0].gate.scene + 3).tolist()])
    assert torch.equal(features.signals["scene"][visual].long(), expected[step])
    assert int(step.max()) + 1 == 2 * steps


@pytest.mark.parametrize("name", NAMES)
def test_a_forced_merge_saves_the_key_tokens_of_one_scene(name):
    clip = scenes(name, (1, 1))
    _, before = run(name, clip, "grt:hold=off,merge=none")
    _, after = run(name, clip, FORCED)
    model, inputs = prompt(name, clip[:2])
    with vtoken.wrapped(model, "none"), torch.no_grad():
        model(**inputs)
        steps = 1 if name.startswith("qwen") else 2
        cells = model.vtoken.report.cells // steps
    assert before - after == cells


@pytest.mark.parametrize("name", NAMES)
def test_nothing_repeats_nothing_changes(name):
    """Scenes that differ, and a clip of one scene: bit for bit what stage 1 alone gives."""
    for clip in (scenes(name, (1, 2)), scenes(name, (3,))):
        both, alone = run(name, clip, "grt:hold=off"), run(name, clip, "grt:hold=off,merge=none")
        assert both[1] == alone[1]
        assert torch.equal(both[0], alone[0])


def test_an_image_beside_the_video_changes_nothing_about_it():
    name = "qwen2_5_vl"
    model, family = model_of(name), FAMILIES[name]
    clip = scenes(name, (1, 1))
    counts = []
    for plan in ("grt:hold=off,merge=none", FORCED):
        for extra in ([], [("image", None), ("text", 2)]):
            inputs = family.inputs(model, [[("text", 3), *extra, ("video", clip), ("text", 4)]])
            with vtoken.wrapped(model, plan), torch.no_grad():
                model(**inputs)
                counts.append(model.vtoken.report.tokens)
    assert counts[0] - counts[2] == counts[1] - counts[3] > 0


def test_exact_mode_has_the_head_of_a_wrapped_model():
    name = "llava_onevision"
    clip = scenes(name, (1, 1))
    _, before = run(name, clip, "grt:hold=off,merge=none")
    _, after = run(name, clip, "grt:hold=off,merge=none | scene:exact=True,delta=1e9,anchors=0")
    assert after < before


def test_generate_after_a_merge_with_and_without_cache():
    model, inputs = prompt("qwen3_vl", scenes("qwen3_vl", (1, 1)))
    with vtoken.wrapped(model, FORCED), torch.no_grad():
        options = {"max_new_tokens": 4, "do_sample": False}
        assert torch.equal(model.generate(**inputs, **options), model.generate(**inputs, **options, use_cache=False))


def test_rendered_cuts_are_not_merged():
    """A new picture every two seconds: the gate starts a scene at each, and none is taken for its neighbour."""
    made = render("cut", seconds=6, fps=2, size=(84, 84))
    clip = np.stack(list(made.frames()))
    for name in ("llava_onevision", "qwen2_5_vl"):
        assert run(name, clip, "grt:hold=off")[1] == run(name, clip, "grt:hold=off,merge=none")[1]
