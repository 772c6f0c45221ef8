"""`vtoken train`: what the library trains for its users."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from vtoken.errors import InputError

NAME = "train"


def add(commands: Any, command: Any) -> None:
    """Add the command to a parser's commands."""
    text = "train a scorer for the pruner `learned`, in front of a frozen model; goes on where it was interrupted"
    to = command(commands, NAME, run, text, "vtoken train scorer --model reference --out scorer")
    to.add_argument("what", choices=("scorer",), help="scorer: see docs/methods/learned.md")
    to.add_argument("--model", default="reference", metavar="ID_OR_PATH", help="checkpoint (default reference)")
    to.add_argument("--out", type=Path, default=Path("scorer"), help="checkpoint, curves and weights (default scorer)")
    to.add_argument("--keep", default="0.05,0.5", metavar="LOW,HIGH", help="keep ratios (default 0.05,0.5)")
    to.add_argument("--no-text", action="store_true", help="the scorer does not read the question")
    to.add_argument("--attention-steps", type=int, default=400, metavar="N", help="updates on attention (default 400)")
    to.add_argument("--steps", type=int, default=400, metavar="N", help="updates end to end after them (default 400)")
    to.add_argument("--layer", type=float, default=0.5, help="of the attention, as a share of the depth (default 0.5)")
    to.add_argument("--fps", default="8,16", help="rates of the clips (default 8,16)")
    to.add_argument("--clips", type=int, default=2, metavar="N", help="DenseQA clips a step (default 2)")
    to.add_argument("--questions", type=int, default=6, metavar="N", help="questions about each (default 6)")
    to.add_argument("--lr", type=float, default=1e-3, help="peak learning rate (default 0.001)")
    to.add_argument("--seed", type=int, default=0)
    to.add_argument("--threads", type=int, default=2, help="CPU threads (default 2)")
    to.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:1 (default auto)")
    to.add_argument("--resume", action="store_true", help="go on from the checkpoint in --out")


def run(arguments: argparse.Namespace) -> None:
    """`vtoken train scorer`."""
    from vtoken.methods import learned
    from vtoken.output import program
    from vtoken.qa.load import load
    from vtoken.scorer import train

    a = arguments
    keep, fps = numbers("--keep", a.keep), numbers("--fps", a.fps)
    if len(keep) != 2:
        raise InputError(f"--keep={a.keep} must be the lowest and the highest ratio, such as 0.05,0.5")
    settings = train.Settings(
        a.attention_steps, a.steps, a.seed, (keep[0], keep[1]), not a.no_text, a.layer, a.lr,
        tuple(int(f) for f in fps), a.clips, a.questions,
    )  # fmt: skip
    path = program.begin(a)
    model, words = load(a.model, a.device, "float32")
    made = train.start(model, words, settings)
    if path.is_file():
        train.resume(made, path)
    train.train(made, argparse.Namespace(out=a.out, steps=settings.steps + settings.soft), path)
    folder = learned.save(made.net, a.out / "weights")
    print(f'wrote {folder}; try the plan "learned:weights={folder},keep=0.1"')


def numbers(flag: str, text: str) -> list[float]:
    """Numbers separated by commas."""
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise InputError(f"{flag}={text!r} must be numbers separated by commas") from None
