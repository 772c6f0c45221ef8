"""What one call cost: tokens in and out, milliseconds stage by stage, peak memory."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from enum import IntEnum
from functools import lru_cache
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from vtoken.errors import InputError

STAGES = ("decode", "gate", "pathway", "prepare", "encode", "reduce", "prefill", "generate")


WIDE = 60  # columns of the text of a report, where its plan and notes allow


class CellState(IntEnum):
    """What became of a token that the stock model would have had."""

    SKIPPED = 0  # by the gate, neither encoded nor sent
    DROPPED = 1  # by a method after the encoder
    MERGED = 2  # into another token
    KEPT = 3
    HELD = 4  # not computed; attention reads the key and value of another token in its place


log = logging.getLogger("vtoken")


@lru_cache(maxsize=1024)
def log_once(text: str) -> None:
    """A warning of the logger ``vtoken``, the first time that this text comes up."""
    log.warning(text)


@dataclass
class Report:
    """Tokens, milliseconds and limits of one call of a wrapped model.

    Attributes:
        plan: the plan that ran.
        cells: visual tokens that the stock model would have had.
        encoded: of these, tokens whose patches went through the vision encoder.
        tokens: visual tokens that reached the language model.
        prompt: length of the whole prompt in tokens, after reduction.
        milliseconds: wall time by stage: decode, gate, pathway (a second stream over the frames), prepare (pixels of
            the kept cells), encode, reduce, prefill, generate.
        peak_bytes: peak GPU memory of the process so far, or its peak resident memory on a CPU.
        frames: presentation times in seconds of the sampled frames, per video.
        sizes: (width, height) in pixels of the frames as the encoder takes them, per video.
        held: visual tokens that were not computed and are shown again, where the gate's cells are known.
        inside: visual tokens that enter each layer of the language model, where methods act inside it; else empty.
        flops, cache: share of the FLOPs of the stock model's decoder layers in reading the prompt, and of the bytes of
            its KV cache behind it, where methods act inside the language model; else None.
        notes: caps that bound, fallbacks taken, warnings.
        cell_states: per prompt whose clip was gated while it was decoded, uint8 [T, h, w]: the ``CellState`` of every
            token that the stock model would have had; not in ``to_dict``.
    """

    plan: str = "none"
    cells: int = 0
    encoded: int = 0
    tokens: int = 0
    prompt: int = 0
    milliseconds: dict[str, float] = field(default_factory=dict)
    peak_bytes: int = 0
    frames: list[list[float]] = field(default_factory=list)
    sizes: list[tuple[int, int]] = field(default_factory=list)
    held: int = 0
    inside: list[int] = field(default_factory=list)
    flops: float | None = None
    cache: float | None = None
    notes: list[str] = field(default_factory=list)
    cell_states: list[Tensor] = field(default_factory=list, repr=False)

    @contextmanager
    def stage(self, name: str, device: Any = None) -> Iterator[None]:
        """Add the wall time of the block to a stage.

        On a GPU the ends are marked in its queue, which nothing waits for until somebody reads ``milliseconds``.
        """
        start = _mark(device)
        try:
            yield
        finally:
            if isinstance(start, float):
                self.add(name, (time.perf_counter() - start) * 1e3)
            else:
                self.__dict__.setdefault("_pending", []).append((name, start, _mark(device)))

    def __getattribute__(self, name: str) -> Any:
        if name == "milliseconds" and "_pending" in (own := object.__getattribute__(self, "__dict__")):
            for stage, start, end in own.pop("_pending", ()):
                end.synchronize()
                self.add(stage, start.elapsed_time(end))
        return object.__getattribute__(self, name)

    def __getstate__(self) -> dict[str, Any]:
        _ = self.milliseconds  # marks of a GPU cannot be copied
        return self.__dict__.copy()

    def add(self, name: str, milliseconds: float) -> None:
        """Add milliseconds to a stage.

        Raises:
            InputError: no such stage.
        """
        if name not in STAGES:
            raise InputError(f"unknown stage {name!r}; stages: {', '.join(STAGES)}")
        self.milliseconds[name] = self.milliseconds.get(name, 0.0) + milliseconds

    def note(self, text: str) -> None:
        """Remember a cap, fallback or warning once, and log it once a process."""
        if text not in self.notes:
            self.notes.append(text)
            log_once(text)

    def measure_memory(self, device: Any = None) -> None:
        """Set ``peak_bytes`` from the device the model is on; 0 where the system does not say.

        A GPU's peak counts from the last ``torch.cuda.reset_peak_memory_stats``, which is the user's to call.
        """
        if _is_cuda(device):
            self.peak_bytes = int(torch.cuda.max_memory_allocated(device))
        elif sys.platform != "win32":
            import resource

            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            self.peak_bytes = peak if sys.platform == "darwin" else peak * 1024

    def to_dict(self) -> dict[str, Any]:
        """Plain values that ``json.dumps`` takes."""
        told = {name: value for name, value in asdict(self).items() if name != "cell_states"}
        told["sizes"] = [list(size) for size in self.sizes]
        return told | {"total_ms": self.total, "payoff": self.payoff}

    @property
    def payoff(self) -> str | None:
        """Whether a second stream over the frames paid: its time beside the prefill of the tokens left out after the
        encoder, by their share of the prompt. None without one."""
        spent = self.milliseconds.get("pathway")
        if spent is None:
            return None
        left = max(0, self.encoded - self.tokens)
        saved = self.milliseconds.get("prefill", 0.0) * left / max(1, self.prompt)
        verdict = "it paid" if saved > spent else "it did not pay"
        return (
            f"the pathway took {spent:,.0f} ms; {left:,} tokens fewer saved about {saved:,.0f} ms of prefill: {verdict}"
        )

    @property
    def total(self) -> float:
        """Milliseconds of all stages."""
        return sum(self.milliseconds.values())

    def videos(self) -> list[str]:
        """Frames, frames a second and size of each video, in words."""
        out = []
        for i, times in enumerate(self.frames):
            told = f"{len(times):,} frames" if len(times) > 1 else "1 frame"
            if len(times) > 1 and times[-1] > times[0]:
                told += f" at {(len(times) - 1) / (times[-1] - times[0]):.3g} fps"
            if i < len(self.sizes):
                told += " of {}x{} pixels".format(*self.sizes[i])
            out.append(told)
        return out

    def __str__(self) -> str:
        total = f"{self.total / 1e3:,.2f} s" if self.total >= 1e3 else f"{self.total:,.0f} ms"
        lines = [
            f"total   {';  '.join([total, *self.videos()])}",
            f"plan    {self.plan}",
            f"tokens  {self._of(self.tokens)} reach the language model",
            f"encoded {self._of(self.encoded)}",
        ]
        if self.held:
            lines.append(f"held    {self._of(self.held)} shown again, not computed")
        lines.append(f"prompt  {self.prompt:,} tokens with the text;  peak memory {self.peak_bytes / 2**20:,.0f} MiB")
        if self.inside:
            runs = ", ".join(f"{n:,} in {len(list(own))}" for n, own in groupby(self.inside))
            lines.append(
                f"inside  {runs} layers;  {self.flops:.1%} of the model's FLOPs;  {self.cache:.1%} of its KV cache"
            )
        notes = dict.fromkeys([*self.notes, *([self.payoff] if self.payoff else [])])
        return "\n".join([*lines, *self._table(), *(f"note    {n}" for n in notes)])

    def _of(self, tokens: int) -> str:
        """A count of visual tokens, of those that the stock model would have had."""
        return f"{tokens:,} of {self.cells:,}{f' ({tokens / self.cells:.1%})' if self.cells else ''}"

    def _table(self) -> list[str]:
        """Stages and their milliseconds, without those that took none; two lines for as many as fit into ``WIDE``."""
        spent = [(s, ms) for s in STAGES if (ms := f"{self.milliseconds.get(s, 0.0):,.1f}") != "0.0"]
        lines: list[str] = []
        for stage, ms in spent:
            width = max(len(stage), len(ms))
            if not lines or len(lines[-1]) + 2 + width > WIDE:
                lines += ["stage ", "ms    "]
            lines[-2:] = [f"{lines[-2]}  {stage:>{width}}", f"{lines[-1]}  {ms:>{width}}"]
        return lines


def _is_cuda(device: Any) -> bool:
    return device is not None and torch.device(device).type == "cuda"


def _mark(device: Any) -> Any:
    """Now: seconds, or an event at the end of a GPU's queue."""
    if not _is_cuda(device):
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record(torch.cuda.current_stream(device))
    return event
