"""The gate on real clips."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from tests.tokenizers.scenes import BARE, gate
from vtoken.bench.gate import exponent, gate_rows, measure, texts
from vtoken.data.frames import Frames, Grid
from vtoken.errors import InputError


def test_kept_shares_of_a_real_clip_agree_with_the_study(clips: Path) -> None:
    made = gate("grt", noise_cap=1.0, tiny_object=255, **BARE)
    rows = gate_rows([clips / "skv_bigbuckbunny.mp4"], [5, 25], made)
    for row, kept, psnr in zip(rows, (0.563, 0.292), (41, 38), strict=True):
        assert row.kept_later == pytest.approx(kept, abs=0.03) and row.psnr == pytest.approx(psnr, abs=1)
    default = gate_rows([clips / "skv_bigbuckbunny.mp4"], [25])[0]
    assert default.kept_later == pytest.approx(0.292, abs=0.03) and default.frames == 132
    assert 0 < rows[0].alpha == rows[1].alpha < 1
    cells = texts(rows)
    assert len(cells) == 3 and cells[1][0] == "skv_bigbuckbunny.mp4"


def test_rows_count_what_the_map_holds() -> None:
    pixels = np.full((10, 28, 28, 3), 50, np.uint8)
    pixels[4:, :14, :14] = 90
    row = measure(
        [Frames(pixels[:3], np.arange(3) / 5), Frames(pixels[3:], np.arange(3, 10) / 5)],
        gate("grt", **BARE),
        Grid(28, 28, 14, 2),
        "made",
        5,
    )
    assert row.frames == 10 and row.rate == pytest.approx(5) and row.kept == pytest.approx(5 / 20)
    assert row.tokens_per_second == pytest.approx(5 / 2) and math.isinf(row.psnr)
    missed = measure(
        [Frames(pixels, np.arange(10) / 5)], gate("grt", threshold=50, **BARE), Grid(28, 28, 14), "made", 5
    )
    mse = 34**2 * 6 / 40  # luma 59 and 93
    assert missed.kept == 0.1 and missed.psnr == pytest.approx(10 * math.log10(255**2 / mse))
    assert exponent([1, 2, 4], [10, 20, 40]) == pytest.approx(1) and math.isnan(exponent([5], [1]))


def test_rates_a_clip_does_not_have_are_told() -> None:
    frames = Frames(np.zeros((6, 28, 28, 3), np.uint8), np.arange(6) / 5)
    rows = [measure([frames], gate("grt"), Grid(28, 28, 14), "made", fps) for fps in (5, 25, "native")]
    rows.append(measure([Frames(frames.pixels[:1], np.zeros(1))], gate("grt"), Grid(28, 28, 14), "one", 5))
    lines = texts(rows)
    assert lines[2][1] == "25 (has 5)" and lines[3][1] == "native (5)" and lines[4][-2:] == ("nan", "nan")
    assert math.isnan(exponent([5, math.nan], [1, 2])) and exponent([1, math.nan, 2], [1, 9, 2]) == pytest.approx(1)


def test_bench_refuses_what_is_no_gate(street: Path) -> None:
    with pytest.raises(InputError, match="fps is empty"):
        gate_rows([street], [])
    with pytest.raises(InputError, match="no gate"):
        gate_rows([street], [1], "none")
