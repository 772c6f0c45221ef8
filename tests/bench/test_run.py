"""`vtoken bench` on rendered clips: exact token counts, what is shared between plans, and the files it writes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

import vtoken
from vtoken import families
from vtoken.bench import run as bench
from vtoken.bench.checkpoint import measure_model
from vtoken.bench.models import byte_tokenizer, random_model
from vtoken.bench.pipeline import Encoder, run_pass
from vtoken.bench.plot import panels
from vtoken.bench.rows import Row, columns, measured, print_rows, to_markdown
from vtoken.families.geometry import GEOMETRIES, geometry
from vtoken.methods.plan import Plan
from vtoken.reference.synthetic import render
from vtoken.video.write import write_video

SIZE = (112, 168)
PLANS = ["mad", "mad | divprune", "evs:keep=0.5", "grt"]
ONE_A_FAMILY = {g.family: g.name for g in reversed(GEOMETRIES.values())}


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_video(tmp_path_factory.mktemp("clip") / "objects.mp4", render("objects", 3.0, 10.0, SIZE))


@pytest.fixture(scope="module")
def rows(clip: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Row]:
    out = tmp_path_factory.mktemp("out") / "report"
    return bench.run([str(clip)], [2, 5], PLANS, "qwen2.5-vl-7b", {"keep": 0.25}, out=out, command=f"to {out}")


def test_baselines_stand_beside_and_counts_are_exact(rows: list[Row]) -> None:
    assert [r.plan for r in rows[:8]] == ["none", "random", "uniform", "resize", *PLANS]
    assert [r.fps for r in rows] == [2] * 8 + [5] * 8
    found = {(r.fps, r.plan): r for r in rows}
    for fps in (2, 5):
        none = found[fps, "none"]
        frames = 3 * fps
        assert none.frames == frames and none.seconds == pytest.approx(3.0)
        columns_, rows_ = map(int, none.grid.split("x"))
        assert none.tokens == none.stock == -(-frames // 2) * columns_ * rows_
        quarter = int(0.25 * none.stock + 0.5)
        assert found[fps, "random"].tokens == found[fps, "uniform"].tokens == quarter
        small = found[fps, "resize"]  # 6 x 4 cells become 3 x 2
        assert small.stock == none.stock and small.tokens == quarter and small.encoded == 0.25
        assert found[fps, "evs:keep=0.5"].tokens == int(0.5 * none.stock + 0.5)
        gated = found[fps, "mad"]
        assert gated.tokens == round(gated.encoded * gated.stock) < none.stock
        assert found[fps, "mad | divprune"].tokens == min(quarter, gated.tokens)


def test_costs_follow_what_is_kept(rows: list[Row]) -> None:
    model = geometry("qwen2.5-vl-7b")
    for r in rows:
        assert any("random weights" in note for note in r.notes) == (
            r.plan == "grt"
        )  # the others count pixels or budgets
        seen = r.stock if r.plan == "grt" else r.tokens  # rows attend to every slot
        assert r.prefill_tflop == model.prefill_flops(r.tokens, seen) / 1e12
        assert min(r.decode_ms, r.gate_ms, r.encode_ms) > 0
        width, height = map(int, r.grid.split("x"))
        everything = np.ones((-(-r.frames // 2), height, width), bool)
        assert r.encoder_tflop is not None
        if r.plan.startswith(("grt", "mad")):
            assert 0 < r.encoder_tflop < model.encoder_flops(everything) / 1e12
        else:
            assert r.encoder_tflop == model.encoder_flops(everything) / 1e12


def test_held_rows_are_those_of_a_run(clip: Path) -> None:
    """Second rows count, as in the report of the model itself."""
    plans = ["grt:tau=0.001,second=0", "grt:tau=0.001,second=none", "hold:tau=0.001,second=0.01"]
    job = bench.Job.of([clip], [10], plans, {"keep": 0.5}, end=1.0)
    rows = {r.plan: r for r in bench.measure(job, geometry("qwen2.5-vl-3b"))}
    model = random_model(geometry("qwen2.5-vl-3b"))
    for plan in plans:
        told = vtoken.ask(model, byte_tokenizer(), clip, "what?", plan=plan, fps=10, end=1.0, max_new_tokens=1).report
        assert (rows[plan].tokens, rows[plan].stock) == (told.tokens, told.cells), plan
        assert rows[plan].encoded == told.encoded / told.cells
    assert rows[plans[0]].tokens > rows[plans[1]].tokens


def test_markdown_has_a_line_a_row_and_bars_do_not_end_cells(rows: list[Row]) -> None:
    text = to_markdown(rows, "vtoken bench", None)
    table = [line for line in text.splitlines() if line.startswith("| ")]
    assert len(table) == 1 + len(rows)
    assert len({line.replace("\\|", "").count("|") for line in table}) == 1


def test_everything_is_written(clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = bench.run([clip], [1], ["none"], "llava-onevision-0.5b", {"keep": 0.5}, out=tmp_path / "a" / "b", end=2.0)
    out = capsys.readouterr().out
    assert {p.name for p in (tmp_path / "a" / "b").iterdir()} == {"bench.jsonl", "tokens_vs_fps.png", "report.md"}
    lines = [json.loads(x) for x in (tmp_path / "a" / "b" / "bench.jsonl").read_text().splitlines()]
    assert [x["plan"] for x in lines] == ["none", "random", "uniform"] == [r.plan for r in made]
    assert lines[0]["notes"][0] == "resize left out: vtoken cannot make the frames of this family smaller"
    assert all(x["tokens"] == 196 * x["frames"] * x["share"] for x in lines)
    assert lines[0]["machine"] and "random encoder" in lines[0]["encoder"]
    picture = np.asarray(Image.open(tmp_path / "a" / "b" / "tokens_vs_fps.png").convert("RGB"))
    assert min(picture.shape[:2]) > 300 and picture.std() > 5
    assert "tokens_vs_fps.png" in (tmp_path / "a" / "b" / "report.md").read_text()
    assert "measured on" in out and "computed for the full size of llava-onevision-0.5b" in out
    assert "\x1b" not in out and "━" not in out


@pytest.mark.parametrize("name", ONE_A_FAMILY.values(), ids=list(ONE_A_FAMILY))
def test_chunks_of_an_ungated_pass_are_the_whole_clip(name: str, clip: Path) -> None:
    model = random_model(geometry(name))
    family = families.of(model)
    encoder = Encoder(family, model, family.preprocess(model))
    passed = run_pass(clip, 5, Plan(), encoder, end=1.5, chunk=3)
    at_once = run_pass(clip, 5, Plan(), encoder, end=1.5, chunk=64)
    assert torch.equal(passed.tokens.position, at_once.tokens.position)
    torch.testing.assert_close(passed.tokens.x, at_once.tokens.x, atol=1e-5, rtol=1e-4)
    again = run_pass(clip, 5, Plan.parse("mad:threshold=0"), encoder, end=1.5)
    assert passed.stock == again.stock == geometry(name).tokens(passed.grid.height, passed.grid.width, passed.frames)
    assert passed.keep.all() and len(passed.tokens) == passed.stock
    steps = passed.grid.steps(passed.frames)
    assert passed.tokens.position[:, 0].unique().tolist() == list(range(steps))
    shared = [tuple(p) for p in again.tokens.position.tolist()]
    place = {tuple(p): i for i, p in enumerate(passed.tokens.position.tolist())}
    assert set(shared) <= set(place)
    assert torch.equal(again.tokens.time, passed.tokens.time[[place[p] for p in shared]])


def test_the_same_name_twice_stays_apart(tmp_path: Path) -> None:
    paths = []
    for i, scene in enumerate(("objects", "pan")):
        (tmp_path / str(i)).mkdir()
        paths.append(write_video(tmp_path / str(i) / "clip.mp4", render(scene, 0.5, 4.0, (64, 64))))
    job = bench.Job.of(paths, [2, 4.1, 8], ["none"], {"keep": 0.5}, end=0.6)
    assert job.clips == {str(p): (p, [2, 4.1]) for p in paths}
    assert all(note == f"{p}: fps 8 left out: above the clip's own 4" for p, note in zip(paths, job.notes, strict=True))
    assert bench.Job.of(paths[:1], [9, 8], [], {"keep": 0.5}).clips == {"clip.mp4": (paths[0], [9])}
    assert len(bench.measure(job, geometry("qwen3-vl-2b"))) == 2 * 2 * 4


def test_a_model_is_measured_itself(clip: Path) -> None:
    job = bench.Job.of([clip], [4], ["grt"], {"keep": 0.5}, end=1.0)
    model = random_model(geometry("qwen2.5-vl-3b"))
    rows = measure_model(job, model, byte_tokenizer(), "tiny")
    assert [r.plan for r in rows] == ["none", "random", "uniform", "resize", "grt"]
    assert rows[0].tokens == rows[0].stock and rows[1].tokens == rows[2].tokens == rows[0].stock // 2
    assert all(r.prefill_ms and r.generate_ms for r in rows) and "M weights" in rows[0].encoder
    told = vtoken.ask(model, byte_tokenizer(), clip, "what?", plan="grt", fps=4, end=1.0, max_new_tokens=1).report
    assert set(told.milliseconds) == set(rows[-1].stages_ms())  # no stage of the run is left out of the total
    assert all(min(r.stages_ms()[stage] for r in rows) > 0 for stage in ("decode", "prepare", "encode"))
    assert "vtoken" not in vars(model)
    assert [title.splitlines()[0] for title, _ in panels(rows)][1:] == ["measured, ms:"] * 2
    assert (
        panels(rows)[2][0].split("\n", 1)[1].replace("\n", " ")
        == measured(rows)
        == ("decode + gate + prepare + encode + reduce + prefill + generate")
    )


def test_the_picture_says_what_is_measured_and_what_is_computed(rows: list[Row]) -> None:
    titles, values = zip(*panels(rows), strict=True)
    assert titles[1] == "computed for qwen2.5-vl-7b, TFLOP:\nprefill"
    assert titles[2].startswith("measured on a small random encoder, ms:\n")
    assert titles[2].replace("\n", " ").endswith("encode + reduce; no language model is run")
    gated = next(r for r in rows if r.plan == "mad | divprune")
    assert [value(gated) * gated.seconds for value in values] == pytest.approx(
        [gated.tokens, gated.prefill_tflop, gated.total_ms]
    )
    assert gated.total_ms == pytest.approx(
        gated.decode_ms + gated.gate_ms + gated.prepare_ms + gated.encode_ms + gated.reduce_ms
    )


@pytest.mark.parametrize("width", [80, 120, 200])
def test_the_table_fits_the_terminal(rows: list[Row], width: int, capsys: pytest.CaptureFixture[str]) -> None:
    console = Console(width=width, force_terminal=True, color_system=None, record=True)
    print_rows(rows, console)
    text = console.export_text()
    assert "…" not in text
    assert all(f"{r.tokens:,}" in text and r.plan in text for r in rows)
    heads = [c.head for c in columns(rows, width - 6)]
    assert {"plan", "kept", "encode", "total"} <= set(heads)
    assert ("decode" in heads) == (width == 200)
