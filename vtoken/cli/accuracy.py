"""The arguments of `vtoken bench accuracy`, `vtoken bench dive` and `vtoken bench make-data`."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Callable
from typing import Any

from vtoken.errors import InputError

NAMES = ("accuracy", "dive", "make-data")  # behind the word bench
PLANS = "evs; grt; random@grt; uniform@grt; grt | divprune"
KEEP = 0.25
RATES, DIVE_RATES = "1,2,4,8,16", "1"
CLIPS = 40

Command = Callable[[Any, str, Callable[[argparse.Namespace], None], str, str], argparse.ArgumentParser]
Rates = Callable[[str], list[float]]


def add(commands: Any, command: Command, rates: Rates) -> None:
    """Add the three commands to those of `vtoken`."""
    text = "what plans do to the answers of a model, against tokens, FPS and time"
    to = command(commands, "bench accuracy", accuracy, text, 'vtoken bench accuracy --plans "grt; evs" --clips 100')
    to.add_argument("--data", metavar="FOLDER", help="files of vtoken bench make-data (default: drawn from seeds)")
    to.add_argument("--split", help="train, validation or test (default test)")
    to.add_argument("--seed", type=int, metavar="S", help="first seed of the split (default 0)")
    to.add_argument("--clips", type=int, metavar="N", help=f"clips (default {CLIPS}, or all of FOLDER)")
    _shared(to, rates, RATES, "accuracy")
    text = "the same on DIVE's Educational track, from a local folder"
    to = command(commands, "bench dive", dive, text, "vtoken bench dive --data DIVE --model MODEL --fps 0.5,1")
    to.add_argument("--data", metavar="DIR", required=True, help="folder with LPM_videos.parquet and the videos")
    to.add_argument("--clips", type=int, metavar="N", help="most videos (default all)")
    _shared(to, rates, DIVE_RATES, "dive")
    text = "write the clips and questions of bench accuracy as files"
    to = command(commands, "bench make-data", make_data, text, "vtoken bench make-data denseqa --clips 100")
    to.add_argument("out", metavar="FOLDER")
    to.add_argument("--split", default="test", help="train, validation or test (default test)")
    to.add_argument("--clips", type=int, metavar="N", default=CLIPS, help=f"clips (default {CLIPS})")


def _shared(to: argparse.ArgumentParser, rates: Rates, fps: str, out: str) -> None:
    to.add_argument("--model", default="reference", metavar="ID_OR_PATH", help="checkpoint (default reference)")
    to.add_argument("--fps", type=rates, default=rates(fps), help=f"sampling rates (default {fps})")
    always = "none, random, uniform and resize are always there; random@grt is random with as many tokens as grt kept"
    to.add_argument("--plans", default=PLANS, help=f"plans, separated by ';'; {always} (default {PLANS!r})")
    to.add_argument("--bare", action="store_true", help="none and --plans alone, without random, uniform and resize")
    one = to.add_mutually_exclusive_group()
    text = f"shares to keep, such as 0.1,0.25,0.5: every plan that needs a budget comes with each (default {KEEP:g})"
    one.add_argument("--keep", type=_numbers, help=text)
    one.add_argument("--tokens", type=_numbers, help="visual tokens to keep in all, such as 64,128")
    one.add_argument("--per-second", type=_numbers, help="visual tokens to keep for each second of video")
    to.add_argument("--hint", default="", help="text put behind every question")
    to.add_argument("--max-new-tokens", type=int, metavar="N", help="longest answer")
    to.add_argument("--max-frames", type=int, metavar="N", help="most frames of a clip; lowers the rate where it binds")
    to.add_argument("--batch", type=int, default=32, metavar="N", help="questions that run together (default 32)")
    to.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:1 (default auto)")
    to.add_argument("--dtype", default="auto", help="auto, float32, bfloat16 or float16 (default auto)")
    to.add_argument("--threads", type=int, metavar="N", help="CPU threads (default: what torch chooses)")
    text = "folder of answers, summary, report and plots; a run that was interrupted goes on there"
    to.add_argument("--out", default=out, help=f"{text} (default {out})")


def _numbers(text: str) -> list[float]:
    try:
        found = [float(part) for part in text.split(",") if part.strip()]
    except ValueError:
        found = []
    if not found:
        raise argparse.ArgumentTypeError(f"{text!r} is no list of numbers, such as 0.1,0.25")
    return list(dict.fromkeys(int(n) if n == int(n) and n > 1 else n for n in found))


def accuracy(arguments: argparse.Namespace) -> None:
    """`vtoken bench accuracy`."""
    from vtoken.bench import accuracy_data

    if arguments.data is None:
        clips = CLIPS if arguments.clips is None else arguments.clips
        data = accuracy_data.rendered(arguments.split or "test", clips, arguments.seed or 0)
    else:
        if arguments.split is not None or arguments.seed is not None:
            raise InputError("--split and --seed choose clips that are drawn; with --data the files say which they are")
        data = accuracy_data.written(arguments.data, _clips(arguments))
    _run(arguments, data)


def dive(arguments: argparse.Namespace) -> None:
    """`vtoken bench dive`."""
    from vtoken.bench.dive import read

    _run(arguments, read(arguments.data, _clips(arguments)))


def make_data(arguments: argparse.Namespace) -> None:
    """`vtoken bench make-data`."""
    from vtoken.output.files import folder
    from vtoken.reference.data import write_dataset

    made = write_dataset(folder(arguments.out, "FOLDER"), arguments.split, arguments.clips)
    print(f"wrote {arguments.clips} clips of DenseQA {arguments.split} to {made}")


def _clips(arguments: argparse.Namespace) -> int | None:
    if arguments.clips is not None and arguments.clips < 1:
        raise InputError(f"--clips={arguments.clips} must be at least 1")
    return arguments.clips


def _run(arguments: argparse.Namespace, data: Any) -> None:
    from vtoken.bench.accuracy import run

    kinds = ("keep", "tokens", "per_second")
    budgets = [{kind: n} for kind in kinds for n in getattr(arguments, kind) or ()]
    run(
        data,
        [plan.strip() for plan in arguments.plans.split(";") if plan.strip()],
        arguments.fps,
        budgets or [{"keep": KEEP}],
        model=arguments.model,
        out=arguments.out,
        bare=arguments.bare,
        command=shlex.join(["vtoken", *sys.argv[1:]]),
        device=arguments.device,
        dtype=arguments.dtype,
        threads=arguments.threads,
        hint=arguments.hint,
        new_tokens=arguments.max_new_tokens,
        batch=arguments.batch,
        max_frames=arguments.max_frames,
    )
