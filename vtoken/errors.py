"""Errors of vtoken: every message names the file or argument, the value and the remedy."""

from __future__ import annotations


class VtokenError(Exception):
    """Base of every error that vtoken raises on purpose."""


class InputError(VtokenError, ValueError):
    """An argument, plan, budget or tensor that cannot be used."""


class VideoError(VtokenError, ValueError):
    """A file or array that cannot be read as video."""


class MissingFileError(VideoError, FileNotFoundError):
    """A video or picture that is not there."""


class UnsupportedError(VtokenError, RuntimeError):
    """A combination of model, method and call that vtoken refuses because its answer would be wrong."""


class MissingExtraError(VtokenError, ImportError):
    """An optional dependency is not installed; the message names the extra."""


def require(module: str, extra: str, purpose: str):
    """Import an optional dependency, or raise an error that names the extra.

    Args:
        module: name of the module, for example ``"decord"``.
        extra: extra of this package that installs it.
        purpose: what needs it, for the message.

    Raises:
        MissingExtraError: the module cannot be imported.
    """
    import importlib

    try:
        return importlib.import_module(module)
    except (ImportError, OSError, RuntimeError) as error:
        raise MissingExtraError(
            f"{purpose} needs {module}, which cannot be imported ({str(error).splitlines()[0]}). "
            f"Install it with: pip install 'vtoken[{extra}]'"
        ) from error
