"""``python -m benchmarks.study``: the evidence for ThinkJEPA on the hand set, resumable.

Every model and seed trains on the same cached features, with the same modules, steps, batches and rates, and is
measured on the test split, which nothing is tuned or picked on. The model of the last step counts.
"""

from __future__ import annotations

import argparse
import json
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch

from vtoken.cli.main import guarded
from vtoken.thinkjepa import features, plot
from vtoken.thinkjepa.recipe import FPS, Recipe
from vtoken.thinkjepa.settings import Design, Settings

MAIN = ("ThinkJEPA", "JEPA only", "VLM only")
DESIGNS = {
    "ThinkJEPA": Design(),
    "JEPA only": Design(mode="jepa"),
    "VLM only": Design(mode="vlm"),
    "prefill only": Design(streams=("prefill",)),
    "generated only": Design(streams=("generated",)),
    "last layer only": Design(levels="last"),
    "AdaLN": Design(guidance="adaln"),
    "cross-attention": Design(guidance="crossattn"),
    "gates open at the start": Design(gate=1.0),
}
COLUMNS = {
    "ADE, cm": lambda m: 100 * m["trajectory"]["ade"],
    "FDE, cm": lambda m: 100 * m["trajectory"]["fde"],
    "within 5 cm, %": lambda m: 100 * m["trajectory"]["accuracy"],
    "latent L2": lambda m: m["latent"]["l2"],
    **{f"ADE at {h}, cm": lambda m, h=h: 100 * _at(m, h)["ade"] for h in (8, 16, 32)},
    **{f"FDE at {h}, cm": lambda m, h=h: 100 * _at(m, h)["fde"] for h in (8, 16, 32)},
    "drift at 32, mm a step": lambda m: 1000 * _at(m, 32)["slope"],
    "lost at 32, %": lambda m: 100 * _at(m, 32)["lost"],
}
SHOWN = ("ADE, cm", "FDE, cm", "within 5 cm, %", "ADE at 32, cm", "drift at 32, mm a step", "lost at 32, %")


def _at(found: dict[str, Any], horizon: int) -> dict[str, float]:
    """The row of a horizon, or of the longest one there is; keys are text once they come back from a file."""
    rows = {int(k): v for k, v in found["rollout"]["horizons"].items()}
    return rows[max(h for h in rows if h <= horizon)]


def run_one(name: str, settings: Settings, recipe: Recipe, cache: Path, out: Path, threads: int) -> dict[str, Any]:
    """Train and measure one model, or read what an earlier run measured."""
    from vtoken.encoders.vjepa import Dense
    from vtoken.output.files import write_text
    from vtoken.thinkjepa.evaluate import evaluate
    from vtoken.thinkjepa.train import train

    told = out / "metrics.json"
    if told.is_file():
        found = json.loads(told.read_text(encoding="utf-8"))
        if found["settings"] == settings.to_dict() and found["recipe"] == recipe.marks():
            return found
    torch.set_num_threads(threads)
    torch.set_flush_denormal(True)
    model = Dense.load(recipe.encoder).model
    data, validation = features.load(cache, "train"), features.load(cache, "validation")
    core, resume = model.predictor.float().requires_grad_(True), (out / "checkpoint.pt").is_file()
    made = train(settings, data, validation, model.config, out, core=core, resume=resume, marks=recipe.marks())
    found = {"name": name, "settings": settings.to_dict(), "recipe": recipe.marks()}
    found |= evaluate(made, features.load(cache, "test"))
    write_text(told, json.dumps(found, indent=1) + "\n")
    return json.loads(told.read_text(encoding="utf-8"))


def summary(found: dict[str, list[dict[str, Any]]]) -> dict[str, dict[str, list[float]]]:
    """Mean and sample deviation over the seeds of every column, by model."""
    out: dict[str, dict[str, list[float]]] = {}
    for name, runs in found.items():
        values = {column: [read(m) for m in runs] for column, read in COLUMNS.items()}
        out[name] = {c: [mean(v), stdev(v) if len(v) > 1 else 0.0] for c, v in values.items()}
    return out


def margins(found: dict[str, list[dict[str, Any]]], name: str = MAIN[0], base: str = MAIN[1]) -> dict[str, list[float]]:
    """By how many percent a model's errors are below the baseline's, seed by seed: mean and sample deviation."""
    out = {}
    for column in ("ADE, cm", "FDE, cm", "ADE at 32, cm", "drift at 32, mm a step"):
        read = COLUMNS[column]
        less = [100 * (1 - read(a) / read(b)) for a, b in zip(found[name], found[base], strict=True)]
        out[column] = [mean(less), stdev(less) if len(less) > 1 else 0.0]
    return out


