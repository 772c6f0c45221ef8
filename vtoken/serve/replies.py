"""Answers in OpenAI's form: whole, or as chunks of a stream; the report is in the block ``vtoken``."""

from __future__ import annotations

import json
import time
import uuid
from dataclasses import dataclass, field
from typing import Any

from vtoken.qa.answer import Answer


@dataclass(frozen=True)
class Done:
    """The end of an answer.

    Attributes:
        text: cut at a stop text.
        reason: why it ended, "stop" or "length".
        reused: whether the video was read and encoded for an earlier question.
        cut: why the server ended it early.
        chat: id of the chat that the answer belongs to, if the server keeps one.
    """

    answer: Answer
    text: str
    reason: str
    reused: bool = False
    cut: str = ""
    chat: str = ""


@dataclass(frozen=True)
class Reply:
    """One reply to a client.

    Attributes:
        model: name of the model as clients know it.
    """

    model: str
    id: str = field(default_factory=lambda: f"chatcmpl-{uuid.uuid4().hex}")
    created: int = field(default_factory=lambda: int(time.time()))

    def whole(self, done: Done) -> dict[str, Any]:
        """A chat completion."""
        message = {"role": "assistant", "content": done.text, "refusal": None}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": done.reason}
        return self._head("chat.completion") | {"choices": [choice], "usage": usage(done), "vtoken": block(done)}

    def delta(self, text: str, first: bool) -> dict[str, Any]:
        """A chunk with further text."""
        return self._chunk({"role": "assistant", "content": text} if first else {"content": text}, None)

    def last(self, done: Done) -> dict[str, Any]:
        """The chunk that ends the text; the report comes with it."""
        return self._chunk({}, done.reason) | {"vtoken": block(done)}

    def usage(self, done: Done) -> dict[str, Any]:
        """The chunk behind the last, for clients that ask for it."""
        return self._head("chat.completion.chunk") | {"choices": [], "usage": usage(done)}

    def _chunk(self, delta: dict[str, Any], reason: str | None) -> dict[str, Any]:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}
        return self._head("chat.completion.chunk") | {"choices": [choice]}

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}


def usage(done: Done) -> dict[str, Any]:
    """Tokens that were sent, and what the stock model would have had."""
    report, n = done.answer.report, len(done.answer.tokens)
    details = {"video_tokens": report.tokens, "video_tokens_full": report.cells, "cached_tokens": 0}
    return {
        "prompt_tokens": report.prompt,
        "completion_tokens": n,
        "total_tokens": report.prompt + n,
        "prompt_tokens_details": details,
    }


def block(done: Done) -> dict[str, Any]:
    """What vtoken has to say about an answer."""
    report = done.answer.report.to_dict()
    plan, held = report.pop("plan"), report["held"]
    more = {name: value for name, value in (("cut", done.cut), ("chat_id", done.chat)) if value}
    return {"plan": plan, "held": held, "reused": done.reused, "report": report} | more


def event(data: dict[str, Any] | str) -> str:
    """One event of a stream."""
    return f"data: {data if isinstance(data, str) else json.dumps(data, ensure_ascii=False)}\n\n"


class Text:
    """The answer so far as a client may see it: up to the first stop text, and without what may begin one."""

    def __init__(self, stop: tuple[str, ...]) -> None:
        self._stop, self._shown = stop, 0

    def cut(self, text: str) -> tuple[str, bool]:
        """The text before the first stop text, and whether there is one."""
        places = [place for word in self._stop if (place := text.find(word)) >= 0]
        return (text[: min(places)], True) if places else (text, False)

    def new(self, text: str, end: bool = False) -> str:
        """What has come since the last call; what may be the beginning of a stop text waits until the end."""
        text, found = self.cut(text)
        if not (end or found):
            hidden = [n for word in self._stop for n in range(1, len(word)) if text.endswith(word[:n])]
            text = text[: len(text) - max(hidden, default=0)]
        new, self._shown = text[self._shown :], max(self._shown, len(text))
        return new
