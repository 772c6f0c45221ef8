"""Triton's interpreter with all programs of a launch at the same time, so that programs can wait for each other."""

from __future__ import annotations

import inspect
import itertools
import sys
import threading
from collections.abc import Callable

import pytest


class _Threads:
    """A kernel whose programs are collected, and run together once the last one has come."""

    def __init__(self, kernel: Callable, builder) -> None:
        self.kernel, self.builder, self.errors = kernel, builder, []
        self.__signature__, self.__globals__ = inspect.signature(kernel), kernel.__globals__
        self.__name__ = kernel.__name__

    def __call__(self, **arguments) -> None:
        last = tuple(n - 1 for n in self.builder.grid_dim)
        if self.builder.grid_idx != last:
            return
        places = itertools.product(*(range(n) for n in self.builder.grid_dim))
        threads = [threading.Thread(target=self._run, args=(p, arguments), daemon=True) for p in places]
        interval = sys.getswitchinterval()
        sys.setswitchinterval(1e-4)  # a waiting program should not hold the others up
        try:
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(60)
        finally:
            sys.setswitchinterval(interval)
        assert not any(t.is_alive() for t in threads), f"programs wait for each other forever: {self.errors}"
        if self.errors:
            raise self.errors[0]

    def _run(self, place: tuple[int, ...], arguments: dict) -> None:
        self.builder.grid_idx = place
        try:
            self.kernel(**arguments)
        except Exception as error:
            self.errors.append(error)


def together(monkeypatch: pytest.MonkeyPatch) -> None:
    """From here on in this test a launch runs its programs in threads."""
    from triton.runtime import interpreter

    place = threading.local()
    builder = interpreter.interpreter_builder
    at = property(lambda self: place.at, lambda self, value: setattr(place, "at", value))
    monkeypatch.setattr(type(builder), "grid_idx", at, raising=False)
    make = interpreter.GridExecutor.__init__

    def with_threads(self, fn, *args, **kwargs) -> None:
        make(self, fn, *args, **kwargs)
        self.fn = _Threads(self.fn, builder)

    monkeypatch.setattr(interpreter.GridExecutor, "__init__", with_threads)
