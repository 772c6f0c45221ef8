"""One request: its files, the checks of its videos, and the run of the model."""

from __future__ import annotations

import logging
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from vtoken.engine.wrap import wrap
from vtoken.errors import InputError, VtokenError
from vtoken.methods.plan import Plan
from vtoken.qa.answer import Answer
from vtoken.qa.api import ask, cells_of
from vtoken.qa.chat import Chat
from vtoken.qa.limits import facts, is_out_of_memory, part, readable
from vtoken.qa.load import load
from vtoken.qa.media import Image
from vtoken.qa.plain import ask_plain
from vtoken.qa.read import Sampling
from vtoken.qa.steps import Step, Stopped, steps_of
from vtoken.serve import media
from vtoken.serve.body import NEW, Asked
from vtoken.serve.chats import Chats, loaded
from vtoken.serve.errors import Refused
from vtoken.serve.replies import Done, Text
from vtoken.serve.settings import Settings
from vtoken.serve.store import Store

log = logging.getLogger("vtoken.serve")


@dataclass(frozen=True)
class Fetched:
    """The files of a request, fields of ``Sampling``, and the folder of files that the server wrote for it."""

    sources: list[media.Source]
    frames: dict[str, Any]
    folder: Path


class Answering:
    """The model of a server, its folder and the videos that it keeps.

    Attributes:
        root: temporary folder; every file that the server writes lies below it.
    """

    def __init__(self, settings: Settings) -> None:
        Plan.parse(settings.plan)
        self.settings = settings
        self.model, self.processor = load(settings.model, settings.device, settings.dtype)
        self.root = Path(tempfile.mkdtemp(prefix="vtoken-serve-")).resolve()
        kept = settings.keep_seconds, int(settings.keep_memory * 2**20)
        self.store, self.chats = Store(settings.keep_videos, *kept), Chats(settings.keep_chats, *kept)
        own = self.model.generation_config.max_new_tokens or 128
        self.longest = min(own, settings.max_new_tokens)
        try:
            self._warm_up()
        except BaseException:
            self.close()
            raise

    def _warm_up(self) -> None:
        """A short call, which also shows that the plan runs on this model."""
        import numpy as np

        clip = np.random.default_rng(0).integers(0, 255, (4, 112, 112, 3), dtype=np.uint8)
        wrap(self.model, "none")
        ask(self.model, self.processor, clip, "What happens?", fps="native", native_fps=2, plan=self.settings.plan,
            max_new_tokens=2)  # fmt: skip

    def close(self) -> None:
        """Remove the files."""
        shutil.rmtree(self.root, ignore_errors=True)

    def sweep(self) -> None:
        """Forget videos and chats that nobody asked about for long."""
        self.store.sweep()
        self.chats.sweep()

    def fetch(self, asked: Asked, stop: threading.Event) -> Fetched:
        """The files of a request, after every check that needs no model.

        Raises:
            VtokenError: a file that may not be read, is no video, or is above a limit.
        """
        folder = Path(tempfile.mkdtemp(prefix="request-", dir=self.root))
        try:
            sources = [media.source(kind, url, folder, self.settings, stop.is_set) for kind, url in asked.media]
            videos = [s.path for s in sources if s.kind == "video"]
            frames = self._frames(videos, asked.frames)
            self._check_cells(videos, frames)
            return Fetched(sources, frames, folder)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise

    def _frames(self, videos: list[Path], asked: dict[str, Any]) -> dict[str, Any]:
        """Fields of ``Sampling`` for all videos of a request; a recording without a length is read up to the limit."""
        if not videos:
            return {}
        most = self.settings.max_seconds
        parts = [part(facts(path), asked.get("start"), asked.get("end"), most, "server") for path in videos]
        ends = [cut["end"] for cut in parts if cut["end"] is not None]
        found = asked | {"start": parts[0]["start"], "end": min(ends) if ends else None}
        if "num_frames" in found:
            found.pop("max_frames", None)
        return {name: value for name, value in found.items() if value is not None}

    def _check_cells(self, paths: list[Path], frames: dict[str, Any]) -> None:
        cells = sum(cells_of(self.model, self.processor, path, Sampling(**frames)) for path in paths)
        if cells > self.settings.max_tokens:
            raise InputError(
                f"the frames asked for make {cells:,} visual tokens without a plan; this server takes "
                f"{self.settings.max_tokens:,} at most. Lower fps, ask about a shorter part, or start the server with "
                "a larger --max-tokens"
            )

    def run(self, asked: Asked, fetched: Fetched, stop: threading.Event) -> Iterator[str | Done]:
        """New text of the answer piece by piece, then the end of it.

        Raises:
            Refused: it cannot be answered, with a message for strangers.
        """
        options = {"max_new_tokens": self.longest} | asked.options
        try:
            if stop.is_set():
                shutil.rmtree(fetched.folder, ignore_errors=True)
                raise Stopped
            if asked.chat is not None:
                yield from self._chat(asked, fetched, options, stop)
            elif asked.has_video:
                yield from self._ask(asked, fetched, options, stop)
            else:
                yield from self._plain(asked, fetched, options, stop)
        except Refused:
            raise
        except Stopped as error:
            raise Refused("the request was given up", 499) from error
        except Exception as error:
            raise self.refused(error) from error

    def _ask(
        self, asked: Asked, fetched: Fetched, options: dict[str, Any], stop: threading.Event
    ) -> Iterator[str | Done]:
        """An answer about videos, which are kept for further questions."""
        with self.store.using(fetched.sources, fetched.folder) as kept:
            before = kept.memory.entries
            given = options | fetched.frames | {"memory": kept.memory}
            work = partial(ask, self.model, self.processor, kept.media, asked.question, **given)
            for item in self._steps(asked, work, stop):
                if isinstance(item, Done) and kept.memory.entries == before:
                    item = replace(item, reused=True)
                yield item

    def _plain(
        self, asked: Asked, fetched: Fetched, options: dict[str, Any], stop: threading.Event
    ) -> Iterator[str | Done]:
        """An answer about pictures or text alone; a plan has nothing to act on."""
        try:
            options = {name: value for name, value in options.items() if name != "plan"}
            images = [Image(source.path) for source in fetched.sources]
            yield from self._steps(
                asked, partial(ask_plain, self.model, self.processor, images, asked.question, **options), stop
            )
        finally:
            shutil.rmtree(fetched.folder, ignore_errors=True)

    def _chat(
        self, asked: Asked, fetched: Fetched, options: dict[str, Any], stop: threading.Event
    ) -> Iterator[str | Done]:
        """The next answer of a chat, whose video stays in the cache; a turn that was given up is not remembered."""
        first = asked.chat == NEW
        plan, system = options.pop("plan"), options.pop("system")
        options.pop("history")

        def begin() -> Chat:
            media = loaded(fetched.sources)
            return Chat(self.model, self.processor, media, plan, system=system, **fetched.frames)

        try:
            with self.chats.using(None if first else asked.chat, begin) as (name, chat):
                before = len(chat.turns)
                for item in self._steps(asked, partial(chat.ask, asked.question, **options), stop):
                    if isinstance(item, Done):
                        if stop.is_set():
                            del chat.turns[before:]
                        else:
                            chat.turns[-1]["content"] = item.text
                        item = replace(item, reused=not first, chat=name)
                    yield item
        finally:  # what a chat needs of its files was read at the first question
            shutil.rmtree(fetched.folder, ignore_errors=True)

    def _steps(self, asked: Asked, work: Callable[..., Answer], stop: threading.Event) -> Iterator[str | Done]:
        import torch

        if asked.seed is not None:
            torch.manual_seed(asked.seed)
        text, ended, own = Text(asked.stop), False, threading.Event()
        both = _Either(stop, own)
        for item in steps_of(work, self.processor, both):  # type: ignore[arg-type]
            if isinstance(item, Step):
                if new := text.new(item.text) if item.text else "":
                    yield new
                if not ended and text.cut(item.text)[1]:
                    ended = True
                    own.set()
            elif isinstance(item, Answer):
                whole, found = text.cut(item.text)
                if new := text.new(item.text, end=True):
                    yield new
                yield Done(item, whole, "stop" if found or self._ended(item) else "length")

    def _ended(self, answer: Answer) -> bool:
        """Whether the model itself ended the answer."""
        ends = self.model.generation_config.eos_token_id
        ends = ends if isinstance(ends, list) else [ends]
        return len(answer.tokens) > 0 and int(answer.tokens[-1]) in ends

    def refused(self, error: Exception) -> Refused:
        """An error as a client gets it: no path of this machine is in it."""
        if isinstance(error, Refused):
            return error
        told = readable(error, [self.root, *self.settings.folders], log)
        if isinstance(error, VtokenError):
            return Refused(told, 400)
        return Refused(told, 503, code="out_of_memory") if is_out_of_memory(error) else Refused(told, 500)


class _Either:
    """Set where one of two events is set."""

    def __init__(self, first: threading.Event, second: threading.Event) -> None:
        self._events = first, second

    def is_set(self) -> bool:
        return any(event.is_set() for event in self._events)
