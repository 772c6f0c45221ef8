"""Methods for images where there are no official outputs: their rules against plain Python, on cases one can check."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d, normalize

from tests.tokens import context, pack, same, sample
from vtoken.data.budget import Budget
from vtoken.data.tokens import Tokens
from vtoken.errors import InputError
from vtoken.mergers.pool import cells_of
from vtoken.methods import registry
from vtoken.methods.plan import Plan
from vtoken.methods.reducer import Context, Reducer
from vtoken.methods.tiles import images
from vtoken.pruners.cdpruner import scaled


def build(plan: str, **options) -> Reducer:
    method = registry.build(plan, **options)
    assert isinstance(method, Reducer)
    return method


def kept(out: Tokens) -> list[int]:
    return (out.source >= 0).nonzero().squeeze(1).tolist()


def grid(*shapes: tuple[int, int]) -> Tensor:
    axes = [(torch.tensor([t]), torch.arange(h), torch.arange(w)) for t, (h, w) in enumerate(shapes)]
    return torch.cat([torch.cartesian_prod(*a) for a in axes])


def clip(*shapes: tuple[int, int], width: int = 8, seed: int = 0, **signals: Tensor) -> Tokens:
    position = grid(*shapes)
    x = torch.randn(len(position), width, generator=torch.Generator().manual_seed(seed))
    return Tokens.of(x, position, **signals)


def test_methods_read_only_what_their_options_ask_for():
    def wants(plan: str) -> set[str]:
        return {w for w in Plan.parse(plan, keep=0.5).wants if "@" in w or w == "cls_logits"}

    assert wants("vtc_cls:start_layer=-3") == {"cls_attention@-3", "cls_attention@-2"}
    assert wants("hired | globalcom2") == {"cls_attention@0", "cls_logits"}
    assert wants("vscan:local_layer=2") == {"cls_attention@2"}
    assert wants("hiprune:middle_layer=3") == {f"{s}_attention@{n}" for s in ("cls", "received") for n in (3, -1)}
    assert "keys" in Plan.parse("dart", keep=0.5).wants


def test_vtc_cls_sums_what_a_short_encoder_has():
    tokens = clip((2, 2)).with_signals(
        **{
            "cls_attention": torch.tensor([9.0, 0, 0, 0]),
            "cls_attention@-3": torch.tensor([0.0, 1, 4, 0]),
            "cls_attention@-2": torch.tensor([0.0, 4, 0, 1]),
        }
    )
    assert kept(build("vtc_cls").reduce(tokens, Budget(tokens=2), Context())) == [1, 2]
    told = Context()
    plain = Tokens.of(tokens.x, tokens.position, cls_attention=tokens.signals["cls_attention"])
    assert kept(build("vtc_cls").reduce(plain, Budget(tokens=1), told)) == [0]
    assert any("single layers" in note for note in told.notes)
    with pytest.raises(InputError, match="at most -2"):
        build("vtc_cls", start_layer=-1)


def test_fopru_rank_and_row():
    score = torch.tensor([[9.0, 0, 0, 0], [4, 4, 4, 4], [1, 5, 5, 1]])
    tokens = clip((3, 4), received_attention=score.flatten())
    assert kept(build("fopru").reduce(tokens, Budget(tokens=4), Context())) == [0, 4, 9, 10]
    row = build("fopru", strategy="row")
    assert kept(row.reduce(tokens, Budget(tokens=4), Context())) == [4, 5, 6, 7]
    assert kept(row.reduce(tokens, Budget(tokens=6), Context())) == [4, 5, 6, 7, 9, 10]  # the next row in part


def test_hiprune_takes_neighbours_of_the_object_but_not_around_the_corner():
    middle, last = torch.zeros(5, 6), torch.arange(30.0).view(5, 6)
    middle[2, 0] = 1
    tokens = clip((5, 6)).with_signals(
        **{"cls_attention@-12": middle.flatten(), "cls_attention@-1": last.flatten(), "cls_attention": last.flatten()}
    )
    out = build("hiprune", alpha=0.5).reduce(tokens, Budget(tokens=10), Context())
    assert kept(out) == [6, 12, 13, 18, *range(24, 30)]
    wrapped = build("hiprune", alpha=0.5, exact=True).reduce(tokens, Budget(tokens=10), Context())
    assert kept(wrapped) == [6, 11, 12, 13, 18, *range(25, 30)]  # 11 ends the row above
    corner = tokens.with_signals(**{"cls_attention@-12": torch.arange(30.0).flip(0)})
    assert kept(build("hiprune", alpha=0.5).reduce(corner, Budget(tokens=10), Context()))[:3] == [0, 1, 6]


@given(st.integers(1, 60), st.integers(0, 30))
@settings(deadline=None, max_examples=30)
def test_hiprune_against_a_loop(n, seed):
    tokens = sample(n, seed, ["cls_attention", "cls_attention@-12", "cls_attention@-1"])
    tokens.position[:, 0] = 0
    tokens.position[:, 1] = torch.arange(n) // 4
    tokens.position[:, 2] = torch.arange(n) % 4
    k, place = max(1, n // 2), [tuple(p) for p in tokens.position.tolist()]
    middle, last = tokens.signals["cls_attention@-12"].tolist(), tokens.signals["cls_attention@-1"].tolist()
    anchors = sorted(range(n), key=lambda i: -middle[i])[: round(k * 0.6 / 5)]
    near = {(0, place[a][1] + y, place[a][2] + x) for a in anchors for y, x in ((0, 1), (0, -1), (1, 0), (-1, 0))}
    wanted = [*anchors, *(i for i in range(n) if place[i] in near and i not in anchors)]
    rest = sorted((i for i in range(n) if i not in wanted), key=lambda i: -last[i])
    out = build("hiprune", alpha=0.6).reduce(tokens, Budget(tokens=k), Context())
    assert kept(out) == sorted((wanted + rest)[:k])


def test_cdpruner_prefers_what_is_like_the_question_and_differs():
    x = torch.zeros(6, 8)
    x[:3, 0] = 1  # three copies of what is asked for
    x[3, 0], x[3, 1] = 0.9, 0.5  # nearly
    x[4, 2] = x[5, 3] = 1
    x[5, 0] = -1  # the opposite
    tokens, asked = Tokens.of(x), Context(text=[torch.eye(8)[:1] * 3])
    assert kept(build("cdpruner").reduce(tokens, Budget(tokens=2), asked)) == [0, 3]
    everything = build("cdpruner").reduce(tokens, Budget(tokens=5), asked)
    assert kept(everything) == [0, 1, 3, 4, 5]  # all that is independent, then the most relevant copy
    opposite = Context(text=[torch.eye(8)[:1]], given={"text_embeds": torch.eye(8)[:1]})
    exact = build("cdpruner", exact=True).reduce(tokens.with_signals(image_embeds=x), Budget(tokens=1), opposite)
    assert kept(exact) == [5]  # the published sign


def test_cdpruner_exact_scales_over_the_batch_and_refuses_what_is_missing():
    parts = [sample(20, 1), sample(12, 2)]
    batch = pack(parts)
    image = torch.randn(32, 5, generator=torch.Generator().manual_seed(0))
    given_context = Context(text=context().text, given={"text_embeds": torch.ones(1, 5)})
    method = build("cdpruner", exact=True)
    out = method.reduce(batch.with_signals(image_embeds=image), Budget(tokens=4), given_context)
    assert out.batch.tolist() == [0, 4, 8]
    for lacking in (batch, batch.with_signals(image_embeds=image)):
        with pytest.raises(InputError, match="text_embeds"):
            method.reduce(lacking, Budget(tokens=4), context())
    with pytest.raises(InputError, match=r"\[M, 12\] in Context.text, got \[5, 3\]"):
        build("cdpruner").reduce(parts[0], Budget(tokens=4), Context(text=[torch.ones(5, 3)]))


def test_relevance_is_scaled_to_just_above_zero():
    torch.testing.assert_close(
        scaled(torch.tensor([3.0, 5.0, 1.0])), torch.tensor([0.5, 1.0, 2.5e-7]), atol=1e-6, rtol=0
    )
    assert float(scaled(torch.tensor([3.0, 5.0, 1.0])).min()) > 0
    assert scaled(torch.full((3,), 0.2)).tolist() == [1.0, 1.0, 1.0]


def test_mmtok_against_the_formula():
    tokens, text = sample(30, 4), torch.randn(3, 12, generator=torch.Generator().manual_seed(5))
    x, z = normalize(tokens.x.double(), dim=1), normalize(text.double(), dim=1)
    cover = torch.cat([(z @ x.T / 0.02).softmax(1) / 3, 0.5 * (x @ x.T / 0.2).softmax(1) / 30])
    best, picks = torch.zeros(33).double(), []
    for _ in range(12):
        gain = (cover - best[:, None]).clamp(min=0).sum(0)
        gain[picks] = -1
        picks.append(int(gain.argmax()))
        best = torch.maximum(best, cover[:, picks[-1]])
    assert kept(build("mmtok").reduce(tokens, Budget(tokens=12), Context(text=[text]))) == sorted(picks)


def test_dart_deals_the_budget_to_its_pivots():
    tokens = sample(40, 6)
    norm = tokens.x.abs().sum(1)
    pivots = norm.argsort(descending=True)[:4].tolist()
    unit = normalize(tokens.x, dim=1)
    left, chosen = [i for i in range(40) if i not in pivots], list(pivots)
    for pivot, count in zip(pivots, (3, 3, 2, 2), strict=True):  # 14 - 4 pivots
        picks = sorted(left, key=lambda i: float(unit[i] @ unit[pivot]))[:count]
        chosen += picks
        left = [i for i in left if i not in picks]
    assert kept(build("dart").reduce(tokens, Budget(tokens=14), Context())) == sorted(chosen)
    with_text = build("dart").reduce(tokens, Budget(tokens=14), context())
    assert len(with_text) == 14 and kept(with_text) != sorted(chosen)
    assert set(pivots) < set(kept(with_text))
    keyed = tokens.with_signals(keys=torch.arange(40.0)[:, None].expand(40, 2))
    assert {36, 37, 38, 39} < set(kept(build("dart").reduce(keyed, Budget(tokens=14), context())))


def overview(busy: Tensor) -> Tokens:
    """A 4 x 4 overview with early attention ``busy``, and the canvas of 2 x 2 crops of it."""
    early = torch.cat([busy.flatten(), torch.zeros(64)])
    late = torch.cat([torch.arange(16.0), torch.arange(64.0)])
    return clip((4, 4), (8, 8), cls_attention=late).with_signals(**{"cls_attention@0": early})


def test_hired_gives_more_to_the_crop_where_the_overview_is_busy():
    busy = torch.zeros(4, 4)
    busy[2:, :2] = 1  # the lower left quarter
    busy[0, 3] = 0.5
    tokens = overview(busy)
    out = build("hired", alpha=0.7).reduce(tokens, Budget(tokens=20), Context())
    assert len(out) == 20
    assert int((out.position[:, 0] == 0).sum()) == 14
    detail = out.position[out.position[:, 0] == 1].tolist()
    # marks: the four busy cells below on the left and nothing else, as (1 - alpha) 16 = 4
    assert [p[1:] for p in detail] == [[6, 2], [6, 3], [7, 0], [7, 1], [7, 2], [7, 3]]
    strips = build("hired", alpha=0.7, exact=True).reduce(tokens, Budget(tokens=20), Context())
    rows = {p[1] // 4 for p in strips.position[strips.position[:, 0] == 1].tolist()}
    assert rows == {1}  # strips of the flat overview are rows: crops 2 and 3, left and right
    assert {p[2] // 4 for p in strips.position[strips.position[:, 0] == 1].tolist()} == {0, 1}


def test_hired_on_frames_ranks_each_by_itself():
    score = torch.cat([torch.arange(9.0), torch.arange(9.0) * 100])
    tokens = clip((3, 3), (3, 3), cls_attention=score)
    told = Context()
    out = build("hired").reduce(tokens, Budget(tokens=6), told)
    assert kept(out) == [6, 7, 8, 15, 16, 17]
    assert any("2 images or frames" in note for note in told.notes)
    tiles = build("hired", columns=1).reduce(tokens, Budget(tokens=6), Context())
    assert kept(tiles) == [6, 7, 8, 15, 16, 17]
    assert kept(build("hired", columns=1, alpha=1.0).reduce(tokens, Budget(tokens=6), Context())) == [*range(3, 9)]


def test_tiles_find_crops_on_a_canvas_that_lost_its_padding():
    """A wide picture: 2 x 2 crops of 6 x 6, of which 2 rows above and 2 below were padding."""
    (image,) = images(grid((6, 6), (8, 12)), torch.full((132,), math.nan))
    assert image.grid == (2, 2) and image.canvas == (8, 12)
    crop = image.crop.view(8, 12)
    assert (
        crop[:4, :6].eq(0).all() and crop[:4, 6:].eq(1).all() and crop[4:, :6].eq(2).all() and crop[4:, 6:].eq(3).all()
    )
    region = image.region.view(6, 6)
    assert region[:3, :3].eq(0).all() and region[3:, 3:].eq(3).all()
    score = torch.arange(36.0)
    wide = image.enlarged(score).view(8, 12)
    assert wide[0, 0] == 0 and wide[-1, -1] == 35 and bool((wide.diff(dim=1) >= 0).all())


def test_tiles_of_several_images_and_of_frames():
    two = images(grid((4, 4), (4, 8), (4, 4), (8, 4)), torch.full((112,), math.nan))
    assert [i.grid for i in two] == [(1, 2), (2, 1)]
    assert [int(i.full[0]) for i in two] == [0, 48]
    position = grid((4, 4), (4, 8), (4, 4))
    assert [i.grid for i in images(position, position[:, 0] / 2)] == [(0, 0)] * 3
    (crops,) = images(grid(*[(3, 3)] * 7), torch.zeros(63), columns=2)
    assert crops.grid == (3, 2) and crops.sizes.tolist() == [9] * 6
    assert crops.crop.tolist() == [i for i in range(6) for _ in range(9)]


def test_globalcom2_counts_and_ranks():
    tokens = overview(torch.zeros(4, 4)).with_signals(cls_logits=torch.cat([torch.zeros(16), torch.arange(64.0)]))
    thumbnail = torch.zeros(4, 4)
    thumbnail[:2, 2:] = 40  # what the overview points at: the crop above on the right
    tokens.signals["cls_logits"][:16] = thumbnail.flatten()
    out = build("globalcom2").reduce(tokens, Budget(tokens=20), Context())
    place = out.position[out.position[:, 0] == 1]
    crop = place[:, 1] // 4 * 2 + place[:, 2] // 4
    count = torch.bincount(crop, minlength=4)
    assert len(out) == 20 and int(count.sum()) == 16
    assert int(count[1]) == int(count.max()) > int(count[0])
    assert out.position.tolist() == sorted(out.position.tolist())
    fallback = Context()
    build("globalcom2").reduce(overview(torch.ones(4, 4)), Budget(tokens=20), fallback)
    assert fallback.notes == ["globalcom2: no cls_logits here, cls_attention in its place"]


def test_todre_and_kcenter_start_in_the_middle():
    x = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.7, 0.7], [0.1, 0.9], [0.0, 1.0]])
    assert kept(build("kcenter").reduce(Tokens.of(x), Budget(tokens=1), Context())) == [2]
    assert kept(build("todre").reduce(Tokens.of(x), Budget(tokens=3), Context())) == [0, 2, 4]
    center = build("todre", diversity="center").reduce(Tokens.of(x), Budget(tokens=3), Context())
    assert same(center, build("kcenter").reduce(Tokens.of(x), Budget(tokens=3), Context()))


def test_vscan_shares_half_of_the_budget_among_windows():
    local = torch.arange(64.0)
    whole = torch.zeros(8, 8)
    whole[0] = torch.arange(8.0) + 1
    tokens = clip((8, 8), cls_attention=whole.flatten()).with_signals(**{"cls_attention@5": local})
    out = build("vscan", window=4).reduce(tokens, Budget(tokens=10), Context())
    picked = [[0, 2], [0, 3], [0, 4], [0, 5], [0, 6], [0, 7], [3, 3], [3, 7], [7, 3], [7, 7]]
    # one of each window and a fifth from the first; five of the first row
    assert len(out) == 10
    assert sum(p in picked for p in out.position[:, 1:].tolist()) >= 9
    assert len(build("vscan", window=4, exact=True).reduce(tokens, Budget(tokens=11), Context())) == 4 + 6
    unit = normalize(tokens.x, dim=1)
    members = out.source
    centre = torch.tensor([int(p[1] * 8 + p[2]) for p in out.position.tolist()])
    assert torch.equal((unit @ unit[centre].T).argmax(1), members)
    mean = torch.stack([tokens.x[members == g].mean(0) for g in range(10)])
    torch.testing.assert_close(out.x, mean)


def test_recoverable_takes_back_what_is_asked_for():
    tokens = clip((4, 4), cls_attention=torch.arange(16.0))
    text = tokens.x[[1, 2]].mean(0, keepdim=True) * 5
    like = (normalize(tokens.x, dim=1) @ normalize(text, dim=1).T).squeeze(1)
    wanted = set(range(10, 16)) | set(like[:10].topk(2).indices.tolist())
    out = build("recoverable").reduce(tokens, Budget(tokens=8), Context(text=[text]))
    places = {int(p[1] * 4 + p[2]) for p in out.position.tolist()}
    assert places == wanted
    assert float(out.size.sum()) == 16


@pytest.mark.parametrize(("side", "to"), [(24, 12), (12, 4), (6, 6), (9, 3)])
def test_pool_is_average_pooling_where_it_divides(side, to):
    tokens = clip((side, side), (side, side))
    out = build("pool").reduce(tokens, Budget(tokens=2 * to * to), Context())
    square = tokens.x.view(2, side, side, -1).permute(0, 3, 1, 2)
    torch.testing.assert_close(out.x, adaptive_avg_pool2d(square, to).permute(0, 2, 3, 1).flatten(0, 2))
    assert set(out.size.tolist()) == {float((side // to) ** 2)}


@given(st.integers(1, 14), st.integers(1, 14), st.data())
@settings(deadline=None, max_examples=150)
def test_pool_meets_any_count_in_compact_cells(height, width, data):
    k = data.draw(st.integers(1, height * width))
    place = torch.cartesian_prod(torch.arange(height), torch.arange(width)).view(-1, 2) + 3
    cell = cells_of(place, k)
    assert cell.unique().tolist() == list(range(k))
    for c in range(k):
        own = place[cell == c]
        h, w = (own.amax(0) - own.amin(0) + 1).tolist()
        assert len(own) == h * w  # a whole rectangle
    drop = data.draw(st.integers(0, len(place) - 1))
    holes = place[torch.randperm(len(place), generator=torch.Generator().manual_seed(k))[: len(place) - drop]]
    fewer = data.draw(st.integers(1, len(holes)))
    size = torch.bincount(cells_of(holes, fewer), minlength=fewer)
    assert len(size) == fewer and int(size.min()) >= 1
    if drop:
        assert int(size.max() - size.min()) <= 1


def test_pool_with_fewer_tokens_than_frames_joins_neighbouring_frames():
    tokens = clip(*[(2, 2)] * 6)
    out = build("pool").reduce(tokens, Budget(tokens=3), Context())
    torch.testing.assert_close(out.x, tokens.x.view(3, 8, -1).mean(1))
    assert out.position[:, 0].tolist() == [0, 2, 4]


@pytest.mark.parametrize(
    ("plan", "options"),
    [
        ("vispruner", {"important_ratio": 1.5}),
        ("hiprune", {"alpha": -0.1}),
        ("hired", {"alpha": 2.0}),
        ("hired", {"columns": -1}),
        ("globalcom2", {"temperature": 0.0}),
        ("mmtok", {"t_vv": 0.0}),
        ("dart", {"pivot_image_token": 0}),
        ("vscan", {"window": 0}),
        ("recoverable", {"recovered": 1.1}),
        ("fopru", {"strategy": "column"}),
    ],
)
def test_parameters_out_of_range_are_refused(plan, options):
    with pytest.raises(InputError, match=next(iter(options))):
        registry.build(plan, **options)


@pytest.mark.parametrize("plan", ["cdpruner", "mmtok", "recoverable"])
def test_methods_that_need_a_question_say_so(plan):
    with pytest.raises(InputError, match="text"):
        build(plan).reduce(sample(12, 0, ["cls_attention"]), Budget(tokens=3), Context())


@pytest.mark.parametrize("weight", [0.0, 0.7, 20.0])
def test_catp_against_the_formula(weight: float):
    tokens = sample(30, 4)
    generator = torch.Generator().manual_seed(5)
    question, paired = (torch.randn(3, 12, generator=generator) for _ in range(2))

    def picks(text):
        x = normalize(tokens.x.double(), dim=1)
        like = (1 + x @ x.T) / 2
        align = (1 + x @ normalize(text.double().mean(0), dim=0)) / 2
        found: list[int] = []
        for _ in range(9):
            value = {
                j: float(like[:, [*found, j]].amax(1).sum() + weight * align[[*found, j]].sum())
                for j in range(30)
                if j not in found
            }
            found.append(max(value, key=lambda j: (value[j], -j)))
        return sorted(found)

    method = build("catp", lambda_1=weight)
    both = method.reduce(tokens, Budget(tokens=9), Context(text=[question], paired=[paired]))
    alone = method.reduce(tokens, Budget(tokens=9), Context(text=[question]))
    assert kept(both) == picks(paired) and kept(alone) == picks(question)
    assert (picks(paired) != picks(question)) == (weight > 0)
