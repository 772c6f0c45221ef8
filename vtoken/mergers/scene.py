"""GRT stage 2, Semantic-Scene Intra-Tokenization Merging: similar neighbouring scenes become one."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from torch import Tensor

from vtoken.data.budget import Budget
from vtoken.data.tokens import Tokens
from vtoken.encoders.compat import dtype_of
from vtoken.errors import InputError
from vtoken.kernels.divergence import feature_distributions, jensen_shannon, reversed_jensen_shannon
from vtoken.kernels.topk import cells, counts
from vtoken.methods.anchors import Anchors
from vtoken.methods.merger import Merger, in_order
from vtoken.methods.options import Bound
from vtoken.methods.reducer import Context, Count
from vtoken.methods.registry import register

DELTA, PUBLISHED_DELTA = 0.05, 0.4


@dataclass
class Chain:
    """A scene, or several that were merged, by its key tokens.

    Attributes:
        clip: number of its clip within the sample.
        row: int64 [C], the row that leads each cell, -1 where the key step lacks it.
        free: bool [C], cells whose token is no anchor.
        x, weight: float32 [C, D] and [C], mean of the key tokens of each cell and the source cells behind it.
        pooled: float32 [D], mean of the key tokens; averaged anew with every scene, as the released code does.
        whole: whether every cell has a key token.
    """

    clip: int
    row: Tensor
    free: Tensor
    x: Tensor
    weight: Tensor
    pooled: Tensor
    whole: bool


@register("scene")
@dataclass(kw_only=True)
class Scene(Merger):
    """Averages the key tokens of similar neighbouring scenes and keeps the changed tokens of both (GRT stage 2).

    A scene's key tokens are those of its first step, which the gate keeps whole. Every token is read as a distribution
    over its features, and scenes are compared by the Jensen-Shannon divergence of the distributions of their key frames
    over places and features, which is the mean divergence of the tokens in one place. From left to right, a scene whose
    divergence from the one before is below ``delta`` joins it: key tokens in one place become their mean, weighted by
    their source cells, and the next scene is compared with that mean. Order is by time; a merged token has the
    position of its heaviest member, the first among equals.

    Nothing is computed where a sample has one scene, and nothing changes where no scene repeats its neighbour.

    Attributes:
        delta: largest divergence that merges, in nats (0 to 0.69); None for 0.05, and 0.4 with ``exact``.
        cell_delta: a key token whose own divergence is not below this counts as changed and stays (ours: a new line
            of text on a slide is not averaged away); None averages all of them, as the paper does.
        anchors: tokens of a key step that are not averaged, by default the last in raster order, so that the language
            model keeps the clock (ours); 0 for the paper's rule.
        neighbours: "next" compares a scene with the one before; "all" with every earlier one of the clip, and joins the
            nearest (ours).
        exact: compare as the released code does: features are averaged over the key frame and sent through the language
            model's ``lm_head``, and the arguments of both divergences are exchanged; ``cell_delta`` does not apply.

    Raises:
        InputError: ``exact`` without a language model's ``lm_head``.
    """

    paper: ClassVar[str] = "Gated Residual Tokenization, stage 2 (arXiv 2509.14199)"
    needs: ClassVar[frozenset[str]] = frozenset({"scene"})
    needs_budget: ClassVar[bool] = False
    own_anchors: ClassVar[bool] = True  # they count in the divergence of two scenes

    delta: Annotated[float | None, Bound(least=0)] = None
    cell_delta: Annotated[float | None, Bound(least=0)] = 0.05
    anchors: Anchors | int | str = Anchors(1)
    neighbours: Literal["next", "all"] = "next"
    exact: bool = False

    def reduce(self, tokens: Tokens, budget: Budget | Count | None, context: Context) -> Tokens:
        scene = tokens.signals.get("scene")
        if scene is not None and not bool(((scene.diff() != 0) & (tokens.sample_of.diff() == 0)).any()):
            return tokens  # one scene in every sample
        return super().reduce(tokens, budget, context)

    def group(self, tokens: Tokens, k: int, context: Context) -> Tensor:
        group = torch.arange(len(tokens), device=tokens.x.device)
        scenes = list(_scenes(tokens, self.anchor_rows(tokens)))
        if self.neighbours == "next" and all(scene.whole for scene in scenes):
            return in_order(self._without_waiting(scenes, group, context), tokens.size)
        chains: list[Chain] = []
        for scene in scenes:
            if not chains or scene.clip != chains[-1].clip:
                chains = [scene]  # scenes of different clips never merge
                continue
            found = [(*self._compare(c, scene, context), c) for c in chains[0 if self.neighbours == "all" else -1 :]]
            distance, alike, nearest = min(found, key=lambda f: f[0])
            if distance < self._delta:
                _join(nearest, scene, alike, group)
            else:
                chains.append(scene)
        return in_order(group, tokens.size)

    def _without_waiting(self, scenes: list[Chain], group: Tensor, context: Context) -> Tensor:
        """``group`` of scenes that have a token in every cell: the device is never asked which scenes are merged."""
        chain = scenes[0]
        for scene in scenes[1:]:
            if scene.clip != chain.clip:
                chain = scene
                continue
            free = chain.free & scene.free
            if self.exact:
                distance, alike = self._by_head(chain, scene, context), free
            else:
                each = jensen_shannon(*feature_distributions(torch.stack([chain.x, scene.x])))
                distance, alike = each.mean(), free if self.cell_delta is None else free & (each < self.cell_delta)
            merges = (distance < self._delta) & free.any()
            alike = alike & merges
            group = group.index_copy(0, scene.row, torch.where(alike, group[chain.row], group[scene.row]))
            total = chain.weight + scene.weight
            mean = chain.x + (scene.weight / total)[:, None] * (scene.x - chain.x)
            chain = Chain(
                scene.clip,
                torch.where(merges, chain.row, scene.row),
                torch.where(merges, chain.free, scene.free),
                torch.where(merges, torch.where(alike[:, None], mean, chain.x), scene.x),
                torch.where(merges, torch.where(alike, total, chain.weight), scene.weight),
                torch.where(merges, (chain.pooled + scene.pooled) / 2, scene.pooled),
                True,
            )
        return group

    @property
    def _delta(self) -> float:
        return self.delta if self.delta is not None else PUBLISHED_DELTA if self.exact else DELTA

    def _compare(self, a: Chain, b: Chain, context: Context) -> tuple[float, Tensor]:
        """Divergence of two scenes, and the cells (int64) whose key tokens would be averaged."""
        shared = ((a.row >= 0) & (b.row >= 0)).nonzero().squeeze(1)
        free = (a.free & b.free)[shared]
        averaged = shared[free]
        if len(averaged) == 0:
            return math.inf, shared
        if self.exact:
            return float(self._by_head(a, b, context)), averaged
        each = jensen_shannon(*feature_distributions(torch.stack([a.x[shared], b.x[shared]])))
        alike = averaged if self.cell_delta is None else averaged[each[free] < self.cell_delta]
        return float(each.mean()), alike

    @staticmethod
    def _by_head(a: Chain, b: Chain, context: Context) -> Tensor:
        """The published divergence of two scenes, through the language model's head: float32 []."""
        head = context.extra.get("lm_head")
        if head is None:
            raise InputError(
                "scene:exact=True compares through the language model's lm_head, which is not given here; a "
                "wrapped model gives it"
            )
        logits = head(torch.stack([a.pooled, b.pooled]).to(dtype_of(head))).float()
        return reversed_jensen_shannon(*logits.log_softmax(-1))


