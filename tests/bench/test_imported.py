"""Result files of lmms-eval 0.7.3 as a table and a plot."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from vtoken.bench import imported
from vtoken.cli import main as cli
from vtoken.errors import InputError

OURS: dict[str, Any] = {  # of a run of `make test-lmms`, without what is not read
    "results": {"vtoken_dense": {"alias": "vtoken_dense", "exact,none": 0.75, "exact_stderr,none": 0.13}},
    "config": {"model": "vtoken", "model_args": "pretrained=reference,plan=grt | divprune,keep=0.5,fps=4,device=cpu"},
    "throughput": {
        "avg_visual_tokens_full": 128.0,
        "avg_visual_tokens": 61.333333333333336,
        "avg_visual_tokens_kept": 0.4791666666666667,
        "avg_time_to_first_token": 0.21779993708294873,
    },
}
OTHER: dict[str, Any] = {
    "results": {"mvbench": {"acc,none": 0.5, "acc_stderr,none": "N/A"}, "group": {"alias": "group"}},
    "config": {"model": "qwen2_5_vl", "model_args": {"pretrained": "Qwen/Qwen2.5-VL-7B-Instruct"}},
}


def test_scores_tokens_and_arguments_are_those_of_the_runs(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "1_results.json").write_text(json.dumps(OURS))
    (tmp_path / "2_results.json").write_text(json.dumps(OTHER))
    (tmp_path / "2_samples.json").write_text("{}")
    other, own = imported.run([tmp_path], tmp_path / "out")
    assert (own.model, own.task, own.metric, own.value) == ("reference", "vtoken_dense", "exact", 0.75)
    assert own.plan == "plan=grt | divprune,keep=0.5,fps=4"
    assert own.kept == pytest.approx(OURS["throughput"]["avg_visual_tokens_kept"]) and own.first == 0.21779993708294873
    assert other.model.endswith("7B-Instruct") and other.plan == "qwen2_5_vl" and other.kept is other.tokens is None
    lines = (tmp_path / "out" / "scores.md").read_text().splitlines()
    assert len(lines) == 4 and "| 0.7500 | 61.3 | 47.9% | 0.22 |" in lines[3] and r"grt \| divprune" in lines[3]
    assert (tmp_path / "out" / "scores.png").read_bytes().startswith(b"\x89PNG")


def test_the_command_and_what_is_no_result(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a_results.json"
    path.write_text(json.dumps(OTHER))
    assert cli.main(["bench", "import", str(path), "--out", str(tmp_path / "out")]) == 0
    assert "0.5000" in capsys.readouterr().out and not (tmp_path / "out" / "scores.png").exists()
    for text in ("no json", "[]", "{}", '{"results": {}}'):
        path.write_text(text)
        with pytest.raises(InputError, match="not a result file"):
            imported.run([path], tmp_path / "out")
    (tmp_path / "none").mkdir()
    for wrong in (tmp_path / "none", tmp_path / "nowhere"):
        with pytest.raises(InputError):
            imported.run([wrong], tmp_path / "out")
