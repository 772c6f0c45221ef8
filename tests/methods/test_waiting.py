"""No method after the encoder waits for a device once a frame, and none needs float64 there."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from tests.catalogue import MERGERS, OWN_COUNT, PRUNERS, Row, label
from tests.device import Device
from tests.tokens import SIGNALS, TEXT, WIDTH, same
from vtoken.data.budget import Budget
from vtoken.data.tokens import Tokens
from vtoken.kernels import precision
from vtoken.kernels.topk import counts, others
from vtoken.methods import registry
from vtoken.methods.reducer import Context, Reducer
from vtoken.pruners import mmtok

MOST = 60
# the weights of a scorer are on a real device
ROWS = [row for row in [*PRUNERS, *MERGERS, *OWN_COUNT] if row["name"] != "learned"]
ALL_FRAMES = {"dycoke-exact=True"}  # the published rule needs more than four frames


@pytest.fixture(autouse=True)
def _asks_every_device() -> Iterator[None]:
    precision.widest.cache_clear()
    yield
    precision.widest.cache_clear()


def clip(frames: int, signals: list[str], height: int = 2, width: int = 2) -> Tokens:
    """Frames of a gate: the first step of every scene of seven is whole, the others lack cells."""
    g = torch.Generator().manual_seed(frames)
    keep = torch.rand(frames, height * width, generator=g) < 0.6
    keep[:, 0] = keep[::7] = True
    step, cell = keep.nonzero().unbind(1)
    position = torch.stack([step, cell // width, cell % width], 1)
    made = {s: torch.randn((len(step), *SIGNALS.get(s, ())), generator=g).abs() for s in signals}
    if "scene" in made:
        made["scene"] = step // 7
    return Tokens.of(torch.randn(len(step), WIDTH, generator=g), position, step / 2.0, **made)


def reduced(row: Row, tokens: Tokens, device: Device | None = None) -> Tokens:
    method = registry.build(row["name"], **row["options"])
    assert isinstance(method, Reducer)
    text = TEXT if device is None else device.put(TEXT)
    return method.reduce(
        tokens, Budget(keep=0.15) if method.needs_budget else None, Context(text=[text], seconds=[9.0])
    )


def check(row: Row, frames: int, *grid: int) -> None:
    tokens, device = clip(frames, row["signals"], *grid), Device(double=False)
    with device:
        out = reduced(row, device.put(tokens), device)
    assert device.count <= MOST, device.reads.most_common(5)
    assert {v.device for v in (out.x, out.position, out.source, out.batch)} == {device.device}
    wanted = reduced(row, tokens)
    assert torch.equal(device.look(out.source), wanted.source)
    torch.testing.assert_close(device.look(out.x), wanted.x)


@pytest.mark.parametrize("row", ROWS, ids=label)
def test_one_frame_and_many(row: Row) -> None:
    if label(row) not in ALL_FRAMES:
        check(row, 1)
    check(row, 62)


@pytest.mark.slow
@pytest.mark.parametrize("row", ROWS, ids=label)
def test_six_hundred_frames(row: Row) -> None:
    check(row, 600, 3, 4)


def test_the_device_counts_what_makes_the_host_wait() -> None:
    with Device() as device:
        x = device.put(torch.tensor([3.0, 1.0, 2.0]))
        y = (x * 2).sort().values  # nothing is read
        assert device.count == 0
        found = [float(y[0]), y.tolist(), bool((x > 1).all()), len(x[x > 1]), len(x.nonzero()), x.cpu().numpy().sum()]
        assert found == [2.0, [2.0, 4.0, 6.0], False, 2, 3, 6.0]
        assert device.count == 6
    with Device(double=False) as single, pytest.raises(TypeError, match="no float64"):
        single.put(torch.ones(2)).double()


def test_others_and_counts() -> None:
    assert others(torch.tensor([4, 0, 2]), 6).tolist() == [1, 3, 5]
    assert others(torch.arange(0), 2).tolist() == [0, 1]
    assert counts(torch.tensor([1, 1, 3]), 5).tolist() == [0, 2, 0, 1, 0]


def test_mmtok_in_strips_picks_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    row: Row = {"name": "mmtok", "options": {}, "signals": []}
    tokens = clip(40, [])
    whole = reduced(row, tokens)
    monkeypatch.setattr(mmtok, "WHOLE", 10)
    monkeypatch.setattr(mmtok, "STRIP", 300)
    assert same(reduced(row, tokens), whole)
