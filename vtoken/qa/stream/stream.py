"""Stream: a model that watches a source without end, answers at any moment, and tells when something begins."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from queue import SimpleQueue
from typing import Any

import torch
from torch import Tensor

from vtoken import families
from vtoken.data.report import Report
from vtoken.engine.check import on_model
from vtoken.engine.memory.memory import Memory
from vtoken.engine.state.tail import generate_behind
from vtoken.engine.state.video import VideoState
from vtoken.errors import InputError, UnsupportedError
from vtoken.families.compat import core, input_device
from vtoken.families.features import Clip
from vtoken.methods.plan import PlanLike
from vtoken.qa.answer import Answer, until_end
from vtoken.qa.api import plan_of, preprocessor_of, settings_of
from vtoken.qa.chat import refuse_caches
from vtoken.qa.packed import stops
from vtoken.qa.prompt import Chat, around
from vtoken.qa.stream.feed import Feed
from vtoken.qa.stream.report import StreamReport
from vtoken.qa.stream.watch import Event, Watch, probability_of_yes, yes_and_no
from vtoken.qa.tokenize import tokenizer_of
from vtoken.video.live import Gap, Live, open_live

GENERIC = "What happens?"
ROOM = 0.9  # share of the model's positions from which on all are lowered


class Stream:
    """A source that is watched; see ``vtoken.stream``. Iterate it for events, or ``start`` a thread that reads.

    All calls of the model wait for one another, so that ``ask`` may come from any thread.

    Attributes:
        watches: standing questions.
        error: what ended the thread of ``start``, or None.
    """

    def __init__(
        self,
        model: Any,
        processor: Any,
        source: Any,
        plan: PlanLike | None,
        limits: dict[str, Any],
        fps: float,
        realtime: bool,
        chunk: float,
        parts: Chat,
        positions: str,
        options: dict[str, Any],
    ) -> None:
        refuse_caches(options)
        if positions not in ("trained", "stock"):
            raise InputError(f"positions={positions!r} must be 'trained' or 'stock'")
        self._model, self._processor, self._parts = model, processor, parts
        inner, self._report = core(model), Report()
        self.family = families.of(inner)
        if self.family.clip_modality not in self.family.sparse:
            raise UnsupportedError(f"vtoken.stream does not know how {self.family.title} takes a video")
        self._options = settings_of(inner, options)
        chosen = on_model(plan_of(self.family, model, plan, {}, {}), inner, self._report)
        head, closing = self._around(GENERIC)
        tokenizer = tokenizer_of(processor)
        self.state = VideoState(inner, self.family, chosen, tokenizer, head, positions, self._report)
        preprocess = preprocessor_of(self.family, inner, processor)
        self._feed = Feed(preprocess, self.state.plan, float(fps), chunk, self._report)
        self.memory = Memory(inner, closing=closing, **limits)
        self.watches: list[Watch] = []
        self._words: tuple[Tensor, Tensor] | None = None
        self._asked, self._now, self._first = 0, 0.0, 0.0
        self._lock = threading.RLock()
        self._events: SimpleQueue[Event | BaseException | None] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self.error: BaseException | None = None
        self._closed = self._ended = False
        self.source: Live = source if isinstance(source, Live) else open_live(source, fps=fps, realtime=realtime)

    def ask(self, question: str, **options: Any) -> Answer:
        """Answer a question from what was seen so far; the stream stays as it is.

        Raises:
            InputError: no question, nothing seen yet, or a closed stream.
        """
        refuse_caches(options)
        if not isinstance(question, str) or not question.strip():
            raise InputError(f"question={question!r} must be some text")
        ids, options = self._around(question)[1], self._options | options
        with self._lock:
            self._ready()
            report = replace(self._report, milliseconds={}, notes=list(self._report.notes))
            model, state = core(self._model), self.state
            with (
                report.stage("generate", input_device(model)),
                state.closed() as start,
                self.memory.recalled(state.cache, ids, start),
            ):
                found = generate_behind(model, state.cache, start, ids, options)
            report.prompt = state.stored + len(ids)
            self._asked += 1
            now = self._now
        found = until_end(found, stops(model, options))
        text = tokenizer_of(self._processor).decode(found, skip_special_tokens=True).strip()
        report.measure_memory(input_device(model))
        return Answer(text, report, [], found, [], now)

    def probability(self, question: str) -> float:
        """P(yes) among yes and no as the answer to a question, from one forward.

        Raises:
            InputError: as in ``ask``; a tokenizer without words for yes and no.
        """
        ids = self._around(question)[1]
        with self._lock:
            self._ready()
            self._words = self._words or yes_and_no(tokenizer_of(self._processor))
            self._asked += 1
            return probability_of_yes(self.state.logits(ids), self._words)

    def watch(self, what: str, every: float = 1.0, **options: Any) -> Watch:
        """Tell when a statement becomes true and when it ends; the events come from iterating the stream.

        Args:
            what: such as "the door is open".
            every: least seconds between two asks. Nothing is asked while the gate sees no change.
            **options: ``up``, ``down``, ``asks`` and ``changed`` of ``Watch``.
        """
        watch = Watch(what, every, **options)
        with self._lock:
            self.watches.append(watch)
        return watch

    def __iter__(self) -> Iterator[Event]:
        """Events as they come, until the source ends or the stream is closed; reads the source unless a thread does."""
        if self._thread is None:
            yield from self._pump()
            return
        while (item := self._events.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item

    def start(self) -> Stream:
        """Read the source in a thread of its own, so that ``ask`` is answered meanwhile."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="vtoken stream", daemon=True)
            self._thread.start()
        return self

    def run(self, until: float | None = None) -> list[Event]:
        """Read on, to the end of the source or to a time in seconds; the events that came."""
        return list(self.events(until))

    def events(self, until: float | None = None) -> Iterator[Event]:
        """Events as they come, while the source is read to its end or to a time in seconds."""
        return self._pump(until)

    def wait(self, timeout: float | None = None) -> bool:
        """Wait for the thread of ``start``; whether the source has ended, or an error the thread."""
        if self._thread is not None:
            self._thread.join(timeout)
        return self._ended

    @property
    def report(self) -> StreamReport:
        """What the stream did so far."""
        counters, own = self.source.counters, self._report
        with self._lock:
            return StreamReport(
                plan=own.plan,
                policy=str(self.memory.policy),
                seconds=self._now - self._first,
                seen=counters.seen,
                sampled=counters.delivered,
                dropped=counters.dropped,
                gaps=counters.gaps,
                cells=own.cells,
                gated=own.cells - own.encoded,
                computed=own.tokens,
                cached=self.state.stored,
                evicted=self.memory.evicted,
                nbytes=self.state.nbytes,
                lag=counters.lag,
                asked=self._asked,
                milliseconds=dict(own.milliseconds),
                notes=[*own.notes, *self.source.notes],
            )

    def close(self) -> None:
        """End the source and its threads, and free the cache."""
        self._closed = True
        self.source.close()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()
        with self._lock:
            self._feed.close()
            self.state.free()

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _run(self) -> None:
        try:
            for event in self._pump():
                self._events.put(event)
        except BaseException as error:
            self.error, self._ended = error, True
            self._events.put(error)
        self._events.put(None)

    def _pump(self, until: float | None = None) -> Iterator[Event]:
        """Read the source; yields events."""
        while not self._closed:
            item = self.source.take()
            if item is None:
                break
            if isinstance(item, Gap):
                yield Event("gap", item.time, f"{item.reason} ({item.seconds:.1f} s without frames)")
                continue
            with self._lock:
                clip = self._feed.push(item.time, item.frame)
                found = self._read(clip) if clip is not None else []
            yield from found
            if until is not None and item.time >= until:
                return
        with self._lock:
            clip = None if self._closed else self._feed.finish()
            found = self._read(clip) if clip is not None else []
            self._ended = True
        yield from found

    def _read(self, clip: Clip) -> list[Event]:
        """One chunk into the cache, then what is watched."""
        if self.state.steps == 0:
            self._first = float(clip.pts[0])
        self.state.push(clip)
        self._now = float(clip.pts[-1])
        for new in self.state.fresh():
            seconds = torch.tensor([self.state.seconds[i] if i >= 0 else 0.0 for i in new.step.tolist()])
            self.memory.add(new.step, new.cell, seconds, new.places, self.state.shape)
        start = torch.full((self.state.clock.axes,), self.state.clock.next)
        self.memory.evict(self.state.cache, start)
        self._lower()
        return self._watched()

    def _lower(self) -> None:
        """Lower all positions where they come near the most that the model knows."""
        most = getattr(core(self._model).config.get_text_config(decoder=True), "max_position_embeddings", None)
        if most and self.state.clock.next > ROOM * most:
            constant = self.state.clock.next - int(most // 4)
            self.memory.shift(self.state.cache, constant)
            self.state.lower(constant)

    def _watched(self) -> list[Event]:
        out = []
        for watch in self.watches:
            watch.moved(self._feed.changed)
            if not watch.due(self._now):
                continue
            kind = watch.told(self._now, self.probability(watch.question))
            if kind is not None:
                out.append(Event(kind, self._now, watch.what, watch.probability, list(self._feed.recent)))
        return out

    def _around(self, question: str) -> tuple[Tensor, Tensor]:
        return around(self.family, core(self._model), self._processor, question, self._parts)

    def _ready(self) -> None:
        if self._closed:
            raise InputError("this stream is closed; open it again with vtoken.stream")
        if self.state.steps == 0:
            raise InputError("nothing was seen yet: iterate the stream, or call run() or start() first")
