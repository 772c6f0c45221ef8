"""The dense branch against the stock model, and a pathway of one's own."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from tests.thinkjepa.tiny import vjepa
from vtoken.data.frames import Grid
from vtoken.data.report import Report
from vtoken.encoders.vjepa import Dense
from vtoken.errors import InputError
from vtoken.methods.pathway import Cells, Pathway
from vtoken.methods.plan import Plan
from vtoken.qa.read import Sampling, read_clip
from vtoken.video.preprocess import Preprocessor

PLAIN = Preprocessor("clip", "keep", patch=4)


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
    from vtoken.thinkjepa.hands import vjepa_clip

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


class Light:
    """Mean level of every cell of each frame: [n, h, w, 3]."""

    def __init__(self, grid: Grid, extra: int) -> None:
        self.grid, self.extra = grid, extra

    def push(self, frames: np.ndarray) -> Cells:
        g = self.grid
        cells = frames.reshape(len(frames), g.rows, g.cell, g.columns, g.cell, 3).mean((2, 4))
        return {"light": np.concatenate([cells, cells[: self.extra]])}

    def finish(self) -> Cells:
        return {"light": np.zeros((0, self.grid.rows, self.grid.columns, 3))}


@dataclass(kw_only=True)
class OfOnesOwn(Pathway):
    name = "light"
    gives = frozenset({"light"})
    extra: int = 0

    def watch(self, grid: Grid) -> Light:
        return Light(grid, self.extra)


def test_a_pathway_of_ones_own_is_one_method():
    grid, frames = Grid(8, 12, 4), np.random.default_rng(0).integers(0, 256, (3, 8, 12, 3), dtype=np.uint8)
    whole = OfOnesOwn().cells(frames, grid)["light"]
    assert whole.shape == (3, 2, 3, 3) and np.allclose(whole[1, 0, 2], frames[1, :4, 8:].mean((0, 1)))
    clip = read_clip(np.repeat(frames, 20, 0), PLAIN, Plan((OfOnesOwn(),)), Report(), Sampling("native", native_fps=4))
    assert np.array_equal(clip.signals["light"], OfOnesOwn().cells(np.repeat(frames, 20, 0), clip.grid)["light"])


def test_what_a_pathway_gives_is_checked():
    grid, frames = Grid(8, 12, 4), np.zeros((3, 8, 12, 3), np.uint8)
    with pytest.raises(InputError, match=r"light: signal 'light' has shape \[5, 2, 3, 3\], the clip \[3, 2, 3\] cells"):
        OfOnesOwn(extra=2).cells(frames, grid)
    other = OfOnesOwn()
    other.gives = frozenset({"shade"})  # type: ignore[misc]
    with pytest.raises(InputError, match="light gave no signal 'shade'"):
        other.cells(frames, grid)
    with pytest.raises(InputError, match="no frames"):
        OfOnesOwn().cells(frames[:0], grid)
    with pytest.raises(NotImplementedError):
        Pathway().watch(grid)
