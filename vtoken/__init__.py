"""vtoken: between the vision encoder and the language model, only what changed and what matters.

>>> import vtoken
>>> model = vtoken.wrap(model, "grt | divprune", keep=0.25)
>>> model.generate(**processor(text=..., videos=..., return_tensors="pt"))
>>> print(model.vtoken.report)
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from vtoken.version import __version__

if TYPE_CHECKING:
    from vtoken.bench.measured import measure
    from vtoken.data.budget import Budget
    from vtoken.data.frames import Frames, GateMap
    from vtoken.data.report import Report
    from vtoken.data.tokens import Tokens
    from vtoken.encoders.signals import Tap, signal
    from vtoken.engine.session import Session
    from vtoken.engine.wrap import unwrap, wrap, wrapped
    from vtoken.errors import (
        InputError,
        MissingExtraError,
        MissingFileError,
        UnsupportedError,
        VideoError,
        VtokenError,
    )
    from vtoken.methods.gate import Gate
    from vtoken.methods.merger import Merger
    from vtoken.methods.pathway import Pathway
    from vtoken.methods.plan import Plan
    from vtoken.methods.reducer import Context, Pruner, Scorer
    from vtoken.methods.registry import Method, register
    from vtoken.methods.thinner import Thinner
    from vtoken.qa.api import Answer, ask, ask_many
    from vtoken.qa.chat import Chat
    from vtoken.qa.load import load
    from vtoken.qa.media import Image, Video
    from vtoken.qa.read import Sampling
    from vtoken.qa.stream.api import stream
    from vtoken.qa.stream.stream import Stream
    from vtoken.qa.stream.watch import Event
    from vtoken.video import open_video

_HOMES = {
    "bench.measured": ("measure",),
    "data.budget": ("Budget",),
    "data.frames": ("Frames", "GateMap"),
    "data.report": ("Report",),
    "data.tokens": ("Tokens",),
    "encoders.signals": ("Tap", "signal"),
    "engine.session": ("Session",),
    "engine.wrap": ("wrap", "unwrap", "wrapped"),
    "errors": ("InputError", "MissingExtraError", "MissingFileError", "UnsupportedError", "VideoError", "VtokenError"),
    "methods.gate": ("Gate",),
    "methods.merger": ("Merger",),
    "methods.pathway": ("Pathway",),
    "methods.plan": ("Plan",),
    "methods.reducer": ("Context", "Pruner", "Scorer"),
    "methods.registry": ("Method", "register"),
    "methods.thinner": ("Thinner",),
    "qa.api": ("ask", "ask_many", "Answer"),
    "qa.chat": ("Chat",),
    "qa.load": ("load",),
    "qa.media": ("Image", "Video"),
    "qa.read": ("Sampling",),
    "qa.stream.api": ("stream",),
    "qa.stream.stream": ("Stream",),
    "qa.stream.watch": ("Event",),
    "video": ("open_video",),
}
_NAMES = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "Answer",
    "Budget",
    "Chat",
    "Context",
    "Event",
    "Frames",
    "Gate",
    "GateMap",
    "Image",
    "InputError",
    "Merger",
    "Method",
    "MissingExtraError",
    "MissingFileError",
    "Pathway",
    "Plan",
    "Pruner",
    "Report",
    "Sampling",
    "Scorer",
    "Session",
    "Stream",
    "Tap",
    "Thinner",
    "Tokens",
    "UnsupportedError",
    "Video",
    "VideoError",
    "VtokenError",
    "__version__",
    "ask",
    "ask_many",
    "load",
    "measure",
    "open_video",
    "register",
    "signal",
    "stream",
    "unwrap",
    "wrap",
    "wrapped",
]


def __getattr__(name: str) -> Any:
    if name not in _NAMES:
        raise AttributeError(f"module 'vtoken' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"vtoken.{_NAMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
