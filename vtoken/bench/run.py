"""`vtoken bench`: tokens and time of every plan at every sampling rate, and its report."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from vtoken import families
from vtoken.bench import machine
from vtoken.bench.checkpoint import measure_checkpoint
from vtoken.bench.job import RESIZE, Job
from vtoken.bench.models import SMALL, Size, describe, random_model
from vtoken.bench.pipeline import Encoder, Pass, expected_frames, run_pass, span
from vtoken.bench.plot import plot
from vtoken.bench.rows import Row, print_rows, to_jsonl, to_markdown
from vtoken.data.tokens import Tokens
from vtoken.engine.check import check
from vtoken.engine.rows import held_rows
from vtoken.errors import InputError, require
from vtoken.families.geometry import Geometry, geometry
from vtoken.mergers.hold import HoldStage
from vtoken.methods.plan import Plan
from vtoken.methods.reducer import Context
from vtoken.output.files import folder, write_text
from vtoken.output.progress import Advance, progress
from vtoken.video import open_video

QUESTION = 16  # random embeddings that stand for a question, for methods that read it


RANDOM = (
    "hold: how many tokens are rows depends on the encoder's features, here those of random weights; with "
    "tau=0,second=none every encoded token is one"
)


def measure(job: Job, model: Geometry, size: Size = SMALL) -> list[Row]:
    """Measure a job on a random encoder with the geometry of a model.

    Raises:
        UnsupportedError: a plan that cannot run on the family.
    """
    net = random_model(model, size)
    family = families.of(net)
    job = job.on(family)
    for plan in job.plans.values():
        check(plan, family)
    encoder = Encoder(family, net, family.preprocess(net))
    groups: dict[tuple[Any, ...], list[str]] = {}
    for text, plan in job.plans.items():  # plans with one gate and the same pathways share a pass
        sized = None if plan.resizer is None else text
        key = (sized, str(plan.gate), plan.wants, str(plan.pathways), plan.hold is not None)
        groups.setdefault(key, []).append(text)
    rows = []
    with progress(sum(_frames(job) * len(groups)), "frames") as advance:
        for name, (source, rates) in job.clips.items():
            _warm_up(encoder, source, job)
            for rate in rates:
                found: dict[str, Row] = {}
                for texts in groups.values():
                    found |= _group(job, name, source, rate, texts, encoder, model, size, advance)
                rows += [found[text] for text in job.plans]
    return rows


def _frames(job: Job) -> list[int]:
    pairs = [(source, rate) for source, rates in job.clips.values() for rate in rates]
    return [expected_frames(open_video(source, fps=rate, **job.options)) for source, rate in pairs]


def _warm_up(encoder: Encoder, source: Any, job: Job) -> None:
    """Run everything on one second once, so that the first rows do not pay for what every process pays once."""
    with open_video(source, fps=1, **job.options) as reader:
        start, length = reader.start, span(reader)
    end = start + 1.0 if not length < 1 else job.options.get("end")
    options = job.options | {"start": start, "end": end}
    for plan in job.plans.values():
        _reduce(plan, run_pass(source, 2.0, plan, encoder, **options))


def _group(
    job: Job,
    name: str,
    source: Any,
    rate: float,
    texts: list[str],
    encoder: Encoder,
    model: Geometry,
    size: Size,
    advance: Advance,
) -> dict[str, Row]:
    """The rows of plans that share a gate: one pass, then every plan's own reduction."""
    first = job.plans[texts[0]]
    tell = partial(_tell, advance, f"{name} at {rate:g} fps: {first.gate or 'no gate'}")
    passed = run_pass(source, rate, first, encoder, tell, **job.options)
    with open_video(source, **job.options) as reader:
        height, width = reader.size
    flops = model.encoder_flops(passed.keep) / 1e12
    rows = {}
    for text in texts:
        kept, spent, notes = _reduce(job.plans[text], passed)
        rows[text] = Row(
            clip=name,
            seconds=passed.seconds,
            width=width,
            height=height,
            fps=rate,
            frames=passed.frames,
            plan=text,
            stages=str(job.plans[text]),
            grid=f"{passed.grid.columns}x{passed.grid.rows}",
            stock=passed.stock,
            tokens=kept,
            encoded=float(passed.keep.mean()) * passed.shrunk,
            decode_ms=passed.milliseconds["decode"],
            gate_ms=passed.milliseconds["gate"],
            pathway_ms=passed.milliseconds["pathway"] if job.plans[text].pathways else None,
            prepare_ms=passed.milliseconds["prepare"],
            encode_ms=passed.milliseconds["encode"],
            reduce_ms=spent,
            encoder_tflop=flops,
            prefill_tflop=model.prefill_flops(kept, passed.stock if job.plans[text].hold else None) / 1e12,
            model=model.name,
            encoder=describe(model, size),
            machine=machine.describe(),
            notes=[f"{name}: {note.removeprefix(f'{name}: ')}" for note in passed.notes] + notes,
        )
    return rows


