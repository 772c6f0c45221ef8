"""Ahead: an iterator that runs in a thread of its own, a few items ahead of the one who takes them."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

Item = TypeVar("Item")


class Ahead(Generic[Item]):
    """Runs an iterator in a thread, at most ``most`` items ahead.

    An error of the iterator is raised where its item would have been taken, with its own traceback. ``close``, and an
    error or Ctrl+C in a ``with`` block, end the thread: it stops behind the item at hand, and the iterator is closed in
    its own thread.

    Args:
        make: called in the thread; gives the iterator, a generator.
        most: items that wait to be taken; the thread then waits too.
        weigh: what an item counts towards ``most``, in place of 1.
    """

    def __init__(
        self, make: Callable[[], Iterator[Item]], most: int = 1, weigh: Callable[[Item], int] = lambda item: 1
    ) -> None:
        self._make, self._most, self._weigh = make, most, weigh
        self._ready: deque[Item] = deque()
        self._change = threading.Condition()
        self._error: BaseException | None = None
        self._ended = self._closed = False
        self._thread = threading.Thread(target=self._run, name="vtoken-read", daemon=True)
        self._thread.start()

    def __iter__(self) -> Ahead[Item]:
        return self

    def __next__(self) -> Item:
        with self._change:
            while not (self._ready or self._ended or self._closed):
                self._change.wait()
            if self._ready and not self._closed:
                item = self._ready.popleft()
                self._change.notify_all()
                return item
            error, self._error = self._error, None
        if error is not None:
            raise error
        raise StopIteration

    def close(self) -> None:
        """Stop, and wait until the thread has ended; nothing more is given."""
        with self._change:
            self._closed = True
            self._ready.clear()
            self._change.notify_all()
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def __enter__(self) -> Ahead[Item]:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _run(self) -> None:
        try:
            items = self._make()
            try:
                for item in items:
                    if not self._give(item):
                        break
                    del item  # the thread holds no item while it makes the next
            finally:
                getattr(items, "close", lambda: None)()
        except BaseException as error:
            self._error = error
        finally:
            with self._change:
                self._ended = True
                self._change.notify_all()

    def _give(self, item: Item) -> bool:
        with self._change:
            while sum(map(self._weigh, self._ready)) >= self._most and not self._closed:
                self._change.wait()
            if not self._closed:
                self._ready.append(item)
                self._change.notify_all()
            return not self._closed
