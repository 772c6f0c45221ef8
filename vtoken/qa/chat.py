"""Chat: a conversation about one video, which is read, encoded and prefilled once.

The video's columns stay in the cache. Every turn the text behind them (earlier turns, where they are remembered, and
the question) is read again and taken off afterwards, so that a turn is exactly what one prompt with that history would
be.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, replace
from typing import Any

import torch

from vtoken.engine.call import Call
from vtoken.engine.prepare import prepare
from vtoken.engine.state.cache import nbytes
from vtoken.engine.state.prefix import Prefix
from vtoken.errors import InputError, UnsupportedError
from vtoken.families.compat import core, input_device
from vtoken.methods.plan import PlanLike
from vtoken.qa.answer import Answer, Questions, answer_batches, remember, share, until_end
from vtoken.qa.api import questions_of
from vtoken.qa.cache import ClipMemory
from vtoken.qa.packed import stops

KEPT = "the tokens chosen at the first question are kept"
ANEW = "tokens were chosen anew for this question"
OWN_CACHE = ("past_key_values", "cache_implementation", "cache_config")


@dataclass
class _Read:
    """The video in the cache.

    Attributes:
        call: the engine's call for the first question.
        prefix: its prompt up to the video's end.
    """

    call: Call
    prefix: Prefix


class Chat:
    """A conversation about one video.

    >>> chat = vtoken.Chat(model, processor, "lecture.mp4", plan="grt")
    >>> print(chat.ask("What is on the slide?"))
    >>> print(chat.ask("And on the one before?"))

    Args:
        model, processor, video: as in ``vtoken.ask``.
        plan: stages; default the plan of the wrapped model, else "grt".
        remember: later questions see earlier ones and their answers; otherwise each sees the video alone.
        again: a plan that reads the question chooses anew for every turn, and the prompt is prefilled anew; False keeps
            what it chose at the first one. None is True for such plans. Reports say which. Plans that act inside the
            language model always run anew.
        **options: those of ``ask_many``, except for ``history`` and ``memory``.

    Attributes:
        turns: the conversation so far, ``{"role": "user" or "assistant", "content": text}``.

    Raises:
        InputError, UnsupportedError, VideoError: at the first question, those of ``ask``; here, a cache of the user's.
    """

    def __init__(
        self,
        model: Any,
        processor: Any,
        video: Any,
        plan: PlanLike | None = None,
        *,
        remember: bool = True,
        again: bool | None = None,
        **options: Any,
    ) -> None:
        for name in ("history", "memory"):
            if name in options:
                raise InputError(f"{name}=: a chat has its own; leave it out")
        refuse_caches(options)
        self._about = model, processor, video
        self._options: dict[str, Any] = {"plan": plan} | options
        self.remember, self._again = remember, again
        self.turns: list[dict[str, str]] = []
        self._memory = ClipMemory()
        self._read: _Read | None = None
        self._lock = threading.Lock()

    def ask(self, question: str, **options: Any) -> Answer:
        """The answer to the next question.

        Args:
            question: text of the user's turn.
            **options: arguments of ``model.generate`` for this turn, over those of the chat.
        """
        refuse_caches(options)
        with self._lock:
            history = list(self.turns) if self.remember else []
            given = self._options | options | {"history": history, "memory": self._memory}
            asked = questions_of(*self._about, [question], **given)
            reads = asked.plan.reads_text or any(map(callable, asked.signals.values()))
            if asked.plan.acts_inside and self._again is False:
                raise UnsupportedError(
                    f"again=False: plan {str(asked.plan)!r} acts inside the language model, and its choice holds for "
                    "one prompt alone; leave again out"
                )
            if asked.plan.acts_inside or (reads and self._again is not False):
                (answer,) = answer_batches(asked)
                answer.report.notes.append(ANEW)
            else:
                answer = self._behind(asked)
                if reads:
                    answer.report.notes.append(KEPT)
            remember(self._about[0], answer.report)
            self.turns += [{"role": "user", "content": question}, {"role": "assistant", "content": answer.text}]
        return answer

    def forget(self) -> None:
        """Start the conversation anew; the video stays read."""
        with self._lock:
            self.turns = []
            self._read = self._read if self._again is not False else None

    @property
    def nbytes(self) -> int:
        """Bytes of the cache that holds the video; 0 before it was read."""
        return nbytes(self._read.prefix.cache) if self._read is not None else 0

    def _behind(self, asked: Questions) -> Answer:
        """The answer behind the video that is in the cache."""
        ids, first = asked.prompts[0]["input_ids"][0], self._read is None
        known = self._read
        if known is None or not torch.equal(known.prefix.ids.cpu(), ids[: len(known.prefix.ids)].cpu()):
            known = self._read = _read(asked)
        report = replace(known.call.report, notes=list(known.call.report.notes))
        if not first:  # what was read and encoded at the first question costs nothing now
            report.milliseconds, asked = {}, replace(asked, read=replace(asked.read, milliseconds={}))
        tail, device = ids[len(known.prefix.ids) :], input_device(known.call.model)
        with report.stage("generate", device):
            found = known.prefix.ask(tail, asked.options)
        report.measure_memory(device)
        ids = until_end(found, stops(known.call.model, asked.options))
        (answer,) = asked.answers(
            [ids], [share(asked, report, 1, 1, known.prefix.rows + len(tail))], known.call.report.cell_states
        )
        return answer


@torch.no_grad()
def _read(asked: Questions) -> _Read:
    """Prefill the prompt up to the end of its last video."""
    call, model = asked.call(0, 1), core(asked.model)
    inputs = asked.inputs(0, 1)
    visual = asked.family.placeholders(model, asked.family.clip_modality, inputs["input_ids"], inputs)[0]
    image = getattr(model.config, "image_token_id", None)
    visual = visual | (inputs["input_ids"][0] == image) if image is not None else visual
    columns = int(visual.nonzero().max()) + 1
    if columns == inputs["input_ids"].shape[1]:
        raise UnsupportedError("the chat template writes nothing behind the video, so there is no text to ask with")
    ready = prepare(call, inputs, generating=True)
    with call.report.stage("prefill", inputs["input_ids"].device):
        return _Read(call, Prefix.of(model, ready, columns))


def refuse_caches(options: dict[str, Any]) -> None:
    for name in OWN_CACHE:
        if options.get(name) is not None:
            raise UnsupportedError(
                f"{name}={options[name]!r}: a chat keeps the video in a dynamic cache of its own, because quantised "
                "and static ones cannot be put back after a question; leave it out, or use vtoken.ask"
            )
