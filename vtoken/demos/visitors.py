"""What the page remembers of each visitor: the run at hand, the chat, and files that go when the visitor goes."""

from __future__ import annotations

import shutil
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass
class Visitor:
    """One open page.

    Attributes:
        folder: for downloads, below the page's temporary folder; removed with the visitor.
        chat: messages shown, as ``gr.Chatbot`` takes them.
        about: the clip and its part that the chat is about; another one begins a new chat.
        model: the checkpoint this visitor asks.
        chats: by side ("plan", "full") what it is about and a ``vtoken.Chat``; see ``Chats``.
        stop: set to end the run at hand; every run has its own.
        seen: when the visitor last did something, seconds.
    """

    folder: Path
    model: str
    chat: list[dict[str, Any]] = field(default_factory=list)
    about: Any = None
    chats: dict[str, tuple[Any, Any]] = field(default_factory=dict)
    stop: threading.Event = field(default_factory=threading.Event)
    seen: float = field(default_factory=time.monotonic)

    def begin(self) -> threading.Event:
        """A new run; the one before it, if it is still at work, is stopped."""
        self.stop.set()
        self.stop = threading.Event()
        return self.stop


class Visitors:
    """Visitors by session; those gone, or idle for longer than ``idle`` seconds, are forgotten."""

    def __init__(self, root: Path, model: str, idle: float) -> None:
        self.root, self.model, self.idle = root, model, idle
        self._lock, self._known = threading.Lock(), {}  # type: ignore[var-annotated]

    def __len__(self) -> int:
        return len(self._known)

    def get(self, session: str | None) -> Visitor:
        """The visitor of a session, a new one where it is not known."""
        self._sweep()
        with self._lock:
            key = session or ""
            if key not in self._known:
                folder = Path(tempfile.mkdtemp(prefix="visitor-", dir=self.root))
                self._known[key] = Visitor(folder, self.model)
            self._known[key].seen = time.monotonic()
            return self._known[key]

    def leave(self, session: str | None) -> None:
        """Stop the visitor's run and remove the files made for it."""
        with self._lock:
            visitor = self._known.pop(session or "", None)
        if visitor is not None:
            visitor.stop.set()
            visitor.chats.clear()
            shutil.rmtree(visitor.folder, ignore_errors=True)

    def _sweep(self) -> None:
        limit = time.monotonic() - self.idle
        for session in [s for s, v in list(self._known.items()) if v.seen < limit]:
            self.leave(session)
