"""`vtoken jepa train`, `eval` and `rollout`: the guided predictor on the command line."""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from vtoken.errors import InputError
from vtoken.thinkjepa.recipe import SPLITS, Recipe
from vtoken.thinkjepa.settings import KINDS, LEVELS, LOSSES, MODES, NAMES, POOLS, Design, Settings


def add(commands: Any, command: Any) -> None:
    """Add the commands to a parser's commands."""
    words = "a world model of video guided by a vision-language model (ThinkJEPA): train, eval, rollout"
    parts = command(commands, "jepa", None, words, "vtoken jepa train --out run").add_subparsers(
        title="commands", metavar="COMMAND", required=True
    )
    _train_arguments(
        command(parts, "train", train, "train predictor and head on frozen features", "vtoken jepa train --out run")
    )
    for name, run, text in (
        ("eval", evaluate, "errors of a trained predictor on a split"),
        ("rollout", rollout, "errors of its recursive roll-out at every horizon, with a picture"),
    ):
        to = command(parts, name, run, text, f"vtoken jepa {name} run")
        to.add_argument("run_folder", metavar="RUN", type=Path, help="folder that `vtoken jepa train` wrote")
        to.add_argument("--split", default="test", choices=SPLITS, help="part of the data (default test)")
        to.add_argument("--cache", type=Path, help="folder of the features (default the one the run was trained on)")
        to.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:1 (default auto)")
        to.add_argument("--json", action="store_true", help="print one JSON object")
        if name == "rollout":
            to.add_argument("--steps", type=int, help="time steps of two frames (default all that the data has)")
            to.add_argument("--out", type=Path, help="where the picture goes (default RUN/rollout.png)")


def _train_arguments(to: argparse.ArgumentParser) -> None:
    d, r = Design(), Recipe()
    to.add_argument("--out", type=Path, required=True, help="folder for checkpoint, curves and the model")
    data = to.add_argument_group("features, computed once")
    data.add_argument("--data", default=r.data, help="hands, or a folder of episodes in EgoDex's form (default hands)")
    data.add_argument("--cache", type=Path, help="folder of the features (default OUT/features)")
    data.add_argument("--encoder", default=r.encoder, metavar="ID_OR_PATH", help="V-JEPA 2 checkpoint (default tiny)")
    data.add_argument("--thinker", default=r.thinker, metavar="ID_OR_PATH", help="VLM checkpoint (default hands)")
    data.add_argument("--plan", default=r.plan, help="plan that reduces the VLM's visual tokens (default none)")
    data.add_argument("--question", default=r.question, help=f"question that the VLM is asked (default {r.question!r})")
    data.add_argument("--layers", type=_numbers, help="decoder layers, such as 0,4,8 (default every seventh part)")
    data.add_argument("--new-tokens", type=int, default=r.new_tokens, metavar="N", help="longest answer of the VLM")
    data.add_argument(
        "--episodes", type=int, nargs=3, metavar="N", help="of the hand set: train, validation, test (default "
        + " ".join(map(str, r.episodes.values())) + ")",
    )  # fmt: skip
    how = to.add_argument_group("the model")
    how.add_argument("--mode", default=d.mode, choices=MODES, help="both branches, or one alone (default think)")
    how.add_argument(
        "--guidance", default=d.guidance, choices=KINDS, help="how the VLM guides the predictor (default film)"
    )
    how.add_argument(
        "--streams",
        type=_streams,
        default=d.streams,
        help="states of the VLM that guide: of the prompt, of its answer (default prefill,generated)",
    )
    how.add_argument("--levels", default=d.levels, choices=LEVELS, help="which of the VLM's layers guide (default all)")
    how.add_argument(
        "--gate",
        type=float,
        default=d.gate,
        help="value at which the gates of the guidance start (default 0: no guidance)",
    )
    how.add_argument(
        "--loss", default="l1", choices=LOSSES, help="loss on the latents; l1 normalises them first (default l1)"
    )
    how.add_argument("--pool", default=d.pool, choices=POOLS, help="how the head pools the patches (default flat)")
    how.add_argument(
        "--fresh", action="store_true", help="start from random weights, not from the checkpoint's predictor"
    )
    how.add_argument("--steps", type=int, default=Settings.steps, help=f"training steps (default {Settings.steps})")
    how.add_argument("--batch", type=int, default=Settings.batch, help=f"windows in a step (default {Settings.batch})")
    how.add_argument(
        "--rate", type=float, default=Settings.rate, help=f"learning rate of the predictor (default {Settings.rate:g})"
    )
    how.add_argument("--seed", type=int, default=0, help="random seed (default 0)")
    how.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:1 (default auto: a GPU if there is one)")
    how.add_argument("--resume", action="store_true", help="go on from OUT/checkpoint.pt")


