"""Report: sums, text and JSON."""

from __future__ import annotations

import json
import pickle
import time

import pytest
import torch

from vtoken.data import report as report_module
from vtoken.data.report import STAGES, Report
from vtoken.errors import InputError


def test_the_whole_comes_first_then_counts_then_stages_and_every_note_once():
    report = Report("grt | divprune", cells=1000, encoded=300, tokens=250, prompt=290, peak_bytes=2**30)
    report.frames, report.sizes, report.held = [[0.0, 0.5, 1.0, 1.5]], [(588, 448)], 600
    report.add("prefill", 1234.56)
    report.add("gate", 1.0)
    report.add("gate", 1.5)
    report.add("reduce", 0.04)
    report.note("frame cap 768 bound")
    report.notes.append("frame cap 768 bound")
    assert str(report).splitlines() == [
        "total   1.24 s;  4 frames at 2 fps of 588x448 pixels",
        "plan    grt | divprune",
        "tokens  250 of 1,000 (25.0%) reach the language model",
        "encoded 300 of 1,000 (30.0%)",
        "held    600 of 1,000 (60.0%) shown again, not computed",
        "prompt  290 tokens with the text;  peak memory 1,024 MiB",
        "stage   gate  prefill",
        "ms       2.5  1,234.6",
        "note    frame cap 768 bound",
    ]
    told = json.loads(json.dumps(report.to_dict()))
    assert told["milliseconds"] == {"prefill": 1234.56, "gate": 2.5, "reduce": 0.04}
    assert report.to_dict()["sizes"] == told["sizes"] == [[588, 448]] and told["held"] == 600


def test_a_report_fits_sixty_columns():
    report = Report("grt", cells=123_456, encoded=99_999, tokens=88_888, held=34_568, prompt=90_000, peak_bytes=2**36)
    report.frames, report.sizes = [[i / 30 for i in range(1000)]], [(1288, 728)]
    for i, stage in enumerate(STAGES):
        report.add(stage, 9999.9 + i)
    lines = str(report).splitlines()
    assert max(len(line) for line in lines if not line.startswith("note")) <= 60
    assert [word for line in lines if line.startswith("stage") for word in line.split()[1:]] == list(STAGES)
    assert [word for line in lines if line.startswith("ms") for word in line.split()[1:]] == [
        f"{9999.9 + i:,.1f}" for i in range(len(STAGES))
    ]


def test_every_video_has_its_frames_rate_and_size():
    report = Report(frames=[[0.0, 0.1, 0.2], [4.0], [0.0, 0.0]], sizes=[(28, 56), (84, 84)])
    assert report.videos() == ["3 frames at 10 fps of 28x56 pixels", "1 frame of 84x84 pixels", "2 frames"]


def test_an_empty_report_prints():
    assert str(Report()).splitlines() == [
        "total   0 ms",
        "plan    none",
        "tokens  0 of 0 reach the language model",
        "encoded 0 of 0",
        "prompt  0 tokens with the text;  peak memory 0 MiB",
    ]


def test_a_stage_counts_also_when_it_fails():
    report = Report()
    with pytest.raises(RuntimeError), report.stage("encode"):
        time.sleep(0.002)
        raise RuntimeError
    assert report.milliseconds["encode"] >= 2
    with pytest.raises(InputError, match="unknown stage 'encod'"):
        report.add("encod", 1.0)


def test_peak_memory_of_the_process():
    report = Report()
    report.measure_memory("cpu")
    assert report.peak_bytes > 50 * 2**20


def test_a_pathway_tells_whether_it_paid():
    assert Report(cells=100).payoff is None
    report = Report(cells=100, encoded=80, tokens=30, prompt=50, milliseconds={"prefill": 10.0, "pathway": 9.0})
    assert report.payoff == "the pathway took 9 ms; 50 tokens fewer saved about 10 ms of prefill: it paid"
    report.milliseconds["pathway"] = 11.0
    assert str(report).endswith("it did not pay") and report.to_dict()["payoff"] == report.payoff


class Event:
    """A mark in a GPU's queue, whose time is known once it is waited for."""

    def __init__(self, ms: float, waited: list[float]) -> None:
        self.ms, self.waited = ms, waited

    def synchronize(self) -> None:
        self.waited.append(self.ms)

    def elapsed_time(self, end: Event) -> float:
        return end.ms - self.ms


def test_a_gpu_is_waited_for_when_the_times_are_read(monkeypatch):
    waited: list[float] = []
    marks = iter([Event(1.0, waited), Event(4.0, waited), Event(5.0, waited), Event(7.5, waited)])
    monkeypatch.setattr(report_module, "_mark", lambda device: next(marks))
    report = Report()
    with report.stage("encode", "cuda"):
        pass
    with report.stage("encode", "cuda"):
        pass
    assert not waited
    assert pickle.loads(pickle.dumps(report)).milliseconds == report.milliseconds == {"encode": 5.5}
    assert waited == [4.0, 7.5]
    with pytest.raises(InputError, match="unknown stage"):
        report.add("encoding", 1.0)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_times_of_a_gpu():
    report = Report()
    with report.stage("encode", "cuda"):
        torch.randn(2048, 2048, device="cuda").matmul(torch.randn(2048, 2048, device="cuda"))
    assert 0 < report.milliseconds["encode"] < 60_000
