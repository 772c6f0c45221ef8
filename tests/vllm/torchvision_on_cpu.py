"""Lets the torchvision of PyPI be imported beside a CPU build of torch: its operators are declared, none is run.

`make test-vllm` puts this file and a .pth that imports it into the test environment: every process of vLLM imports
torchvision, and with it the video processors of transformers.
"""

from __future__ import annotations

import importlib.util
import sys
from importlib.abc import MetaPathFinder
from typing import Any

KEPT: list[Any] = []  # declarations live as long as the object that made them


class Declare(MetaPathFinder):
    """Acts once, when torchvision is first looked for."""

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> Any:
        if fullname != "torchvision":
            return None
        sys.meta_path.remove(self)
        import torch

        if not hasattr(torch.ops.torchvision, "nms"):
            KEPT.append(torch.library.Library("torchvision", "DEF"))
            for name in ("nms", "qnms"):
                KEPT[0].define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        return importlib.util.find_spec(fullname)


sys.meta_path.insert(0, Declare())
