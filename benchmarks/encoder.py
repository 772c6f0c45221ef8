"""Encoder time on part of the cells, relative to the stock Hugging Face encoder on all of them.

    python -m benchmarks.encoder                  # all towers, 1 and 2 threads, about a minute
    python -m benchmarks.encoder --towers siglip --threads 1 --runs 5
    python -m benchmarks.encoder --device cuda    # a GPU: wall time, bfloat16, 24 frames

Mid-size random towers, CPU time (user and system, all threads), the smallest of several runs, stock and ours in turn.
Kept cells are ragged from frame to frame: drawn at random, or clustered in one block a frame.
"""

from __future__ import annotations

import argparse
import os
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # or a waiting thread counts as CPU time; before torch is imported

import numpy as np
import torch
import transformers
from torch import Tensor

from vtoken.bench import machine
from vtoken.bench.kernels.run import check_device
from vtoken.encoders import clip, qwen
from vtoken.errors import InputError

SHARES = (1.0, 0.5, 0.25, 0.1)
TARGETS = {1.0: 1.02, 0.5: 0.55, 0.25: 0.30, 0.1: 0.15}
LAYERS, WIDTH, HEADS = 8, 384, 6


@dataclass
class Tower:
    """A stock run on everything, and ours on a keep map [T, h, w], with a ``Thinning`` if one is given."""

    what: str
    cells: tuple[int, int, int]
    stock: Callable[[], Any]
    ours: Callable[..., Any]


def clip_tower(name: str, frames: int, device: str, side: int = 24) -> Tower:
    sizes: dict[str, Any] = {"hidden_size": WIDTH, "intermediate_size": 4 * WIDTH, "num_hidden_layers": LAYERS}
    sizes |= {"num_attention_heads": HEADS, "image_size": 14 * side, "patch_size": 14}
    if name == "clip":
        tower: Any = transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**sizes))
    else:
        tower = transformers.SiglipVisionModel(transformers.SiglipVisionConfig(**sizes, vision_use_head=False))
    tower.to(device, dtype_on(device)).eval()
    pixels = torch.randn(frames, 3, 14 * side, 14 * side).to(device, dtype_on(device))

    def ours(keep: np.ndarray, thin: Any = None) -> Any:
        flags = keep.reshape(frames, -1)
        return clip.encode(tower, clip.patches_of(pixels, 14, flags), flags, -1, thin=thin)

    what = f"{frames} frames of {side}x{side} patches of 14 px"
    return Tower(what, (frames, side, side), lambda: tower(pixels, output_hidden_states=[-1]), ours)


