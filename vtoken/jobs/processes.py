"""Rows by worker processes of this machine. A worker that dies costs the row it was at, and is replaced."""

from __future__ import annotations

import multiprocessing
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from multiprocessing import connection
from typing import Any

from vtoken.errors import InputError, UnsupportedError
from vtoken.jobs.answer import Answerer, Row, told
from vtoken.jobs.recipe import Recipe

READY = "ready"


def answer_in_processes(
    rows: Sequence[Row], recipe: Recipe, workers: int = 1, threads: int | None = None
) -> Iterator[Row]:
    """Answered rows as they come; rows about one part of a video go to one worker, which reads it once.

    Args:
        workers: processes, each with the whole model.
        threads: CPU threads of each; None for an even share.

    Raises:
        InputError: fewer than one worker, or a model that cannot be loaded.
        UnsupportedError: workers die before they have answered anything.
    """
    if workers < 1:
        raise InputError(f"--workers={workers} must be at least 1")
    share = threads or max(1, multiprocessing.cpu_count() // workers)
    about = groupby(rows, lambda row: (row["video"], row.get("start"), row.get("end")))
    todo = deque(list(group) for _, group in about)
    pool = [_Worker(recipe, share) for _ in range(min(workers, len(todo)))]
    try:
        yield from _loop(pool, todo, lambda: _Worker(recipe, share))
    finally:
        for worker in pool:
            worker.end()


def _loop(pool: list[_Worker], todo: deque[list[Row]], new: Callable[[], _Worker]) -> Iterator[Row]:
    while any(worker.rows or not worker.ready for worker in pool) or todo:
        connection.wait([w.pipe for w in pool])
        for i, worker in enumerate(pool):
            if not worker.pipe.poll():
                continue
            try:
                found = worker.pipe.recv()
            except (EOFError, OSError):
                lost = worker.lost()
                pool[i] = new()
                if worker.rows:
                    todo.appendleft(worker.rows)
                if lost is None:
                    raise UnsupportedError(f"a worker ended before its first answer ({worker.death()})") from None
                yield lost
                continue
            if isinstance(found, BaseException):
                raise found
            if found == READY:
                worker.ready = True
            else:
                worker.rows.pop(0)
                yield found
            if not worker.rows and todo:
                worker.give(todo.popleft())
        if not todo and not any(worker.rows for worker in pool):
            return


class _Worker:
    """A process that answers groups of rows, one row after the other."""

    def __init__(self, recipe: Recipe, threads: int) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.rows: list[Row] = []
        self.ready = False
        self.process = context.Process(target=_work, args=(theirs, recipe, threads), daemon=True)
        self.process.start()
        theirs.close()

    def give(self, rows: list[Row]) -> None:
        self.rows = list(rows)
        self.pipe.send(rows)

    def lost(self) -> Row | None:
        """The row that it was at when it died, with the error; None where it had none."""
        self.process.join()
        if not self.rows:
            return None
        row = self.rows.pop(0)
        return {**row, "answer": None, "error": f"the worker process died at this row ({self.death()})"}

    def death(self) -> str:
        code = self.process.exitcode
        return f"signal {-code}" if code is not None and code < 0 else f"exit code {code}"

    def end(self) -> None:
        self.pipe.close()
        self.process.terminate()
        self.process.join()


def _work(pipe: Any, recipe: Recipe, threads: int) -> None:
    import signal

    import torch

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl+C reaches all processes; the first one ends the others
    torch.set_num_threads(threads)
    try:
        answer = Answerer(recipe)
    except Exception as error:
        pipe.send(InputError(told(error)))
        return
    try:
        pipe.send(READY)
        while True:
            for row in pipe.recv():
                pipe.send(answer(row))
    except (EOFError, BrokenPipeError, ConnectionResetError):  # the first process is gone
        return
