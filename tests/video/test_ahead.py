"""Ahead: order, bounds, errors with their traceback, and the end of its thread."""

from __future__ import annotations

import signal
import threading
import time
import traceback
from collections.abc import Iterator

import numpy as np
import pytest

from vtoken.data.report import Report
from vtoken.families.compat import core  # noqa: F401  # transformers before threads are counted
from vtoken.methods.plan import Plan
from vtoken.qa.read import Sampling, read_clip
from vtoken.video.ahead import Ahead
from vtoken.video.processors import read_processor


def mine() -> list[threading.Thread]:
    return [t for t in threading.enumerate() if t.name == "vtoken-read"]


def test_items_come_in_order_and_the_thread_is_never_more_than_its_bound_ahead() -> None:
    made: list[int] = []

    def count() -> Iterator[int]:
        for i in range(20):
            made.append(i)
            yield i

    with Ahead(count, most=3) as items:
        for i, item in enumerate(items):
            assert item == i
            assert len(made) <= i + 1 + 3 + 1  # taken, waiting, and the one at hand
    assert made == list(range(20)) and not mine()


def test_an_error_comes_where_its_item_would_with_its_own_traceback() -> None:
    def broken() -> Iterator[int]:
        yield 1
        raise ValueError("behind the first")

    with Ahead(broken) as items:
        assert next(items) == 1
        with pytest.raises(ValueError, match="behind the first") as caught:
            next(items)
        assert "broken" in [frame.name for frame in traceback.extract_tb(caught.value.__traceback__)]
        with pytest.raises(StopIteration):
            next(items)
    assert not mine()


def test_close_ends_a_thread_that_waits_and_closes_its_iterator() -> None:
    closed = threading.Event()

    def forever() -> Iterator[int]:
        try:
            while True:
                yield 0
        finally:
            closed.set()

    items = Ahead(forever)
    assert next(items) == 0
    items.close()
    assert closed.is_set() and not mine()
    with pytest.raises(StopIteration):
        next(items)


@pytest.mark.skipif(not hasattr(signal, "pthread_kill"), reason="not applicable: no signals to threads here")
def test_ctrl_c_while_waiting_ends_the_thread() -> None:
    go_on = threading.Event()

    def slow() -> Iterator[int]:
        yield 0
        main = threading.main_thread().ident
        assert main is not None
        time.sleep(0.05)  # until the main thread waits
        signal.pthread_kill(main, signal.SIGINT)
        go_on.wait(5)
        yield 1

    with pytest.raises(KeyboardInterrupt), Ahead(slow) as items:
        assert next(items) == 0
        try:
            next(items)
        finally:
            go_on.set()
    assert not mine()


def test_reading_leaves_no_thread_behind_whatever_ends_it() -> None:
    frames = np.random.default_rng(0).integers(0, 256, (200, 56, 56, 3), dtype=np.uint8)

    def stop(stage: str, done: float) -> None:
        if done > 0.2:
            raise RuntimeError("enough")

    for progress in (None, stop):
        try:
            read_clip(
                frames, read_processor("qwen2.5-vl"), Plan.parse("grt"), Report(), Sampling("native"), progress=progress
            )
        except RuntimeError as error:
            assert progress is stop and str(error) == "enough"
        assert not mine()


def test_an_error_in_the_gate_reaches_the_caller(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken(type(Plan.parse("grt").gate)):  # type: ignore[misc]
        def score(self, current: np.ndarray, reference: np.ndarray, grid: object) -> np.ndarray:
            raise ArithmeticError("no score")

    frames = np.random.default_rng(0).integers(0, 256, (20, 56, 56, 3), dtype=np.uint8)
    with pytest.raises(ArithmeticError, match="no score") as caught:
        read_clip(frames, read_processor("qwen2.5-vl"), Plan((Broken(),)), Report(), Sampling("native"))
    assert "score" in [frame.name for frame in traceback.extract_tb(caught.value.__traceback__)]
    assert not mine()