def _tell(advance: Advance, what: str, frames: int) -> None:
    advance(frames, what)


def _reduce(plan: Plan, passed: Pass) -> tuple[int, float, list[str]]:
    """Rows of the language model, milliseconds, and notes of the stages after the encoder."""
    tokens = passed.tokens
    question = torch.randn(QUESTION, tokens.x.shape[1], generator=torch.Generator().manual_seed(0))
    context = Context([passed.seconds], [question], total=[passed.stock])
    start = time.perf_counter()
    kept = plan.reduce(tokens, context)
    spent = (time.perf_counter() - start) * 1e3
    if any(isinstance(stage, HoldStage) and (stage.tau or stage.second is not None) for stage in plan.reducers):
        context.note(RANDOM)
    return _rows(plan, passed, kept), spent if plan.reducers else 0.0, context.notes


def _rows(plan: Plan, passed: Pass, kept: Tokens) -> int:
    """Tokens kept, with the second rows of a plan that holds."""
    if plan.hold is None or not len(kept):
        return len(kept)
    before = passed.tokens.position.long()
    height, width = (before[:, 1:].amax(0) + 1).tolist()
    place = torch.tensor([height * width, width, 1])
    shape = (int(before[:, 0].max()) + 1, height, width)
    slots, own = (before * place).sum(1), (kept.position.long() * place).sum(1)
    return len(held_rows(slots, kept.source, own, kept, shape, plan.hold).home)


def run(
    videos: Sequence[Any],
    rates: Sequence[float],
    plans: Sequence[str],
    model: str,
    budget: dict[str, Any],
    *,
    out: str | Path = "report",
    command: str = "vtoken bench",
    size: Size = SMALL,
    **options: Any,
) -> list[Row]:
    """Measure, print the table, and write ``bench.jsonl``, ``tokens_vs_fps.png`` and ``report.md`` to ``out``.

    Args:
        model: a name of ``geometry``, or the folder of a checkpoint, which is then run itself.

    Raises:
        InputError, VideoError, UnsupportedError: bad arguments, before a frame is decoded.
        MissingExtraError: matplotlib is missing.
    """
    require("matplotlib", "bench", "the plot of vtoken bench")
    if not plans:
        raise InputError("--plans is empty; separate plans by ';', for example 'none; grt | divprune'")
    job = Job.of(videos, rates, plans, budget, **options)
    target = folder(out)
    rows = measure_checkpoint(job, model) if Path(model).is_dir() else measure(job, geometry(model), size)
    if RESIZE not in {row.plan for row in rows}:
        job.notes.append("resize left out: vtoken cannot make the frames of this family smaller")
    rows[0].notes[:0] = job.notes
    print_rows(rows)
    write_text(target / "bench.jsonl", to_jsonl(rows))
    picture = plot(rows, target / "tokens_vs_fps.png")
    write_text(target / "report.md", to_markdown(rows, command, picture.name))
    print(f"wrote {target / 'bench.jsonl'}, {picture} and {target / 'report.md'}")
    return rows
