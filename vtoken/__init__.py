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
    from vtoken.asking import Answer, ask, ask_many
    from vtoken.errors import InputError, MissingExtraError, UnsupportedError, VideoError, VtokenError
    from vtoken.loading import load
    from vtoken.plan import Plan
    from vtoken.registry import register
    from vtoken.report import Report
    from vtoken.types import Budget, Frames, GateMap, Tokens
    from vtoken.video import open_video
    from vtoken.wrapping import unwrap, wrap, wrapped

_HOMES = {
    "asking": ("ask", "ask_many", "Answer"),
    "errors": ("InputError", "MissingExtraError", "UnsupportedError", "VideoError", "VtokenError"),
    "loading": ("load",),
    "plan": ("Plan",),
    "registry": ("register",),
    "report": ("Report",),
    "types": ("Budget", "Frames", "GateMap", "Tokens"),
    "video": ("open_video",),
    "wrapping": ("wrap", "unwrap", "wrapped"),
}
_NAMES = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "Answer",
    "Budget",
    "Frames",
    "GateMap",
    "InputError",
    "MissingExtraError",
    "Plan",
    "Report",
    "Tokens",
    "UnsupportedError",
    "VideoError",
    "VtokenError",
    "__version__",
    "ask",
    "ask_many",
    "load",
    "open_video",
    "register",
    "unwrap",
    "wrap",
    "wrapped",
]


def __getattr__(name: str) -> Any:
    if name not in _NAMES:
        raise AttributeError(f"module 'vtoken' has no attribute {name!r}")
    # modules are named wrapping, asking and loading, so that no submodule shadows a function
    value = getattr(importlib.import_module(f"vtoken.{_NAMES[name]}"), name)
    globals()[name] = value
    return value