def table(rows: dict[str, dict[str, list[float]]]) -> str:
    """The summary in Markdown."""
    lines = ["| model | " + " | ".join(SHOWN) + " |", "|---" * (len(SHOWN) + 1) + "|"]
    for name, row in rows.items():
        cells = [f"{row[c][0]:.2f} ± {row[c][1]:.2f}" for c in SHOWN]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def report(found: dict[str, list[dict[str, Any]]], recipe: Recipe, cache: Path, out: Path) -> str:
    """Write ``study.json``, ``study.md`` and the pictures; the Markdown."""
    from vtoken.output.files import write_text

    rows, seeds = summary(found), len(next(iter(found.values())))
    settings = next(iter(found.values()))[0]["settings"]
    better = margins(found) if set(MAIN[:2]) <= set(found) else {}
    spent = features.cost(cache)
    text = [
        f"Test split of {next(iter(found.values()))[0]['episodes']} episodes; mean and sample deviation over {seeds} "
        f"seeds; {settings['steps']} steps of {settings['batch']} windows for every model.",
        f"Thinker: plan `{recipe.plan}`, {spent['tokens']:.0f} visual tokens in a prompt of {spent['prompt']:.0f}, "
        f"{spent['milliseconds']:.0f} ms an episode.",
        table(rows),
    ]
    for column, (value, spread) in better.items():
        text.append(f"- {MAIN[0]} against {MAIN[1]}, {column.partition(',')[0]}: {value:.1f} ± {spread:.1f} % less")
    whole = "\n\n".join(text[:3]) + "\n\n" + "\n".join(text[3:]) + "\n"
    told = {"rows": rows, "margins_percent": better, "thinker": spent, "recipe": recipe.marks(), "settings": settings}
    write_text(out / "study.json", json.dumps(told, indent=1) + "\n")
    write_text(out / "study.md", whole)
    seconds = 2 / FPS
    panels = ("error at each step", "mean up to each step")
    for file, names in (("rollout.png", MAIN), ("ablations.png", [n for n in found if n != "VLM only"])):
        curves = {n: [m["rollout"]["ade_by_step"] for m in found[n]] for n in names if n in found}
        plot.draw(curves, out / file, seconds, panels)
    return whole


def run(args: argparse.Namespace) -> None:
    recipe = replace(Recipe(), **{k: getattr(args, k) for k in ("encoder", "thinker", "plan") if getattr(args, k)})
    if args.episodes:
        recipe = replace(recipe, episodes=dict(zip(("train", "validation", "test"), args.episodes, strict=True)))
    cache = args.cache or args.out / "features"
    torch.set_num_threads(args.threads * args.jobs)
    features.build(recipe, cache)
    chosen = args.only or list(DESIGNS)
    base = Settings(steps=args.steps, loss=args.loss)
    todo = []
    for seed in range(args.seeds):  # seed by seed, so that what is cut off is complete for fewer seeds
        for name in chosen:
            design = replace(DESIGNS[name], normed=args.loss == "l1")
            folder = args.out / name.replace(" ", "-").lower() / f"seed{seed}"
            todo.append((name, replace(base, design=design, seed=seed), recipe, cache, folder, args.threads))
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in chosen}
    with ProcessPoolExecutor(args.jobs, mp_context=get_context("spawn")) as pool:
        for job, done in zip(todo, pool.map(run_one, *zip(*todo, strict=True)), strict=True):
            found[job[0]].append(done)
            told = ", ".join(f"{c} {COLUMNS[c](done):.2f}" for c in SHOWN[:4])
            print(f"{job[0]}, seed {job[1].seed}: {told}", flush=True)
    print("\n" + report(found, recipe, cache, args.out))


def parser(program: str = "benchmarks.study") -> argparse.ArgumentParser:
    """The arguments of ``run``."""
    made = argparse.ArgumentParser(prog=f"python -m {program}", description=__doc__)
    made.add_argument("--out", type=Path, default=Path("out/thinkjepa"))
    made.add_argument("--cache", type=Path, help="folder of the features (default OUT/features)")
    made.add_argument("--encoder", help="V-JEPA 2 checkpoint (default the one in the package)")
    made.add_argument("--thinker", help="vision-language checkpoint (default the one in training/thinker)")
    made.add_argument("--plan", help="stages that cut the thinker's tokens (default none)")
    made.add_argument("--episodes", type=int, nargs=3, metavar="N", help="train, validation, test")
    made.add_argument("--seeds", type=int, default=3)
    made.add_argument("--steps", type=int, default=Settings.steps)
    made.add_argument("--loss", choices=("mse", "l1"), default="l1", help="of the latents; l1 norms them first")
    made.add_argument("--only", nargs="+", choices=DESIGNS, metavar="MODEL", help=", ".join(DESIGNS))
    made.add_argument("--jobs", type=int, default=1, help="models that train at once")
    made.add_argument("--threads", type=int, default=1, help="of each")
    return made


def main(argv: list[str] | None = None) -> None:
    run(parser().parse_args(argv))


if __name__ == "__main__":
    sys.exit(guarded(main))
