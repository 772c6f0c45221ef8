"""`vtoken bench kernels`: other forms give the same result, rows add up, and bad arguments are refused."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from vtoken.bench.kernels import attention, merging, selection
from vtoken.bench.kernels.case import Case, Form, Setting, Target
from vtoken.bench.kernels.limits import Limits
from vtoken.bench.kernels.profile import Spent
from vtoken.bench.kernels.row import Row, measure_case
from vtoken.bench.kernels.run import CASES, Request, names, run
from vtoken.bench.kernels.table import as_text, cells, render
from vtoken.cli import main as cli
from vtoken.errors import InputError
from vtoken.kernels.kcenter import kcenter

ROOT = Path(__file__).resolve().parents[2]
QUICK = Setting(quick=True)
LIMITS = Limits(1e9, {torch.float32: 2e9})


def last(form: Form | None) -> torch.Tensor:
    """The result of a form's last part."""
    assert form is not None
    return [call() for _, call in form.parts][-1]


@pytest.mark.parametrize("build", [attention.received, attention.cls, attention.varlen, merging.steps])
def test_other_forms_give_the_same(build):
    case = build(QUICK)
    ours = case.run()
    for form in (case.plain, case.published):
        assert torch.allclose(last(form), ours, atol=1e-5)


def test_other_forms_pick_the_same():
    full = Setting(quick=True, full=True)
    for build in (selection.centres, selection.coverage, selection.volume):
        case = build(full)
        assert last(case.plain).tolist() == last(case.published).tolist() == case.run().tolist(), case.op
    case = selection.clusters(QUICK)
    assert torch.equal(last(case.published).label, case.run()[1][0])


def test_the_plain_merges_give_the_same():
    case = merging.merging(QUICK)
    for a, b in zip(case.run(), last(case.plain), strict=True):
        assert torch.allclose(a, b, atol=1e-5)
    case = merging.match_and_merge(QUICK)
    for form in (case.plain, case.published):  # the rows come in another order
        assert torch.allclose(case.run().sort(0).values, last(form).sort(0).values, atol=1e-5)
    case = merging.matching(QUICK)
    gone, to, _ = last(case.plain)
    into = case.run().into[0]
    assert torch.equal(into[2 * gone], 2 * to + 1)


def test_a_row_is_its_cost_over_the_limit(monkeypatch):
    from vtoken.bench.kernels import row as module
    from vtoken.bench.measure import Cost

    times = {"run": 4.0, "plain": 12.0, "first": 1.0, "second": 3.0}
    monkeypatch.setattr(module, "measure", lambda call, *_: (Cost(0.5, times[call()], 2**20), None))
    case = Case(
        "op", "size", lambda: "run", moved=2e9, flops=2e9, plain=Form.of("p", lambda: "plain"),
        published=Form("q", ((1.0, lambda: "first"), (9.0, lambda: "second"))),
        targets=(
            Target("faster", lambda r: r.times("plain"), ">=", 4, "cpu"),
            Target("ms", lambda r: r.ms, "<=", 1, "cuda"),
        ),
    )  # fmt: skip
    row = measure_case(case, Setting(), LIMITS, "wall")
    assert row.ms == 4000 and row.cpu_ms == 500 and row.bandwidth == 5e8 and row.rate == 5e8
    assert row.bound == "copy" and row.share == 0.5  # 2 s at the copy's rate, 1 s at the product's
    assert row.times("plain") == 3 and row.times("published") == 7 and row.times("beside") is None
    assert row.forms["published"]["scaled"] and not row.forms["plain"]["scaled"]
    assert row.verdicts == [(False, "op: faster 3, target >= 4")]
    assert cells(row)[2:] == ["4,000", "0.50", "0.5", "50% copy", "3.0x", "~7.0x", "1.0", "1.0"]
    assert "FAIL  op: faster 3" in as_text([render([row], ["caption"])])
    assert measure_case(case, Setting(), LIMITS, "cpu").ms == 500


