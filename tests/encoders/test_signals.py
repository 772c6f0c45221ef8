"""Signals of stock towers on whole images against the weights of their own eager attention."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.encoders.test_clip import N, pixels
from tests.encoders.test_qwen import GRID, from_windows, pixel_rows
from tests.encoders.towers import PATCH, QWEN, clip, eager_weights, qwen, randomize, trace
from vtoken.encoders import clip as clip_encoder
from vtoken.encoders import qwen as qwen_encoder
from vtoken.encoders.compat import attentions_of, projections
from vtoken.encoders.names import by_layer, default_layer, within
from vtoken.encoders.taps import collect, tap
from vtoken.errors import InputError, UnsupportedError


def attention_of(tower: Any, layer: int = -1) -> Any:
    """The attention module whose signals go with a feature layer."""
    return attentions_of(tower)[default_layer(tower, layer)]


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("name", ["clip", "siglip"])
def test_clip_signals_of_whole_images(name, implementation):
    frames = pixels(3)
    cls = int(name == "clip")
    weights = clip(name, "eager")(frames, output_attentions=True).attentions[-2]
    tower = clip(name, implementation)
    before = trace(tower)
    wanted = {"received_attention", "keys"} | ({"cls_attention"} if cls else set())
    with tap(attention_of(tower, -2), wanted) as found:
        tower(frames)
    assert trace(tower) == before
    assert (found["received_attention"] - weights.mean((1, 2))[:, cls:].flatten()).abs().max() <= 1e-6
    assert found["keys"].shape == (3 * N, 16)
    if cls:
        assert (found["cls_attention"] - weights.mean(1)[:, 0, 1:].flatten()).abs().max() <= 1e-6
    assert set(found) == wanted


@pytest.mark.parametrize("name", QWEN)
def test_qwen_signals_come_in_raster_cells(name):
    visual, rows = qwen(name, "eager"), pixel_rows(GRID)
    scored = attention_of(visual)
    assert scored is visual.blocks[1 if name == "qwen2_5" else 2].attn
    before = trace(visual)
    with eager_weights(scored) as seen, collect(visual, {"received_attention", "keys"}) as found:
        visual(rows, grid_thw=GRID)
    assert trace(visual) == before
    received = torch.cat([w.mean((0, 1, 2)) for w in seen])
    if name == "qwen2_5":
        received = received[from_windows(GRID)]
    assert (found["received_attention"] - received.unflatten(0, (-1, 4)).mean(1)).abs().max() <= 1e-6
    assert found["keys"].shape == (len(rows) // 4, 16)


LAYERS = {"cls_attention@0", "cls_attention@-2", "cls_attention", "cls_logits", "cls_logits@1", "keys@2", "keys"}


@pytest.mark.parametrize("sparse", [False, True])
def test_signals_of_several_layers_at_once(sparse):
    """Names with a layer are its attention; those without are of the feature layer, logits of the last."""
    frames, tower = pixels(3), clip("clip", "eager")
    weights = tower(frames, output_attentions=True).attentions
    wanted = LAYERS | {"received_attention@0"}
    if sparse:
        keep = torch.ones(3, N, dtype=torch.bool)
        patches = clip_encoder.patches_of(frames, PATCH, keep)
        found = clip_encoder.encode(clip("clip"), patches, keep, -2, wanted).signals
    else:
        before = trace(tower)
        with collect(tower, wanted | {"cls_attention@-9", "keys@3"}, layer=-2) as found:
            tower(frames)
        assert trace(tower) == before
    assert set(found) == wanted
    for name, layer in (("cls_attention@0", 0), ("cls_attention@-2", 1), ("cls_attention", 1)):
        assert (found[name] - weights[layer].mean(1)[:, 0, 1:].flatten()).abs().max() <= 1e-6, name
    assert (found["received_attention@0"] - weights[0].mean((1, 2))[:, 1:].flatten()).abs().max() <= 1e-6
    for name, layer in (("cls_logits", 2), ("cls_logits@1", 1)):
        inside = tower.encoder.layers[layer].self_attn
        x = tower.encoder.layers[layer].layer_norm1(tower(frames, output_hidden_states=True).hidden_states[layer])
        q, k = (p(x).unflatten(-1, (2, -1)) for p in (inside.q_proj, inside.k_proj))
        logits = (q[:, :1] * k).sum(-1) * inside.scale  # [frames, rows, heads]
        assert (found[name] - logits.mean(-1)[:, 1:].flatten()).abs().max() <= 1e-5, name
    assert (found["keys"] - found["keys@2"]).abs().max() > 1e-2


@pytest.mark.parametrize("name", QWEN)
def test_qwen_signals_of_several_layers(name):
    visual, rows = qwen(name, "eager"), pixel_rows(GRID)
    wanted = {"received_attention@0", "received_attention@-1", "keys@1"}
    whole = [torch.ones(t, h // 2, w // 2, dtype=torch.bool) for t, h, w in GRID.tolist()]
    stock = qwen_encoder.encode(qwen(name), rows, GRID, whole, wanted).signals
    for layer, signal in ((0, "received_attention@0"), (-1, "received_attention@-1")):
        with eager_weights(visual.blocks[layer].attn) as seen:
            visual(rows, grid_thw=GRID)
        received = torch.cat([w.mean((0, 1, 2)) for w in seen])
        if name == "qwen2_5":
            received = received[from_windows(GRID)]
        assert (stock[signal] - received.unflatten(0, (-1, 4)).mean(1)).abs().max() <= 1e-6
    keep = [k.clone() for k in whole]
    keep[2][1, 0] = False
    cells = torch.cat([k.flatten() for k in keep])
    got = qwen_encoder.encode(qwen(name), rows.unflatten(0, (-1, 4))[cells].flatten(0, 1), GRID, keep, wanted).signals
    untouched = int(keep[0].sum() + keep[1].sum())
    for signal in wanted:
        assert len(got[signal]) == int(cells.sum())
        assert (got[signal][:untouched] - stock[signal][:untouched]).abs().max() <= 1e-6


def test_names_of_signals():
    assert by_layer({"keys", "keys@-1", "cls_logits"}, 4, 6) == {
        4: {"keys": "keys"},
        5: {"keys@-1": "keys", "cls_logits": "cls_logits"},
    }
    for name in ("keys@", "keys@x", "keys@6", "keys@-7", "entropy@1"):
        with pytest.raises(InputError):
            by_layer({name}, 0, 6)
    assert within({"keys@5", "keys@6", "keys", "keys@-6", "keys@-7"}, 6) == {"keys@5", "keys", "keys@-6"}


def test_two_runs_add_rows_and_each_grid_orders_its_own():
    visual, rows = qwen("qwen2_5"), pixel_rows(GRID)
    with collect(visual, {"keys"}) as both:
        visual(rows[:60], grid_thw=GRID[:1])
        visual(rows[60:], grid_thw=GRID[1:])
    with collect(visual, {"keys"}) as found:
        visual(rows, grid_thw=GRID)
    assert torch.allclose(both["keys"], found["keys"], atol=1e-6)


def attention_layer(name: str) -> tuple[Any, dict[str, Any]]:
    """An attention module of a further family, with the inputs of its forward."""
    x, rotary = torch.randn(40, 32), (torch.randn(40, 16), torch.randn(40, 16))
    cu_seqlens = torch.tensor([0, 7, 7, 40], dtype=torch.int32)
    packed = {"hidden_states": x, "cu_seqlens": cu_seqlens, "position_embeddings": rotary}
    sizes: dict[str, Any] = {"hidden_size": 32, "num_attention_heads": 2, "attn_implementation": "eager"}
    if name == "glm4v":
        from transformers.models.glm4v.configuration_glm4v import Glm4vVisionConfig
        from transformers.models.glm4v.modeling_glm4v import Glm4vVisionAttention

        glm: dict[str, Any] = {"num_heads": 2, "spatial_merge_size": 1, "attn_implementation": "eager"}
        config = Glm4vVisionConfig(hidden_size=32, **glm)
        return randomize(Glm4vVisionAttention(config)), packed
    if name == "video_llama_3":
        from transformers.models.video_llama_3.configuration_video_llama_3 import VideoLlama3VisionConfig
        from transformers.models.video_llama_3.modeling_video_llama_3 import VideoLlama3VisionAttention

        return randomize(VideoLlama3VisionAttention(VideoLlama3VisionConfig(**sizes))), packed
    from transformers.models.internvl.configuration_internvl import InternVLVisionConfig
    from transformers.models.internvl.modeling_internvl import InternVLVisionAttention

    config = InternVLVisionConfig(use_qk_norm=True, **sizes)
    return randomize(InternVLVisionAttention(config)), {"hidden_states": x.view(2, 20, 32)}


@pytest.mark.parametrize("name", ["glm4v", "video_llama_3", "internvl"])
def test_other_families_projections(name):
    attention, inputs = attention_layer(name)
    with eager_weights(attention) as seen, tap(attention, {"received_attention", "keys"}) as found:
        attention(**inputs)
    if name == "internvl":  # with a CLS row
        expected = seen[0].mean((1, 2))[:, 1:].flatten()
    else:
        expected = torch.cat([w.mean((0, 1, 2)) for w in seen])
    assert (found["received_attention"] - expected).abs().max() <= 1e-6
    assert len(found["keys"]) == len(expected)


def test_hooks_go_when_the_model_fails():
    tower = clip("siglip")
    before = trace(tower)
    with pytest.raises(RuntimeError), tap(attention_of(tower), {"keys"}):
        tower(torch.zeros(1, 1, 22, 22))
    assert trace(tower) == before


def test_refusals():
    tower = clip("siglip")
    with pytest.raises(UnsupportedError, match="CLS"), tap(attention_of(tower), {"cls_attention"}):
        pass
    with pytest.raises(InputError, match="embedding"):
        attention_of(tower, 0)
    with pytest.raises(UnsupportedError, match="blocks"):
        attention_of(torch.nn.Linear(2, 2))
    attention = torch.nn.MultiheadAttention(4, 2)
    with pytest.raises(UnsupportedError, match="q_proj"):
        projections(attention, torch.zeros(3, 4), None)
    layer = tower.encoder.layers[0]
    with pytest.raises(UnsupportedError, match="mask"), tap(layer.self_attn, {"keys"}):
        layer(torch.zeros(1, N, 32), torch.zeros(1, 1, N, N))
