"""Encoding in chunks of time steps gives what one run gives, and no run is larger than asked for."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
import torch

from tests.families.test_hold import LLAVA, NONE, POOLED, QWEN, gated
from vtoken.data.frames import GateMap
from vtoken.data.report import Report
from vtoken.encoders import clip as clip_encoder
from vtoken.encoders import qwen as qwen_encoder
from vtoken.families import chunks
from vtoken.families.features import Features


def watch(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Patches of each run of an encoder from now on."""
    seen: list[int] = []
    for module in (qwen_encoder, clip_encoder):

        def encode(tower: Any, rows: Any, *rest: Any, stock: Any = module.encode, **options: Any) -> Any:
            seen.append(len(rows))
            return stock(tower, rows, *rest, **options)

        monkeypatch.setattr(module, "encode", encode)
    return seen


def alike(one: Features, other: Features) -> None:
    torch.testing.assert_close(one.x, other.x, atol=1e-5, rtol=0)
    assert torch.equal(one.index, other.index) and torch.equal(one.size, other.size)
    assert one.signals.keys() == other.signals.keys() and one.encoded == other.encoded
    for name, value in one.signals.items():
        torch.testing.assert_close(value, other.signals[name], atol=1e-5, rtol=0)


@pytest.mark.parametrize("hold", [False, True], ids=["drop", "hold"])
@pytest.mark.parametrize("name", [*QWEN, *LLAVA, *POOLED])
@torch.no_grad()
def test_chunks_equal_one_run(name: str, hold: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    model, family, _, clip = gated(name)
    small = replace(clip)
    clips = [clip, small] if name not in POOLED else [clip]
    seen = watch(monkeypatch)
    whole = family.encode_clips(model, clips, NONE, hold=hold)
    assert len(seen) == 1
    rows = clip.gate.keep.reshape(len(clip.gate.keep), -1).sum(1) * (len(clip.rows) // int(clip.gate.keep.sum()))
    most = max(int(rows.max()), len(clip.rows) // 3)
    monkeypatch.setattr(chunks, "PATCHES", most)
    cut = family.encode_clips(model, clips, NONE, hold=hold)
    alike(cut, whole)
    assert len(seen) > 1 + len(clips) and max(seen[1:]) <= most


@pytest.mark.parametrize("name", ["qwen2_5_vl", "llava"])
@torch.no_grad()
def test_signals_are_cut_where_nothing_is_held(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, family, _, clip = gated(name)
    seen, wants = watch(monkeypatch), frozenset({"received_attention", "keys"})
    whole = [family.encode_clips(model, [clip], wants, hold=hold) for hold in (False, True)]
    monkeypatch.setattr(chunks, "PATCHES", len(clip.rows) // 2)
    for hold, one in zip((False, True), whole, strict=True):
        before = len(seen)
        alike(family.encode_clips(model, [clip], wants, hold=hold), one)
        assert (len(seen) - before > 1) is not hold


@torch.no_grad()
def test_contents_that_return_are_not_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    """A cell that repeats an older content than the last one: nothing carries that from chunk to chunk."""
    model, family, _, clip = gated("qwen2_5_vl")
    gate = clip.gate
    cell = tuple(np.argwhere(gate.keep[1] & ~gate.keep[2])[0])
    reference = gate.reference.copy()
    reference[(2, *cell)] = 0
    odd = replace(clip, gate=GateMap(gate.keep, reference, gate.scene, gate.score, gate.forced))
    whole = family.encode_clips(model, [odd], NONE, hold=True)
    monkeypatch.setattr(chunks, "PATCHES", len(clip.rows) // 2)
    seen = watch(monkeypatch)
    alike(family.encode_clips(model, [odd], NONE, hold=True), whole)
    assert len(seen) == 1


def test_a_step_is_never_cut_and_still_steps_join_the_one_before() -> None:
    _, _, _, clip = gated("qwen2_5_vl")
    for most in (1, len(clip.rows) // 2, 10 * len(clip.rows)):
        parts = list(chunks.cut(clip, most))
        assert torch.equal(torch.cat([p.rows for p in parts]), clip.rows)
        assert np.array_equal(np.concatenate([p.gate.keep for p in parts]), clip.gate.keep)
        start = 0
        for part in parts:
            own = clip.gate.reference[start : start + len(part.gate.keep)] - start
            assert np.array_equal(part.gate.reference, np.maximum(own, -1))
            assert len(part.rows) <= most or part.gate.keep.reshape(len(part.gate.keep), -1).any(1).sum() == 1
            start += len(part.gate.keep)


@pytest.mark.parametrize("hold", [False, True], ids=["drop", "hold"])
@pytest.mark.parametrize("name", ["qwen2_5_vl", "qwen3_vl", "llava", POOLED[0]])
@torch.no_grad()
def test_a_clip_encoded_while_it_is_read_has_the_chunks_of_the_whole_one(
    name: str, hold: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, family, _, clip = gated(name)
    monkeypatch.setattr(chunks, "PATCHES", len(clip.rows) // 3)
    whole = family.encode_clips(model, [clip], NONE, hold=hold)
    seen = watch(monkeypatch)
    early, report = family.early(model, NONE, hold), Report()
    assert early is not None
    rows = clip.gate.keep.reshape(len(clip.gate.keep), -1).sum(1) * (len(clip.rows) // int(clip.gate.keep.sum()))
    for step, end in enumerate(np.cumsum(rows)):  # one step at a time; references count from the clip's start
        gate = GateMap(*(getattr(clip.gate, f.name)[step : step + 1] for f in fields(GateMap)))
        early.push(replace(clip, rows=clip.rows[end - rows[step] : end], gate=gate), report)
    left, encoded = early.finish(report)
    assert report.milliseconds["encode"] > 0 and len(left) == 0 and encoded is not None and len(seen) > 1
    read = replace(clip, rows=left, encoded=encoded)
    made = family.encode_clips(model, [read], NONE, hold=hold)
    assert torch.equal(made.x, whole.x) and torch.equal(made.index, whole.index)
    assert made.signals.keys() == whole.signals.keys() and made.encoded == whole.encoded
    assert all(torch.equal(made.signals[n], whole.signals[n]) for n in whole.signals)
    two = family.encode_clips(model, [read, clip], NONE, hold=hold)  # beside one whose pixels are there
    assert len(two.x) >= 2 * len(whole.x) - 1 and torch.equal(two.x[: len(whole.index) - 1], whole.x[:-1])


def test_a_short_clip_is_left_to_be_encoded_with_the_others() -> None:
    model, family, _, clip = gated("qwen2_5_vl")
    early, report = family.early(model, NONE, True), Report()
    assert early is not None
    early.push(clip, report)
    left, encoded = early.finish(report)
    assert encoded is None and not report.milliseconds and torch.equal(left, clip.rows)
    assert family.early(model, frozenset({"keys"}), True) is None  # needs the keys of the whole clip
