"""Methods for images against the outputs of their official code."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from vtoken.data.budget import Budget
from vtoken.data.tokens import Tokens
from vtoken.methods import registry
from vtoken.methods.reducer import Context, Reducer
from vtoken.methods.tiles import images


def reduce(plan: str, tokens: Tokens, budget: Budget | None, context: Context | None = None, **options) -> Tokens:
    method = registry.build(plan, **options)
    assert isinstance(method, Reducer)
    return method.reduce(tokens, budget, context or Context())


def load(golden: Path, name: str) -> dict[str, Tensor]:
    return torch.load(golden / f"{name}.pt", weights_only=True)


def kept(out: Tokens) -> list[int]:
    return (out.source >= 0).nonzero().squeeze(1).tolist()


def grid(*shapes: tuple[int, int]) -> Tensor:
    """Positions of steps of these (height, width), one after another."""
    axes = [(torch.tensor([t]), torch.arange(h), torch.arange(w)) for t, (h, w) in enumerate(shapes)]
    return torch.cat([torch.cartesian_prod(*a) for a in axes])


@pytest.mark.parametrize("image", [0, 1])
def test_vispruner(golden, image):
    data = load(golden, "vispruner_rand")
    tokens = Tokens.of(data["features"][image], cls_attention=data["cls_attn_heads"][image].T)
    ratio = float(data["important_ratio"])
    out = reduce("vispruner", tokens, Budget(tokens=int(data["k"])), important_ratio=ratio)
    assert torch.equal(out.source >= 0, data["index_mask"][image])


def test_vtc_cls(golden):
    data = load(golden, "vtccls_l6")
    layers = data["cls_attn_layers_heads"]
    n = len(layers)
    signals = {f"cls_attention@{i - n}": layers[i].T for i in range(n)}
    tokens = Tokens.of(data["patch_features"][0], cls_attention=layers[-2].T).with_signals(**signals)
    start = int(data["start_layer"]) - n
    out = reduce("vtc_cls", tokens, Budget(tokens=int(data["k"])), start_layer=start)
    assert kept(out) == data["kept_sorted"].tolist()
    assert torch.equal(out.x, data["kept_features"][0])
    last = reduce("vtc_cls", tokens, Budget(tokens=int(data["k"])), start_layer=-2)
    assert kept(last) == kept(reduce("cls", tokens, Budget(tokens=int(data["k"]))))


def test_cdpruner(golden):
    data = load(golden, "cdpruner_rand")
    tokens = Tokens.of(data["features"][0], image_embeds=data["image_embeds"][0])
    context = Context(text=[torch.ones(1, tokens.x.shape[1])], given={"text_embeds": data["text_embeds"]})
    out = reduce("cdpruner", tokens, Budget(tokens=int(data["k"])), context, exact=True)
    assert torch.equal(out.source >= 0, data["index_mask"][0])
    assert set(out.signals) == {"image_embeds"}
    beyond_rank = reduce("cdpruner", tokens, Budget(tokens=60), context, exact=True)
    assert len(beyond_rank) == 60 > torch.linalg.matrix_rank(tokens.x)
    assert set(kept(out)) < set(kept(beyond_rank))


def test_mmtok(golden):
    data = load(golden, "mmtok_rand")
    tokens = Tokens.of(data["vision_tokens"], encoder_features=data["vision_tokens_clip"])
    options = {"alpha": float(data["alpha"]), "t_tv": float(data["tv_temp"]), "t_vv": float(data["vv_temp"])}
    out = reduce("mmtok", tokens, Budget(tokens=int(data["k"])), Context(text=[data["text_tokens"]]), **options)
    assert kept(out) == data["selected_sorted"].tolist()
    assert torch.equal(out.x, data["selected_tokens"])


def test_hired(golden):
    """``bottom`` is the attention that ranks within a tile, ``top`` the one that marks regions."""
    data = load(golden, "hired_2x2")
    tiles, _, n = data["top_cls_attn"].shape
    side = int(n**0.5)
    late, early = (data[f"{name}_cls_attn"].transpose(1, 2).flatten(0, 1) for name in ("bottom", "top"))
    tokens = Tokens.of(torch.zeros(tiles * n, 2), grid(*[(side, side)] * tiles), cls_attention=late)
    tokens = tokens.with_signals(**{"cls_attention@0": early})
    options = {"exact": True, "keep": float(data["token_budget_rate"]), "alpha": float(data["alpha"])}
    out = reduce("hired", tokens, None, **options)
    assert torch.equal(out.source >= 0, data["mask"].flatten())


def published_hired(late: Tensor, early: Tensor, rate: float, alpha: float) -> list[int]:
    """Rows kept of an overview and its crops, attention [P, N] each, by the published counts."""
    parts, n = late.shape
    total = int(parts * n * rate)
    full = min(int(total * alpha), n)
    left = min(total - full, (parts - 1) * n)
    marks = early[0].argsort(descending=True, stable=True)[: int(n * (1 - alpha))].tolist()
    strip = n // (parts - 1)
    counts = [sum(m // strip == p for m in marks) for p in range(parts - 1)]
    rows = late[0].argsort(descending=True, stable=True)[: total - left].tolist()
    for p, count in enumerate(counts):
        own = min(int(count / sum(counts) * left), n)
        rows += [(p + 1) * n + i for i in late[p + 1].argsort(descending=True, stable=True)[:own].tolist()]
    return sorted(rows)


@pytest.mark.parametrize("crops", [1, 2, 3, 4, 5, 6])
@pytest.mark.parametrize(("rate", "alpha"), [(0.2, 0.5), (0.1, 0.3), (0.4, 0.8)])
def test_hired_counts_the_crops_whatever_their_grid(crops: int, rate: float, alpha: float):
    g, side = torch.Generator().manual_seed(crops), 12
    late, early = torch.rand(2, crops + 1, side * side, generator=g)
    tokens = Tokens.of(torch.zeros(late.numel(), 2), grid(*[(side, side)] * (crops + 1)), cls_attention=late.flatten())
    tokens = tokens.with_signals(**{"cls_attention@0": early.flatten()})
    out = reduce("hired", tokens, None, exact=True, keep=rate, alpha=alpha)
    assert kept(out) == published_hired(late, early, rate, alpha)


@pytest.mark.parametrize(
    ("crops", "shape"), [(1, (1, 1)), (2, (1, 2)), (3, (1, 3)), (4, (2, 2)), (6, (2, 3)), (7, (1, 7))]
)
def test_crops_without_a_canvas_fill_their_grid(crops: int, shape: tuple[int, int]):
    (image,) = images(grid(*[(3, 3)] * (crops + 1)), torch.zeros(9 * (crops + 1)), columns=0)
    assert image.grid == shape and image.crops == crops and image.sizes.tolist() == [9] * crops
    assert set(image.region.tolist()) <= set(range(crops))


def globalcom2(data: dict[str, Tensor]) -> Tokens:
    columns, rows = data["grid_wh"].tolist()
    side = int(len(data["base_cls_attn"]) ** 0.5)
    crops = data["crop_feat"].view(rows, columns, side, side, -1).transpose(1, 2).flatten(0, 3)
    score = data["crop_cls_attn"].view(rows, columns, side, side).transpose(1, 2).flatten()
    return Tokens.of(
        torch.cat([data["thumbnail_feat"], crops]),
        grid((side, side), (rows * side, columns * side)),
        cls_logits=torch.cat([data["base_cls_attn"], score]),
        cls_attention=torch.zeros(len(score) + side * side),
    )


def test_globalcom2(golden):
    data = load(golden, "globalcom2_1x2")
    tokens = globalcom2(data)
    out = reduce("globalcom2", tokens, None, exact=True, keep=float(data["retention"]))
    order = data["thumb_keep_order"]
    assert torch.equal(out.x[: len(order)], data["thumbnail_feat"][order])
    newline = (data["crops_out_fp16"] == 9).all(1)
    assert torch.equal(out.x[len(order) :].half(), data["crops_out_fp16"][~newline])
    counted = reduce("globalcom2", tokens, Budget(tokens=len(out)))
    assert len(counted) == len(out)
    assert len(set(kept(counted)) & set(kept(out))) > 0.95 * len(out)  # the same choice up to a token or two


@pytest.mark.parametrize("shape", ["2x2", "1x4", "3x1"])
def test_globalcom2_ratios_of_raw_logits(golden, shape):
    data = load(golden, "globalcom2_scales_rawlogits")
    columns, rows = map(int, shape.split("x"))
    side = int(len(data["base_logits"]) ** 0.5)
    position = grid((side, side), (rows * side, columns * side))
    (image,) = images(position, torch.zeros(len(position)))
    assert image.grid == (rows, columns)
    for exact in (True, False):
        method: object = registry.build("globalcom2", exact=exact)
        ratios = method.ratios(image, data["base_logits"], 0.25)  # type: ignore[attr-defined]
        torch.testing.assert_close(ratios, data[f"scales_{shape}"])


def test_dart(golden):
    data = load(golden, "dart_llmc_small")
    x, keys = data["last_layer_state"][0], data["key_states"][0].transpose(0, 1)
    start, stop = int(data["vision_start"]), int(data["vision_start"] + data["vision_len"])
    tokens = Tokens.of(x[start:stop], keys=keys[start:stop])
    context = Context(text=[x[stop:]], given={"text_keys": [keys[stop:]]})
    options = {"exact": True, "vision_start": start, "keep": 1 - float(data["reduction_ratio"])}
    out = reduce("dart", tokens, None, context, **options)
    assert [i + start for i in kept(out)] == data["retained_sorted"].tolist()
    assert len(reduce("dart", tokens, Budget(tokens=19), context)) == 19


@pytest.mark.parametrize("exact", [True, False])
def test_vscan(golden, exact):
    data = load(golden, "vscan_encode")
    layers, mask = data["cls_attn_layers_heads"][:, 0], data["index_mask"][0]
    tokens = Tokens.of(data["features"][0], grid((24, 24)), cls_attention=layers[-2].T)
    tokens = tokens.with_signals(**{"cls_attention@5": layers[5].T})
    out = reduce("vscan", tokens, Budget(tokens=int(data["k"])), exact=exact)
    assert (out.position[:, 1] * 24 + out.position[:, 2]).tolist() == mask.nonzero().squeeze(1).tolist()
    torch.testing.assert_close(out.x, data["merged"][0][mask])
    assert float(out.size.sum()) == 576
    assert torch.equal(out.size, torch.bincount(out.source).float())
