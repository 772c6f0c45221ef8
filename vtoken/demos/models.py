"""The checkpoints of the page: each is loaded once, wrapped once, and used by all visitors."""

from __future__ import annotations

import re
import threading
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np

from vtoken import families
from vtoken.demos.settings import MOST_TOKENS, NEW_TOKENS, REFERENCE, Settings
from vtoken.engine.wrap import wrap
from vtoken.errors import InputError
from vtoken.families import Family
from vtoken.qa.api import ask
from vtoken.qa.load import load

MOST = 2  # models in memory; the one used longest ago makes room


class Models:
    """Checkpoints by name. A model is wrapped with the plan "none"; every call brings its own plan."""

    def __init__(self, settings: Settings) -> None:
        self.settings, self._lock, self._loading = settings, threading.Lock(), threading.Lock()
        self._held: OrderedDict[str, tuple[Any, Any]] = OrderedDict()

    def get(self, name: str) -> tuple[Any, Any]:
        """Model and processor, loaded where they are not in memory yet.

        Raises:
            InputError: no such checkpoint, or one that visitors may not load.
        """
        if name != self.settings.model:
            self._check(name)
        if (held := self._find(name)) is not None:
            return held
        with self._loading:  # who waits here may find it loaded by the one before
            if (held := self._find(name)) is not None:
                return held
            model, processor = load(name, self.settings.device, self.settings.dtype)
            _warm_up(wrap(model, "none"), processor)
            with self._lock:
                held = self._held[name] = (model, processor)
                while len(self._held) > MOST:
                    del self._held[next(n for n in self._held if n not in (name, self.settings.model))]
            return held

    def _find(self, name: str) -> tuple[Any, Any] | None:
        with self._lock:
            if name in self._held:
                self._held.move_to_end(name)
            return self._held.get(name)

    def _check(self, name: str) -> None:
        if not self.settings.allow_models:
            raise InputError("this page answers with its own model only; start it with --allow-models for others")
        if name == REFERENCE:
            return
        if not re.fullmatch(r"[\w.-]+/[\w.-]+", name) or Path(name).exists() or ".." in name:
            raise InputError(f"model {name!r}: give a hub id such as Qwen/Qwen2.5-VL-3B-Instruct")

    def family(self, name: str) -> Family:
        return families.of(self.get(name)[0])

    def new_tokens(self, name: str) -> int:
        """Longest answer where nobody says: the checkpoint's own, up to the page's limit."""
        model, _ = self.get(name)
        return min(model.generation_config.max_new_tokens or NEW_TOKENS, MOST_TOKENS)

    def tell(self, name: str) -> str:
        """A line about a model: its family, size, device."""
        model, _ = self.get(name)
        count = sum(p.numel() for p in model.parameters())
        size = f"{count / 1e9:.1f} B" if count >= 1e9 else f"{count / 1e6:.1f} M"
        title = "Reference model" if name == REFERENCE else Path(name).name
        return f"{title} · {families.of(model).title} · {size} parameters · {str(model.device).upper()}"


def _warm_up(model: Any, processor: Any) -> None:
    """Two short calls, so that the first visitor's figures hold no cost that every process pays once.

    Raises:
        UnsupportedError: ``vtoken.ask`` cannot serve the family, so the page cannot either.
    """
    clip = np.random.default_rng(0).integers(0, 255, (4, 112, 112, 3), dtype=np.uint8)
    for plan in ("none", "grt"):
        ask(model, processor, clip, "What happens?", fps="native", native_fps=2, plan=plan, max_new_tokens=2)
