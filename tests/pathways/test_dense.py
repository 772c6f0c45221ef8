"""The dense branch against the stock model, and the base of pathways."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from tests.pathways.tiny import vjepa
from vtoken.errors import InputError
from vtoken.pathways.base import Pathway
from vtoken.pathways.dense import Dense
from vtoken.pruners.base import Context
from vtoken.types import Frames, Tokens


def test_latents_are_those_of_the_stock_model():
    clips = torch.randn(2, 8, 3, 32, 32)
    want = vjepa().get_vision_features(clips)
    got = Dense(vjepa()).encode(clips)
    assert got.shape == (2, 4, 4, 32) and torch.allclose(got.flatten(1, 2), want, atol=1e-6)


def test_a_prediction_continues_after_the_past():
    past = torch.randn(2, 4, 4, 32)
    dense = Dense(vjepa())
    index = torch.arange(32).expand(2, -1)
    want = vjepa().predictor(past.flatten(1, 2), [index[:, :16]], [index[:, 16:]]).last_hidden_state
    assert torch.equal(dense.predict(past, 4).flatten(1, 2), want)


def test_pixels_are_those_of_the_hand_set():
    from vtoken.pathways.hands import vjepa_clip

    frames = np.random.default_rng(0).integers(0, 256, (3, 112, 112, 3), dtype=np.uint8)
    dense = Dense(vjepa())
    dense.size = 64
    assert np.allclose(dense.pixels(frames).numpy(), vjepa_clip(frames), atol=1e-6)


def test_pixels_take_the_middle_and_each_frame_alone():
    dense = Dense(vjepa())
    frames = np.zeros((2, 32, 64, 3), np.uint8)
    frames[:, :, 16:48] = 255
    out = dense.pixels(frames)
    assert out.shape == (2, 3, 32, 32) and float(out.std((2, 3)).max()) < 1e-6 and float(out.min()) > 2
    other = frames.copy()
    other[1] = 7
    assert torch.equal(dense.pixels(other)[0], out[0])


def test_nothing_of_it_learns():
    model = copy.deepcopy(vjepa()).requires_grad_(True).train()
    assert not any(p.requires_grad for p in Dense(model).model.parameters()) and not model.training


def test_what_does_not_fit_is_refused(tmp_path):
    dense = Dense(vjepa())
    with pytest.raises(InputError, match="multiple of 2"):
        dense.encode(torch.zeros(1, 3, 3, 32, 32))
    with pytest.raises(InputError, match="uint8"):
        dense.pixels(np.zeros((2, 8, 8, 3), np.float32))
    with pytest.raises(InputError, match="cannot be read"):
        Dense.load(str(tmp_path))
    (tmp_path / "config.json").write_text('{"model_type": "vit"}')
    with pytest.raises(InputError, match="'vit'; a V-JEPA 2"):
        Dense.load(str(tmp_path))


def test_a_checkpoint_comes_back(tmp_path):
    vjepa().save_pretrained(tmp_path)
    clips = torch.randn(1, 4, 3, 32, 32)
    assert torch.equal(Dense.load(str(tmp_path)).encode(clips), Dense(vjepa()).encode(clips))


@dataclass(kw_only=True)
class Counting(Pathway):
    name = "counting"
    rows: int = 6

    def __post_init__(self) -> None:
        super().__post_init__()
        self.calls = 0

    def signals(self, frames, tokens, context):
        self.calls += 1
        return {"surprise": torch.arange(self.rows).float()}


def test_a_pathway_looks_once_at_a_clip_and_its_rows_are_checked():
    frames = Frames(np.zeros((2, 4, 4, 3), np.uint8), np.array([0.0, 0.5]))
    tokens, path = Tokens.of(torch.zeros(6, 3)), Counting()
    first = path.run(frames, tokens, Context())
    first["other"] = torch.zeros(1)  # what a caller does to the answer stays with the caller
    assert list(path.run(frames, tokens, Context())) == ["surprise"] and path.calls == 1
    path.run(Frames(np.zeros((2, 4, 4, 3), np.uint8), np.array([0.0, 0.5])), tokens, Context())
    assert path.calls == 2
    with pytest.raises(InputError, match="5 rows, the clip 6"):
        Counting(rows=5).run(frames, tokens, Context())
