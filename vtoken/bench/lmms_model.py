# pyright: reportMissingImports=false
"""The model ``vtoken`` of lmms-eval: every request is a call of ``vtoken.ask`` under one plan.

Imported by lmms-eval alone, through ``vtoken.bench.lmms``.
"""

from __future__ import annotations

import time
from typing import Any

from lmms_eval.api.instance import GenerationResult, TokenCounts
from lmms_eval.api.model import lmms
from lmms_eval.models.model_utils.gen_metrics import log_metrics
from lmms_eval.protocol import ChatMessages

from vtoken.errors import InputError, UnsupportedError
from vtoken.methods.plan import Plan
from vtoken.output.progress import progress
from vtoken.qa.api import Answer, ask
from vtoken.qa.cache import ClipMemory
from vtoken.qa.load import load
from vtoken.qa.media import Image, Video
from vtoken.qa.read import Sampling

BEFORE = ("decode", "gate", "pathway", "prepare", "encode", "reduce", "prefill")  # the first token


class Vtoken(lmms):
    """``lmms_eval --model vtoken --model_args "pretrained=...,plan=grt | divprune,keep=0.25,fps=8"``.

    Args:
        pretrained: "reference", a hub id or a folder.
        plan: stages as text.
        keep, tokens, per_second: budget of the plan.
        fps, num_frames, max_frames: which frames of a video are read.
        device, dtype: see ``vtoken.load``.
        batch_size: of lmms-eval's own command line; 1.
        options: further arguments of ``from_pretrained``.
    """

    is_simple = False

    def __init__(
        self,
        pretrained: str = "reference",
        plan: str = "grt",
        keep: float | None = None,
        tokens: int | None = None,
        per_second: float | None = None,
        fps: float | str | None = None,
        num_frames: int | None = None,
        max_frames: int | None = None,
        device: str | None = None,
        dtype: str = "auto",
        batch_size: int | str = 1,
        max_batch_size: int | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        if int(batch_size) != 1:
            raise InputError(f"batch_size={batch_size}: the model vtoken answers one request at a time; give 1")
        self.plan = Plan.parse(plan, keep, tokens, per_second)
        given = {"fps": fps, "num_frames": num_frames, "max_frames": max_frames}
        self.sampling = Sampling(**{name: value for name, value in given.items() if value is not None})
        self.model, self.processor = load(pretrained, device or "auto", dtype, **options)
        self._about: Any = None
        self._memory = ClipMemory()
        self._media: list[Any] = []

    def generate_until(self, requests: list[Any]) -> list[Any]:
        """Answers of the requests, in their order; tokens and times go to lmms-eval's metrics."""
        found: list[Answer] = []
        texts: list[str] = []
        start = time.perf_counter()
        with progress(len(requests), "questions") as advance:
            for request in requests:
                _, to_messages, settings, number, task, split = request.args
                messages = ChatMessages(messages=to_messages(self.task_dict[task][split][number]))
                found.append(self._answer(messages, dict(settings)))
                texts.append(_until(found[-1].text, settings.get("until") or ()))
                advance(1, str(task))
        self._log(found, time.perf_counter() - start)
        counts = [TokenCounts(answer.report.prompt, len(answer.tokens)) for answer in found]
        return [GenerationResult(text, count) for text, count in zip(texts, counts, strict=True)]

    def _answer(self, messages: Any, settings: dict[str, Any]) -> Answer:
        turns, system = [], []
        for message in messages.messages:
            text = "\n".join(part.text for part in message.content if part.type == "text")
            if message.role == "system":
                system.append(text)
            else:
                turns.append({"role": message.role, "content": text})
        media, frames = self._shown(messages)
        text = turns.pop()["content"]
        options = {"plan": self.plan, "sampling": self.sampling, "memory": self._memory, **frames}
        options |= {"system": "\n".join(system) or None, "history": turns, **_generate(settings)}
        return ask(self.model, self.processor, media, text, **options)

    def _shown(self, messages: Any) -> tuple[list[Any], dict[str, float]]:
        """The videos and images of a request, kept for further questions about the same, and the part of them."""
        parts = [part for message in messages.messages for part in message.content if part.type in ("video", "image")]
        if any(part.type == "audio" for message in messages.messages for part in message.content):
            raise UnsupportedError("the model vtoken hears no sound; choose a task of videos")
        times = {n: getattr(p, f"{n}_time") for p in parts for n in ("start", "end") if getattr(p, f"{n}_time", None)}
        about = [(part.type, part.url) for part in parts], times
        if not all(isinstance(part.url, str) for part in parts) or about != self._about:
            self._about, self._memory = about, ClipMemory()
            self._media = [Video(part.url) if part.type == "video" else Image(part.url) for part in parts]
        return self._media, times

    def _log(self, found: list[Answer], seconds: float) -> None:
        """Sums and means for lmms-eval's results."""
        made = sum(len(answer.tokens) for answer in found)
        reports, n = [answer.report for answer in found], max(1, len(found))
        cells, sent = sum(r.cells for r in reports), sum(r.tokens for r in reports)
        first = [sum(r.milliseconds.get(stage, 0.0) for stage in BEFORE) for r in reports]
        more = {
            "visual_tokens_full": cells / n,
            "visual_tokens": sent / n,
            "visual_tokens_kept": sent / max(1, cells),
            "time_to_first_token": sum(first) / n / 1e3,
        }
        log_metrics(seconds, made, made / max(seconds, 1e-9), more)

    def loglikelihood(self, requests: list[Any]) -> list[Any]:
        """Not offered."""
        raise UnsupportedError("the model vtoken has no log-likelihoods of lmms-eval; choose a task that generates")

    def generate_until_multi_round(self, requests: list[Any]) -> list[Any]:
        """Not offered."""
        raise UnsupportedError("the model vtoken has no rounds of lmms-eval; choose a task that generates once")


def _generate(settings: dict[str, Any]) -> dict[str, Any]:
    """Arguments of ``generate`` from those of a task; greedy unless it asks for a temperature above 0."""
    found = {"max_new_tokens": int(settings.get("max_new_tokens") or 128)}
    if float(settings.get("temperature") or 0) > 0:
        found |= {"do_sample": True, "temperature": float(settings["temperature"])}
        found |= {"top_p": float(settings["top_p"])} if settings.get("top_p") else {}
    if int(settings.get("num_beams") or 1) > 1:
        found["num_beams"] = int(settings["num_beams"])
    return found


def _until(text: str, ends: Any) -> str:
    """The answer before the first of the texts at which a task wants it to end."""
    for end in [ends] if isinstance(ends, str) else ends:
        text = text.partition(end)[0] if end else text
    return text
