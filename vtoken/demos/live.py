"""The Live tab: ``vtoken.stream`` watches a clip at its own pace or a webcam, and answers at any moment."""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from vtoken.demos import choices, clips, views
from vtoken.demos.runner import Runner, readable
from vtoken.errors import InputError
from vtoken.qa import limits
from vtoken.qa.stream.api import stream
from vtoken.qa.stream.report import StreamReport

Updates = Iterator[dict[str, Any]]
WATCHING, ENDED = "Watching.", "The source has ended; questions are still answered."
CLOSED = "Ended. Press Watch to begin anew."
CLIP, WEBCAM = "The clip, at its own pace", "Webcam"
POLICIES = ("pyramid", "fifo", "tar_van", "random")
TOKENS = 2048  # in the cache, where nobody says
LOOK = 0.5  # seconds between two looks at a stream
POINTS = 240  # looks that are drawn
WAITING = 4  # webcam frames that may wait


class Frames:
    """Frames of a browser as (seconds, frame); where the model is late the oldest are thrown away."""

    def __init__(self) -> None:
        self._waiting: queue.Queue[tuple[float, np.ndarray] | None] = queue.Queue(WAITING)
        self._began = time.monotonic()
        self.dropped = 0

    def put(self, frame: np.ndarray) -> None:
        """A frame, uint8 [H, W, 3]."""
        self._push((time.monotonic() - self._began, np.ascontiguousarray(frame)))

    def end(self) -> None:
        self._push(None)

    def _push(self, item: tuple[float, np.ndarray] | None) -> None:
        while True:
            try:
                self._waiting.put_nowait(item)
                return
            except queue.Full:
                with contextlib.suppress(queue.Empty):  # the reader was faster
                    self.dropped += self._waiting.get_nowait() is not None

    def __iter__(self) -> Iterator[tuple[float, np.ndarray]]:
        while (item := self._waiting.get()) is not None:
            yield item


@dataclass
class Session:
    """A stream of one visitor.

    Attributes:
        stream: what reads and answers. ``frames``: where the browser's frames go; None for a clip.
        said: questions and answers so far, as ``gr.Chatbot`` takes them.
        looks: (seconds since the start, tokens computed, seconds of lag, bytes of the cache).
    """

    stream: Any
    frames: Frames | None
    began: float = field(default_factory=time.monotonic)
    said: list[dict[str, Any]] = field(default_factory=list)
    looks: list[tuple[float, int, float, int]] = field(default_factory=list)

    def look(self) -> StreamReport:
        """The report now; it is remembered for the chart."""
        report = self.stream.report
        self.looks.append((time.monotonic() - self.began, report.computed, report.lag, report.nbytes))
        del self.looks[:-POINTS]
        return report

    def close(self) -> None:
        if self.frames is not None:
            self.frames.end()
        self.stream.close()


class Lives:
    """The streams of all visitors, at most ``most`` at a time."""

    def __init__(self, runner: Runner, most: int) -> None:
        self.runner, self.most = runner, most
        self._lock, self._open = threading.Lock(), {}  # type: ignore[var-annotated]

    def __len__(self) -> int:
        return len(self._open)

    def get(self, session: str | None) -> Session | None:
        return self._open.get(session or "")

    def open(self, session: str | None, values: dict[str, Any], kind: str, tokens: float, policy: str) -> Session:
        """Begin to watch; what the visitor watched before ends.

        Raises:
            InputError, VideoError, UnsupportedError: a clip, plan or number that cannot be used; too many streams.
        """
        self.close(session)
        settings, visitor = self.runner.settings, self.runner.visitors.get(session)
        with self._lock:
            if len(self._open) >= self.most:
                watch = "visitor watches" if self.most == 1 else "visitors watch"
                raise InputError(f"{self.most} {watch} live already, as many as this page allows; try later")
        plan = choices.plan_text(values["gate"], values["reducer"], values["threshold"], values["written"])
        if tokens != int(tokens) or not 16 <= tokens <= settings.max_tokens:
            raise InputError(f"tokens={tokens:g} must be a whole number from 16 to {settings.max_tokens}")
        fps = float(values["fps"])
        if not fps > 0:
            raise InputError(f"fps={fps:g} must be above 0")
        frames, source = None, None
        if kind == WEBCAM:
            source = frames = Frames()
        else:
            path = clips.allowed(values["video"], self.runner.root, settings)
            limits.part(limits.facts(path), 0, None, settings.max_seconds, "page")
            source = str(path)
        model, processor = self.runner.models.get(visitor.model)
        options = {"tokens": int(tokens), "policy": policy, "fps": fps, "realtime": True}
        made = Session(stream(model, processor, source, plan, **options).start(), frames)
        with self._lock:
            self._open[session or ""] = made
        return made

    def close(self, session: str | None) -> None:
        """End what a visitor watches."""
        with self._lock:
            found = self._open.pop(session or "", None)
        if found is not None:
            found.close()

    def watch(self, session: str | None, values: dict[str, Any], kind: str, tokens: float, policy: str) -> Updates:
        """Open a stream and show how it goes, until it ends or is closed."""
        try:
            yield {"live_notice": "", "live_state": views.empty("Opening the source."), "live_chat": []}
            mine = self.open(session, values, kind, tokens, policy)
            ended = False
            while not ended:
                ended = mine.stream.wait(LOOK)
                if (now := self.get(session)) is not mine:  # ended by the visitor, or watching something else
                    if now is None:
                        yield {"live_state": views.live(mine.look(), mine.looks, CLOSED)}
                    return
                yield {"live_state": views.live(mine.look(), mine.looks, ENDED if ended else WATCHING)}
                if mine.looks[-1][0] > self.runner.settings.keep_uploads:
                    raise InputError(
                        f"this page watches for {self.runner.settings.keep_uploads:,} s at most (--keep-uploads)"
                    )
            if self.get(session) is mine and (error := mine.stream.error) is not None:
                raise error
        except GeneratorExit:  # the visitor is gone
            self.close(session)
            raise
        except Exception as error:
            self.close(session)
            yield {"live_notice": views.notice(readable(error, self.runner.root)), "live_state": ""}

    def push(self, session: str | None, frame: np.ndarray | None) -> None:
        """A frame of the visitor's webcam, uint8 [H, W, 3]."""
        found = self.get(session)
        if frame is not None and found is not None and found.frames is not None:
            found.frames.put(frame)

    def ask(self, session: str | None, question: str) -> Updates:
        """Answer from what was seen so far."""
        try:
            found = self.get(session)
            if found is None:
                raise InputError("nothing is watched; press Watch first")
            question = limits.question_text(question, "page")
            answer = found.stream.ask(question)
            moment = f"{answer.as_of:.1f} s: {answer.text or '(no words)'}"
            found.said += [{"role": "user", "content": question}, {"role": "assistant", "content": moment}]
            yield {"live_chat": list(found.said), "live_notice": ""}
        except Exception as error:
            yield {"live_notice": views.notice(readable(error, self.runner.root))}
