"""Qwen2.5-Omni with sound beside the video: the audio is text to vtoken, and its positions are the stock ones."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import vtoken
from tests.families.configs import AUDIO, AUDIO_END, AUDIO_START
from tests.families.oracle import oracle_generate, oracle_logits, visual_mask
from tests.families.prepared import prepared
from tests.families.tiny import FAMILIES, model_of

FRAMES = 24  # of the spectrogram; two convolutions of stride 2 leave 6 tokens
pytestmark = pytest.mark.slow


def with_sound(place: int) -> tuple[Any, dict[str, Tensor]]:
    """A prompt with a video and a sound, which starts at column ``place``."""
    name = "qwen2_5_omni_thinker"
    model = model_of(name)
    inputs = FAMILIES[name].inputs(model, [[("text", 5), ("video", None), ("text", 4)]])
    ids = inputs["input_ids"]
    sound = torch.tensor([[AUDIO_START, *[AUDIO] * 6, AUDIO_END]])
    inputs["input_ids"] = torch.cat([ids[:, :place], sound, ids[:, place:]], dim=1)
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    features = torch.randn(1, 128, FRAMES, generator=torch.Generator().manual_seed(0))
    return model, inputs | {"input_features": features, "feature_attention_mask": torch.ones(1, FRAMES).long()}


@pytest.mark.parametrize("place", [2, -2])
@torch.no_grad()
def test_a_video_is_pruned_beside_a_sound(place: int) -> None:
    model, inputs = with_sound(place)
    stock = model(**inputs).logits
    with vtoken.wrapped(model, "none"):
        assert torch.equal(model(**inputs).logits, stock)
    with vtoken.wrapped(model, "random:seed=1,keep=0.4"):
        ready = prepared(model, inputs)
        logits = model(**inputs).logits
        generated = model.generate(**inputs, max_new_tokens=4, do_sample=False)
    keep = torch.zeros_like(inputs["input_ids"], dtype=torch.bool)
    keep[0, ready.cut.slots[0]] = True
    assert bool(keep[~visual_mask(model, inputs["input_ids"])].all()) and not bool(keep.all())
    torch.testing.assert_close(logits[0], oracle_logits(model, inputs, keep)[0], atol=1e-4, rtol=1e-5)
    width = inputs["input_ids"].shape[1]
    assert torch.equal(generated[:, width:], oracle_generate(model, inputs, keep, 4))
