"""What wrapping costs when nothing is dropped: generate of a wrapped model (plan "none") over the stock model's.

    python -m benchmarks.overhead                 # a random Qwen2.5-VL of about 100 M weights, 500-token prompt

Stock and wrapped runs alternate, so that a busy machine slows both alike; each ratio is of two runs that stand side by
side, and the median of the ratios is printed. Exits 1 where it is above --limit.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from typing import Any

import torch

import vtoken
from vtoken.bench import machine
from vtoken.bench.models import SPECIAL, VIDEO, VOCAB, Size, random_model
from vtoken.families.geometry import geometry

ABOUT_100M = Size(vision_layers=6, vision=512, text_layers=8, text=768)
STEPS, ROWS, COLUMNS = 4, 20, 20  # patches: 400 cells


def inputs(model: Any, prompt: int) -> dict[str, torch.Tensor]:
    """A prompt of ``prompt`` tokens, 400 of them of one video."""
    generator = torch.Generator().manual_seed(0)
    vision = model.config.vision_config
    width = 3 * vision.temporal_patch_size * vision.patch_size**2
    cells = STEPS * ROWS * COLUMNS // vision.spatial_merge_size**2
    text = torch.randint(len(SPECIAL), VOCAB, (1, prompt - cells), generator=generator)
    ids = torch.cat([text[:, :8], torch.full((1, cells), VIDEO), text[:, 8:]], dim=1)
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "mm_token_type_ids": 2 * (ids == VIDEO).int(),
        "pixel_values_videos": torch.randn(STEPS * ROWS * COLUMNS, width, generator=generator),
        "video_grid_thw": torch.tensor([[STEPS, ROWS, COLUMNS]]),
        "second_per_grid_ts": torch.tensor([1.0]),
    }


def main() -> int:
    """Print the ratio and say whether it is within the limit."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--runs", type=int, default=15, help="pairs of runs (default 15)")
    arguments.add_argument("--prompt", type=int, default=500, help="tokens of the prompt (default 500)")
    arguments.add_argument("--new", type=int, default=32, help="tokens to generate (default 32)")
    arguments.add_argument("--limit", type=float, default=1.03, help="highest ratio that passes (default 1.03)")
    arguments.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    given = arguments.parse_args()

    model = random_model(geometry("qwen2.5-vl-7b"), ABOUT_100M).to(given.device)
    call = {name: value.to(given.device) for name, value in inputs(model, given.prompt).items()}
    options = {"max_new_tokens": given.new, "min_new_tokens": given.new, "do_sample": False}
    cpu = given.device == "cpu"

    def run() -> tuple[float, torch.Tensor]:
        if not cpu:
            torch.cuda.synchronize()
        # on a CPU the process's own time, which other programs disturb less
        clock = time.process_time if cpu else time.perf_counter
        start = clock()
        out = model.generate(**call, **options)
        if not cpu:
            torch.cuda.synchronize()
        return (clock() - start) * 1e3, out

    def run_wrapped() -> tuple[float, torch.Tensor]:
        with vtoken.wrapped(model, "none"):
            return run()

    _, stock_out = run()
    _, wrapped_out = run_wrapped()
    if not torch.equal(stock_out, wrapped_out):
        print("stock and wrapped model generate different tokens")
        return 1
    stock, wrapped = [], []
    for i in range(given.runs):  # the order alternates too
        pair = (run, run_wrapped) if i % 2 == 0 else (run_wrapped, run)
        first, second = pair[0]()[0], pair[1]()[0]
        stock.append(first if i % 2 == 0 else second)
        wrapped.append(second if i % 2 == 0 else first)
    ratio = statistics.median(w / s for s, w in zip(stock, wrapped, strict=True))

    weights = sum(p.numel() for p in model.parameters()) / 1e6
    kind = "CPU time" if cpu else "time"
    print(
        f"random Qwen2.5-VL, {weights:.0f} M weights, prompt {given.prompt}, {given.new} new tokens, {given.runs} pairs"
    )
    print(f"on {machine.describe(given.device)}")
    print(f"stock    {statistics.median(stock):10,.1f} ms {kind}, median of generate")
    print(f"wrapped  {statistics.median(wrapped):10,.1f} ms")
    print(f"ratio    {ratio:10.3f} median of pairs; limit {given.limit:g}")
    return 0 if ratio <= given.limit else 1


if __name__ == "__main__":
    sys.exit(main())
