"""Chats that the server keeps by an id: the video stays in the cache, with a limit to their number, age and memory."""

from __future__ import annotations

import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from vtoken.qa.chat import Chat
from vtoken.qa.media import Image, Video
from vtoken.serve.errors import Refused
from vtoken.serve.media import Source


@dataclass
class Held:
    """A chat, whether a request is at work on it, and when the last one ended, seconds."""

    chat: Chat
    busy: bool = True
    used: float = 0.0


@dataclass
class Chats:
    """Chats by id, the one asked last at the end. Ids are random, so that no client can guess another one's.

    Attributes:
        most: chats that are kept.
        seconds: after which one is forgotten.
        memory: bytes of clips, features and caches in all.
        clock: seconds; another one in tests.
    """

    most: int
    seconds: float
    memory: int
    clock: Callable[[], float] = time.monotonic
    _known: OrderedDict[str, Held] = field(default_factory=OrderedDict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __len__(self) -> int:
        return len(self._known)

    @contextmanager
    def using(self, name: str | None, make: Callable[[], Chat]) -> Iterator[tuple[str, Chat]]:
        """A chat and its id, for the length of a block; a new one is kept if the block ends without an error.

        Args:
            name: None for a new one, which ``make`` makes.

        Raises:
            Refused: there is no such chat any more (404), or none is kept (400).
        """
        if name is None and not self.most:
            raise Refused("this server keeps no chats (--keep-chats)", 400, "chat_id")
        self.sweep()
        with self._lock:
            held = self._known.get(name) if name is not None else None
            if name is not None and held is None:
                raise Refused(
                    f"chat_id={name!r:.80}: there is no such chat, or nobody asked for too long; begin one with "
                    'chat_id="new"',
                    404,
                    "chat_id",
                    "chat_not_found",
                )
            if held is not None:
                held.busy = True
        new = held is None
        held, name = held or Held(make()), name or f"chat-{secrets.token_urlsafe(24)}"
        failed = True
        try:
            yield name, held.chat
            failed = False
        finally:
            with self._lock:
                held.busy, held.used = False, self.clock()
                if not (new and failed):
                    self._known[name] = held
                    self._known.move_to_end(name)
            self.sweep()

    def sweep(self) -> None:
        """Forget what is too old, too many or too large, but for what is being asked."""
        with self._lock:
            limit = self.clock() - self.seconds
            for name, held in list(self._known.items()):
                large = sum(one.chat.nbytes for one in self._known.values()) > self.memory
                if not held.busy and (len(self._known) > self.most or large or held.used < limit):
                    del self._known[name]


def loaded(sources: Sequence[Source]) -> list[Any]:
    """Videos by their path, which is read at the first question, and pictures in memory, which every turn shows."""
    return [Video(s.path) if s.kind == "video" else Image(Image(s.path).load()) for s in sources]
