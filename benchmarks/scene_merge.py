"""Which comparison of key frames tells a scene that repeats from one that does not, and what the comparison costs.

    python -m benchmarks.scene_merge [--models llava-onevision-7b,qwen2.5-vl-7b] [--pictures 6]

Pairs of rendered key frames go through random encoders with the patches of real models. Alike are pairs that one would
merge: sensor noise, a shift by two pixels, an object that came in, the next build of a slide, a light change. Different
are pairs that one would not: another picture or slide, the picture moved far or mirrored, black. Printed are the mean
divergence of each kind of pair, how often a pair that is alike is nearer than one that is different (AUC), and what
becomes of the cells on which the next build of a slide writes: averaged away, or kept as changed.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from statistics import mean

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import layer_norm, normalize

from vtoken import families
from vtoken.bench import machine
from vtoken.bench.models import MEDIUM, describe, random_model
from vtoken.bench.pipeline import Encoder, run_pass
from vtoken.data.tokens import Tokens
from vtoken.families.geometry import geometry
from vtoken.kernels.divergence import feature_distributions, jensen_shannon
from vtoken.kernels.kcenter import kcenter
from vtoken.mergers.scene import DELTA, Scene
from vtoken.methods.plan import Plan
from vtoken.methods.reducer import Context
from vtoken.reference.slides import Deck, State
from vtoken.reference.synthetic import render

SIZE = (360, 640)
WORDS = 32  # of the shared codebook
BUILD = "next build of a slide"
Guarded = dict[bool, list[bool]]
Pairs = dict[str, list[tuple[np.ndarray, np.ndarray]]]


def pairs(pictures: int) -> tuple[Pairs, Pairs]:
    """Pairs of frames that are alike, and pairs that are different, by kind."""
    alike: Pairs = {}
    different: Pairs = {}
    for seed in range(pictures):
        frame = render("objects", 1, 1, SIZE, seed).draw(0)
        rng = np.random.default_rng(seed)
        grain = rng.normal(0, 4, frame.shape)
        entered = frame.copy()
        top, left = int(rng.integers(SIZE[0] - 110)), int(rng.integers(SIZE[1] - 140))
        entered[top : top + 110, left : left + 140] = rng.integers(0, 256, 3)
        deck, cursor = Deck(SIZE, seed), (600, 330)

        def slide(number: int, built: int, deck: Deck = deck, cursor: tuple[int, int] = cursor) -> np.ndarray:
            return deck.draw(State(number, built, cursor))

        for kind, other in {
            "noise of 4 levels": np.clip(frame + grain, 0, 255),
            "shift of 2 px": np.roll(frame, (2, 2), (0, 1)),
            "object comes in": entered,
            "light at 85 %": frame * 0.85,
        }.items():
            alike.setdefault(kind, []).append((frame, other.astype(np.uint8)))
        alike.setdefault(BUILD, []).append((slide(seed, 3), slide(seed, 4)))
        for kind, other in {
            "another picture": render("objects", 1, 1, SIZE, seed + 100).draw(0),
            "shift of 64 px": np.roll(frame, (64, 64), (0, 1)),
            "mirrored": frame[:, ::-1],
            "black": np.zeros_like(frame),
        }.items():
            different.setdefault(kind, []).append((frame, other))
        different.setdefault("another slide", []).append((slide(seed, 5), slide(seed + 1, 5)))
    return alike, different


def joint(a: Tensor, b: Tensor) -> float:
    """What ``scene`` does: tokens as distributions over their standardised features, place by place."""
    return float(jensen_shannon(*feature_distributions(torch.stack([a, b]))).mean())


def pooled(a: Tensor, b: Tensor) -> float:
    """Softmax over the features of the mean token, as in the released code but without the language model's head."""
    return float(jensen_shannon(*layer_norm(torch.stack([a.mean(0), b.mean(0)]), a.shape[1:]).log_softmax(-1)))


def codebook(a: Tensor, b: Tensor) -> float:
    """Shares of soft assignments to words that both frames' tokens share."""
    x = torch.cat([a, b])
    x = normalize(x - x.mean(0), dim=1)
    share = (x @ x[kcenter(x, WORDS)].T / 0.1).softmax(1)
    p, q = share[: len(a)].mean(0), share[len(a) :].mean(0)
    return float(jensen_shannon(p.log(), q.log()))


METHODS: dict[str, Callable[[Tensor, Tensor], float]] = {"joint (scene)": joint, "pooled": pooled, "codebook": codebook}


