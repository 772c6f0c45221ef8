"""Accuracy runs: answers are those of ask, runs go on where they stopped, and the sums are right."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

import vtoken
from tests.families.tiny import model_of, moving_block
from tests.families.tokenizer import tokenizer_of
from vtoken.bench import accuracy, accuracy_data, metrics
from vtoken.bench.accuracy_data import Clip, Data, Question
from vtoken.bench.accuracy_plans import Entry, entries
from vtoken.bench.accuracy_plot import plot_fps, plot_tokens
from vtoken.bench.accuracy_records import Record
from vtoken.bench.accuracy_report import NEEDED, captions, print_lines, sheets, to_markdown
from vtoken.bench.accuracy_summary import Line, summarise
from vtoken.bench.models import byte_tokenizer, random_model
from vtoken.cli import main as cli
from vtoken.errors import InputError, UnsupportedError
from vtoken.families.geometry import geometry

FAMILY = "qwen2_5_vl"
PLANS = entries(["grt", "random@grt", "grt | divprune"], [{"keep": 0.5}])
RATES = (2.0, 4.0)
LENGTH = 4


def pixels(seed: int) -> np.ndarray:
    return moving_block(8, 84, 112, seed=seed)


@pytest.fixture(scope="module")
def data() -> Data:
    """Two clips; the first question of each has the answer that the model gives with all tokens at 4 FPS."""
    model, clips = model_of(FAMILY), []
    for seed in range(2):
        texts = [f"what is {word}?" for word in ("red", "left", "first")]
        told = vtoken.ask(
            model, tokenizer_of(model), pixels(seed), texts[0], plan="none", fps=4, native_fps=4, max_new_tokens=LENGTH
        )
        asked = (
            Question("read", texts[0], told.text, 0.5, False),
            Question("read", texts[1], "never", 1.0, True),
            Question("transcribe", texts[2], "a b c"),
        )
        clips.append(Clip(f"clip{seed}", partial(pixels, seed), asked, 4.0))
    return Data("stub", clips, ("read", "transcribe"), ("transcribe",), new_tokens=LENGTH)


def run(data: Data, out: Path, plans: Sequence[Entry] = PLANS, **options: Any) -> list[Line]:
    out.mkdir(exist_ok=True)
    model = model_of(FAMILY)
    return accuracy.measure(data, plans, RATES, model, tokenizer_of(model), name="tiny", out=out, **options)


@pytest.fixture(scope="module")
def made(data: Data, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Line]]:
    out = tmp_path_factory.mktemp("accuracy")
    return out, run(data, out)


def answers(out: Path) -> list[dict[str, Any]]:
    """The lines without what differs from run to run."""
    rows = [json.loads(line) for line in (out / "answers.jsonl").read_text().splitlines()]
    return [{k: v for k, v in r.items() if k != "milliseconds"} for r in rows]


def test_answers_and_tokens_are_those_of_ask(data: Data, made: tuple[Path, list[Line]]) -> None:
    model, rows = model_of(FAMILY), answers(made[0])
    assert len(rows) == 2 * 3 * len(RATES) * len(PLANS)
    grt = {(r["clip"], r["fps"]): r["tokens"] for r in rows if r["plan"] == "grt"}
    texts = {"none": {"plan": "none"}, "random keep=0.5": {"plan": "random", "keep": 0.5}, "grt": {"plan": "grt"}}
    texts |= {f"{name} keep=0.5": {"plan": name, "keep": 0.5} for name in ("uniform", "resize")}
    texts |= {"grt | divprune keep=0.5": {"plan": "grt | divprune", "keep": 0.5}, "random@grt": {"plan": "random"}}
    for r in rows:
        plan = dict(texts[r["plan"]])
        if r["plan"] == "random@grt":
            plan["tokens"] = grt[r["clip"], r["fps"]]
        video = pixels(int(r["clip"][-1]))
        told = vtoken.ask(
            model, tokenizer_of(model), video, r["question"], fps=r["fps"], native_fps=4, max_new_tokens=LENGTH, **plan
        )
        assert (r["answer"], r["tokens"], r["stock"]) == (told.text, told.report.tokens, told.report.cells), r
        assert r["exact"] == float(told.text.lower().split() == r["reference"].lower().split())
        assert r["frames"] == 2 * r["fps"]
    assert any(r["exact"] for r in rows) and not all(r["exact"] for r in rows)
    matched = [r for r in rows if r["plan"] == "random@grt"]
    assert all(r["tokens"] == grt[r["clip"], r["fps"]] for r in matched) and len(set(grt.values())) > 1


def test_plans_share_the_encoder(data: Data, tmp_path: Path) -> None:
    runs: list[int] = []
    hook = model_of(FAMILY).base_model.visual.merger.register_forward_hook(lambda *_: runs.append(1))
    try:
        run(data, tmp_path)
    finally:
        hook.remove()
    assert len(runs) == 1 + len(data.clips) * len(RATES) * 3  # one warms up; without and with the gate, and smaller


def test_the_hint_stands_behind_the_question_and_long_answers_are_cut(data: Data, tmp_path: Path) -> None:
    model = model_of(FAMILY)
    run(data, tmp_path, PLANS[:1], hint="one word", new_tokens=2)
    for r in answers(tmp_path):
        told = vtoken.ask(
            model,
            tokenizer_of(model),
            pixels(int(r["clip"][-1])),
            f"{r['question']} one word",
            plan="none",
            fps=r["fps"],
            native_fps=4,
            max_new_tokens=2,
        )
        assert r["answer"] == told.text and "one word" not in r["question"]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, float]]:
    """What the run asks for, beside really asking it."""
    calls: list[tuple[str, float]] = []

    def counting(*args: Any, **options: Any) -> Any:
        calls.append((str(options["plan"]), options["fps"]))
        return vtoken.ask_many(*args, **options)

    monkeypatch.setattr(accuracy, "ask_many", counting)
    return calls


@pytest.mark.parametrize("torn", ["a line", "a group", "nothing"])
def test_a_run_goes_on_where_it_stopped(
    torn: str, data: Data, made: tuple[Path, list[Line]], tmp_path: Path, asked: list[tuple[str, float]]
) -> None:
    whole = (made[0] / "answers.jsonl").read_text()
    cut = {"a line": len(whole) * 2 // 3, "a group": len("".join(whole.splitlines(True)[:31])), "nothing": len(whole)}
    groups = sum(line.endswith("\n") for line in whole[: cut[torn]].splitlines(True)) // 3
    (tmp_path / "answers.jsonl").write_text(whole[: cut[torn]])
    (tmp_path / "settings.json").write_text((made[0] / "settings.json").read_text())
    lines = run(data, tmp_path)
    missing = 2 * len(RATES) * len(PLANS) - groups
    assert len(asked) == missing + bool(missing)  # one call warms up
    assert sorted(map(str, answers(tmp_path))) == sorted(map(str, answers(made[0])))
    assert [(x.plan, x.fps, x.score) for x in lines] == [(x.plan, x.fps, x.score) for x in made[1]]


def test_more_plans_are_added_to_a_finished_run(data: Data, tmp_path: Path, asked: list[tuple[str, float]]) -> None:
    run(data, tmp_path, PLANS[:3])
    before = len(asked)
    run(data, tmp_path, [*PLANS[:3], *entries(["evs"], [{"keep": 0.25}])[4:]])
    assert {plan for plan, _ in asked[before:]} == {"evs (keep=0.25)"}


def test_the_same_run_twice_says_the_same(data: Data, made: tuple[Path, list[Line]], tmp_path: Path) -> None:
    run(data, tmp_path)
    assert answers(tmp_path) == answers(made[0])


def test_other_settings_questions_or_damage_are_refused(
    data: Data, made: tuple[Path, list[Line]], tmp_path: Path
) -> None:
    for name in ("answers.jsonl", "settings.json"):
        (tmp_path / name).write_text((made[0] / name).read_text())
    with pytest.raises(InputError, match="hint='' this run has hint='x'|hint='', this run has hint='x'"):
        run(data, tmp_path, hint="x")
    other = replace(data, clips=[replace(data.clips[0], questions=data.clips[0].questions[::-1])])
    with pytest.raises(InputError, match="other questions about clip0"):
        run(other, tmp_path)
    text = (tmp_path / "answers.jsonl").read_text().splitlines(True)
    (tmp_path / "answers.jsonl").write_text("".join([*text[:4], "{torn\n", *text[4:]]))
    with pytest.raises(InputError, match="line 5: damaged"):
        run(data, tmp_path)
    assert (tmp_path / "answers.jsonl").read_text().count("{torn") == 1
    (tmp_path / "settings.json").write_text("[")
    with pytest.raises(InputError, match=r"settings.json: damaged"):
        run(data, tmp_path)


def test_line_ends_inside_answers_do_not_tear_the_file(
    data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def odd(*args: Any, **options: Any) -> Any:
        return [replace(a, text="a\u2028b\x85c\nd") for a in vtoken.ask_many(*args, **options)]

    monkeypatch.setattr(accuracy, "ask_many", odd)
    run(data, tmp_path, PLANS[:1])
    before = (tmp_path / "answers.jsonl").read_bytes()
    run(data, tmp_path, PLANS[:1])
    assert (tmp_path / "answers.jsonl").read_bytes() == before


def test_what_cannot_run_is_refused_before_the_first_question(
    data: Data, tmp_path: Path, asked: list[tuple[str, float]]
) -> None:
    with pytest.raises(InputError, match="no clips"):
        run(replace(data, clips=[]), tmp_path)
    with pytest.raises(InputError, match="new_tokens=0"):
        run(data, tmp_path, new_tokens=0)
    other = model_of("internvl")
    with pytest.raises(UnsupportedError, match="'evs' drops"):
        plans = [e for e in PLANS if e.text != "resize"]
        accuracy.measure(data, plans, RATES, other, tokenizer_of(other), name="tiny", out=tmp_path)
    assert not asked


def test_plans_come_with_every_budget_and_after_what_they_copy() -> None:
    found = entries(["random@grt | divprune", "evs:keep=0.3", "none"], [{"keep": 0.1}, {"keep": 0.5}])
    assert [e.name for e in found] == [
        "none",
        "random keep=0.1",
        "random keep=0.5",
        "uniform keep=0.1",
        "uniform keep=0.5",
        "resize keep=0.1",
        "resize keep=0.5",
        "grt | divprune keep=0.1",
        "grt | divprune keep=0.5",
        "random@grt | divprune keep=0.1",
        "random@grt | divprune keep=0.5",
        "evs:keep=0.3",
    ]
    assert found[9].like == "grt | divprune keep=0.1" and str(found[9].plan(9)) == "random (tokens=9)"
    assert found[9].series == found[10].series == "random@grt | divprune"
    assert [e.name for e in entries(["random@grt"], [], ["none"])] == ["none", "grt", "random@grt"]
    assert str(found[1].plan()) == "random (keep=0.1)" and str(found[11].plan()) == "evs:keep=0.3"


@pytest.mark.parametrize(
    ("plan", "told"),
    [
        ("grt@evs", "no stage"),
        ("random@nothing", "unknown method 'nothing'"),
        ("random@", "random@grt"),
        ("a@b@c", "random@grt"),
        ("nothing", "unknown method 'nothing'"),
    ],
)
def test_plans_that_make_no_sense(plan: str, told: str) -> None:
    with pytest.raises(InputError, match=told):
        entries([plan], [{"keep": 0.5}])


def record(clip: str, plan: str, i: int, n: int, q: Question, right: bool) -> Record:
    answer = q.answer if right else "wrong " + q.answer.split()[-1]
    scores = {name: f(answer, q.answer) for name, f in metrics.METRICS.items()}
    told = {"stages": plan, "task": q.task, "question": q.text, "reference": q.answer, "held": q.held, "time": q.time}
    cost = {"stock": 100, "tokens": 10 * len(clip), "encoded": 50, "frames": 8, "milliseconds": {"prefill": 2.0}}
    return Record(clip, plan, 4.0, i, n, answer=answer, **told, **scores, **cost)


@pytest.fixture(scope="module")
def drawn() -> tuple[Data, list[Record], list[Line]]:
    """Made-up answers of 30 clips with 1 to 4 questions; `random keep=0.5` is right more seldom than `none`."""
    rng, clips, records = np.random.default_rng(0), [], []
    chance = {"none": 0.9, "random keep=0.5": 0.5, "uniform keep=0.5": 0.9, "resize keep=0.5": 0.6}
    for c in range(30):
        kinds = rng.choice(["read", "scene", "transcribe"], int(rng.integers(1, 5)))
        asked = tuple(
            Question(str(t), f"q{i}", "a b" if t == "transcribe" else "a", None, t == "scene" or rng.random() < 0.5)
            for i, t in enumerate(kinds)
        )
        clips.append(Clip("c" * (c + 1), lambda: None, asked))
        for plan, p in chance.items():
            right = rng.random(len(asked)) < p
            records += [record("c" * (c + 1), plan, i, len(asked), q, right[i]) for i, q in enumerate(asked)]
    data = Data("made up", clips, ("read", "transcribe", "scene"), ("read", "transcribe"))
    return data, records, summarise(data, entries([], [{"keep": 0.5}]), [4.0], records)


def mean(records: list[Record], metric: str = "exact") -> float:
    tasks = sorted({r.task for r in records})
    return float(np.mean([np.mean([getattr(r, metric) for r in records if r.task == t]) for t in tasks]))


def test_sums_against_plain_means(drawn: tuple[Data, list[Record], list[Line]]) -> None:
    data, records, lines = drawn
    for x in lines:
        mine = [r for r in records if r.plan == x.plan]
        assert x.clips == 30 and x.score.questions == len(mine)
        assert x.score.value == pytest.approx(mean(mine))
        assert {t: s.value for t, s in x.tasks.items()} == pytest.approx(
            {t: mean([r for r in mine if r.task == t]) for t in data.tasks}
        )
        assert x.dense is not None and x.changed is not None and x.held is not None
        assert x.dense.value == pytest.approx(mean([r for r in mine if r.task != "scene"]))
        both = [r for r in mine if r.task != "scene"]  # scene has no changed content, so it counts for neither
        assert x.held.value == pytest.approx(mean([r for r in both if r.held]))
        assert x.changed.value == pytest.approx(mean([r for r in both if not r.held]))
        words = [r for r in mine if r.task == "transcribe"]
        assert {n: s.value for n, s in x.texts.items()} == pytest.approx({n: mean(words, n) for n in metrics.METRICS})
        assert x.tokens == pytest.approx(np.mean([10 * len(c.name) for c in data.clips]))
        assert x.total_ms == pytest.approx(2.0)
        for s in (x.score, *x.tasks.values()):
            assert s.low <= s.value <= s.high


def test_losses_are_paired(drawn: tuple[Data, list[Record], list[Line]]) -> None:
    data, records, lines = drawn
    none, random, uniform, _ = lines
    assert none.loss is None and random.loss is not None and uniform.loss is not None
    assert random.loss.value == pytest.approx(random.score.value - none.score.value) and random.loss.high < 0
    assert uniform.loss.low < 0 < uniform.loss.high
    same = [replace(r, plan="uniform keep=0.5") for r in records if r.plan == "none"]
    kept = [r for r in records if r.plan != "uniform keep=0.5"]
    equal = summarise(data, entries([], [{"keep": 0.5}]), [4.0], kept + same)[2].loss
    assert equal is not None and (equal.value, equal.low, equal.high) == (0, 0, 0)


def test_hard_questions_are_those_that_resizing_fails(drawn: tuple[Data, list[Record], list[Line]]) -> None:
    data, records, (none, random, uniform, resize) = drawn
    right = {(r.clip, r.index) for r in records if r.plan == "none" and r.exact}
    hard = right - {(r.clip, r.index) for r in records if r.plan == "resize keep=0.5" and r.exact}
    assert none.hard is None and resize.hard is not None and resize.hard.value == 0
    for line in (random, uniform):
        mine = [r for r in records if r.plan == line.plan and (r.clip, r.index) in hard]
        assert line.hard is not None and line.hard.questions == len(hard) == len(mine) > 5
        assert line.hard.value == pytest.approx(mean(mine))
    copied = entries(["resize@evs"], [{"keep": 0.5}], ["none"])
    alike = {"none": "none", "evs keep=0.5": "uniform keep=0.5", "resize@evs keep=0.5": "resize keep=0.5"}
    moved = [replace(r, plan=new) for new, old in alike.items() for r in records if r.plan == old]
    assert summarise(data, copied, [4.0], moved)[1].hard == uniform.hard
    without = [r for r in records if r.plan != "resize keep=0.5"]
    assert summarise(data, entries([], [{"keep": 0.5}], ["none", "random"]), [4.0], without)[1].hard is None


def test_shares_of_all_tokens_are_paired(drawn: tuple[Data, list[Record], list[Line]]) -> None:
    data, records, (none, random, uniform, _) = drawn
    assert none.ratio is None and none.worst is None and random.ratio is not None and uniform.ratio is not None
    assert random.ratio.value == pytest.approx(random.score.value / none.score.value) and random.ratio.high < 1
    assert uniform.ratio.low < 1 < uniform.ratio.high
    assert random.worst == pytest.approx(min(random.tasks[t].value / none.tasks[t].value for t in data.tasks))
    same = [replace(r, plan="uniform keep=0.5") for r in records if r.plan == "none"]
    kept = [r for r in records if r.plan != "uniform keep=0.5"]
    equal = summarise(data, entries([], [{"keep": 0.5}]), [4.0], kept + same)[2]
    assert equal.ratio is not None and (equal.ratio.value, equal.ratio.low, equal.ratio.high) == (1, 1, 1)
    assert equal.worst == 1
    wrong = summarise(data, entries([], [{"keep": 0.5}]), [4.0], [replace(r, exact=0.0) for r in records])[1]
    assert wrong.ratio is None and wrong.worst is None


@pytest.mark.parametrize("width", [NEEDED, 200])
def test_tables_fit(
    width: int, drawn: tuple[Data, list[Record], list[Line]], made: tuple[Path, list[Line]], data: Data
) -> None:
    for lines, of in ((drawn[2], drawn[0]), (made[1], data)):
        console = Console(width=width, color_system=None, record=True)
        print_lines(lines, of, console)
        text = console.export_text()
        assert "…" not in text and all(x.plan in text for x in lines)
        assert all(t in text for t in of.tasks) and "similarity" in text
        assert max(map(len, text.splitlines())) <= width


def test_notes_are_shown_once_and_not_without_end(data: Data, made: tuple[Path, list[Line]]) -> None:
    lines = [replace(x, notes=["fell back", *(f"note {i}" for i in range(20))]) for x in made[1]]
    told = captions(lines, data)
    assert told.count("none: fell back") == 1 and told[-1] == f"{21 * len(PLANS) - 8} more notes are in answers.jsonl"
    assert captions(made[1], data)[-1].startswith("hard: questions")


def test_markdown_has_a_line_a_row_and_bars_do_not_end_cells(data: Data, made: tuple[Path, list[Line]]) -> None:
    text = to_markdown(made[1], data, "vtoken bench accuracy", ["model tiny"], ["a.png"])
    table = [line for line in text.splitlines() if line.startswith("| ")]
    assert len(table) == (len(sheets(made[1], data)) + 1) * (1 + len(made[1]))
    for part in text.split("## ")[1:]:
        rows = [line for line in part.splitlines() if line.startswith("|")]
        assert len({line.replace("\\|", "").count("|") for line in rows}) == 1


def test_plots(
    data: Data, drawn: tuple[Data, list[Record], list[Line]], tmp_path: Path, made: tuple[Path, list[Line]]
) -> None:
    many = [replace(x, plan=f"{x.plan} {i}", tokens=x.tokens + 9 * i) for i in range(20) for x in drawn[2]]
    crowd = [replace(x, series=x.plan) for x in many]
    for i, (lines, of) in enumerate([(made[1], data), (many, drawn[0]), (crowd, drawn[0])]):
        for draw in (plot_fps, plot_tokens):
            picture = np.asarray(Image.open(draw(lines, of, tmp_path / f"{i}.png")).convert("RGB"))
            assert min(picture.shape[:2]) > 600 and picture.std() > 10
            assert (picture[:4] == 255).all() and (picture[:, -4:] == 255).all()  # nothing is cut at the edges
    assert [p.name for p in sorted(tmp_path.iterdir())] == ["0.png", "1.png", "2.png"]


def test_two_trainings_have_different_fingerprints() -> None:
    one, other = model_of(FAMILY), model_of(FAMILY, seed=1)
    assert accuracy.fingerprint(one) == accuracy.fingerprint(one) != accuracy.fingerprint(other)


def test_rendered_clips_are_what_ask_takes() -> None:
    found = accuracy_data.rendered("validation", 2, first=5)
    assert [c.name for c in found.clips] == ["validation-000005", "validation-000006"]
    clip = found.clips[0]
    assert clip.source().shape == (64, 112, 112, 3) and clip.native_fps == 16
    assert {q.task for c in found.clips for q in c.questions} <= set(found.tasks)
    assert any(q.held for q in clip.questions) and not all(q.held for q in clip.questions)
    with pytest.raises(InputError, match="clips=0"):
        accuracy_data.rendered("test", 0)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    random_model(geometry("qwen2.5-vl-3b")).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


def test_the_commands(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["bench", "make-data", str(tmp_path / "data"), "--split", "validation", "--clips", "2"]) == 0
    out = tmp_path / "out"
    words = ["bench", "accuracy", "--model", str(checkpoint), "--plans", "grt", "--max-new-tokens", "2"]
    words += ["--clips", "1", "--out", str(out), "--fps", "1,2", "--tokens", "4,8", "--threads", "1"]
    assert cli.main([*words, "--data", str(tmp_path / "data")]) == 0
    told = capsys.readouterr()
    assert {p.name for p in out.iterdir()} == {
        "answers.jsonl",
        "settings.json",
        "summary.jsonl",
        "report.md",
        "accuracy_vs_fps.png",
        "accuracy_vs_tokens.png",
    }
    rows = answers(out)
    assert {r["plan"] for r in rows} == {"none", "random tokens=4", "random tokens=8", "grt"} | {
        f"{name} tokens={n}" for name in ("uniform", "resize") for n in (4, 8)
    }
    assert {r["clip"] for r in rows} == {"validation-000000.mp4"}
    assert all(r["tokens"] == 4 for r in rows if r["plan"] == "random tokens=4")
    assert "1 thread," in (out / "report.md").read_text()
    assert "accuracy by task" in told.out and "vtoken: " not in told.err and "\x1b" not in told.out
    assert json.loads((out / "summary.jsonl").read_text().splitlines()[0])["score"]["questions"] == len(rows) / 16
    bare = [*words[:-1], "1", "--bare", "--out", str(tmp_path / "bare"), "--data", str(tmp_path / "data")]
    assert cli.main(bare) == 0 and {r["plan"] for r in answers(tmp_path / "bare")} == {"none", "grt"}
    capsys.readouterr()
    assert cli.main([*words, "--seed", "3"]) == 2
    assert "data='DenseQA files data'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--data", "{here}"], "no questions.jsonl"),
        (["--data", "{here}", "--seed", "1"], "--split and --seed"),
        (["--clips", "0"], "clips=0"),
        (["--split", "exam"], "split='exam'"),
        (["--plans", "grt@evs"], "no stage"),
        (["--keep", "0.5,2"], "keep=2"),
        (["--out", "{file}"], "not a folder"),
        (["--threads", "0"], "threads=0"),
    ],
)
def test_bad_arguments(
    words: list[str], told: str, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    places = {"here": tmp_path, "file": tmp_path / "file"}
    words = [w.format(**places) for w in words]
    given = ["--model", str(checkpoint), "--out", str(tmp_path / "out")]
    assert cli.main(["bench", "accuracy", *given, *words]) == 2
    err = capsys.readouterr().err
    assert told in err and len(err.strip().splitlines()) == 1


def test_no_list_of_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["bench", "accuracy", "--keep", "much"])
    assert "no list of numbers" in capsys.readouterr().err
