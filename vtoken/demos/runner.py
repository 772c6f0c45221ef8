"""What the page does: every method drives ``vtoken.ask`` for one visitor and tells how it goes."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from vtoken.demos import choices, clips
from vtoken.demos.chats import Chats
from vtoken.demos.models import Models
from vtoken.demos.records import Run
from vtoken.demos.settings import MOST_TOKENS, NEW_TOKENS, Settings
from vtoken.demos.visitors import Visitor, Visitors
from vtoken.errors import InputError
from vtoken.methods.plan import Plan
from vtoken.qa import limits
from vtoken.qa.api import BUDGETS, Answer
from vtoken.qa.steps import Step, Stopped, answering, steps_of

CAPS = ("max_pixels", "per_frame_pixels", "pixels")  # options of ask on the size of frames

log = logging.getLogger("vtoken.demo")


@dataclass(frozen=True)
class Asked:
    """The controls of the page as ``vtoken.ask`` takes them."""

    path: Path
    facts: limits.Facts
    question: str
    options: dict[str, Any]


class Runner:
    """Models, visitors and limits of one page.

    Attributes:
        root: temporary folder of the page; every file of a visitor lies below it.
    """

    def __init__(self, settings: Settings, root: Path) -> None:
        self.settings, self.root = settings, root
        self.models = Models(settings)
        self.visitors = Visitors(root, settings.model, settings.keep_uploads)
        self.chats = Chats(settings.keep_chats)

    @property
    def samples(self) -> Path:
        return self.root / "samples"

    def asked(
        self,
        video: str | None,
        question: str,
        start: float | None,
        end: float | None,
        fps: float,
        plan: str,
        budget: dict[str, Any],
        new_tokens: int = NEW_TOKENS,
        caps: dict[str, Any] | None = None,
    ) -> Asked:
        """What was asked, checked before any work.

        Args:
            caps: ``max_pixels``, ``per_frame_pixels`` and ``pixels`` of ``vtoken.ask``.

        Raises:
            InputError, VideoError: what ``vtoken.ask`` would refuse, and what is above the page's limits.
        """
        path = clips.allowed(video, self.root, self.settings)
        question = limits.question_text(question, "page")
        Plan.parse(plan, **budget)
        known = limits.facts(path)
        longest = limits.answer_length(new_tokens, MOST_TOKENS)
        if not fps > 0:
            raise InputError(f"fps={fps:g} must be above 0")
        rate = "native" if fps >= known.fps * 0.999 else float(fps)
        trimmed = limits.part(known, start, end, self.settings.max_seconds, "page")
        options = {"fps": rate, "plan": plan, **budget, **trimmed, "max_frames": self.settings.max_frames}
        options |= {"max_new_tokens": longest, **(caps or {})}
        return Asked(path, known, question, {n: v for n, v in options.items() if v is not None})

    def run(
        self, visitor: Visitor, asked: Asked, stop: Any, side: str | None = None, **changes: Any
    ) -> Iterator[Step | Run]:
        """Steps of one call, then the run; ``changes`` replace options, None removes one.

        Args:
            side: "plan" or "full" for a turn of the visitor's chat on that side; None asks once.

        Raises:
            Stopped: the visitor stopped it before the first word.
        """
        if stop.is_set():
            raise Stopped
        yield Step("load")
        model, processor = self.models.get(visitor.model)
        options = {n: v for n, v in (asked.options | changes).items() if v is not None}
        reused = False
        if side is None:
            steps = answering(model, processor, asked.path, asked.question, stop, **options)
        else:
            chat = self.chats.get(visitor, side, model, processor, str(asked.path), options)
            chat.remember, chat.turns = "history" in options, list(options.get("history", ()))
            reused = chat.nbytes > 0
            turn = partial(chat.ask, asked.question, max_new_tokens=options["max_new_tokens"])
            steps = steps_of(turn, processor, stop)
        try:
            for item in steps:
                if isinstance(item, Answer):
                    cut = stop.is_set() and len(item.tokens) < options["max_new_tokens"]
                    gpu, rate = model.device.type == "cuda", options["fps"]
                    rate = asked.facts.fps if rate == "native" else float(rate)
                    yield Run(visitor.model, asked.path.name, asked.question, options, item, rate, cut, gpu, reused)
                else:
                    yield item
        except Exception as error:
            if limits.is_out_of_memory(error):
                self.chats.drop()
            raise

    def full(self, asked: Asked, first: Run) -> tuple[dict[str, Any], str]:
        """Changes for the run with full tokens, and the reason where there is none."""
        cells = first.answer.report.cells
        if cells > self.settings.max_tokens:
            limit = self.settings.max_tokens
            return {}, f"Full tokens would be {cells:,}, above this page's limit of {limit:,} (--max-tokens)."
        changes = {"plan": choices.FULL, **dict.fromkeys((*BUDGETS, *CAPS))}
        if any(name in asked.options for name in CAPS):  # frames of the same size, whatever made it
            width, height = first.answer.report.sizes[0]
            changes["per_frame_pixels"] = width * height
        return changes, ""


def readable(error: BaseException, root: Path) -> str:
    """An error as one sentence for the page, without a path of the server."""
    return limits.readable(error, [root], log)
