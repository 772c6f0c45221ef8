"""Milliseconds of the prefill and of what follows it, where the stock ``generate`` does both."""

from __future__ import annotations

import time

import torch
from torch import Tensor

from vtoken.data.report import Report


class Clock:
    """A logits processor that changes nothing: its first call ends the prefill."""

    def __init__(self, report: Report) -> None:
        self.report, self.start, self.first = report, time.perf_counter(), None

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        if self.first is None:
            self._wait(scores.device)
            self.first = time.perf_counter()
        return scores

    def stop(self, device: torch.device) -> None:
        """End of ``generate``."""
        self._wait(device)
        end = time.perf_counter()
        first = end if self.first is None else self.first
        self.report.add("prefill", (first - self.start) * 1e3)
        self.report.add("generate", (end - first) * 1e3)

    @staticmethod
    def _wait(device: torch.device) -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
