"""A checkpoint by hub id or folder: the model, and what writes its prompts."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from vtoken import families
from vtoken.errors import InputError
from vtoken.reference import WEIGHTS

REFERENCE = "reference"
DTYPES = ("auto", "float32", "bfloat16", "float16")


def load(name: str, device: str = "auto", dtype: str = "auto") -> tuple[Any, Any]:
    """A vision-language model in eval mode, and its processor (its tokenizer where the processor cannot be built).

    Args:
        name: hub id or folder, or "reference" for the small model that ships with the package.
        device: "auto" (CUDA where there is one), "cpu", "cuda", "cuda:1" ...
        dtype: "auto" (bfloat16 on CUDA, else float32) or the name of a floating type.

    Raises:
        InputError: no such checkpoint, a model that vtoken does not know, an unknown device or dtype.
    """
    import torch
    import transformers

    if not sys.stderr.isatty():
        transformers.utils.logging.disable_progress_bar()
    where = device_of(device)
    if dtype not in DTYPES:
        raise InputError(f"dtype={dtype!r} is unknown; known are {', '.join(DTYPES)}")
    name = _folder(name)
    kind = ("bfloat16" if where.type == "cuda" else "float32") if dtype == "auto" else dtype
    config = _config(name)
    if config.model_type not in families.FAMILIES:
        known = ", ".join(families.FAMILIES)
        raise InputError(f"model {name!r} is a {config.model_type!r}, which vtoken does not know; it knows {known}")
    chosen = getattr(transformers, (config.architectures or [""])[0], transformers.AutoModelForImageTextToText)
    try:
        model = chosen.from_pretrained(name, dtype=getattr(torch, kind))
    except (OSError, ValueError, RuntimeError) as error:
        raise InputError(f"model {name!r}: its weights cannot be loaded ({_first(error)})") from error
    return model.to(where).eval(), _processor(name)


def _folder(name: str) -> str:
    """Where the model that ships with the package lies; any other name as it is."""

    if name != REFERENCE:
        return name
    if not (WEIGHTS / "config.json").is_file():
        raise InputError(
            f"model {name!r}: its weights are missing from {WEIGHTS}; train and export them with "
            "`python -m training.reference.train`, or name another checkpoint"
        )
    return str(WEIGHTS)


def device_of(name: str) -> Any:
    """The ``torch.device`` of a name; "auto" is CUDA where there is one.

    Raises:
        InputError: an unknown device, or one that is not here.
    """
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise InputError(f"device={name!r} is unknown; give auto, cpu, cuda or cuda:N") from None
    if device.type == "cuda" and (not torch.cuda.is_available() or (device.index or 0) >= torch.cuda.device_count()):
        raise InputError(f"device={name!r} is not here: torch sees {torch.cuda.device_count()} CUDA devices; use cpu")
    return device


def _config(name: str) -> Any:
    from transformers import AutoConfig

    path = Path(name)
    if path.is_dir() and not (path / "config.json").is_file():
        raise InputError(f"model {name!r}: the folder has no config.json; give a checkpoint's folder or a hub id")
    try:
        return AutoConfig.from_pretrained(name)
    except (OSError, ValueError, KeyError) as error:
        raise InputError(
            f"model {name!r} cannot be found or read ({_first(error)}); give a hub id or a folder"
        ) from error


def _processor(name: str) -> Any:
    """The processor; where its video part needs a torchvision that is missing, the tokenizer with the chat template."""
    from transformers import AutoProcessor, AutoTokenizer

    try:
        return AutoProcessor.from_pretrained(name)
    except (ImportError, OSError, ValueError, TypeError, AttributeError):
        pass
    try:
        tokenizer = AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"model {name!r}: it has no tokenizer that can be loaded ({_first(error)})") from error
    if not tokenizer.chat_template:
        tokenizer.chat_template = _template(name)
    return tokenizer


def _template(name: str) -> str | None:
    """The chat template of a processor, kept beside the tokenizer's own."""
    from transformers.utils.hub import cached_file

    for file in ("chat_template.jinja", "chat_template.json"):
        found = cached_file(name, file, _raise_exceptions_for_missing_entries=False)
        if found is not None:
            text = Path(found).read_text(encoding="utf-8")
            return json.loads(text)["chat_template"] if file.endswith("json") else text
    return None


def _first(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__).rstrip(".")
