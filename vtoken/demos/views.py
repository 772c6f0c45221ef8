"""What the page shows of a run, as HTML; every text that did not come from here is escaped."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from vtoken.data.report import STAGES
from vtoken.demos.records import Run
from vtoken.qa.steps import Step
from vtoken.qa.stream.report import StreamReport

STEPS = {
    "wait": "Waiting for its turn",
    "load": "Loading the model",
    "decode": "Reading and gating frames",
    "encode": "Encoding what was kept",
    "prefill": "Reading the prompt",
    "generate": "Writing the answer",
    "draw": "Drawing what was kept",
}
REUSED = "The video was in the cache, read and encoded for an earlier question; the times are those of this one alone."
CLOSE = '<button type="button" class="vt-close" aria-label="Close this message">×</button>'
EMPTY = '<p class="vt-empty">{}</p>'


def empty(text: str) -> str:
    return EMPTY.format(escape(text))


def notice(text: str, kind: str = "error") -> str:
    """A message that screen readers announce; empty text removes it."""
    if not text:
        return ""
    title = {"error": "That did not work", "hint": "Note"}[kind]
    told = f"<strong>{title}</strong><span>{escape(text)}</span>{CLOSE}"
    return f'<div class="vt-notice vt-{kind}" role="alert">{told}</div>'


def progress(step: Step | None, before: str = "") -> str:
    """The bar of a run; without a step there is none."""
    if step is None:
        return ""
    told = f"{before}{STEPS[step.stage]}"
    if step.share is None:
        bar, value = '<i class="vt-running"></i>', ""
    else:
        percent = round(100 * step.share)
        bar, value, told = f'<i style="width:{percent}%"></i>', f' aria-valuenow="{percent}"', f"{told} · {percent} %"
    label = escape(told)
    return (
        f'<div class="vt-progress"><span aria-live="polite">{label}</span>'
        f'<div role="progressbar" aria-label="{label}" aria-valuemin="0" aria-valuemax="100"{value}>{bar}</div></div>'
    )


def headline(plan: Run | None, full: Run | None, why_not: str = "") -> str:
    """The speed-up in one large figure, and what it is made of."""
    if plan is None:
        return ""
    report = plan.answer.report
    sent = f"{report.tokens:,} of {report.cells:,} visual tokens sent"
    if full is not None and full.reused != plan.reused:
        why_not = f"Only the run with {'full tokens' if full.reused else 'the plan'} found the video in its cache: "
        why_not += "times are compared at the next question."
        full = None if full.answer.text.strip() == plan.answer.text.strip() else full
    if full is None or full.stopped or plan.stopped or not plan.total:
        figure, label = f"{100 * plan.share:.1f} %", "of the visual tokens"
        told = f"{sent} · {seconds(plan.total)}"
        return _headline(figure, label, f"{told}. {why_not}" if why_not else told)
    times = full.total / plan.total
    one, other = plan.answer.text.strip(), full.answer.text.strip()
    figure = f"{times:.1f}×" if times < 100 else f"{times:.0f}×"
    told = f"{seconds(plan.total)} instead of {seconds(full.total)} · {sent} ({100 * plan.share:.1f} %)"
    speed = (
        "as fast" if times < 1 else "faster, from question to answer" if plan.reused else "faster, from file to answer"
    )
    if one != other:
        told = f"{sent}. {why_not}" if why_not else f"{figure} {speed}: {told}"
        return _headline("≠", "Not the answer of all tokens", told, "vt-wrong")
    return _headline(figure, speed, told)


def _headline(figure: str, label: str, told: str, kind: str = "") -> str:
    return (
        f'<div class="vt-headline {kind}"><b>{escape(figure)}</b><div><strong>{escape(label)}</strong>'
        f"<span>{escape(told)}</span></div></div>"
    )


def seconds(milliseconds: float) -> str:
    return f"{milliseconds / 1e3:.2f} s" if milliseconds >= 1e3 else f"{milliseconds:.0f} ms"


def cards(plan: Run | None, full: Run | None, truth: str | None = None, why_not: str = "") -> str:
    """Both runs side by side."""
    if plan is None:
        return ""
    longest = max(plan.total, full.total if full else 0.0)
    right = card(full, "Full tokens", longest, truth) if full else ""
    if not full and why_not:
        right = f'<section class="vt-card"><h3>Full tokens</h3>{empty(why_not)}</section>'
    return f'<div class="vt-cards">{card(plan, "With the plan", longest, truth)}{right}</div>'


def card(run: Run, title: str, longest: float, truth: str | None) -> str:
    """One run: answer, tokens, milliseconds by stage, memory, notes."""
    report, memory = run.answer.report, "of the GPU" if run.gpu else "of the process so far"
    told = escape(run.answer.text) or '<span class="vt-muted">(no words)</span>'
    encoded = report.encoded / report.cells if report.cells else 1.0
    figures = [
        ("Visual tokens", f"{report.tokens:,}", f"{100 * run.share:.1f} % of {report.cells:,}"),
        ("Encoded", f"{report.encoded:,}", f"{100 * encoded:.1f} % of {report.cells:,}"),
        ("Whole prompt", f"{report.prompt:,}", "tokens, text and video"),
        ("Frames", f"{len(report.frames[0]):,}", _rate(run)),
        ("Peak memory", f"{report.peak_bytes / 2**20:,.0f} MiB", memory),
    ]
    if run.held:
        figures.insert(1, ("Shown again", f"{run.held:,}", "not computed"))
    if report.flops is not None and report.cache is not None:
        figures += [
            ("Prefill FLOPs", f"{100 * report.flops:.1f} %", "of the language model's"),
            ("KV cache", f"{100 * report.cache:.1f} %", "of the language model's"),
        ]
    cells = "".join(f"<div><dt>{n}</dt><dd>{escape(v)}<small>{escape(s)}</small></dd></div>" for n, v, s in figures)
    told_too = [REUSED] if run.reused else []
    notes = "".join(f"<li>{escape(note)}</li>" for note in dict.fromkeys([*told_too, *report.notes]))
    return (
        f'<section class="vt-card"><h3>{title}<code>{escape(report.plan)}</code></h3>'
        f'<p class="vt-answer">{told}{_truth(run, truth)}</p>'
        f"<dl>{cells}</dl>{stages(run, longest)}{f'<ul class=vt-notes>{notes}</ul>' if notes else ''}</section>"
    )


def _rate(run: Run) -> str:
    size = "".join(f", {width}×{height}" for width, height in run.answer.report.sizes[:1])
    return f"{run.rate:.4g} a second{size}"


def _truth(run: Run, truth: str | None, before: str = "truth: ") -> str:
    if truth is None:
        return ""
    right = run.answer.text.strip().lower() == truth.lower()
    return f'<small class="vt-{"right" if right else "wrong"}">{before}{escape(truth)}</small>'


def stages(run: Run, longest: float) -> str:
    """A bar of milliseconds by stage, as long as the run took, and the same as a table."""
    spent = [(s, ms) for s in STAGES if (ms := run.answer.report.milliseconds.get(s, 0.0))]
    parts = "".join(
        f'<i class="vt-{s}" style="width:{100 * ms / longest if longest else 0:.2f}%" title="{s} {seconds(ms)}"></i>'
        for s, ms in spent
    )
    rows = "".join(f'<tr><th scope="row"><i class="vt-{s}"></i>{s}</th><td>{ms:,.1f}</td></tr>' for s, ms in spent)
    return (
        f'<div class="vt-bar" aria-hidden="true">{parts}</div><table class="vt-stages">'
        f"<caption>Milliseconds by stage</caption><tbody>{rows}"
        f'<tr class="vt-total"><th scope="row">all</th><td>{run.total:,.1f}</td></tr></tbody></table>'
    )


def table(
    runs: Sequence[Run],
    columns: Sequence[str] = ("fps", "plan", "tokens", "share", "encoded", "time"),
    truth: str | None = None,
) -> str:
    """Runs as rows. A stage that no run has gets no column; the true answer, where it is known, gets one."""
    if not runs:
        return ""
    columns = [c for c in columns if c not in STAGES or any(r.answer.report.milliseconds.get(c) for r in runs)]
    if truth is not None:
        columns.insert(columns.index("answer") + 1, "truth")
    head = "".join(f'<th scope="col" class="vt-c-{c}">{HEADS[c]}</th>' for c in columns)
    body = "".join(f"<tr>{''.join(_cell(run, c, truth) for c in columns)}</tr>" for run in runs)
    made = f'<table class="vt-table"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'
    return f'<div class="vt-scroll" tabindex="0" role="region" aria-label="Runs">{made}</div>'


HEADS = {
    "fps": "fps",
    "plan": "plan",
    "answer": "answer",
    "truth": "truth",
    "tokens": "tokens",
    "share": "kept",
    "encoded": "encoded",
    "time": "time",
    **{s: f"{s} ms" for s in STAGES},
}


def _cell(run: Run, column: str, truth: str | None) -> str:
    report = run.answer.report
    values = {
        "fps": f"{run.rate:.4g}",
        "plan": f"<code>{escape(report.plan)}</code>",
        "answer": escape(run.answer.text),
        "truth": _truth(run, truth, ""),
        "tokens": f"{report.tokens:,}",
        "share": f"{100 * run.share:.1f} %",
        "encoded": f"{report.encoded:,}",
        "time": seconds(run.total),
    }
    text = values[column] if column in values else f"{report.milliseconds.get(column, 0.0):,.1f}"
    return f'<td class="vt-c-{column}">{text}</td>'


def live(report: StreamReport, looks: Sequence[tuple[float, int, float, int]], state: str = "Watching.") -> str:
    """How a stream goes: figures, and curves of tokens a second, lag and memory.

    Args:
        looks: (seconds, tokens computed so far, seconds of lag, bytes of the cache), one a look.
    """
    rates = [
        (b[0], (b[1] - a[1]) / (b[0] - a[0]) if b[0] > a[0] else 0.0) for a, b in zip(looks, looks[4:], strict=False)
    ]
    rate = rates[-1][1] if rates else 0.0
    figures = [
        ("Watched", f"{report.seconds:,.1f} s", f"{report.sampled:,} frames, {report.dropped:,} late ones dropped"),
        ("Computed", f"{report.computed:,}", f"of {report.cells:,} visual tokens"),
        ("In the cache", f"{report.cached:,}", f"{report.evicted:,} have left it"),
        ("Tokens a second", f"{rate:,.0f}", "into the language model"),
        ("Lag", f"{report.lag:.2f} s", "behind the source"),
        ("Memory", f"{report.nbytes / 2**20:,.1f} MiB", "of the cache"),
    ]
    cells = "".join(f"<div><dt>{n}</dt><dd>{escape(v)}<small>{escape(s)}</small></dd></div>" for n, v, s in figures)
    curves = [
        ("tokens a second", rates),
        ("lag, s", [(t, lag) for t, _, lag, _ in looks]),
        ("memory, MiB", [(t, size / 2**20) for t, _, _, size in looks]),
    ]
    drawn = "".join(curve(name, points) for name, points in curves)
    notes = "".join(f"<li>{escape(note)}</li>" for note in report.notes)
    told = f"<ul class=vt-notes>{notes}</ul>" if notes else ""
    head = f"<code>{escape(report.plan)}</code><code>{escape(report.policy)}</code>"
    return (
        f'<section class="vt-card vt-live"><h3><span aria-live="polite">{escape(state)}</span>{head}</h3>'
        f'<dl>{cells}</dl><div class="vt-sparks">{drawn}</div>{told}</section>'
    )


def curve(name: str, points: Sequence[tuple[float, float]]) -> str:
    """A small curve with its highest value."""
    top = max((value for _, value in points), default=0.0)
    line = ""
    if len(points) > 1 and points[-1][0] > points[0][0]:
        wide, high = 200 / (points[-1][0] - points[0][0]), 40 / top if top > 0 else 0.0
        line = " ".join(f"{(t - points[0][0]) * wide:.1f},{44 - value * high:.1f}" for t, value in points)
    return (
        f'<figure><svg viewBox="0 0 200 48" preserveAspectRatio="none" role="img" aria-label="{escape(name)}">'
        f'<polyline points="{line}"/></svg><figcaption>{escape(name)}, at most {top:,.3g}</figcaption></figure>'
    )