def _scenes(tokens: Tokens, anchors: Tensor) -> Iterator[Chain]:
    """Every scene of a sample as a chain of its own, in order."""
    free = torch.ones(len(tokens), dtype=torch.bool, device=anchors.device).index_fill(0, anchors, False)
    place, step = cells(tokens.position), tokens.position[:, 0].long()
    numbers, scene = tokens.signals["scene"].unique(return_inverse=True)
    first = step.new_full((len(numbers),), torch.iinfo(torch.long).max).scatter_reduce(0, scene, step, "amin")
    key = (step == first[scene]).nonzero().squeeze(1)
    key = key[scene[key].argsort(stable=True)]
    clip = (numbers.diff(prepend=numbers[:1]) > 1).cumsum(0)  # a number is left out between two clips
    sizes = counts(scene[key], len(numbers)).tolist()
    places, at = place[key].unique(return_inverse=True)  # those of the key steps, in raster order
    count = len(places)
    table = torch.full((len(numbers), count), -1, device=key.device).index_put((scene[key], at), key)
    full = (table >= 0).all(1).tolist()
    for own, rows, cell, row, whole in zip(clip.tolist(), key.split(sizes), at.split(sizes), table, full, strict=True):
        x = tokens.x.new_zeros(count, tokens.x.shape[1], dtype=torch.float32)
        x[cell] = tokens.x[rows].float()
        weight = torch.where(row >= 0, tokens.size[row].float(), 0.0)
        yield Chain(own, row, (row < 0) | free[row], x, weight, tokens.x[rows].float().mean(0), whole)


def _join(chain: Chain, scene: Chain, alike: Tensor, group: Tensor) -> None:
    """Merge a scene into a chain: the key tokens of the cells ``alike`` into one, the others as they are."""
    group[scene.row[alike]] = group[chain.row[alike]]
    total = chain.weight[alike] + scene.weight[alike]
    share = (scene.weight[alike] / total)[:, None]
    chain.x[alike] += share * (scene.x[alike] - chain.x[alike])
    chain.weight[alike] = total
    new = ((chain.row < 0) & (scene.row >= 0)).nonzero().squeeze(1)
    for name in ("row", "free", "x", "weight"):
        getattr(chain, name)[new] = getattr(scene, name)[new]
    chain.pooled = (chain.pooled + scene.pooled) / 2