def test_published_loops_are_scaled_only_where_the_row_says_so():
    assert not selection.centres(Setting(quick=True, full=True)).published.scaled  # type: ignore[union-attr]
    form = selection.centres(QUICK).published
    assert form is not None and form.scaled and form.parts[1][0] == 16 and "x 16" in form.name


def test_every_public_operation_has_a_row():
    rows = {"kcenter", "greedy_coverage", "greedy_dpp", "received_attention", "cls_attention"}
    rows |= {"adjacent_cosine", "bipartite_match", "merge_tokens", "dpc_knn", "varlen_attention"}
    assert rows < CASES.keys()


def test_the_command_writes_what_it_prints(tmp_path, capsys):
    assert cli.main(["bench", "kernels", "--quick", "--op", "cls_attention,kcenter", "--out", str(tmp_path)]) == 0
    printed, text = capsys.readouterr().out, (tmp_path / "kernels.txt").read_text()
    found = json.loads((tmp_path / "kernels.json").read_text())
    assert [row["op"] for row in found["rows"]] == ["cls_attention", "kcenter"]
    assert found["limits"]["copy"] > 0 and found["clock"] == "wall"
    for op in ("cls_attention", "kcenter"):
        assert op in printed and op in text
    assert "plain: one row of scores a frame" in text


def test_python_m_is_the_command():
    out = subprocess.run(
        [sys.executable, "-m", "vtoken", "bench", "kernels", "-h"], capture_output=True, text=True, cwd=ROOT
    )
    assert out.returncode == 0 and "--device" in out.stdout


def test_end_to_end_runs_at_equal_tokens():
    found = run(Request(QUICK, ("end_to_end",)))
    rows = found["end_to_end"]
    assert [row["model"] for row in rows] == ["qwen2.5-vl-3b"] * 4 + ["qwen3-vl-4b"] * 4
    for none, evs, grt, held in (rows[:4], rows[4:]):
        check_rows(none, evs, grt, held)


def check_rows(none, evs, grt, held):
    assert none["tokens"] == none["stock"] == none["encoded"] == evs["encoded"]
    assert evs["tokens"] == grt["tokens"] < none["tokens"] and grt["encoded"] < grt["stock"]
    assert held["plan"] == "grt" and held["encoded"] < held["stock"]
    for row in (none, evs, grt, held):
        assert row["first_token_ms"] == pytest.approx(sum(row["milliseconds"].values()))
        assert row["milliseconds"]["prefill"] > 0 and row["milliseconds"]["encode"] > 0


def test_the_profile_counts_an_operation_once_by_its_outer_call():
    x = torch.randn(400, 64)
    with Spent() as spent:
        kcenter(x, 50)  # calls other functions of its module
        torch.randn(10).sum()
    assert list(spent.seconds) == ["kcenter.kcenter"] and spent.seconds["kcenter.kcenter"] > 0
    assert sys.getprofile() is None


@pytest.mark.parametrize(
    "arguments, told",
    [
        (["--op", "kcentre"], "known: adjacent_cosine"),
        (["--device", "tpu"], "cpu, cuda or cuda:0"),
        (["--device", "cpu:1"], "cpu, cuda or cuda:0"),
        (["--device", "cuda:99"], "GPU"),
        (["--threads", "0"], "--threads=0"),
    ],
)
def test_bad_arguments_are_refused(arguments, told, capsys):
    assert cli.main(["bench", "kernels", "--quick", *arguments]) == 2
    assert told in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="not applicable: there is a GPU")
def test_a_missing_gpu_is_told():
    with pytest.raises(InputError, match="sees no GPU here; use --device cpu"):
        run(Request(Setting("cuda")))


def test_names_of_options():
    assert names(["a,b", "c", "a"]) == ("a", "b", "c") and names(None) == ()


def test_rows_are_json():
    row = Row("op", "size", "float32", 1.0, 1.0, 0, None, 1.0, 1.0, "copy", 0.5)
    assert json.loads(json.dumps(row.to_dict()))["extra"] is None and cells(row)[-2:] == ["-", "-"]
