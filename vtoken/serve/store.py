"""Videos that were asked about lately, with their features, so that a further question does not read them again."""

from __future__ import annotations

import shutil
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from vtoken.qa.cache import ClipMemory
from vtoken.qa.media import Image, Video
from vtoken.serve.media import Source


@dataclass
class Kept:
    """The videos and pictures of a request, the same object for every request about them.

    Attributes:
        media: as ``vtoken.ask`` takes it.
        memory: what was read and encoded of it.
        folder: files that the server wrote for it.
        users: requests at work on it.
        used: when the last one ended, seconds.
    """

    media: list[Video | Image]
    memory: ClipMemory
    folder: Path
    users: int = 0
    used: float = 0.0


@dataclass
class Store:
    """Kept videos by content, the one asked about last at the end.

    Attributes:
        most: videos that are kept while nobody asks about them.
        seconds: after which one is forgotten.
        memory: bytes of clips and features in all.
        clock: seconds; another one in tests.
    """

    most: int
    seconds: float
    memory: int
    clock: Callable[[], float] = time.monotonic
    _known: OrderedDict[tuple[str, ...], Kept] = field(default_factory=OrderedDict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __len__(self) -> int:
        return len(self._known)

    @contextmanager
    def using(self, sources: Sequence[Source], folder: Path) -> Iterator[Kept]:
        """What is known of these files, for the length of a block.

        Args:
            folder: of this request, with the files that the server wrote; it is kept or removed here.
        """
        key = tuple(f"{s.kind} {s.key}" for s in sources)
        with self._lock:
            kept = self._known.get(key)
            if kept is None:
                media: list[Video | Image] = [(Video if s.kind == "video" else Image)(s.path) for s in sources]
                kept = self._known[key] = Kept(media, ClipMemory(), folder)
            kept.users += 1
        if kept.folder != folder:
            shutil.rmtree(folder, ignore_errors=True)
        try:
            yield kept
        finally:
            with self._lock:
                kept.users -= 1
                kept.used = self.clock()
                if key in self._known:
                    self._known.move_to_end(key)
            self.sweep()

    def sweep(self) -> None:
        """Forget what is too old, too much or too large, but for what is being asked about."""
        with self._lock:
            limit = self.clock() - self.seconds
            for key, kept in list(self._known.items()):
                idle = sum(not k.users for k in self._known.values())
                large = sum(k.memory.bytes for k in self._known.values()) > self.memory
                if not kept.users and (idle > self.most or large or kept.used < limit):
                    del self._known[key]
                    shutil.rmtree(kept.folder, ignore_errors=True)
