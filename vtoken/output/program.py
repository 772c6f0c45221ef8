"""What the training programs share: arguments, checkpoints, the loop around the steps, and the table of its reports."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Protocol

import torch

from vtoken.errors import InputError
from vtoken.output import curves
from vtoken.output.files import folder, replacing
from vtoken.output.progress import Advance, progress

SAVE = 60.0  # seconds between checkpoints


class Progress(Protocol):
    """What every state of a training has: steps done, and a row for each report."""

    step: int
    log: list[dict[str, Any]]


def parser(module: str, about: str | None, out: str, steps: int, threads: int = 1) -> argparse.ArgumentParser:
    """The arguments of every program; a program adds its own."""
    made = argparse.ArgumentParser(prog=f"python -m {module}", description=about)
    made.add_argument("--out", type=Path, default=Path(out), help=f"checkpoint and curves (default {out})")
    made.add_argument("--seed", type=int, default=0)
    made.add_argument("--steps", type=int, default=steps, help=f"updates in all (default {steps})")
    made.add_argument("--threads", type=int, default=threads)
    made.add_argument("--resume", action="store_true", help="go on from the checkpoint in --out")
    return made


def add_export(made: argparse.ArgumentParser, weights: Path) -> None:
    """The arguments of programs that write weights for the repository."""
    made.add_argument("--weights", type=Path, default=weights, help="where the finished model is written")
    made.add_argument("--export", action="store_true", help="write the weights of the checkpoint, and no more")


def begin(args: argparse.Namespace) -> Path:
    """Set torch up for a training, and give the path of its checkpoint in a folder that exists.

    Raises:
        InputError: a checkpoint is there and is neither to be gone on from nor exported, or none is there to export.
    """
    from transformers.utils.logging import disable_progress_bar

    if not sys.stderr.isatty():
        disable_progress_bar()
    torch.set_num_threads(args.threads)
    torch.set_flush_denormal(True)
    export = getattr(args, "export", False)
    path = folder(args.out) / "checkpoint.pt"
    if path.is_file() and not (args.resume or export):
        raise InputError(f"{path} is there already: go on with --resume, or give another --out")
    if export and not path.is_file():
        raise InputError(f"{path} is missing: train first, without --export")
    return path


def save(state: Any, path: Path, names: Iterable[str], **more: Any) -> None:
    """Write attributes of a state, and ``more``, under a temporary name, then rename it.

    What has a ``state_dict`` is written as that.
    """
    held = {name: getattr(state, name) for name in names}
    held = {name: x.state_dict() if hasattr(x, "state_dict") else x for name, x in held.items()}
    with replacing(path) as draft:
        torch.save(held | more, draft)


def read(path: Path) -> dict[str, Any]:
    """A checkpoint."""
    return torch.load(path, weights_only=True)


def restore(state: Any, held: dict[str, Any], names: Iterable[str]) -> None:
    """Put attributes of a checkpoint into a state."""
    for name in names:
        value = getattr(state, name)
        if hasattr(value, "load_state_dict"):
            value.load_state_dict(held[name])
        else:
            setattr(state, name, held[name])


def blend(score: dict[str, float], now: dict[str, float], keep: float = 0.9) -> None:
    """Update running means; one that is new starts at its first value."""
    score |= {name: keep * score.get(name, value) + (1 - keep) * value for name, value in now.items()}


def rate(step: int, steps: int, peak: float, warm: int = 40, fall: float = 1 / 3) -> float:
    """Learning rate: warm up, stay, and fall to 3 % over the last part ``fall`` of the steps."""
    left = min(1.0, max(0.0, (steps - step) / (steps * fall)))
    return peak * min(1.0, (step + 1) / warm) * (0.03 + 0.97 * left)


def loop(
    state: Progress,
    args: argparse.Namespace,
    advance: Callable[[], None],
    report: Callable[[], dict[str, Any]],
    store: Callable[[], None],
    every: int = 1,
) -> None:
    """Advance to the last step, with reports on the terminal and in ``curves.csv``, and a checkpoint every minute.

    Args:
        advance: does one step, or several.
        report: columns of a report; called after every ``every`` steps and at the end.
        store: writes the checkpoint.
    """
    with progress(args.steps, "steps") as show:
        show(state.step, "training")
        _loop(state, args, advance, report, store, every, show)


def _loop(
    state: Progress,
    args: argparse.Namespace,
    advance: Callable[[], None],
    report: Callable[[], dict[str, Any]],
    store: Callable[[], None],
    every: int,
    show: Advance,
) -> None:
    saved = began = time.time()
    while state.step < args.steps:
        before = state.step
        advance()
        show(state.step - before, "training")
        last = state.step >= args.steps
        if state.step % every == 0 or last:
            row = {"step": state.step, "seconds": round(time.time() - began)} | report()
            state.log.append(row)
            print(" ".join(f"{k}={v:.4g}" for k, v in row.items()), flush=True)
            curves.write(state.log, args.out / "curves.csv")
        if time.time() - saved > SAVE or last:
            store()
            saved = time.time()
