# pyright: reportMissingImports=false
"""What lmms-eval finds of vtoken through its entry point; nothing of lmms-eval is imported until it asks."""

from __future__ import annotations

from typing import Any


def manifests() -> list[Any]:
    """The models that ``lmms_eval --model`` can name.

    ``vtoken`` reads videos itself and answers by ``vtoken.ask``; ``vtoken_hf`` is a model of lmms-eval under a plan.
    """
    from lmms_eval.models.registry_v2 import ModelManifest

    return [
        ModelManifest("vtoken", chat_class_path="vtoken.bench.lmms_model.Vtoken"),
        ModelManifest("vtoken_hf", chat_class_path="vtoken.bench.lmms_hf.VtokenHf"),
    ]
