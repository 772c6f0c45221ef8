"""Chats whose video stays in the cache between two questions: the newest few of all visitors."""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import Any

from vtoken.demos.visitors import Visitor
from vtoken.qa.chat import Chat

ONE_TURN = ("max_new_tokens", "history")  # options that may change from turn to turn


class Chats:
    """The chats that keep a state. A visitor has one for the plan and one for full tokens.

    Attributes:
        most: how many are kept; the one asked longest ago makes room. Its conversation is not lost, its video is read
            again.
    """

    def __init__(self, most: int) -> None:
        self.most, self._lock = most, threading.Lock()
        self._order: OrderedDict[tuple[int, str], Visitor] = OrderedDict()

    def __len__(self) -> int:
        return sum(side in visitor.chats for (_, side), visitor in self._order.items())

    def get(self, visitor: Visitor, side: str, model: Any, processor: Any, path: str, options: dict[str, Any]) -> Chat:
        """The chat of a visitor about a clip under a plan, with the video in its cache if it was asked before.

        Args:
            side: "plan" or "full".
            options: of ``vtoken.ask``; another clip, model or option than last time begins anew.
        """
        about = {n: v for n, v in options.items() if n not in ONE_TURN}
        key = id(model), path, repr(sorted(about.items(), key=str))
        with self._lock:
            known = visitor.chats.pop(side, None)
            self._order.pop((id(visitor), side), None)
            chat = known[1] if known is not None and known[0] == key else Chat(model, processor, path, **about)
            if self.most:
                visitor.chats[side] = key, chat
                self._order[id(visitor), side] = visitor
            while len(self._order) > self.most:
                (_, oldest), other = self._order.popitem(last=False)
                other.chats.pop(oldest, None)
        return chat

    def drop(self, visitor: Visitor | None = None) -> None:
        """Forget the chats of a visitor, or of all."""
        with self._lock:
            for number, side in list(self._order):
                if visitor is None or number == id(visitor):
                    self._order.pop((number, side)).chats.pop(side, None)
