"""One question in a thread of its own: progress, streamed text, and a way to stop it."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from vtoken.qa.api import Answer, ask
from vtoken.qa.tokenize import tokenizer_of


class Stopped(Exception):
    """The run was stopped before there was an answer."""


@dataclass(frozen=True)
class Step:
    """Where a run is: the stage, its share done (0 to 1, None where unknown), and the answer so far."""

    stage: str
    share: float | None = None
    text: str = ""


def answering(
    model: Any, processor: Any, video: Any, question: str, stop: threading.Event, **options: Any
) -> Iterator[Step | Answer]:
    """Steps of a call of ``vtoken.ask``, then its answer; arguments and errors as in ``steps_of``.

    Args:
        **options: of ``vtoken.ask``.
    """

    def work(**more: Any) -> Answer:
        return ask(model, processor, video, question, **options, **more)

    return steps_of(work, processor, stop)


def steps_of(work: Callable[..., Answer], processor: Any, stop: threading.Event) -> Iterator[Step | Answer]:
    """Steps of a run, then its answer; a run that is stopped while it writes gives what it has.

    Args:
        work: called in a thread of its own with ``progress``, ``streamer`` and ``stopping_criteria``.
        stop: set it to end the run at the next chunk of frames or the next token.

    Raises:
        Stopped: it was stopped before the first token.
        Whatever ``work`` raises.
    """
    from transformers import StoppingCriteriaList

    inbox: queue.Queue[Step | Answer | BaseException] = queue.Queue()
    gone = threading.Event()  # nobody waits for the answer any more

    def ended() -> bool:
        return stop.is_set() or gone.is_set()

    def tell(stage: str, share: float) -> None:
        if ended():
            raise Stopped
        inbox.put(Step(stage, share if stage == "decode" else None))

    def run() -> None:
        try:
            streamer = _streamer(tokenizer_of(processor), inbox, ended)
            # stopped between two tokens, the call still ends in order and reports what it cost
            criteria = StoppingCriteriaList([lambda ids, scores, **_: _all(ids, ended())])  # type: ignore[list-item]
            inbox.put(work(progress=tell, streamer=streamer, stopping_criteria=criteria))
        except BaseException as error:  # handed to the thread that waits
            inbox.put(error)

    thread = threading.Thread(target=run, name="vtoken-ask", daemon=True)
    thread.start()
    try:
        while True:
            item = inbox.get()
            if isinstance(item, BaseException):
                raise item
            yield item
            if isinstance(item, Answer):
                return
    finally:  # nobody reads on, or the run is over: the model is free again when this returns
        gone.set()
        thread.join()


def _all(ids: Any, value: bool) -> Any:
    import torch

    return torch.full((len(ids),), value, dtype=torch.bool, device=ids.device)


def _streamer(tokenizer: Any, inbox: queue.Queue, ended: Callable[[], bool]) -> Any:
    from transformers import TextStreamer

    class Streamer(TextStreamer):
        """Puts the answer so far into the inbox; the first call brings the prompt, before the prefill."""

        said = ""

        def put(self, value: Any) -> None:
            if self.next_tokens_are_prompt:
                if ended():
                    raise Stopped
                inbox.put(Step("prefill"))
            super().put(value)

        def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
            self.said += text
            if self.said:
                inbox.put(Step("generate", None, self.said))

    return Streamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
