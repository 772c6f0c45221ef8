"""What a run looks like: snippet, CSV, HTML, and the overlay of its cells."""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.demos.runs import last, run_of, values
from vtoken.data.report import STAGES, CellState
from vtoken.demos import choices, records, views
from vtoken.demos.handlers import Handlers
from vtoken.demos.overlay import overlay
from vtoken.demos.runner import Runner

# records and views


def test_the_snippet_repeats_the_run(runner: Runner, upload: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = last(Handlers(runner).ask("a", values(upload, reducer="divprune", end=1.5), False))
    monkeypatch.chdir(upload.parent)
    names: dict[str, Any] = {}
    exec(compile(found["script"], "snippet.py", "exec"), names)
    told = json.loads(found["report"])[0]
    assert names["answer"].text == told["answer"]
    assert names["answer"].report.tokens == told["report"]["tokens"]


def test_csv_has_no_formulas_and_html_no_foreign_tags(loaded: tuple[Any, Any], clip: Path) -> None:
    run = run_of(loaded, clip)
    run.answer.text = "=1+1<script>"
    assert "'=1+1" in records.to_csv([run])
    for shown in (views.cards(run, run, "<i>"), views.table([run], ("plan", "answer")), views.headline(run, run)):
        assert "<script>" not in shown and "<i>" not in shown


def test_methods_inside_the_language_model_show_what_they_save(loaded: tuple[Any, Any], clip: Path) -> None:
    run = run_of(loaded, clip, plan="grt:hold=off | llavolta:layer=0,keep=0.5")
    flops, cache = run.answer.report.flops, run.answer.report.cache
    assert flops and cache
    shown = views.card(run, "", 1.0, None)
    assert f"<dt>Prefill FLOPs</dt><dd>{100 * flops:.1f} %" in shown
    assert f"<dt>KV cache</dt><dd>{100 * cache:.1f} %" in shown
    assert "KV cache" not in views.card(run_of(loaded, clip), "", 1.0, None)


def test_another_answer_is_told_before_the_speed(loaded: tuple[Any, Any], clip: Path) -> None:
    run, full = run_of(loaded, clip), run_of(loaded, clip)
    assert "faster" in views.headline(run, full) or "as fast" in views.headline(run, full)
    full.answer.text = "another answer"
    shown = views.headline(run, full)
    assert shown.index("Not the answer of all tokens") < shown.index("fast") and "vt-wrong" in shown


def test_a_table_has_the_truth_and_no_column_of_zeros(loaded: tuple[Any, Any], clip: Path) -> None:
    run = run_of(loaded, clip)
    columns = ("plan", "answer", *STAGES)
    shown = views.table([run], columns, truth="7")
    assert "pathway ms" not in shown and "gate ms" in shown
    assert '<th scope="col" class="vt-c-truth">truth</th>' in shown and ">7</small>" in shown
    assert "truth" not in views.table([run], columns)


def test_the_page_shows_every_stage(loaded: tuple[Any, Any], clip: Path) -> None:
    run = run_of(loaded, clip)
    shown = views.cards(run, None)
    assert all((f"</i>{stage}</th>" in shown) == bool(run.answer.report.milliseconds.get(stage)) for stage in STAGES)
    assert f"{run.total:,.1f}" in shown
    style = (Path(views.__file__).parent / "assets" / "style.css").read_text()
    assert all(f".vt-{stage} {{ background" in style for stage in STAGES)


# overlays


def unpacked(value: dict[str, Any]) -> np.ndarray:
    return np.frombuffer(base64.b64decode(value["states"]), np.uint8).reshape(value["shape"])


@pytest.mark.parametrize("plan", ["none", "grt", "grt:hold=off", "grt | divprune", "divprune", "dpc_knn"])
def test_the_overlay_counts_what_the_report_counts(loaded: tuple[Any, Any], clip: Path, plan: str) -> None:
    run = run_of(loaded, clip, plan=plan, **choices.budget(plan, "keep", 0.05))
    value = overlay(clip, run.answer, None, None)
    states, report = unpacked(value), run.answer.report
    counts = {state.name.lower(): int((states == state).sum()) for state in CellState}
    assert counts == value["counts"]
    assert counts["kept"] == report.tokens and states.size == report.cells
    held = plan.startswith("grt") and "off" not in plan
    assert (counts["held"] > 0) == held and counts["held"] == run.held
    if not held:
        assert counts["skipped"] == report.cells - report.encoded
    if plan == "grt":
        assert counts["skipped"] == counts["dropped"] == counts["merged"] == 0
    assert (counts["merged"] > 0) == (plan == "dpc_knn")
    assert (counts["dropped"] > 0) == ("divprune" in plan)
    assert len(value["images"]) == len(value["times"]) == states.shape[0]
    assert np.mean(value["share"]) == pytest.approx(report.tokens / report.cells, abs=1e-5)


def test_a_cell_is_new_where_its_content_came_and_shown_again_behind_it(loaded: tuple[Any, Any], clip: Path) -> None:
    answer = run_of(loaded, clip).answer
    new, encoded = answer.cell_state == CellState.KEPT, answer.clip.gate.keep
    assert new[0].all() and not new[1:].all(axis=(1, 2)).any()
    second = new[1:] & ~encoded[1:]  # a second row follows the first by a step
    assert (new[:-1] & encoded[:-1])[second].all()
    assert (new & ~encoded).sum() < (new & encoded).sum()


def test_cells_that_are_shown_again_have_words_and_a_colour_of_their_own(loaded: tuple[Any, Any], clip: Path) -> None:
    run = run_of(loaded, clip)
    assert run.held > 0 and f"<dt>Shown again</dt><dd>{run.held:,}<" in views.card(run, "", 1.0, None)
    dropped = run_of(loaded, clip, plan="grt:hold=off")
    assert "Shown again" not in views.card(dropped, "", 1.0, None)  # no figure of zero
    assets = Path(views.__file__).parent / "assets"
    legend, style = (assets / "player.html").read_text(), (assets / "style.css").read_text()
    names = [state.name.lower() for state in CellState]
    for name in names:
        assert f'data-state="{name}"><i class="vt-l-{name}">' in legend and f"--vt-{name}: #" in style
    colours = [re.search(rf"--vt-{name}: (#\w+)", style)[1] for name in names]  # type: ignore[index]
    assert len(set(colours)) == len(names) and "shown again, not computed" in legend


def test_the_overlay_marks_cuts_and_shows_the_part_that_was_asked(loaded: tuple[Any, Any], tmp_path: Path) -> None:
    from vtoken.reference.synthetic import render
    from vtoken.video.write import write_video

    path = write_video(tmp_path / "cut.mp4", render("cut", 6.0, 10.0, (112, 168)))
    run = run_of(loaded, path, start=1.0)
    value = overlay(path, run.answer, 1.0, None)
    assert value["cuts"] == pytest.approx([2.0, 4.0], abs=0.11)
    assert value["times"][0] == pytest.approx(1.0, abs=0.05) and len(value["images"]) == len(value["times"])
