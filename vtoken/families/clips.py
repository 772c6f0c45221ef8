"""From pixels that a processor made to gated clips, and from gated clips to placeholder rows."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vtoken.data.frames import GateMap, Grid
from vtoken.encoders import Encoded
from vtoken.errors import UnsupportedError
from vtoken.families.family import Family
from vtoken.families.features import Clip, Features
from vtoken.families.layout import Layout
from vtoken.families.rows import join
from vtoken.families.runs import run_lengths
from vtoken.kernels.merge import Merge
from vtoken.methods.gate import Gate
from vtoken.methods.pathway import Cells, Pathway
from vtoken.video.preprocess import Preprocessor

Memory = Callable[[Clip, frozenset[str], Callable[[], Features]], Features]
UNKNOWN_FPS = 2.0  # Hugging Face video processors sample at 2 frames a second by default


def gated(
    pixels: Tensor,
    grid_thw: Tensor | None,
    seconds_per_frame: float | None,
    gate: Gate | None,
    preprocess: Preprocessor,
    pathways: Sequence[Pathway] = (),
) -> tuple[Grid, GateMap, np.ndarray, float, Cells]:
    """Gate one video in a processor's layout.

    Args:
        pixels: [T, 3, H, W], or Qwen rows with ``grid_thw`` [3].
        seconds_per_frame: spacing of the frames; None where unknown, then refresh counts on 2 frames a second.
        gate: None keeps every cell.

    Returns:
        grid, map, seconds of every frame, length in seconds (nan where unknown), and the pathways' signals.
    """

    def pictures(luma: bool) -> np.ndarray:
        return preprocess.pictures(pixels, grid_thw, luma)

    planes = pictures(gate is not None and gate.signal == "luma")
    frames, height, width = planes.shape[:3]
    grid = Grid(height, width, preprocess.patch * preprocess.merge, preprocess.temporal)
    pts = np.arange(frames) * (seconds_per_frame or 1 / UNKNOWN_FPS)
    if gate is None:
        gate_map = GateMap.full(grid.steps(frames), grid.rows, grid.columns)
    else:
        gate_map = gate.gate_planes(planes, pts, grid)
    signals: Cells = {}
    if pathways:
        colour = planes if planes.ndim == 4 else pictures(False)
        for pathway in pathways:
            signals |= pathway.cells(colour, grid)
    seconds = math.nan if seconds_per_frame is None else frames * seconds_per_frame
    return grid, gate_map, pts, seconds, signals


def adapt(preprocess: Preprocessor, patch: int, merge: int = 1, temporal: int = 1) -> Preprocessor:
    """The same normalisation with the patch geometry of a model at hand."""
    return replace(preprocess, patch=patch, merge=merge, temporal=temporal)


def layout_of(clips: list[Clip], keeps: list[np.ndarray] | None = None) -> Layout:
    """Placeholder rows of clips; ``keeps`` bool [T, h, w] where the language model's cells are not the gate's."""
    sent = keeps or [c.gate.sent for c in clips]
    shapes = [k.shape for k in sent]
    layout = Layout.of_grids([(s[0], s[1], s[2]) for s in shapes], [math.nan] * len(clips))
    layout.seconds = [c.seconds for c in clips]
    times = [np.repeat(c.times.astype(np.float32), s[1] * s[2]) for c, s in zip(clips, shapes, strict=True)]
    layout.time = torch.from_numpy(_joined(times))
    layout.run = torch.from_numpy(_joined([run_lengths(k).ravel() for k in sent]))
    return layout


def _joined(parts: list[np.ndarray]) -> np.ndarray:
    return parts[0] if len(parts) == 1 else np.concatenate(parts)  # of one clip no copy: an hour has millions of cells


def kept_index(keeps: list[np.ndarray]) -> Tensor:
    """int64 [K]: numbers of the kept cells over all clips."""
    return torch.from_numpy(np.flatnonzero(_joined([k.ravel() for k in keeps])))


def scene_numbers(clips: list[Clip], keeps: list[np.ndarray]) -> Tensor:
    """int64 [K]: number of the scene of every kept cell; one number is left out between two clips.

    Args:
        keeps: bool [T, ...] of each clip, which of the language model's cells are kept.
    """
    start, parts = 0, []
    for clip, keep in zip(clips, keeps, strict=True):
        scene = clip.gate.scene.astype(np.int64)
        parts.append(np.repeat(start + scene - scene[0], keep.reshape(len(keep), -1).sum(1)))
        start += int(scene[-1] - scene[0]) + 2
    return torch.from_numpy(np.concatenate(parts))


def gate_signals(clips: list[Clip], device: torch.device) -> tuple[Tensor, dict[str, Tensor]]:
    """Run lengths (sizes) of every cell sent, and its signals on the gate's own grid: ``motion`` (gate score),
    ``scene``, and those of pathways."""
    size = np.concatenate([c.gate.runs()[c.gate.sent] for c in clips])
    score = np.concatenate([c.gate.score[c.gate.sent] for c in clips])
    sent = [c.gate.sent for c in clips]
    own = {"motion": torch.from_numpy(score).to(device), "scene": scene_numbers(clips, sent).to(device)}
    return torch.from_numpy(size).float(), own | pathway_signals(clips, sent, device)


def pathway_signals(clips: list[Clip], which: list[np.ndarray], device: torch.device) -> dict[str, Tensor]:
    """Pathway signals of chosen cells of every clip (bool [T, h, w] each): rows by name."""
    names = set(clips[0].signals).intersection(*(c.signals for c in clips)) if clips else set()
    return {
        name: torch.from_numpy(np.concatenate([c.signals[name][w] for c, w in zip(clips, which, strict=True)])).to(
            device
        )
        for name in sorted(names)
    }


def held_steps(clips: Sequence[Clip], hold: bool, reuse: bool) -> list[np.ndarray] | None:
    """With hold, the step whose cell every cell of each clip repeats; None without.

    Raises:
        UnsupportedError: hold where the encoder runs on all patches anyway.
    """
    if hold and reuse:
        raise UnsupportedError("apply=reuse runs the encoder on all patches, so there are none to hold; use hold=off")
    return [c.gate.reference for c in clips] if hold else None


def thinned(out: Encoded, index: Tensor, size: Tensor, signals: dict[str, Tensor]) -> tuple[Tensor, Tensor, dict]:
    """Placeholder rows, sizes and the gate's signals of what is left after the encoder.

    Args:
        index, size, signals: those of the kept cells that entered it.
    """
    if out.group is None or out.index is None:
        return index, size, signals
    fold = Merge(out.group.cpu(), size, ordered=True)
    signals = {name: fold(value.cpu()).to(value.device) for name, value in signals.items()}
    return index[out.index.cpu()], fold.size, signals


def encode_each_once(
    family: Family,
    model: Any,
    clips: list[Clip],
    wants: frozenset[str],
    reuse: bool = False,
    memory: Memory | None = None,
    hold: bool = False,
) -> Features:
    """``Family.encode_clips``, in which a clip that is in several prompts is encoded once.

    Args:
        memory: gives the features of a clip that was encoded for another plan with the same ``hold``.
        reuse, hold: see ``Family.encode_clips``.
    """
    unique = list({id(c): c for c in clips}.values())
    if memory is None and len(unique) == len(clips):
        return family.encode_clips(model, clips, wants, reuse=reuse, hold=hold)

    def one(clip: Clip) -> Features:
        def make() -> Features:
            return family.encode_clips(model, [clip], wants, reuse=reuse, hold=hold)

        return make() if memory is None else memory(clip, wants, make)

    known = {id(c): one(c) for c in unique}
    parts = [known[id(c)] for c in clips]
    if len(parts) == 1:
        return parts[0]
    starts = np.cumsum([0] + [len(p.layout.position) for p in parts])
    return Features(
        torch.cat([p.x for p in parts]),
        torch.cat([p.index + int(start) for p, start in zip(parts, starts, strict=False)]),
        join([p.layout for p in parts]),
        torch.cat([p.size for p in parts]),
        {name: torch.cat([p.signals[name] for p in parts]) for name in parts[0].signals},
        sum(known[id(c)].encoded for c in clips),
    )
