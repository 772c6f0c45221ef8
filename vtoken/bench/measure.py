"""Time and extra memory of one call, on a CPU or a GPU."""

from __future__ import annotations

import ctypes
import gc
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch


@dataclass
class Cost:
    """What one call takes.

    Attributes:
        cpu: seconds of CPU time of the process, user and system, all threads.
        wall: seconds by the clock, those of the GPU where the call runs on one.
        peak: bytes that it adds at its peak, its result included; None where the system does not report it.
    """

    cpu: float
    wall: float
    peak: int | None


def measure(call: Callable[[], Any], seconds: float = 1.0, device: str = "cpu") -> tuple[Cost, Any]:
    """Run for about ``seconds`` or once, whichever is longer, at most 20 times (200 on a GPU): the smallest times.

    Memory is that of the first run: resident pages of the process as Linux counts them, or what torch allocates on a
    GPU. Returns the last result too.
    """
    cuda = device.startswith("cuda")
    before = _start_memory(cuda)
    best, spent, runs, peak, out = Cost(float("inf"), float("inf"), None), 0.0, 0, None, None
    while runs == 0 or spent < seconds and runs < (200 if cuda else 20):
        out = None
        cpu, wall, out = (_timed_cuda if cuda else _timed)(call)
        if runs == 0 and before is not None:
            peak = max(0, (torch.cuda.max_memory_allocated() if cuda else _status("VmHWM")) - before)
        best = Cost(min(best.cpu, cpu), min(best.wall, wall), peak)
        spent, runs = spent + wall, runs + 1
    return best, out


def _start_memory(cuda: bool) -> int | None:
    gc.collect()
    if cuda:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    if sys.platform != "linux":
        return None
    ctypes.CDLL(None).malloc_trim(0)  # pages that the allocator holds back would hide what a call needs
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts again
    return _status("VmRSS")


def _status(field: str) -> int:
    """A field of /proc/self/status in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def _timed(call: Callable[[], Any]) -> tuple[float, float, Any]:
    wall, cpu = time.perf_counter(), time.process_time()
    out = call()
    return time.process_time() - cpu, time.perf_counter() - wall, out


def _timed_cuda(call: Callable[[], Any]) -> tuple[float, float, Any]:
    start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    cpu = time.process_time()
    start.record()
    out = call()
    stop.record()
    stop.synchronize()
    return time.process_time() - cpu, start.elapsed_time(stop) / 1e3, out
