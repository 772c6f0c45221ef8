"""A checkpoint by hub id or folder: the model, and what writes its prompts."""

from __future__ import annotations

import difflib
import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vtoken import families
from vtoken.errors import InputError, MissingExtraError
from vtoken.reference import WEIGHTS

REFERENCE = "reference"
DTYPES = ("auto", "float32", "bfloat16", "float16")
HUB = ("revision", "token", "cache_dir", "local_files_only", "subfolder", "force_download", "proxies")
HUB += ("trust_remote_code", "code_revision")


def load(name: str, device: str = "auto", dtype: Any = "auto", **options: Any) -> tuple[Any, Any]:
    """A vision-language model in eval mode, and its processor (its tokenizer where the processor cannot be built).

    Args:
        name: hub id or folder, or "reference" for the small model that ships with the package.
        device: "auto" (CUDA where there is one), "cpu", "cuda", "cuda:1" ...
        dtype: "auto" (bfloat16 on CUDA, else float32), the name of a floating type, or a ``torch.dtype``.
        **options: arguments of ``from_pretrained``, such as ``device_map``, ``quantization_config``,
            ``attn_implementation``, ``revision``, ``token``; those that say where files are go to the config and the
            processor too.

    Raises:
        InputError: no such checkpoint, a model that vtoken does not know, an unknown device or dtype, or an argument
            that ``from_pretrained`` does not take.
        MissingExtraError: a package that an argument needs is not installed.
    """
    import torch
    import transformers

    where, spread = device_of(device), options.get("device_map")
    if spread is not None and device != "auto":
        raise InputError(f"device={device!r} and device_map={spread!r}: give one of them")
    kind = _dtype(dtype, where, torch)
    name, hub = _folder(name), {n: v for n, v in options.items() if n in HUB}
    with _quiet():
        config = options.get("config") or _config(name, hub)
        if config.model_type not in families.FAMILIES:
            known = ", ".join(families.FAMILIES)
            raise InputError(f"model {name!r} is a {config.model_type!r}, which vtoken does not know; it knows {known}")
        quantized = options.get("quantization_config") or getattr(config, "quantization_config", None)
        if quantized is not None and spread is None:
            options["device_map"] = spread = {"": where}  # quantised weights cannot move later
        chosen = getattr(transformers, (config.architectures or [""])[0], transformers.AutoModelForImageTextToText)
        try:
            model = chosen.from_pretrained(name, dtype=kind, **options)
        except ImportError as error:
            raise MissingExtraError(f"model {name!r}: {_first(error)}") from error
        except (OSError, ValueError, RuntimeError, TypeError, KeyError, AttributeError) as error:
            raise InputError(f"model {name!r}: its weights cannot be loaded ({_first(error)})") from error
        return (model if spread is not None else model.to(where)).eval(), _processor(name, hub)


def skeleton(name: str, dtype: Any = "auto") -> tuple[Any, Any]:
    """A model without weights, for what needs its class and configuration alone, and its processor.

    Raises:
        InputError: no such checkpoint, or a model that vtoken does not know.
    """
    import torch
    import transformers

    name, kind = _folder(name), _dtype(dtype, device_of("auto"), torch)
    with _quiet(), torch.device("meta"):
        config = _config(name, {})
        if config.model_type not in families.FAMILIES:
            known = ", ".join(families.FAMILIES)
            raise InputError(f"model {name!r} is a {config.model_type!r}, which vtoken does not know; it knows {known}")
        chosen = getattr(transformers, (config.architectures or [""])[0], transformers.AutoModelForImageTextToText)
        made = getattr(chosen, "_from_config", None) or chosen.from_config
        return made(config, dtype=kind).eval(), _processor(name, {})


@contextmanager
def _quiet() -> Iterator[None]:
    """No progress bars where no terminal shows them; those of transformers and of the hub are as before in the end."""
    import warnings

    from huggingface_hub import utils as hub
    from transformers.utils import logging

    if sys.stderr.isatty() or not logging.is_progress_bar_enabled():
        yield
        return
    off = hub.are_progress_bars_disabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # where an environment variable has the last word
            logging.enable_progress_bar()
            if off:
                hub.disable_progress_bars()


def _dtype(given: Any, where: Any, torch: Any) -> Any:
    """The ``torch.dtype`` of an argument."""
    if isinstance(given, torch.dtype) and given.is_floating_point:
        return given
    if given not in DTYPES:
        raise InputError(f"dtype={given!r} is unknown; known are {', '.join(DTYPES)}")
    return getattr(torch, ("bfloat16" if where.type == "cuda" else "float32") if given == "auto" else given)


def _folder(name: str) -> str:
    """Where the model that ships with the package lies; any other name as it is.

    Raises:
        InputError: a name that is neither a folder nor a hub id, which has the form owner/name.
    """
    if name != REFERENCE:
        if "/" in name or os.sep in name or Path(name).exists():
            return name
        near = difflib.get_close_matches(name.lower(), [REFERENCE])
        hint = f"did you mean {REFERENCE!r}, the model of the package?" if near else "a hub id is written owner/name"
        raise InputError(f"model {name!r}: there is no such folder; {hint}")
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


def _config(name: str, hub: dict[str, Any]) -> Any:
    from transformers import AutoConfig

    path = Path(name)
    if path.is_dir() and not (path / "config.json").is_file():
        raise InputError(f"model {name!r}: the folder has no config.json; give a checkpoint's folder or a hub id")
    try:
        return AutoConfig.from_pretrained(name, **hub)
    except (OSError, ValueError, KeyError) as error:
        raise InputError(
            f"model {name!r} cannot be found or read ({_first(error)}); give a hub id or a folder"
        ) from error


def _processor(name: str, hub: dict[str, Any]) -> Any:
    """The processor; where its video part needs a torchvision that is missing, the tokenizer with the chat template.

    The tokenizer then has the settings of the checkpoint's video processor as ``video_processor``, where it has such a
    file.
    """
    from transformers import AutoProcessor, AutoTokenizer

    try:
        return AutoProcessor.from_pretrained(name, **hub)
    except (ImportError, OSError, ValueError, TypeError, AttributeError):
        pass
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, **hub)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"model {name!r}: it has no tokenizer that can be loaded ({_first(error)})") from error
    if not tokenizer.chat_template:
        tokenizer.chat_template = _template(name, hub)
    tokenizer.video_processor = _file(name, "video_preprocessor_config.json", hub, json.loads)
    return tokenizer


def _template(name: str, hub: dict[str, Any]) -> str | None:
    """The chat template of a processor, kept beside the tokenizer's own."""
    plain = _file(name, "chat_template.jinja", hub, str)
    return plain or _file(name, "chat_template.json", hub, lambda text: json.loads(text)["chat_template"])


def _file(name: str, file: str, hub: dict[str, Any], read: Callable[[str], Any]) -> Any:
    """A text file of a checkpoint, read; None where it has none."""
    from transformers.utils.hub import cached_file

    where = {n: v for n, v in hub.items() if n not in ("trust_remote_code", "code_revision")}
    found = cached_file(name, file, _raise_exceptions_for_missing_entries=False, **where)
    return None if found is None else read(Path(found).read_text(encoding="utf-8"))


def _first(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__).rstrip(".")
