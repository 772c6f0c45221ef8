"""Which implementation of an operation runs: its Triton twin, or plain torch."""

from __future__ import annotations

import importlib.util
import logging
import os
import re
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

from vtoken.errors import InputError, MissingExtraError, require

CHOICES = ("auto", "torch", "triton")
LEAST = (3, 3)  # the oldest Triton that the twins are written for, as in the extra "kernels"
INSTALLED = importlib.util.find_spec("triton") is not None  # found out once, and not where a compiler traces
log = logging.getLogger("vtoken")
_failed: set[tuple[str, str]] = set()  # twins and devices; none is tried twice
_logged: list[str] = []


def use_triton(x: Tensor) -> bool:
    """Whether Triton twins run on ``x``, by its device and ``VTOKEN_KERNELS`` (auto, torch or triton).

    ``auto`` takes Triton 3.3 or newer for tensors on a GPU, and logs once where it is missing or older. ``triton`` runs
    on a CPU too where Triton's interpreter is on (``TRITON_INTERPRET=1`` before the first import).

    Raises:
        InputError: an unknown value, or ``triton`` for a tensor that it cannot run on.
        MissingExtraError: ``triton`` where it is not installed, or too old.
    """
    choice = _choice()
    if choice == "torch" or (choice == "auto" and not on_gpu(x)):
        return False
    if not INSTALLED:
        if choice == "triton":
            require("triton", "kernels", "VTOKEN_KERNELS=triton")
        _log_once("Triton is not installed, so the plain torch kernels run; pip install 'vtoken[kernels]' is faster")
        return False
    if not torch.compiler.is_compiling() and (old := too_old()):
        if choice == "triton":
            raise MissingExtraError(f"VTOKEN_KERNELS=triton: {old}")
        _log_once(f"{old}; the plain torch kernels run")
        return False
    if choice == "triton" and not x.is_cuda and os.environ.get("TRITON_INTERPRET") != "1":
        raise InputError(
            f"VTOKEN_KERNELS=triton cannot run on a tensor on {x.device}; move it to a GPU, use VTOKEN_KERNELS=auto, "
            "or set TRITON_INTERPRET=1 for Triton's interpreter"
        )
    return True


def by_triton(x: Tensor, twin: str, *args: Any) -> Any:
    """What the Triton twin of an operation returns, or None where plain torch is to run.

    With ``auto``, a twin that cannot be compiled or launched on a device (no C compiler, a GPU or a version of Triton
    that lacks something) is logged once and not tried again there; with ``triton`` its error is raised. In code that
    torch.compile traces the twin becomes part of the graph, and its errors are those of the compiled call.

    Args:
        x: the tensor whose device decides; the twin runs with that GPU as the current one.
        twin: module and function in ``kernels/gpu``, such as "cosine.paired_cosine".
        args: arguments of the twin.

    Raises:
        InputError, MissingExtraError: see ``use_triton``.
    """
    if not use_triton(x):
        return None
    if torch.compiler.is_compiling():
        return _load(twin)(*args)
    key = twin, str(x.device)
    if key in _failed and _choice() == "auto":
        return None
    try:
        with torch.cuda.device_of(x):
            return _load(twin)(*args)
    except (InputError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # whatever a compiler or a driver raises
        if _choice() == "triton":
            raise
        _failed.add(key)
        said = (str(error).strip().splitlines() or [""])[0]
        _log_once(
            f"the Triton kernel {twin} failed on {x.device} ({type(error).__name__}: {said}); plain torch runs in its "
            "place, and in that of any other that fails. VTOKEN_KERNELS=triton shows the error, VTOKEN_KERNELS=torch "
            "does not try"
        )
        return None


@cache
def too_old() -> str:
    """What is wrong with the version of Triton that is installed; empty where nothing is."""
    try:
        import triton

        version = triton.__version__
    except Exception as error:  # an installation for another system or torch
        return f"Triton cannot be imported ({type(error).__name__}: {error})"
    numbers = tuple(int(part) for part in re.findall(r"\d+", version)[:2])
    if numbers >= LEAST:
        return ""
    least = ".".join(map(str, LEAST))
    return f"Triton {version} is older than {least}; pip install 'vtoken[kernels]' installs a newer one"


def failed_on(device: torch.device) -> list[str]:
    """Names of the twins that could not be compiled or launched on a device, so that plain torch runs there."""
    return sorted(twin for twin, where in _failed if where == str(device))


def on_gpu(x: Tensor) -> bool:
    """Whether Triton is the default for a tensor."""
    return x.is_cuda


def _choice() -> str:
    choice = os.environ.get("VTOKEN_KERNELS", "auto")
    if choice not in CHOICES:
        raise InputError(f"VTOKEN_KERNELS={choice!r} is unknown; known are {', '.join(CHOICES)}")
    return choice


def _load(twin: str) -> Callable[..., Any]:
    # one plain statement: torch.compile cannot trace importlib
    from vtoken.kernels.gpu import attention, bipartite, cosine, coverage, dpc_knn, dpp, held, kcenter, merge

    modules = (attention, bipartite, cosine, coverage, dpc_knn, dpp, held, kcenter, merge)
    name, function = twin.split(".")
    return next(getattr(module, function) for module in modules if module.__name__.endswith(f".{name}"))


def _log_once(text: str) -> None:
    """One line a process: the kernels after the first fail for the same cause."""
    if not _logged:
        log.warning(text)
    _logged.append(text)
