"""``python -m training.vjepa.pretrain``: a small V-JEPA 2 from nothing, on a CPU, resumable.

The class is ``VJEPA2Model`` of transformers. The objective is V-JEPA 2's: predict the features that an exponential
moving average of the encoder gives to hidden tokens, layer-normed without weights, under L1. A part of the steps
forecasts: past and future are encoded apart, as the dense pathway does, or every time step by itself, as a gate does.
So short a training on so few clips ends with features of three or four dimensions, which tell the light of a scene;
VICReg's two terms keep them apart, as in C-JEPA (Mo and Tong 2024, arXiv:2410.19560).
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import os
import shutil
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from training.optimizer import Optimizer
from training.vjepa import masks, probe
from training.vjepa.corpus import Pool
from vtoken.output import program
from vtoken.reference import VJEPA
from vtoken.thinkjepa.hands.inputs import CROP, MEAN, STD

FRAMES = 16  # of a window, 8 time steps
KINDS = {"short": 0.3, "long": 0.15, "forecast": 0.35, "steps": 0.2}  # share of the steps
POOL = (160, 160)  # episodes with hands, clips of DenseQA
MOMENTUM = 0.99  # of the teacher
FLOOR = 64.0  # variance of patches under which whitening fades: finer detail is noise that nothing predicts
SPREAD, NARROW, ALIKE = 0.7, 1.0, 0.01  # deviation that is enough, and the weights of the two terms of ``apart``
PROBE = (120, 40)  # episodes that the probe of the hands is fitted to and measured on
TELL = 100  # steps between reports
HELD = ("model", "teacher", "optimizer", "step", "score", "log")  # parts of a checkpoint


@dataclass
class State:
    """Everything a checkpoint holds."""

    model: Any
    teacher: Any  # the encoder whose features are predicted
    optimizer: Optimizer
    step: int = 0
    score: dict[str, float] = field(default_factory=dict)  # running losses by kind
    log: list[dict[str, float]] = field(default_factory=list)


def config(**sizes: int) -> Any:
    """VJEPA2Config: 64x64 pixels, 16 tokens a time step of two frames."""
    from transformers import VJEPA2Config

    small: dict[str, Any] = {"hidden_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4}
    small |= {"pred_hidden_size": 96, "pred_num_hidden_layers": 4, "pred_num_attention_heads": 4}
    small |= {"crop_size": CROP, "frames_per_clip": FRAMES, "pred_num_mask_tokens": 2} | sizes
    return VJEPA2Config(**small)


def start(seed: int, **sizes: int) -> State:
    """A fresh state."""
    from transformers import VJEPA2Model

    torch.manual_seed(seed)
    model: Any = VJEPA2Model(config(**sizes))
    teacher = copy.deepcopy(model.encoder).requires_grad_(False).eval()
    blocks = list(model.predictor.layer.parameters())
    known = {id(p) for p in blocks}
    rest = [p for p in model.parameters() if id(p) not in known]
    return State(model, teacher, Optimizer(blocks, rest))


def encode(encoder: Any, video: Tensor, seen: Tensor | None = None) -> Tensor:
    """Features of the tokens ``seen`` alone, which see nothing else; of all where it is None.

    Args:
        video: float32 [B, T, 3, 64, 64].
        seen: int64 [B, n].
    """
    x = encoder.embeddings(video)
    if seen is not None:
        x = x.gather(1, seen[..., None].expand(-1, -1, x.shape[-1]))
    for layer in encoder.layer:
        x = layer(x, seen)[0]
    return encoder.layernorm(x)


def apiece(encoder: Any, video: Tensor, frames: int | None = None) -> Tensor:
    """Features of a video, encoded whole or, as a gate sees it, so many frames at a time: float32 [B, n, width]."""
    if frames is None:
        return encode(encoder, video)
    parts = encode(encoder, video.unflatten(1, (-1, frames)).flatten(0, 1))
    return parts.view(len(video), -1, parts.shape[-1])


def loss(model: Any, teacher: Any, video: Tensor, kind: str, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """L1 between predicted and observed layer-normed features, and what ``apart`` adds."""
    cells, steps = (CROP // model.config.patch_size) ** 2, video.shape[1] // model.config.tubelet_size
    if kind in ("forecast", "steps"):
        past = int(rng.integers(1, steps))
        seen, hidden = masks.forecast(past, steps, cells, len(video))
        cut = past * model.config.tubelet_size
        each = model.config.tubelet_size if kind == "steps" else None
        context = apiece(model.encoder, video[:, :cut], each)
        with torch.no_grad():
            goal = apiece(teacher, video[:, cut:], each)
    else:
        seen, hidden = masks.multiblock(rng, kind, len(video), CROP // model.config.patch_size, steps)
        context = encode(model.encoder, video, seen)
        with torch.no_grad():
            goal = encode(teacher, video)
            goal = goal.gather(1, hidden[..., None].expand(-1, -1, goal.shape[-1]))
    found = predict(model.predictor, context, seen, hidden)
    near = functional.l1_loss(found, functional.layer_norm(goal, goal.shape[-1:]))
    return near, apart(context)


def apart(context: Tensor) -> Tensor:
    """VICReg's variance and covariance terms (Bardes et al. 2022, section 4) on layer-normed features [B, n, width].

    Features are counted from their mean over the clip, so that what is the same all over a clip does not suffice.
    """
    z = functional.layer_norm(context, context.shape[-1:])
    z = (z - z.mean(1, keepdim=True)).flatten(0, 1)
    shared = z.T @ z / (len(z) - 1)
    own = shared.diagonal()
    narrow = functional.relu(SPREAD - (own + 1e-4).sqrt()).mean()
    return NARROW * narrow + ALIKE * (shared.square().sum() - own.square().sum()) / z.shape[1]


def predict(predictor: Any, context: Tensor, seen: Tensor, hidden: Tensor) -> Tensor:
    """The predictor on features of the tokens ``seen`` alone: float32 [B, m, width] for the tokens ``hidden``.

    transformers gathers the context from a whole clip, so the features are put where it looks for them.
    """
    whole = context.new_zeros(len(context), int(seen.max()) + 1, context.shape[-1])
    whole = whole.scatter(1, seen[..., None].expand_as(context), context)
    return predictor(whole, [seen], [hidden]).last_hidden_state


@torch.no_grad()
def whiten(model: Any, video: Tensor) -> None:
    """Start the patch embedding at the principal components of patches, the strong ones made alike.

    Otherwise a short training leaves features of few dimensions, which tell the light of a scene and little else.

    Args:
        video: float32 [B, T, 3, 64, 64].
    """
    proj = model.encoder.embeddings.patch_embeddings.proj
    b, n, _, side, _ = video.shape
    t, p = model.config.tubelet_size, model.config.patch_size
    cells = video.view(b, n // t, t, 3, side // p, p, side // p, p).permute(0, 1, 4, 6, 3, 2, 5, 7)
    rows = cells.reshape(-1, 3 * t * p * p)
    mean = rows.mean(0)
    values, vectors = torch.linalg.eigh((rows - mean).T @ (rows - mean) / len(rows))
    width = len(proj.weight)
    basis = vectors.flip(1)[:, :width] / (values.flip(0)[:width] + FLOOR).sqrt()
    mix = torch.linalg.qr(torch.randn(width, width)).Q
    proj.weight.copy_((basis @ mix).T.reshape(proj.weight.shape))
    proj.bias.copy_(-(mean @ basis @ mix))


def rate(step: int, steps: int, peak: float = 1e-3, warm: int = 30) -> float:
    """Warm up, then a half cosine down to a hundredth."""
    done = min(1.0, max(0.0, (step - warm) / max(1, steps - warm)))
    return peak * min(1.0, (step + 1) / warm) * (0.01 + 0.99 * (1 + math.cos(math.pi * done)) / 2)


def train_step(state: State, pool: Pool, seed: int, steps: int, size: int) -> None:
    """One step; everything random comes from the seed and the step's number."""
    rng = np.random.default_rng((seed, state.step, 3))
    kind = str(rng.choice(list(KINDS), p=list(KINDS.values())))
    video = torch.from_numpy(pool.batch(rng, size, FRAMES))
    state.model.train()
    value, more = loss(state.model, state.teacher, video, kind, rng)
    state.optimizer.step(value + more, rate(state.step, steps))
    with torch.no_grad():
        for slow, fast in zip(state.teacher.parameters(), state.model.encoder.parameters(), strict=True):
            slow.lerp_(fast, 1 - MOMENTUM)
    state.step += 1
    program.blend(state.score, {kind: float(value.detach()), "apart": float(more.detach())}, 0.95)


