"""GRT stage 2 on made tokens: who merges, what the merged token is, and that nothing happens where nothing repeats."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from tests.tokens import pack
from vtoken.data.tokens import Tokens
from vtoken.errors import InputError
from vtoken.kernels.divergence import feature_distributions, jensen_shannon, reversed_jensen_shannon
from vtoken.mergers.scene import Scene
from vtoken.methods.plan import Plan
from vtoken.methods.reducer import Context

CELLS, WIDTH = 12, 32


def picture(seed: int) -> Tensor:
    return torch.randn(CELLS, WIDTH, generator=torch.Generator().manual_seed(seed))


def near(key: Tensor, seed: int, by: float = 0.05) -> Tensor:
    return key + by * torch.randn(key.shape, generator=torch.Generator().manual_seed(seed))


def clip(*keys: Tensor, changed: tuple[int, ...] = (3, 7), numbers: tuple[int, ...] | None = None) -> Tokens:
    """Scenes of two steps: a whole key step, then a step in which some cells changed."""
    x, position, scene, size = [], [], [], []
    for s, key in enumerate(keys):
        x += [key, near(picture(900 + s)[list(changed)], s)]
        for t, cells in ((2 * s, range(CELLS)), (2 * s + 1, changed)):
            position += [(t, c // 4, c % 4) for c in cells]
        scene += [numbers[s] if numbers else s] * (CELLS + len(changed))
        size += [1.0 if c in changed else 2.0 for c in range(CELLS)] + [1.0] * len(changed)
    place = torch.tensor(position)
    signals = {"scene": torch.tensor(scene), "deepstack.0": torch.cat(x).clone(), "row": torch.arange(len(place))}
    tokens = Tokens.of(torch.cat(x), place, place[:, 0].float(), **signals)
    tokens.size = torch.tensor(size)
    return tokens


def merge(tokens: Tokens, context: Context | None = None, **options) -> Tokens:
    return Scene(**options).reduce(tokens, None, context or Context())


def test_a_repeated_scene_is_averaged_by_weight_and_its_changes_stay():
    a = picture(0)
    tokens = clip(a, near(a, 1))
    tokens.size[14:26] = 3.0  # the second key step was shown longer
    out = merge(tokens, anchors=0)
    n = CELLS + 2
    assert len(out) == 2 * n - CELLS
    assert float(out.size.sum()) == float(tokens.size.sum())
    for cell in range(CELLS):
        members = torch.tensor([cell, n + cell])
        weight = tokens.size[members] / tokens.size[members].sum()
        fused = int(out.source[cell])
        assert int(out.source[n + cell]) == fused
        torch.testing.assert_close(out.x[fused], (tokens.x[members] * weight[:, None]).sum(0))
        assert out.position[fused].tolist() == tokens.position[n + cell].tolist()  # of the heaviest
        assert torch.equal(out.signals["deepstack.0"][fused], out.x[fused])
    for row in (12, 13, 26, 27):  # changed tokens of both scenes
        assert torch.equal(out.x[out.source[row]], tokens.x[row])
    assert bool((out.signals["row"].diff() > 0).all())  # in time order


def test_equally_long_scenes_stand_at_the_first():
    a = picture(0)
    out = merge(clip(a, near(a, 1)), anchors=0)
    assert out.position[:CELLS, 0].tolist() == [0] * CELLS


def test_the_chain_goes_on_from_the_mean():
    a = picture(0)
    keys = [a, near(a, 1), near(a, 2), near(a, 3)]
    tokens = clip(*keys)
    out = merge(tokens, anchors=0, cell_delta=None)
    assert len(out) == CELLS + 8
    torch.testing.assert_close(out.x[0], torch.stack([k[0] for k in keys]).mean(0), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("side", [-1, 1])
def test_the_next_scene_is_compared_with_the_mean(side):
    """c lies near the mean of a and b, and farther from one of them than that."""
    a, e = picture(0), 0.3 * picture(50)
    b, c = a + e, a + (0.5 + side) * e

    def distance(x: Tensor, y: Tensor) -> float:
        return float(jensen_shannon(*feature_distributions(torch.stack([x, y]))).mean())

    to_mean, far = distance((a + b) / 2, c), max(distance(a, c), distance(b, c))
    assert distance(a, b) < to_mean * 1.1 < far
    tokens = clip(a, b, c)
    assert len(merge(tokens, delta=to_mean * 1.1, cell_delta=None, anchors=0)) == len(tokens) - 2 * CELLS
    assert len(merge(tokens, delta=to_mean * 0.95, cell_delta=None, anchors=0)) > len(tokens) - 2 * CELLS


def test_the_mean_that_is_compared_is_weighted_too():
    """Long scenes a and b, a short c and a last d: each decision by the weighted mean of what came before."""
    a, e = picture(0), 0.3 * picture(50)
    keys, weights = [a, a + 0.6 * e, a + 0.2 * e, a - 0.8 * e], [1.0, 5.0, 2.0, 1.0]
    tokens = clip(*keys, changed=())
    tokens.size = torch.tensor(weights).repeat_interleave(CELLS)
    mean, total, most = keys[0], weights[0], 0.0
    for key, weight in zip(keys[1:], weights[1:], strict=True):
        each = jensen_shannon(*feature_distributions(torch.stack([mean, key])))
        most = max(most, float(each.mean()))
        mean, total = (mean * total + key * weight) / (total + weight), total + weight
    merged = merge(tokens, delta=most * 1.001, cell_delta=None, anchors=0)
    assert len(merged) == CELLS
    torch.testing.assert_close(merged.x, mean, atol=1e-5, rtol=1e-5)
    assert len(merge(tokens, delta=most * 0.999, cell_delta=None, anchors=0)) > CELLS


def test_anchors_keep_the_clock():
    a = picture(0)
    tokens = clip(a, near(a, 1))
    out = merge(tokens)
    kept = set(out.signals["row"].tolist())
    assert 14 + 11 in kept and 14 + 10 not in kept  # the last cell of the second key step
    assert set(out.position[:, 0].tolist()) == {0, 1, 2, 3}
    assert len(merge(tokens, anchors=CELLS)) == len(tokens)


def test_different_scenes_stay_bit_for_bit():
    tokens = clip(picture(0), picture(1), picture(2))
    out = merge(tokens)
    assert out is tokens


def test_one_scene_is_not_even_looked_at():
    one = clip(picture(0))
    one.x[3, 3] = float("nan")  # any look at the features would refuse this
    tokens = pack([one, one])
    assert merge(tokens) is tokens
    two = clip(picture(0), picture(1))
    two.x[3, 3] = float("nan")
    with pytest.raises(InputError, match="NaN"):
        merge(two)


def test_a_scene_that_comes_back_merges_only_when_asked():
    a = picture(0)
    tokens = clip(a, picture(1), near(a, 2))
    assert merge(tokens) is tokens
    out = merge(tokens, neighbours="all", anchors=0)
    assert len(out) == len(tokens) - CELLS
    assert torch.equal(out.source[:CELLS], out.source[28 : 28 + CELLS])


@pytest.mark.parametrize("neighbours", ["next", "all"])
def test_scenes_of_two_clips_never_merge(neighbours):
    a = picture(0)
    tokens = clip(a, near(a, 1), near(a, 2), numbers=(0, 1, 3))
    out = merge(tokens, neighbours=neighbours, anchors=0)
    assert len(out) == len(tokens) - CELLS
    assert set(out.source[28:].tolist()).isdisjoint(out.source[:28].tolist())


def test_a_cell_that_differs_counts_as_changed():
    a = picture(0)
    b = near(a, 1)
    b[5] = picture(77)[5]
    tokens = clip(a, b)
    out = merge(tokens, anchors=0)
    assert len(out) == len(tokens) - CELLS + 1
    assert torch.equal(out.x[out.source[14 + 5]], b[5]) and torch.equal(out.x[out.source[5]], a[5])
    assert len(merge(tokens, anchors=0, cell_delta=None)) == len(tokens) - CELLS


def test_key_steps_that_lack_cells():
    """After a pruner, a key step may hold some of its cells only: those that both have merge."""
    a = picture(0)
    tokens = clip(a, near(a, 1))
    some = torch.tensor([i for i in range(28) if i not in (0, 1, 14 + 1, 14 + 2)])
    out = merge(tokens.take(some), anchors=0)
    assert len(out) == 24 - 9


def test_samples_of_a_batch_do_not_meet():
    a, b = picture(0), picture(1)
    parts = [clip(a, near(a, 1)), clip(a), clip(b, picture(2)), clip(b, near(b, 3), near(b, 4))]
    out = merge(pack(parts))
    for i, part in enumerate(parts):
        alone = merge(part)
        assert torch.equal(out.sample(i).x, alone.x) and torch.equal(out.sample(i).position, alone.position)


def test_exact_compares_through_the_language_models_head():
    torch.manual_seed(0)
    head = nn.Linear(WIDTH, 50, bias=False)
    head.weight.data *= 8  # far apart, the two orders of the divergence give far different numbers
    context = Context(extra={"lm_head": head})
    a, b = picture(0), picture(1)
    p, q = (head(x.mean(0)).softmax(0) for x in (a, b))
    m = (p + q) / 2
    kl = nn.functional.kl_div  # kl_div(log x, y) is KL(y || x)
    distance = float((kl(p.log(), m, reduction="sum") + kl(q.log(), m, reduction="sum")).detach() / 2)
    tokens = clip(a, b)
    assert merge(tokens, context, exact=True, delta=distance * 0.99) is tokens
    assert len(merge(tokens, context, exact=True, delta=distance * 1.01, anchors=0)) == len(tokens) - CELLS
    assert len(merge(tokens, context, exact=True, anchors=0)) == len(tokens) - CELLS * (distance < 0.4)
    with pytest.raises(InputError, match="lm_head"):
        merge(tokens, exact=True)


def test_exact_goes_on_from_the_plain_mean_of_both_scenes():
    torch.manual_seed(0)
    head = nn.Linear(WIDTH, 50, bias=False)
    context = Context(extra={"lm_head": head})
    a, e = picture(0), picture(50)
    keys = [a, a + 0.5 * e, a - e]
    means = [k.mean(0) for k in keys]
    pairs = [(means[0], means[1]), ((means[0] + means[1]) / 2, means[2])]
    with torch.no_grad():
        first, second = (float(reversed_jensen_shannon(*(head(m).log_softmax(0) for m in pair))) for pair in pairs)
    assert first < second * 0.9
    tokens = clip(*keys)
    tokens.size[:14] = 7.0  # weights of cells do not matter to the published comparison
    options = {"exact": True, "anchors": 0}
    assert len(merge(tokens, context, delta=second * 1.01, **options)) == len(tokens) - 2 * CELLS
    assert len(merge(tokens, context, delta=second * 0.99, **options)) == len(tokens) - CELLS


@pytest.mark.parametrize("options", [{"delta": -1.0}, {"cell_delta": -0.1}, {"anchors": -1}, {"neighbours": "none"}])
def test_bad_options(options):
    with pytest.raises(InputError, match=f"scene:{next(iter(options))}"):
        Scene(**options)


def test_the_plan_brings_stage_two():
    assert [str(s) for s in Plan.parse("grt:hold=off").reducers] == ["scene"]
    assert [str(s) for s in Plan.parse("grt:hold=off | divprune", keep=0.5).reducers] == ["scene", "divprune"]
    alone = Plan.parse("grt:hold=off,merge=none")
    assert alone.reducers == [] and str(alone) == "grt:hold=False,merge=none"
    assert [str(s) for s in Plan.parse("grt:hold=off,merge_delta=0.1,anchors=2").reducers] == [
        "scene:anchors=2,delta=0.1"
    ]
    written = Plan.parse("grt:hold=off | scene:delta=0.2,neighbours=all")
    assert [str(s) for s in written.reducers] == ["scene:delta=0.2,neighbours=all"]
    assert Plan.parse("mad | scene").reducers and not Plan.parse("mad").reducers
    with pytest.raises(InputError, match="only a gate gives"):
        Plan.parse("scene")
    with pytest.raises(InputError, match="takes the budget"):
        Plan.parse("grt:hold=off", keep=0.5)
