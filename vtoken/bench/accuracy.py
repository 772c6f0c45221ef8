"""`vtoken bench accuracy`: what a plan does to the answers of a model, against tokens, sampling rate and time."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from vtoken import families
from vtoken.bench import accuracy_report, machine, metrics
from vtoken.bench.accuracy_data import Clip, Data
from vtoken.bench.accuracy_plans import BASELINES, RESIZE, Entry, entries
from vtoken.bench.accuracy_plot import plot_fps, plot_tokens
from vtoken.bench.accuracy_records import Record, Results
from vtoken.bench.accuracy_summary import Line, summarise
from vtoken.data.report import CellState
from vtoken.engine.check import check
from vtoken.engine.inner.costs import prompt_flops_share
from vtoken.errors import InputError, UnsupportedError, require
from vtoken.families.compat import core
from vtoken.methods.plan import Plan
from vtoken.output.files import folder, write_text
from vtoken.output.progress import progress
from vtoken.qa.api import Answer, ask_many
from vtoken.qa.cache import ClipMemory
from vtoken.qa.load import load
from vtoken.version import __version__


def run(
    data: Data,
    plans: Sequence[str],
    rates: Sequence[float],
    budgets: Sequence[dict[str, Any]],
    *,
    model: str = "reference",
    bare: bool = False,
    out: str | Path = "accuracy",
    command: str = "vtoken bench accuracy",
    device: str = "auto",
    dtype: str = "auto",
    threads: int | None = None,
    **options: Any,
) -> list[Line]:
    """Ask, print the tables, and write answers, summary, report and plots to ``out``.

    A run that was interrupted goes on where it stopped when it is started again with the same ``out``; more clips,
    plans and rates may be asked for then.

    Args:
        budgets: each plan that needs a budget comes once with each.
        model: hub id or folder of a checkpoint, or "reference".
        bare: leave out ``random``, ``uniform`` and ``resize`` where no plan names them.
        threads: CPU threads; None for what torch chooses.
        **options: see ``measure``.

    Raises:
        InputError, VideoError, UnsupportedError: bad arguments, before a frame is decoded.
        MissingExtraError: matplotlib is missing.
    """
    require("matplotlib", "bench", "the plots of vtoken bench accuracy")
    if threads is not None:
        if threads < 1:
            raise InputError(f"threads={threads} must be at least 1")
        torch.set_num_threads(threads)
    made = entries(plans, budgets, BASELINES[:1] if bare else BASELINES)
    target = folder(out)
    net, processor = load(model, device, dtype)
    if not families.of(net).any_size:
        made = [entry for entry in made if entry.text != RESIZE]
    lines = measure(data, made, rates, net, processor, name=model, out=target, **options)
    accuracy_report.print_lines(lines, data)
    write_text(target / "summary.jsonl", "".join(json.dumps(x.to_dict(), ensure_ascii=False) + "\n" for x in lines))
    pictures = [plot_fps(lines, data, target / "accuracy_vs_fps.png")] if len(rates) > 1 else []
    pictures.append(plot_tokens(lines, data, target / "accuracy_vs_tokens.png"))
    facts = [f"model {model}, {describe(net)}", f"data {data.name}", f"times on {machine.describe(str(net.device))}"]
    text = accuracy_report.to_markdown(lines, data, command, facts, [p.name for p in pictures])
    write_text(target / "report.md", text)
    print(f"wrote answers.jsonl, summary.jsonl, report.md, {' and '.join(p.name for p in pictures)} to {target}")
    return lines


def measure(
    data: Data,
    plans: Sequence[Entry],
    rates: Sequence[float],
    model: Any,
    processor: Any,
    *,
    name: str,
    out: Path,
    hint: str = "",
    new_tokens: int | None = None,
    batch: int = 32,
    max_frames: int | None = None,
) -> list[Line]:
    """Ask a model every question under every plan at every rate, and sum up.

    Args:
        name: what the model is called in the settings of the results.
        out: folder that exists; see ``Results``.
        hint: text put behind every question.
        new_tokens: longest answer; default that of the data.
        batch: questions that run together.
        max_frames: see ``vtoken.ask``.

    Raises:
        InputError: no clips, or ``out`` has answers of other settings.
        UnsupportedError: a plan that cannot run on the model.
    """
    if not data.clips:
        raise InputError(f"{data.name}: no clips; ask for at least one")
    family = families.of(model)
    for entry in plans:
        check(entry.plan(tokens=1), family)
    limit = data.new_tokens if new_tokens is None else new_tokens
    if limit < 1:
        raise InputError(f"new_tokens={limit} must be at least 1")
    settings = {"model": name, "weights": fingerprint(model), "data": data.name, "hint": hint, "new_tokens": limit}
    settings |= {"max_frames": max_frames, "vtoken": __version__}
    options = {"max_new_tokens": limit, "batch": batch, "max_frames": max_frames}
    wanted = {(c.name, e.name, fps) for c in data.clips for e in plans for fps in rates}
    with Results(out, settings) as results:
        todo = [c for c in data.clips if not all((c.name, e.name, f) in results.done for e in plans for f in rates)]
        _same_questions(data, results)
        left = len(wanted - set(results.done))
        with progress(left, "groups") as advance:
            for i, clip in enumerate(todo):
                for told in _clip(clip, plans, rates, results, model, processor, hint, options, warm=i > 0):
                    advance(1, told)
        records = [r for key in sorted(wanted) for r in results.done[key]]
    return summarise(data, plans, rates, records)


def _clip(
    clip: Clip,
    plans: Sequence[Entry],
    rates: Sequence[float],
    results: Results,
    model: Any,
    processor: Any,
    hint: str,
    options: dict[str, Any],
    warm: bool,
) -> Iterator[str]:
    """Ask about one clip what is not answered yet; says after each group what was done."""
    source = clip.source()
    asked = [f"{q.text} {hint}".strip() for q in clip.questions]
    for fps in rates:
        memory = ClipMemory()  # plans share what they read and encode alike
        for entry in plans:
            if (clip.name, entry.name, fps) in results.done:
                continue
            kept = None if entry.like is None else results.done[clip.name, entry.like, fps][0].tokens
            plan = entry.plan(kept)
            given = options | {"plan": plan, "fps": fps, "native_fps": clip.native_fps}
            if not warm:  # what every process pays once is paid before the first time is taken
                ask_many(model, processor, source, asked, **given)
                warm = True
            answers = ask_many(model, processor, source, asked, memory=memory, **given)
            results.add(_records(clip, entry, plan, fps, answers, model))
            yield f"{clip.name} at {fps:g} fps: {entry.name}"


def _records(clip: Clip, entry: Entry, plan: Plan, fps: float, answers: list[Answer], model: Any) -> list[Record]:
    made = []
    for i, (q, a) in enumerate(zip(clip.questions, answers, strict=True)):
        scores = {n: round(f(a.text, q.answer), 6) for n, f in metrics.METRICS.items()}
        record = Record(
            clip=clip.name,
            plan=entry.name,
            fps=fps,
            index=i,
            questions=len(answers),
            stages=str(plan),
            task=q.task,
            question=q.text,
            reference=q.answer,
            answer=a.text,
            held=q.held,
            time=q.time,
            **scores,
            stock=a.report.cells,
            tokens=a.report.tokens,
            encoded=a.report.encoded,
            frames=sum(map(len, a.report.frames)),
            milliseconds={s: round(ms, 3) for s, ms in a.report.milliseconds.items()},
            notes=a.report.notes,
            layer_tokens=sum(a.report.inside) / len(a.report.inside) if a.report.inside else a.report.tokens,
            flops=_flops_share(model, a),
            cache=a.report.cache,
        )
        made.append(record)
    return made


def _flops_share(model: Any, answer: Answer) -> float | None:
    """FLOPs of the decoder layers in reading the prompt, of those with all tokens; None for layers of unknown kind."""
    report = answer.report
    if report.flops is not None:
        return report.flops
    held = sum(int((state == CellState.HELD).sum()) for state in answer.cell_states)
    stock = report.prompt + report.cells - report.tokens
    try:
        return prompt_flops_share(core(model), report.prompt, report.prompt + held, stock)
    except UnsupportedError:
        return None


def _same_questions(data: Data, results: Results) -> None:
    """Refuse to go on with answers to other questions."""
    asked = {c.name: [(q.task, q.text, q.answer) for q in c.questions] for c in data.clips}
    for (name, _, _), records in results.done.items():
        if name in asked and [(r.task, r.question, r.reference) for r in records] != asked[name]:
            raise InputError(
                f"{results.path} has answers to other questions about {name}; give another --out, or delete that folder"
            )


def describe(model: Any) -> str:
    """Class, size and type of a model."""
    weights = sum(p.numel() for p in model.parameters())
    kind = f"{model.dtype}".removeprefix("torch.")
    return f"{type(model).__name__}, {weights / 1e6:,.1f} M weights, {kind}"


def fingerprint(model: Any) -> str:
    """A short checksum over some values of every weight: enough to tell two trainings apart, quick for any size."""
    code = hashlib.sha256()
    for name, weight in model.named_parameters():
        flat = weight.detach().flatten()
        some = flat[:: max(1, len(flat) // 64)].to("cpu", torch.float32)
        code.update(name.encode() + some.numpy().tobytes())
    return code.hexdigest()[:12]