def train(arguments: argparse.Namespace) -> None:
    """`vtoken jepa train`."""
    from vtoken.encoders.vjepa import Dense
    from vtoken.output.files import folder
    from vtoken.qa.load import device_of
    from vtoken.thinkjepa import features
    from vtoken.thinkjepa.train import train as fit

    design = Design(
        arguments.mode,
        arguments.guidance,
        arguments.streams,
        arguments.levels,
        arguments.gate,
        normed=arguments.loss == "l1",
        pool=arguments.pool,
    )
    settings = Settings(
        design,
        arguments.seed,
        arguments.steps,
        arguments.batch,
        arguments.rate,
        loss=arguments.loss,
        fresh=arguments.fresh,
    )
    named = ("data", "encoder", "thinker", "plan", "question", "layers", "new_tokens")
    recipe = Recipe(**{name: getattr(arguments, name) for name in named})
    if arguments.episodes:
        recipe = replace(recipe, episodes=dict(zip(SPLITS, arguments.episodes, strict=True)))
    device, out = str(device_of(arguments.device)), folder(arguments.out)
    if (out / "checkpoint.pt").is_file() and not arguments.resume:
        raise InputError(f"{out}/checkpoint.pt is there already: go on with --resume, or give another --out")
    cache = arguments.cache or out / "features"
    features.build(recipe, cache, device=device)
    encoder = Dense.load(recipe.encoder).model
    fit(
        settings,
        features.load(cache, "train"),
        features.load(cache, "validation"),
        encoder.config,
        out,
        core=encoder.predictor.requires_grad_(True),
        resume=arguments.resume,
        device=device,
        marks=recipe.marks(),
        notes={"cache": str(cache.resolve()), "thinker": features.cost(cache)},
        tell=lambda row: print(" ".join(f"{k}={v:g}" for k, v in row.items()), flush=True),
    )


def evaluate(arguments: argparse.Namespace) -> None:
    """`vtoken jepa eval`."""
    found = _measured(arguments, None)
    del found["rollout"]
    if arguments.json:
        print(json.dumps(found))
        return
    t, x = found["trajectory"], found["latent"]
    print(f"{found['episodes']} episodes of {arguments.split}")
    print(f"ADE {100 * t['ade']:.2f} cm, FDE {100 * t['fde']:.2f} cm, within 5 cm {100 * t['accuracy']:.1f} %")
    print("latents: " + ", ".join(f"{name} {value:.4f}" for name, value in x.items()))


def rollout(arguments: argparse.Namespace) -> None:
    """`vtoken jepa rollout`."""
    from vtoken.output.console import FittedTable, terminal
    from vtoken.thinkjepa.plot import draw
    from vtoken.thinkjepa.recipe import FPS

    found = _measured(arguments, arguments.steps)
    if arguments.json:
        print(json.dumps(found["rollout"]))
    else:
        table = FittedTable()
        for head in ("steps", "ADE, cm", "FDE, cm", "within 5 cm, %", "drift, mm a step", "lost, %", "latent L2"):
            table.add_column(head, justify="right", no_wrap=True)
        for steps, row in found["rollout"]["horizons"].items():
            cells = (100 * row["ade"], 100 * row["fde"], 100 * row["accuracy"], 1000 * row["slope"])
            shown = [f"{c:.2f}" for c in (*cells, 100 * row["lost"], row["latent_l2"])]
            table.add_row(str(steps), *shown)
        terminal().print(table)
    curves = {arguments.run_folder.name: [found["rollout"]["ade_by_step"]]}
    draw(curves, arguments.out or arguments.run_folder / "rollout.png", 2 / FPS)


def _measured(arguments: argparse.Namespace, steps: int | None) -> dict[str, Any]:
    from vtoken.qa.load import device_of
    from vtoken.thinkjepa import features
    from vtoken.thinkjepa.evaluate import evaluate as measured
    from vtoken.thinkjepa.model import ThinkJepa

    model, notes = ThinkJepa.load(arguments.run_folder)
    cache = arguments.cache or Path(notes.get("cache", arguments.run_folder / "features"))
    return measured(model, features.load(cache, arguments.split), device_of(arguments.device), steps)


def _numbers(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no list of layers, such as 0,4,8") from None


def _streams(text: str) -> tuple[str, ...]:
    chosen = tuple(part.strip() for part in text.split(",") if part.strip())
    if unknown := [part for part in chosen if part not in NAMES]:
        raise argparse.ArgumentTypeError(f"stream {unknown[0]!r} is unknown; known are {', '.join(NAMES)}")
    return chosen
