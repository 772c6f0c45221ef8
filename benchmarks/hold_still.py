"""How far held keys and values are from the stock model's, layer by layer, on a clip that stands still.

    python -m benchmarks.hold_still                              # the reference model, a minute
    python -m benchmarks.hold_still --model FOLDER --out FILE

Every clip is one frame of DenseQA, shown for four seconds at 16 frames a second. The stock model computes all of its
cells; under ``grt`` those of the first step alone, in the middle of their run, and all others are held. The number is
the difference of what attention finds at the video's columns, relative to its size (root mean square), mean over clips.
In layer 0 both are the same but for rounding. In deeper layers a held cell's state is that of its row: it has not seen
the steps since.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vtoken.bench import machine
from vtoken.engine.hold.cache import HoldCache
from vtoken.engine.hold.inputs import hold_inputs
from vtoken.engine.prepare import prepare
from vtoken.families.compat import handed
from vtoken.output.files import write_text
from vtoken.qa.api import questions_of
from vtoken.qa.load import load
from vtoken.reference import data

FPS = 16


def filled(model: Any, processor: Any, frames: Any, plan: str) -> tuple[Any, Tensor, int]:
    """The filled cache of a prompt, which of its columns are the video's, and how many of these are rows."""
    asked = questions_of(model, processor, frames, ["What"], plan=plan, fps=FPS, native_fps=FPS)
    call = asked.call(0, 1)
    ready = prepare(call, asked.inputs(0, 1), generating=False)
    given = ready.inputs
    if ready.hold is not None:
        given = hold_inputs(model, given, ready.hold, ready.stock["position_ids"])
    cache = model.base_model(**handed(model.base_model, given | {"use_cache": True})).past_key_values
    return cache, ready.stock["input_ids"][0] == model.config.video_token_id, call.report.tokens


@torch.no_grad()
def difference(model: Any, processor: Any, picture: np.ndarray) -> list[tuple[float, float]]:
    """Relative difference of keys and of values by layer.

    Raises:
        AssertionError: the plan did not hold.
    """
    frames = np.repeat(picture[None], 4 * FPS, 0)
    full, visual, _ = filled(model, processor, frames, "none")
    held, _, rows = filled(model, processor, frames, "grt")
    assert isinstance(held, HoldCache) and rows < int(visual.sum())

    def apart(a: Tensor, b: Tensor) -> float:
        a, b = a[:, :, visual], b[:, :, visual]
        return float((a - b).norm() / a.norm())

    pairs: Any = zip(full.layers, held.layers, strict=True)
    return [(apart(f.keys, h.keys), apart(f.values, h.values)) for f, h in pairs]


def table(model: Any, processor: Any, clips: int, seed: int = 0) -> str:
    """One line a layer."""
    found = [difference(model, processor, data.clip(seed + i, "validation").pixels[0]) for i in range(clips)]
    keys, values = np.array(found).mean(0).T
    lines = ["layer  keys     values"]
    lines += [f"{i:<5d}  {k:.1e}  {v:.1e}" for i, (k, v) in enumerate(zip(keys, values, strict=True))]
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    about = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="python -m benchmarks.hold_still", description=__doc__, formatter_class=about)
    parser.add_argument("--model", default="reference")
    parser.add_argument("--clips", type=int, default=20)
    parser.add_argument("--out", type=Path, help="write the table here too")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    model, processor = load(args.model, "cpu", "float32")
    head = f"{type(model).__name__}, {args.clips} still clips, {FPS} fps; {machine.describe('cpu')}"
    text = f"{head}\n\n{table(model, processor, args.clips)}\n"
    print(text)
    if args.out is not None:
        write_text(args.out, text)


if __name__ == "__main__":
    main()
