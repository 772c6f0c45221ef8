"""Which operations the library's methods spend their time in: why these operations have kernels and others do not."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
from rich.console import Group
from rich.table import Table
from rich.text import Text

from vtoken import kernels
from vtoken.bench import machine, made
from vtoken.bench.kernels.case import Setting
from vtoken.data.budget import Budget
from vtoken.data.frames import Frames, Grid
from vtoken.methods import registry
from vtoken.output.console import FittedTable
from vtoken.output.progress import progress

KEEP = 0.25
PLACES = 3  # operations named in a method's line
LEAST = 0.001  # share of the whole below which an operation is not listed
HERE = str(Path(kernels.__file__).parent)


class Spent:
    """CPU seconds in functions of ``vtoken.kernels`` that other code calls, by name, while the block runs."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._outer: FrameType | None = None
        self._start = 0.0

    def __enter__(self) -> Spent:
        sys.setprofile(self._event)
        return self

    def __exit__(self, *_: object) -> None:
        sys.setprofile(None)

    def _event(self, frame: FrameType, event: str, _: Any) -> None:
        if event == "call" and self._outer is None and frame.f_code.co_filename.startswith(HERE):
            self._outer, self._start = frame, time.process_time()
        elif event == "return" and frame is self._outer:
            name = operation(frame)
            self.seconds[name] = self.seconds.get(name, 0.0) + time.process_time() - self._start
            self._outer = None


def operation(frame: FrameType) -> str:
    """Module and function or class, as in ``merge.Merge``."""
    module = Path(frame.f_code.co_filename).stem
    owner = frame.f_locals.get("self")
    return f"{module}.{type(owner).__name__ if owner is not None else frame.f_code.co_name}"


def profile(setting: Setting) -> tuple[Group, list[dict[str, Any]]]:
    """Every method once, after one run to warm up; tables by method and by operation, and the rows behind them."""
    rows = []
    jobs = list(_jobs(setting))
    with torch.inference_mode(), progress(len(jobs), "methods") as advance:
        for name, call in jobs:
            call()
            start = time.process_time()
            with Spent() as spent:
                call()
            total = time.process_time() - start
            rows.append({"method": name, "ms": total * 1e3, "operations": _sorted(spent.seconds)})
            advance(1, name)
    caption = (
        f"{machine.describe()}; {_tokens(setting)[0]:,} tokens of {setting.pick(1152, 64)} features, keep {KEEP:.0%}; "
        f"gates on 32 frames of {setting.pick(448, 56)} px, thinners in a random SigLIP of 3 layers; CPU time"
    )
    return Group(_by_method(rows), Text(""), _by_operation(rows), Text(""), Text(caption, style="dim")), rows


def _sorted(seconds: dict[str, float]) -> dict[str, float]:
    return {name: s * 1e3 for name, s in sorted(seconds.items(), key=lambda item: -item[1])}


def _tokens(setting: Setting) -> tuple[int, int, int]:
    frames, side = setting.pick(32, 8), setting.pick(14, 6)
    return frames * side * side, frames, side


def _jobs(setting: Setting) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Names of methods, and calls that run them."""
    _, frames, side = _tokens(setting)
    yield from _gates(setting)
    yield from _encoder(frames, side)
    tokens, context = made.clip(frames, side, setting.pick(1152, 64))
    for name in [*registry.names("pruner"), *registry.names("merger")]:
        if name == "learned":  # a scorer is trained for one model
            continue
        method: Any = registry.build(name)
        budget = Budget.given(KEEP, None, None) if method.needs_budget else None
        yield name, lambda m=method, b=budget: m.reduce(tokens, b, context)


def _gates(setting: Setting) -> Iterator[tuple[str, Callable[[], Any]]]:
    from vtoken.reference.synthetic import render

    edge = setting.pick(448, 56)
    clip = render("slides", seconds=32 / 30, fps=30.0, size=(edge, edge))
    frames = Frames(np.stack([clip.draw(i) for i in range(len(clip))]), np.arange(len(clip)) / 30.0)
    for name in registry.names("gate"):
        gate: Any = registry.build(name, **({"encoder": "tiny"} if name == "jepa" else {}))
        planes = frames.luma if gate.signal == "luma" else frames.pixels
        yield name, lambda g=gate, p=planes: g.gate_planes(p, frames.pts, Grid(edge, edge, 14))


def _encoder(frames: int, side: int) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Attention scores and thinners in a tower on whole frames."""
    from transformers import SiglipVisionConfig, SiglipVisionModel

    from vtoken.encoders import clip
    from vtoken.encoders.packed import Thinning

    sizes: dict[str, Any] = {"hidden_size": 384, "num_attention_heads": 6, "intermediate_size": 1536}
    sizes |= {"num_hidden_layers": 3, "image_size": 14 * side, "patch_size": 14, "vision_use_head": False}
    config = SiglipVisionConfig(**sizes)
    tower = SiglipVisionModel(config).eval()
    keep = np.ones((frames, side * side), bool)
    patches = clip.patches_of(torch.randn(frames, 3, 14 * side, 14 * side), 14, keep)

    def run(signals: frozenset[str] = frozenset(), thin: Any = None) -> Any:
        return clip.encode(tower, patches, keep, -1, signals, thin=thin)

    yield "(encoder alone)", run
    yield "(attention scores)", lambda: run(frozenset({"received_attention"}))
    goal = torch.full((frames,), round(KEEP * side * side))
    for name in registry.names("encoder"):
        yield name, lambda n=name: run(thin=Thinning(registry.build(n, keep=KEEP), goal))


def _by_method(rows: list[dict[str, Any]]) -> Table:
    table = _table("method", "ms", "in kernels", "operations")
    for row in sorted(rows, key=lambda r: -r["ms"]):
        found = row["operations"]
        told = ", ".join(f"{name} {ms / row['ms']:.0%}" for name, ms in list(found.items())[:PLACES])
        table.add_row(row["method"], f"{row['ms']:,.1f}", f"{sum(found.values()) / row['ms']:.0%}", told)
    return table


def _by_operation(rows: list[dict[str, Any]]) -> Table:
    total: dict[str, dict[str, float]] = {}
    for row in rows:
        for name, ms in row["operations"].items():
            total.setdefault(name, {})[row["method"]] = ms
    table = _table("operation", "ms in all", "of all", "methods")
    everything = sum(row["ms"] for row in rows)
    for name, by in sorted(total.items(), key=lambda item: -sum(item[1].values())):
        ms = sum(by.values())
        if ms < LEAST * everything:
            continue
        users = ", ".join(sorted(by, key=lambda m: -by[m])[:PLACES])
        users += f" and {len(by) - PLACES} more" if len(by) > PLACES else ""
        table.add_row(name, f"{ms:,.1f}", f"{ms / everything:.1%}", users)
    outside = everything - sum(sum(by.values()) for by in total.values())
    table.add_row("(outside of kernels)", f"{outside:,.1f}", f"{outside / everything:.1%}", "")
    return table


def _table(*heads: str) -> Table:
    table = FittedTable()
    for i, head in enumerate(heads):
        table.add_column(head, justify="right" if i in (1, 2) else "left", no_wrap=i in (1, 2))
    return table
