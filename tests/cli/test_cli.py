"""The command as a user runs it: exit codes, one-line errors, and output that can be read and parsed."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import threading
from dataclasses import fields
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

import vtoken
from tests.catalogue import SCORER
from tests.video.made import remux
from vtoken.bench.models import byte_tokenizer, random_model
from vtoken.cli import main as cli
from vtoken.families import FAMILIES
from vtoken.families.geometry import geometry
from vtoken.methods.registry import get, names
from vtoken.reference.synthetic import render
from vtoken.video.write import write_video


@pytest.fixture(scope="session")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_video(tmp_path_factory.mktemp("clip") / "slides.mp4", render("slides", 2.0, 10.0, (112, 168)))


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    random_model(geometry("qwen2.5-vl-3b")).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    code = cli.main(list(words))
    out, err = capsys.readouterr()
    return code, out, err


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """The message of a command that must fail with exit code 2 and one line."""
    code, out, err = run(capsys, *words)
    lines = err.strip().splitlines()
    assert code == 2 and out == "" and len(lines) == 1, (code, out, err)
    assert lines[0].startswith("vtoken: error: ")
    return lines[0].removeprefix("vtoken: error: ")


def test_python_m_vtoken_is_the_command() -> None:
    told = subprocess.run([sys.executable, "-m", "vtoken", "--version"], capture_output=True, text=True, check=True)
    assert told.stdout.strip() == f"vtoken {vtoken.__version__}"


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["nothing"],
        ["bench"],
        ["bench", "x.mp4", "--fps", "0"],
        ["bench", "x.mp4", "--fps", "nan"],
        ["bench", "x.mp4", "--fps", "1,,x"],
        ["ask", "x.mp4"],
        ["ask", "x.mp4", "why?", "--model", "m", "--keep", "0.5", "--tokens", "7"],
    ],
)
def test_wrong_arguments_exit_with_2(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main(words)
    assert stop.value.code == 2
    assert "usage: vtoken" in capsys.readouterr().err


def test_methods_lists_every_method(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "methods")
    listed = {line.split()[0] for line in out.splitlines() if line.startswith(" ") and line.split()}
    assert code == 0 and set(names()) <= listed
    assert not any(line.endswith(" ") for line in out.splitlines())
    heads = {line.split("(")[1].split(")")[0] for line in out.splitlines() if line[:1].isupper() and "(" in line}
    assert {get(name).kind for name in names()} <= heads and "inner" in heads
    row = {line.split()[0]: line for line in out.splitlines() if line.startswith(" ") and line.split()}
    assert "you may give frame_scores" in row["quota"] and "you may give" not in row["evs"]


JEPA = "jepa_surprise:encoder=tiny"


@pytest.mark.parametrize("family", list(FAMILIES))
def test_methods_of_a_family_agree_with_wrap(family: str, capsys: pytest.CaptureFixture[str]) -> None:
    from vtoken.cli.table import verdict
    from vtoken.engine.check import check
    from vtoken.errors import UnsupportedError
    from vtoken.methods.gate import Gate
    from vtoken.methods.plan import Plan
    from vtoken.methods.registry import get

    assert run(capsys, "methods", "--family", family)[0] == 0
    for name in [*names("gate"), *names("pruner"), *names("merger"), *names("pathway")]:
        method = get(name)
        text = f"mad | {name}" if method.needs & Gate.gives else name
        text = text.replace("jepa", "jepa:encoder=tiny", 1) if name == "jepa" else text
        alone = {"surprise": f"{JEPA} | surprise", "jepa_surprise": JEPA, "learned": f"learned:weights={SCORER}"}
        text = alone.get(name, text)
        budget = {"keep": 0.5} if getattr(method, "needs_budget", False) else {}
        try:
            check(Plan.parse(text, **budget), FAMILIES[family])
            runs = True
        except UnsupportedError:
            runs = False
        assert verdict(method, FAMILIES[family]).startswith("yes" if runs else "no: "), name


def test_methods_shows_one_with_its_options(capsys: pytest.CaptureFixture[str]) -> None:
    for name in names():
        code, out, _ = run(capsys, "methods", name)
        assert code == 0 and out.startswith(f"{name}: ") and "\nexample  vtoken ask" in out
        for field in fields(get(name)):
            row = next(line for line in out.splitlines() if re.search(rf"^([\w, ]*, )?{field.name}[, ]", line))
            assert len(row.split()) > 2, f"{name}: no meaning is given for {field.name}"
    assert "did you mean grt" in refused(capsys, "methods", "GRT")
    assert "without the name" in refused(capsys, "methods", "grt", "--family", "qwen3_vl")


def test_methods_tells_of_the_fallback(capsys: pytest.CaptureFixture[str]) -> None:
    line = next(x for x in run(capsys, "methods", "--family", "qwen3-vl-8b")[1].splitlines() if x.startswith(" cls "))
    assert "received attention" in line
    assert "unknown family 'qwen9'" in refused(capsys, "methods", "--family", "qwen9")


def test_ask_answers_and_reports(clip: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["ask", str(clip), "What changes?", "--model", str(checkpoint), "--fps", "4", "--max-new-tokens", "3"]
    code, out, err = run(capsys, *words)
    assert code == 0 and out.endswith("\n") and "plan    grt" in err and "tokens" in err
    code, out, _ = run(capsys, *words, "--plan", "grt | divprune", "--keep", "0.2", "--json")
    told = json.loads(out)
    assert code == 0 and set(told) > {"answer", "model", "cells", "tokens", "milliseconds"}
    assert told["tokens"] == round(0.2 * told["cells"])


def as_json(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    code, out, err = run(capsys, *words, "--json")
    assert code == 0 and err == ""
    return json.loads(out)


def test_ask_says_what_is_shown_again_and_every_note_once(
    clip: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["ask", str(clip), "What changes?", "--model", str(checkpoint), "--fps", "30", "--max-new-tokens", "1"]
    _, _, err = run(capsys, *words)
    assert err.count("fps=30 is above the clip's own") == 1 and "vtoken: " not in err
    on, off = as_json(capsys, *words), as_json(capsys, *words, "--hold", "off")
    assert (
        on["held"] > 0 and f"held    {on['held']:,} of {on['cells']:,} (" in err and "shown again, not computed" in err
    )
    assert on["held"] + on["tokens"] == on["cells"] and on["notes"] == off["notes"]
    assert off["held"] == 0 and "hold=False" in off["plan"]
    assert "held" not in run(capsys, *words, "--hold", "off")[2]
    assert as_json(capsys, *words, "--plan", "mad", "--hold", "on")["held"] > 0


def test_ask_leaves_what_was_not_given_to_the_checkpoint(
    clip: Path, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = tmp_path / "own"
    shutil.copytree(checkpoint, own)
    path = own / "generation_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"max_new_tokens": 3}))
    words = ["ask", str(clip), "What changes?", "--fps", "4", "--model"]
    told = as_json(capsys, *words, str(checkpoint), "--max-new-tokens", "3")["answer"]
    assert as_json(capsys, *words, str(own))["answer"] == told
    assert as_json(capsys, *words, str(own), "--max-new-tokens", "6")["answer"] != told


def test_ask_takes_a_system_text_and_a_limit_of_frames(
    clip: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["ask", str(clip), "Why?", "--model", str(checkpoint), "--max-new-tokens", "1", "--plan", "none"]
    plain, system = as_json(capsys, *words), as_json(capsys, *words, "--system", "Be brief.")
    assert system["prompt"] >= plain["prompt"] + len("Be brief.") and system["cells"] == plain["cells"]
    few = as_json(capsys, *words, "--max-frames", "2")
    assert len(few["frames"][0]) == 2 < len(plain["frames"][0]) and "max_frames=2" in few["notes"][0]


def test_ask_opens_an_address_only_where_it_is_asked_to(
    clip: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    handler = partial(SimpleHTTPRequestHandler, directory=str(clip.parent))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        words = [f"http://127.0.0.1:{server.server_port}/{clip.name}", "Why?", "--model", str(checkpoint)]
        assert "only with --network" in refused(capsys, "ask", *words)
        code, out, _ = run(capsys, "ask", *words, "--network", "--max-new-tokens", "2", "--json")
        server.shutdown()
    file = as_json(capsys, "ask", str(clip), *words[1:], "--max-new-tokens", "2")
    assert code == 0 and json.loads(out)["answer"] == file["answer"] and json.loads(out)["cells"] == file["cells"]


def test_ask_says_once_that_a_video_is_damaged(
    clip: Path, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = write_video(tmp_path / "made.mp4", render("objects", 4.0, 10.0, (112, 168)))
    whole, cut = remux(made, tmp_path / "whole.mkv"), tmp_path / "cut.mkv"
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    _, _, err = run(capsys, "ask", str(cut), "Why?", "--model", str(checkpoint), "--max-new-tokens", "1")
    assert err.count("cut.mkv") == 1 and "\nnote " in err and "vtoken: " not in err


def test_ask_refuses(clip: Path, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = ["--model", str(checkpoint)]
    assert "QUESTION is empty" in refused(capsys, "ask", str(clip), " ", *model)
    assert "no such file" in refused(capsys, "ask", str(tmp_path / "no.mp4"), "why?", *model)
    assert "unknown method 'grtt'" in refused(capsys, "ask", str(clip), "why?", *model, "--plan", "grtt")
    assert "needs a budget" in refused(capsys, "ask", str(clip), "why?", *model, "--plan", "divprune")
    assert "keep=1.5" in refused(capsys, "ask", str(clip), "why?", *model, "--plan", "divprune", "--keep", "1.5")
    assert "no gate that skips" in refused(capsys, "ask", str(clip), "why?", *model, "--plan", "none", "--hold", "on")
    both = ["--plan", "grt | hold:tau=0.1", "--hold", "off"]
    assert "has the stage hold" in refused(capsys, "ask", str(clip), "why?", *model, *both)
    assert "past the end" in refused(capsys, "ask", str(clip), "why?", *model, "--start", "9")
    assert "backend='vlc'" in refused(capsys, "ask", str(clip), "why?", *model, "--backend", "vlc")
    assert "must be at least 1" in refused(capsys, "ask", str(clip), "why?", *model, "--max-new-tokens", "0")
    assert "device='gpu'" in refused(capsys, "ask", str(clip), "why?", *model, "--device", "gpu")
    assert "dtype='int8'" in refused(capsys, "ask", str(clip), "why?", *model, "--dtype", "int8")
    assert "did you mean 'reference'" in refused(capsys, "ask", str(clip), "why?", "--model", "referense")
    assert "knows the rendered clips of DenseQA" in refused(capsys, "ask", str(clip), "Who won?")
    assert "no config.json" in refused(capsys, "ask", str(clip), "why?", "--model", str(tmp_path))
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    assert "'gpt2', which vtoken does not know" in refused(capsys, "ask", str(clip), "why?", "--model", str(tmp_path))
    (tmp_path / "config.json").write_text('{"model_type": "llava"}')
    assert "weights cannot be loaded" in refused(capsys, "ask", str(clip), "why?", "--model", str(tmp_path))


def test_watch_tells_events_and_reports(clip: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["watch", str(clip), "Is it red?", "--model", str(checkpoint), "--up", "0", "--down", "0", "--every", "0.2"]
    code, out, err = run(capsys, *words)
    assert code == 0 and out.count("\n") == 1 and "begins  Is it red?" in out
    assert "frames  " in err and "policy pyramid" in err
    code, out, err = run(capsys, *words, "--json", "--until", "1")
    event, report = (json.loads(line) for line in out.splitlines())
    assert code == 0 and event["kind"] == "begins" and report["asked"] == 2 and report["sampled"] < 8


def test_watch_refuses_before_the_weights_are_read(clip: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["watch", str(clip), "Is it red?", "--model", "no such folder"]
    assert "down" in refused(capsys, *words, "--down", "0.9")
    assert "--until" in refused(capsys, *words, "--until", "-1")
    assert "unknown method" in refused(capsys, *words, "--plan", "nothing_of_the_kind")
    assert "DenseQA" in refused(capsys, *words[:-1], "reference")


def test_bench_refuses_before_it_works(clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = ["--out", str(tmp_path / "report")]
    assert "did you mean qwen2.5-vl-7b" in refused(capsys, "bench", str(clip), "--model", "qwen2.5-vl-8b", *out)
    assert "unknown method 'dviprune'" in refused(capsys, "bench", str(clip), "--plans", "dviprune", *out)
    assert "--plans is empty" in refused(capsys, "bench", str(clip), "--plans", " ; ", *out)
    assert "keep=0.0" in refused(capsys, "bench", str(clip), "--keep", "0", *out)
    text = tmp_path / "text.mp4"
    text.write_text("not a video")
    assert str(text) in refused(capsys, "bench", str(text), *out)
    assert "not a folder" in refused(capsys, "bench", str(clip), "--out", str(text))
    assert not list(tmp_path.glob("report/*"))


def test_bench_gate_prints_a_row_for_each_rate_and_gate(clip: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "bench", "gate", str(clip), "--fps", "2,5", "--gates", "grt; mad:threshold=3")
    heads = [line for line in out.splitlines() if line.startswith("clip ")]
    rows = [line for line in out.splitlines() if line.split()[:1] == [clip.name] or line.split()[:1] == ["5"]]
    assert code == 0 and len(heads) == 2 and len(rows) == 4


def test_ctrl_c_exits_with_130(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("vtoken.cli.table.print_methods", interrupt)
    assert run(capsys, "methods") == (130, "", "vtoken: interrupted\n")
