"""`vtoken bench --model FOLDER`: the same rows, measured on the checkpoint itself."""

from __future__ import annotations

from typing import Any

from vtoken import families
from vtoken.bench import machine
from vtoken.bench.job import Job
from vtoken.bench.rows import Row
from vtoken.data.report import Report
from vtoken.engine.check import check
from vtoken.methods.plan import Plan
from vtoken.output.progress import progress
from vtoken.qa.api import ask
from vtoken.qa.load import load
from vtoken.video import open_video

QUESTION = "Describe what happens."
NEW_TOKENS = 16


def measure_checkpoint(job: Job, name: str) -> list[Row]:
    """Ask the model one question for every clip, rate and plan, after one call to warm up.

    Raises:
        InputError: the folder is no checkpoint of a known family.
        UnsupportedError: a plan that cannot run on it.
    """
    model, processor = load(name)
    return measure_model(job, model, processor, name)


def measure_model(job: Job, model: Any, processor: Any, name: str) -> list[Row]:
    """The rows of a model in memory; see ``measure_checkpoint``."""
    family = families.of(model)
    job = job.on(family)
    for plan in job.plans.values():
        check(plan, family)
    rows: list[Row] = []
    runs = sum(len(rates) for _, rates in job.clips.values()) * len(job.plans)
    with progress(runs, "runs") as advance:
        for clip, (source, rates) in job.clips.items():
            for rate in rates:
                for text, plan in job.plans.items():
                    advance(0, f"{clip} at {rate:g} fps: {text}")
                    if not rows:  # warm up, on the plan that is likely the cheapest
                        _ask(job, model, processor, source, rate, list(job.plans.values())[-1])
                    rows.append(_row(job, model, processor, name, clip, source, rate, text, plan))
                    advance(1, f"{clip} at {rate:g} fps: {text}")
    return rows


def _ask(job: Job, model: Any, processor: Any, source: Any, rate: float, plan: Plan) -> tuple[Report, Any]:
    options: dict[str, Any] = {"max_new_tokens": NEW_TOKENS, "min_new_tokens": NEW_TOKENS}
    found = ask(model, processor, source, QUESTION, fps=rate, plan=plan, **job.options, **options)
    return found.report, found.clip


def _row(
    job: Job, model: Any, processor: Any, name: str, clip: str, source: Any, rate: float, text: str, plan: Plan
) -> Row:
    report, seen = _ask(job, model, processor, source, rate, plan)
    with open_video(source, **job.options) as reader:
        height, width = reader.size
    spent = report.milliseconds
    weights = sum(p.numel() for p in model.parameters())
    kind = f"{model.dtype}".removeprefix("torch.")
    return Row(
        clip=clip,
        seconds=seen.seconds,
        width=width,
        height=height,
        fps=rate,
        frames=len(report.frames[0]),
        plan=text,
        stages=str(plan),
        grid=f"{seen.grid.columns}x{seen.grid.rows}",
        stock=report.cells,
        tokens=report.tokens,
        encoded=report.encoded / report.cells if report.cells else 0.0,
        decode_ms=spent.get("decode", 0.0),
        gate_ms=spent.get("gate", 0.0),
        pathway_ms=spent.get("pathway"),
        prepare_ms=spent.get("prepare", 0.0),
        encode_ms=spent.get("encode", 0.0),
        reduce_ms=spent.get("reduce", 0.0),
        prefill_ms=spent.get("prefill", 0.0),
        generate_ms=spent.get("generate", 0.0),
        encoder_tflop=None,
        prefill_tflop=None,
        model=name,
        encoder=f"encode, prefill, generate: {name}, {weights / 1e6:,.0f} M weights, {kind}, {NEW_TOKENS} new tokens",
        machine=machine.describe(str(model.device)),
        notes=[f"{clip}: {note.removeprefix(f'{clip}: ')}" for note in report.notes],
    )
