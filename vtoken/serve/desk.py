"""The queue in front of the model: one request at a time, a limit to those that wait, and an orderly end."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from vtoken.serve.errors import Refused

CLOSING = "the server is shutting down; ask again later"
END = object()


@dataclass
class Job:
    """One run of the model.

    Attributes:
        leave: called when it is over, also where it was never run.
        stop: set to end it at the next chunk of frames or token.
        cut: why it was ended early by the server.
    """

    leave: Callable[[], None]
    stop: threading.Event = field(default_factory=threading.Event)
    cut: str = ""
    _loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.get_running_loop)
    _inbox: asyncio.Queue[Any] = field(default_factory=asyncio.Queue)

    def end(self, why: str) -> None:
        """End it early on the server's side."""
        self.cut = why
        self.stop.set()

    def put(self, item: Any) -> None:
        """Hand an item to the loop of the client, from any thread."""
        try:
            self._loop.call_soon_threadsafe(self._inbox.put_nowait, item)
        except RuntimeError:  # the loop is closed: nobody waits
            self.stop.set()

    async def items(self) -> AsyncIterator[Any]:
        """What the work gives; its error is raised here."""
        while (item := await self._inbox.get()) is not END:
            if isinstance(item, BaseException):
                raise item
            yield item


class Desk:
    """A thread that runs jobs one after the other, and places for requests: one at the model, ``most`` that wait.

    A place is taken before the body of a request is read, so that the memory of waiting requests has a limit too.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.closed = False
        self.running = 0
        self._taken = 0
        self._lock = threading.Lock()
        self._jobs: queue.SimpleQueue[tuple[Job, Callable[[], Iterator[Any]]] | None] = queue.SimpleQueue()
        self._all: dict[int, Job] = {}
        self._thread = threading.Thread(target=self._serve, name="vtoken-model", daemon=True)
        self._thread.start()

    @property
    def taken(self) -> int:
        """Requests that have a place."""
        return self._taken

    def enter(self) -> Place:
        """A place for a request.

        Raises:
            Refused: all are taken (429), or the server shuts down (503).
        """
        with self._lock:
            if self.closed:
                raise Refused(CLOSING, 503, code="shutting_down")
            if self._taken > self.most:
                raise Refused(
                    f"{self._taken} requests are waiting or being answered, the most that this server takes; ask again "
                    "later",
                    429,
                    code="queue_full",
                )
            self._taken += 1
        return Place(self)

    def submit(self, job: Job, work: Callable[[], Iterator[Any]]) -> None:
        """Run a job when those before it are done.

        Args:
            work: gives what the client is told, one after the other; runs in the thread of the model.
        """
        with self._lock:
            self._all[id(job)] = job
            if self.closed:
                job.end(CLOSING)
        self._jobs.put((job, work))

    def cut(self) -> None:
        """End what runs at the next token and refuse what waits."""
        with self._lock:
            self.closed = True
            for job in self._all.values():
                job.end(CLOSING)

    def close(self) -> None:
        """End the thread when the jobs are done."""
        self.cut()
        self._jobs.put(None)
        self._thread.join()

    def _serve(self) -> None:
        while (entry := self._jobs.get()) is not None:
            job, work = entry
            self.running = 1
            try:
                for item in work():
                    job.put(item)
            except BaseException as error:  # handed to the client's own task
                job.put(Refused(job.cut, 503, code="shutting_down") if job.cut else error)
            finally:
                self.running = 0
                with self._lock:
                    self._all.pop(id(job), None)
                job.leave()
                job.put(END)
            del entry, job, work


class Place:
    """One request's place at a desk; ``leave`` may be called more than once."""

    def __init__(self, desk: Desk) -> None:
        self._desk: Desk | None = desk

    def leave(self) -> None:
        desk, self._desk = self._desk, None
        if desk is not None:
            with desk._lock:
                desk._taken -= 1