def keys(encoder: Encoder, frames: list[np.ndarray]) -> tuple[list[Tensor], tuple[int, int]]:
    """Tokens of single frames, each of which fills a time step, and their grid."""
    repeated = [f for frame in frames for f in [frame] * encoder.preprocessor.temporal]
    tokens = run_pass(np.stack(repeated), 1.0, Plan(), encoder, native_fps=1.0).tokens
    rows, columns = (int(n) + 1 for n in tokens.position[:, 1:].amax(0))
    return list(tokens.x.chunk(len(frames))), (rows, columns)


def written(a: np.ndarray, b: np.ndarray, grid: tuple[int, int]) -> Tensor:
    """bool [cells]: cells of a grid in which two frames differ."""
    changed = cv2.resize((a != b).any(2).astype(np.float32), grid[::-1], interpolation=cv2.INTER_AREA)
    return torch.from_numpy(changed.ravel() > 0)


def compare(model: str, pictures: int) -> None:
    net = random_model(geometry(model), MEDIUM)
    family = families.of(net)
    encoder = Encoder(family, net, family.preprocess(net))
    found: dict[str, dict[str, list[float]]] = {name: {} for name in METHODS}
    groups, guarded = pairs(pictures), {True: [], False: []}
    for group in groups:
        for kind, made in group.items():
            x, grid = keys(encoder, [frame for pair in made for frame in pair])
            if kind == BUILD:
                guard(x, made, grid, guarded)
            for name, method in METHODS.items():
                found[name][kind] = [method(a, b) for a, b in zip(x[::2], x[1::2], strict=True)]
    print(f"\n{describe(geometry(model), MEDIUM)}\n")
    print(f"{'divergence (nats)':34s}" + "".join(f"{name:>16s}" for name in METHODS))
    for title, group in zip(("alike", "different"), groups, strict=True):
        for kind in group:
            values = "".join(f"{mean(found[name][kind]):16.4f}" for name in METHODS)
            print(f"{title if kind == next(iter(group)) else '':11s}{kind:23s}" + values)
    for still in (True, False):
        alike = [k for k in groups[0] if still or k != "light at 85 %"]
        line = "AUC" if still else "AUC without the light"
        print(f"{line:34s}" + "".join(f"{auc(found[n], alike, list(groups[1])):16.3f}" for n in METHODS))
    merged = {kind: mean(v < DELTA for v in found["joint (scene)"][kind]) for group in groups for kind in group}
    print(f"merged at delta {DELTA:g}: " + ", ".join(f"{kind} {share:.0%}" for kind, share in merged.items() if share))
    print(
        f"{BUILD}, kept as changed at cell_delta {Scene().cell_delta:g}: {mean(guarded[True]):.0%} of the cells that "
        f"it touches, {mean(guarded[False]):.0%} of the others"
    )


def guard(x: list[Tensor], made: list[tuple[np.ndarray, np.ndarray]], grid: tuple[int, int], out: Guarded) -> None:
    """Which cells the merger would keep as changed, apart for those that changed and those that did not."""
    bar = Scene().cell_delta
    assert bar is not None
    for (a, b), first, second in zip(made, x[::2], x[1::2], strict=True):
        kept = jensen_shannon(*feature_distributions(torch.stack([first, second]))) >= bar
        touched = written(a, b, grid)
        out[True] += kept[touched].tolist()
        out[False] += kept[~touched].tolist()


def auc(found: dict[str, list[float]], alike: list[str], different: list[str]) -> float:
    near = [v for kind in alike for v in found[kind]]
    far = [v for kind in different for v in found[kind]]
    return mean((a < b) + 0.5 * (a == b) for a in near for b in far)


def cost(cells: int = 196, width: int = 3584, scenes: int = 8) -> None:
    """Milliseconds of CPU for scenes that never repeat, and for a clip of one scene."""
    g = torch.Generator().manual_seed(0)
    position = torch.cartesian_prod(torch.arange(scenes), torch.arange(14), torch.arange(cells // 14))
    x = torch.randn(scenes * cells, width, generator=g)
    for count in (1, scenes):
        tokens = Tokens.of(x, position, scene=(position[:, 0] * count // scenes).long())
        best = float("inf")
        for _ in range(5):
            start = time.process_time()
            assert Scene().reduce(tokens, None, Context()) is tokens
            best = min(best, time.process_time() - start)
        print(f"{count} scene{'s' * (count > 1)}, {len(x)} tokens of {width}: {best * 1e3:.2f} ms")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--models", default="llava-onevision-7b,qwen2.5-vl-7b")
    parser.add_argument("--pictures", type=int, default=6)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(machine.describe())
    for model in arguments.models.split(","):
        compare(model, arguments.pictures)
    print()
    cost()


if __name__ == "__main__":
    main()