def qwen_tower(name: str, steps: int, device: str, side: int = 24) -> Tower:
    sizes: dict[str, Any] = {"depth": LAYERS, "hidden_size": WIDTH, "num_heads": HEADS, "out_hidden_size": 2 * WIDTH}
    if name == "qwen2.5-vl":
        from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLVisionConfig
        from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VisionTransformerPretrainedModel

        config = Qwen2_5_VLVisionConfig(**sizes, intermediate_size=1024, fullatt_block_indexes=[3, 7])
        visual: Any = Qwen2_5_VisionTransformerPretrainedModel(config)
    else:
        from transformers.models.qwen3_vl.configuration_qwen3_vl import Qwen3VLVisionConfig
        from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLVisionModel

        visual = Qwen3VLVisionModel(
            Qwen3VLVisionConfig(**sizes, intermediate_size=4 * WIDTH, deepstack_visual_indexes=[2, 4, 6])
        )
    visual.to(device, dtype_on(device)).eval()
    grid = torch.tensor([[steps, side, side]], device=device)
    patch = visual.config.patch_size
    rows = torch.randn(steps * side * side, 3 * 2 * patch**2).to(device, dtype_on(device))

    def ours(keep: np.ndarray, thin: Any = None) -> Any:
        flags = torch.from_numpy(keep).to(device)
        kept: Tensor = rows.unflatten(0, (-1, 4))[flags.flatten()].flatten(0, 1)
        return qwen.encode(visual, kept, grid, [flags], thin=thin)

    what = f"{steps} steps of 2 frames of {side}x{side} patches of {patch} px, cells of 2x2 patches"
    return Tower(what, (steps, side // 2, side // 2), lambda: visual(rows, grid_thw=grid), ours)


TOWERS: dict[str, Callable[[int, str], Tower]] = {
    "siglip": lambda frames, device: clip_tower("siglip", frames, device),
    "clip": lambda frames, device: clip_tower("clip", frames, device),
    "qwen2.5-vl": lambda frames, device: qwen_tower("qwen2.5-vl", frames, device),
    "qwen3-vl": lambda frames, device: qwen_tower("qwen3-vl", frames, device),
}


def dtype_on(device: str) -> torch.dtype:
    """bfloat16 on a GPU, float32 on a CPU."""
    return torch.float32 if device == "cpu" else torch.bfloat16


def clock_on(device: str) -> float:
    """Seconds: CPU time of this process, or, on a GPU, wall time once it has finished."""
    if device == "cpu":
        return time.process_time()
    torch.cuda.synchronize(device)
    return time.perf_counter()


def keep_map(cells: tuple[int, int, int], share: float, pattern: str) -> np.ndarray:
    """bool [T, h, w] with exactly round(share * T * h * w) cells, 0.4 to 1.6 times the mean in a frame."""
    frames, h, w = cells
    spread = np.linspace(0.4, 1.6, frames) if share <= 0.5 else np.ones(frames)
    counts = np.floor(share * h * w * spread + 0.5).astype(int)
    counts[-1] += round(share * frames * h * w) - counts.sum()
    rng = np.random.default_rng(0)
    keep = np.zeros(cells, bool)
    for frame, count in zip(keep, counts, strict=True):
        score = rng.random((h, w))
        if pattern == "clustered":  # the nearest cells to a point
            y, x = rng.integers(0, h), rng.integers(0, w)
            score = np.hypot(np.arange(h)[:, None] - y, np.arange(w) - x) + 1e-3 * score
        frame.flat[np.argsort(score, axis=None)[:count]] = True
    return keep


def measure(tower: Tower, runs: int, device: str = "cpu") -> tuple[float, dict[str, dict[float, float]]]:
    """Seconds (see ``clock_on``) of the stock tower, and of ours by pattern and share: the smallest of ``runs``."""
    maps = {(p, s): keep_map(tower.cells, s, p) for p in ("random", "clustered") for s in SHARES}
    jobs: dict[Any, Callable[[], Any]] = {"stock": tower.stock}
    jobs |= {key: (lambda keep=keep: tower.ours(keep)) for key, keep in maps.items() if key != ("clustered", 1.0)}
    best = dict.fromkeys(jobs, float("inf"))
    whole: list[Any] = ["stock", ("random", 1.0)]  # measured thrice a run, for its target is the narrowest
    with torch.inference_mode():
        tower.stock()  # warm up
        for _ in range(runs):
            for key in [*whole, *whole, *jobs]:
                start = clock_on(device)
                jobs[key]()
                best[key] = min(best[key], clock_on(device) - start)
    best["clustered", 1.0] = best["random", 1.0]  # one and the same map
    return best["stock"], {p: {s: best[p, s] for s in SHARES} for p in ("random", "clustered")}


def hardware() -> str:
    """CPU model, as the system names it."""
    info = Path("/proc/cpuinfo")
    names = [x for x in info.read_text().splitlines() if x.startswith("model name")] if info.exists() else []
    return names[0].split(":", 1)[1].strip() if names else platform.processor() or platform.machine()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--towers", nargs="+", choices=list(TOWERS), default=list(TOWERS))
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:0")
    args = parser.parse_args()
    try:
        check_device(args.device)
    except InputError as error:
        parser.error(str(error))
    on_cpu = args.device == "cpu"
    threads_of, frames = (args.threads, 3) if on_cpu else ([torch.get_num_threads()], 24)
    where = hardware() if on_cpu else machine.describe(args.device)
    print(f"{where}, torch {torch.__version__}, transformers {transformers.__version__}")
    clock = "float32; CPU time" if on_cpu else "bfloat16; wall time"
    print(f"random towers of {LAYERS} layers, width {WIDTH}, {HEADS} heads, {clock}, least of {args.runs} runs")
    print("columns: kept share of the cells; values: time relative to the stock encoder on all cells\n")
    head = "".join(f"{s:>9.0%}" for s in SHARES)
    print(f"{'encoder':<12}{'threads':>8}{'stock ms':>10}  {'kept cells':<11}{head}   targets")
    print(f"{'':<43}{''.join(f'{TARGETS[s]:>9.2f}' for s in SHARES)}   at most")
    passed = True
    for name in args.towers:
        torch.manual_seed(0)
        tower = TOWERS[name](frames, args.device)
        for threads in threads_of:
            torch.set_num_threads(threads)
            stock, ours = measure(tower, args.runs, args.device)
            for pattern, seconds in ours.items():
                ratio = {s: seconds[s] / stock for s in SHARES}
                held = all(ratio[s] <= TARGETS[s] for s in SHARES)
                passed &= held
                cells = "".join(f"{ratio[s]:>9.3f}" for s in SHARES)
                verdict = "pass" if held else "FAIL"
                print(f"{name:<12}{threads:>8}{stock * 1e3:>10.0f}  {pattern:<11}{cells}   {verdict}", flush=True)
        print(f"{'':<12}{tower.what}")
    print("\nall targets hold" if passed else "\nsome targets do not hold")
    return 0 if passed else 1


if __name__ == "__main__":
    raise SystemExit(main())
