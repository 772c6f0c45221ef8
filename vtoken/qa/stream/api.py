"""stream: open a source and watch it."""

from __future__ import annotations

from typing import Any

from vtoken.methods.eviction import Eviction
from vtoken.methods.plan import PlanLike
from vtoken.qa.prompt import Chat
from vtoken.qa.stream.stream import Stream


def stream(
    model: Any,
    processor: Any,
    source: Any,
    plan: PlanLike | None = None,
    *,
    tokens: int | None = None,
    memory: str | int | None = None,
    window: str | float | None = None,
    policy: str | Eviction = "pyramid",
    fps: float = 4.0,
    realtime: bool = False,
    chunk: float = 0.5,
    system: str | None = None,
    positions: str = "trained",
    chat_template_kwargs: dict[str, Any] | None = None,
    **options: Any,
) -> Stream:
    """Watch a source: frames are gated, encoded and read as they come, in bounded memory.

    >>> with vtoken.stream(model, processor, 0) as s:
    ...     s.watch("the door is open")
    ...     for event in s:
    ...         print(event)

    Args:
        model, processor: as in ``vtoken.ask``.
        source: a camera's number, an address, "screen", a file, (seconds, frame) pairs, or an open ``Live`` source.
        plan: as in ``vtoken.ask``. The question is not known yet, so the plan must not read it.
        tokens, memory, window: what may stay in the cache: tokens of the video, bytes ("2GB"), or time ("10min"). 8192
            tokens where none is given.
        policy: what leaves a full cache: "pyramid", "fifo", "random", "tar_van", "proxy", "recall", or a method.
        fps: frames a second that are read.
        realtime: a file is shown at its own pace, and late frames are dropped.
        chunk: seconds of video that are read at once.
        system: text of a system turn.
        positions: as in ``vtoken.ask``.
        chat_template_kwargs: arguments of the chat template.
        **options: arguments of ``generate`` for the answers.

    Raises:
        InputError: an argument that makes no sense.
        UnsupportedError: a family or a plan that cannot be read in chunks.
        VideoError: the source cannot be read.
    """
    given = {"tokens": tokens, "memory": memory, "window": window, "policy": policy}
    parts = Chat(system, (), chat_template_kwargs or {})
    return Stream(model, processor, source, plan, given, fps, realtime, chunk, parts, positions, options)