def save(state: State, path: Path) -> None:
    """Write a checkpoint."""
    program.save(state, path, HELD)


def load(state: State, path: Path) -> State:
    """Continue from a checkpoint."""
    program.restore(state, program.read(path), HELD)
    return state


def released(state: State) -> Any:
    """The model to use: the teacher's encoder, as V-JEPA 2 releases it, with the predictor."""
    model = copy.deepcopy(state.model).eval()
    model.encoder.load_state_dict(state.teacher.state_dict())
    return model


def write(state: State, folder: Path) -> None:
    """A Hugging Face folder in float16; it appears whole or not at all."""
    part = folder.with_name(f".{folder.name}.{os.getpid()}.part")
    shutil.rmtree(part, ignore_errors=True)
    released(state).to(torch.float16).save_pretrained(part)
    for file in part.iterdir():
        file.chmod(0o644)  # safetensors writes for the owner alone
    size = {"height": CROP, "width": CROP}
    how = {"video_processor_type": "VJEPA2VideoProcessor", "crop_size": size, "size": {"shortest_edge": CROP}}
    how |= {"image_mean": list(MEAN), "image_std": list(STD), "rescale_factor": 1 / 255}
    (part / "video_preprocessor_config.json").write_text(json.dumps(how, indent=2) + "\n")
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(part, folder)


def run(args: argparse.Namespace) -> None:
    path = program.begin(args)
    state = start(args.seed)
    if path.is_file():
        load(state, path)
    if not args.export:
        _train(state, args, path)
    write(state, args.weights)
    print(f"weights of step {state.step}: {args.weights}", flush=True)


def _train(state: State, args: argparse.Namespace, path: Path) -> None:
    pool = Pool(*args.pool, seed=args.seed)
    train, test = probe.views("train", PROBE[0]), probe.views("validation", PROBE[1])
    if state.step == 0:
        rng = np.random.default_rng((args.seed, 1))
        whiten(state.model, torch.from_numpy(pool.batch(rng, 64, FRAMES)))
        state.teacher.load_state_dict(state.model.encoder.state_dict())

    def advance() -> None:
        train_step(state, pool, args.seed, args.steps, args.batch)

    def report() -> dict[str, float]:
        return state.score | probe.wrists(released(state), train, test)

    program.loop(state, args, advance, report, lambda: save(state, path), TELL)


def main(argv: list[str] | None = None) -> None:
    parser = program.parser("training.vjepa.pretrain", __doc__, "out/vjepa", steps=3000)
    program.add_export(parser, VJEPA)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--pool", type=int, nargs=2, default=POOL, help="episodes with hands, clips of DenseQA")
    run(parser.parse_args(argv))


if __name__ == "__main__":
    from vtoken.cli.main import guarded

    sys.exit(guarded(main))
