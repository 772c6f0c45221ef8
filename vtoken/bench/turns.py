"""Accuracy by turn of a chat: does a choice that was made for the first question hurt the later ones?

Every question sees the video alone (``remember=False``), so that all turns are equally hard but for the choice of
tokens. A plan that reads the question runs twice: its first choice kept, and chosen anew. Question (b) of LLMC+
(AAAI 2026), with our chat.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vtoken.bench.machine import describe
from vtoken.bench.metrics import bootstrap, exact_match
from vtoken.errors import InputError
from vtoken.methods.plan import Plan
from vtoken.output.console import FittedTable, terminal
from vtoken.output.files import Lines, folder, write_text
from vtoken.output.progress import progress
from vtoken.reference import data

SPLIT = "test"


@dataclass(frozen=True)
class Asked:
    """One chat about one clip.

    Attributes:
        clip: number of the clip in DenseQA's test split.
        plan: stages with their budget.
        again: whether the plan chose anew for every turn; None where it does not read the question.
        fps: frames a second.
        right: for each turn, whether the answer was exactly right.
        tokens: for each turn, visual tokens that the language model had.
    """

    clip: int
    plan: str
    again: bool | None
    fps: float
    right: tuple[bool, ...]
    tokens: tuple[int, ...]

    @property
    def way(self) -> str:
        """Name in the table."""
        return name(self.plan, self.again)


def name(plan: str, again: bool | None) -> str:
    """A plan, and whether it chose anew."""
    return plan + {None: "", False: ", once", True: ", again"}[again]


def ways(plans: Sequence[str]) -> list[tuple[str, bool | None]]:
    """Each plan once, and twice where it reads the question: its first choice kept, and chosen anew.

    Raises:
        InputError: a plan that cannot be read, or that acts inside the language model, where no choice can be kept.
    """
    out: list[tuple[str, bool | None]] = []
    for text in plans:
        plan = Plan.parse(text)
        if plan.acts_inside:
            raise InputError(f"plan {text!r} acts inside the language model, whose choice no later turn can keep")
        out += [(text, False), (text, True)] if plan.reads_text else [(text, None)]
    if not out:
        raise InputError("plans: none is given; name one such as 'none'")
    return out


def questions(clip: data.Clip, turns: int) -> list[data.Question]:
    """Questions about a clip in an order that belongs to its number, so that each task comes at every turn."""
    every = data.questions(clip)
    if not 1 <= turns <= len(every):
        raise InputError(f"turns={turns} must be 1 to {len(every)}, the questions of a clip")
    return [every[i] for i in np.random.default_rng(clip.seed).permutation(len(every))[:turns]]


def measure(
    model: Any,
    processor: Any,
    plans: Sequence[str],
    clips: int,
    turns: int,
    fps: float,
    known: Sequence[Asked] = (),
) -> Iterator[Asked]:
    """One chat for each clip and way, those that are known left out.

    Raises:
        InputError: a bad plan, or a number of turns that a clip does not have.
    """
    import vtoken

    every = ways(plans)
    done = {(a.clip, a.plan, a.again, a.fps, len(a.right)) for a in known}
    for number in range(clips):
        left = [w for w in every if (number, *w, fps, turns) not in done]
        if not left:
            continue
        clip = data.clip(number, SPLIT)
        asked = questions(clip, turns)
        for plan, again in left:
            chat = vtoken.Chat(
                model, processor, clip.pixels, plan, remember=False, again=again, native_fps=clip.fps, fps=fps
            )
            found = [chat.ask(q.text) for q in asked]
            right = tuple(bool(exact_match(a.text, q.answer)) for a, q in zip(found, asked, strict=True))
            yield Asked(number, plan, again, fps, right, tuple(a.report.tokens for a in found))


def rows(found: Sequence[Asked]) -> list[tuple[str, ...]]:
    """Way, accuracy of each turn, of the first, of the later ones, with intervals, tokens and clips."""
    out = []
    for way in dict.fromkeys(a.way for a in found):
        own = [a for a in found if a.way == way]
        by_turn = [100 * float(np.mean(column)) for column in zip(*(a.right for a in own), strict=True)]
        first = [[100.0 * a.right[0]] for a in own]
        later = [[100.0 * r for r in a.right[1:]] for a in own]
        parts = [_with_interval(first), _with_interval(later) if later[0] else "-"]
        tokens = f"{np.mean([a.tokens for a in own]):.0f}"
        out.append((way, *(f"{p:.0f}" for p in by_turn), *parts, tokens, str(len(own))))
    return out


def _with_interval(groups: list[list[float]]) -> str:
    low, high = bootstrap(groups)
    mean = sum(map(sum, groups)) / sum(map(len, groups))
    return f"{mean:.1f} [{low:.1f}, {high:.1f}]"


def heads(turns: int) -> tuple[str, ...]:
    """Titles of the columns of ``rows``."""
    return "plan", *(str(i + 1) for i in range(turns)), "first turn", "later turns", "visual tokens", "clips"


def markdown(found: Sequence[Asked], turns: int, fps: float, model: str) -> str:
    """The table, with what it was measured on."""
    top = heads(turns)
    lines = [f"| {' | '.join(top)} |", f"|{'---|' * len(top)}"]
    lines += ["| " + " | ".join(text.replace("|", "/") for text in row) + " |" for row in rows(found)]
    told = f"DenseQA {SPLIT} clips, {fps:g} frames a second, {turns} questions a chat; {model}; {describe('cpu')}"
    what = "Percent of exact answers, 95 % intervals over clips in brackets."
    return "\n".join(["# Accuracy by turn\n", f"{what} {told}\n", *lines, ""])


def run(model: str, plans: Sequence[str], clips: int, turns: int, fps: float, out: str) -> list[Asked]:
    """`vtoken bench turns`: print the table, write turns.jsonl and report.md; a stopped run goes on.

    Raises:
        InputError: a bad plan or number, or a folder that cannot be written.
    """
    import vtoken

    if clips < 1:
        raise InputError(f"clips={clips} must be 1 or more")
    every = ways(plans)
    questions(data.clip(0, SPLIT), turns)
    target = folder(out)
    file = target / "turns.jsonl"
    known = _read(file)
    loaded, processor = vtoken.load(model, device="cpu")
    with closing(Lines(file)) as lines, progress(clips * len(every), "chats") as advance:
        for one in measure(loaded, processor, plans, clips, turns, fps, known):
            known.append(one)
            lines.add(json.dumps(asdict(one)))
            advance(1, f"clip {one.clip}: {one.plan}")
    names = {name(*w) for w in every}
    found = [a for a in known if a.way in names and a.clip < clips and a.fps == fps and len(a.right) == turns]
    write_text(target / "report.md", markdown(found, turns, fps, model))
    table = FittedTable([str(i + 1) for i in range(turns)])
    for i, head in enumerate(heads(turns)):
        table.add_column(head, justify="right" if i else "left", no_wrap=i > 0)
    for row in rows(found):
        table.add_row(*row)
    terminal().print(table)
    print(f"wrote turns.jsonl and report.md to {target}")
    return found


def _read(file: Path) -> list[Asked]:
    """Chats of an earlier run; a last line that was cut off is left out."""
    out = []
    for line in file.read_text(encoding="utf-8").splitlines() if file.is_file() else []:
        try:
            one = json.loads(line)
        except ValueError:
            continue
        out.append(Asked(**one | {"right": tuple(one["right"]), "tokens": tuple(one["tokens"])}))
    return out
