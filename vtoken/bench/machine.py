"""What the figures were measured on, in one line."""

from __future__ import annotations

import platform
from pathlib import Path


def describe(device: str = "cpu") -> str:
    """Processor or GPU, threads and the versions of Python and torch."""
    import torch

    chip = torch.cuda.get_device_name(device) if device.startswith("cuda") else processor()
    threads = torch.get_num_threads()
    return (
        f"{chip}, {threads} thread{'s' * (threads != 1)}, Python {platform.python_version()}, torch {torch.__version__}"
    )


def processor() -> str:
    """Name of the processor."""
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(errors="replace").splitlines():
            if line.lower().startswith(("model name", "hardware")):
                return " ".join(line.partition(":")[2].replace("(R)", "").replace("(TM)", "").split())
    return platform.processor() or platform.machine() or "unknown processor"
