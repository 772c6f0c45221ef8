"""Fidelity: plans are led along the answer with all tokens, and compared with it token by token."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import vtoken
from tests.families.tiny import model_of, moving_block
from tests.families.tokenizer import tokenizer_of
from vtoken.bench.accuracy_plans import entries
from vtoken.bench.fidelity import Teacher, divergence, measure
from vtoken.bench.fidelity_layers import first_layers, held_from
from vtoken.bench.fidelity_reading import Reading
from vtoken.bench.fidelity_report import captions, table, to_markdown
from vtoken.bench.models import byte_tokenizer, random_model
from vtoken.cli import main as cli
from vtoken.errors import InputError, UnsupportedError, VideoError
from vtoken.families.geometry import geometry
from vtoken.reference import data
from vtoken.video.write import write_video

FAMILIES = ("qwen3_vl", "qwen2_5_vl", "llava_onevision")
PLANS = ("none", "grt", "grt:hold=off", "uniform@grt", "evs keep=0.3")
QUESTIONS = ("what is red?", "what comes first?")
LENGTH = 6


def readings(family: str, length: int = LENGTH) -> list[Reading]:
    model = model_of(family)
    plans = entries(["none", "grt", "grt:hold=off", "uniform@grt", "evs"], [{"keep": 0.3}], ())
    options: dict[str, Any] = {"new_tokens": length, "native_fps": 4}
    return measure([moving_block(8, 84, 112)], plans, [4.0], model, tokenizer_of(model), QUESTIONS, **options)


def asked(family: str, question: str, plan: str, **options: Any) -> vtoken.Answer:
    model = model_of(family)
    plan, _, budget = plan.partition(" keep=")
    keep = {"keep": float(budget)} if budget else {}
    given = keep | {"max_new_tokens": LENGTH, "fps": 4, "native_fps": 4} | options
    return vtoken.ask(model, tokenizer_of(model), moving_block(8, 84, 112), question, plan=plan, **given)


@pytest.mark.parametrize("family", FAMILIES)
def test_plans_agree_up_to_where_their_own_answers_part(family: str) -> None:
    found = readings(family)
    assert [(r.question, r.plan) for r in found] == [(q, p) for q in QUESTIONS for p in PLANS]
    for question in QUESTIONS:
        stock = asked(family, question, "none").tokens.tolist()
        grt = next(r for r in found if (r.question, r.plan) == (question, "grt"))
        for r in (r for r in found if r.question == question):
            own = {"plan": "uniform", "tokens": grt.tokens} if "@" in r.plan else {}
            told = asked(family, question, own.pop("plan", r.plan), **own)  # type: ignore[arg-type]
            same = told.tokens.tolist() == stock
            assert (r.steps, r.same) == (len(stock), same)
            assert (r.tokens, r.encoded, r.stock) == (told.report.tokens, told.report.encoded, told.report.cells)
            assert (r.agree == 1) == same and r.agree <= 1
            if not same and told.tokens[0] == stock[0]:
                assert r.agree > 0
    assert all(r.same and r.kl == pytest.approx(0, abs=1e-6) for r in found if r.plan == "none")
    assert all(r.worst >= r.kl > 1e-7 for r in found if r.plan != "none")


@pytest.mark.parametrize("family", FAMILIES)
def test_the_first_token_is_that_of_the_model(family: str) -> None:
    """Against what the last layer says of the prompt, without a logits processor."""
    found, seen = readings(family, 1), {}
    for plan in PLANS[:3]:
        kept: list[torch.Tensor] = []
        head = model_of(family).get_output_embeddings()
        hook = head.register_forward_hook(lambda *given, kept=kept: kept.append(given[-1][0, -1].float()))
        try:
            asked(family, QUESTIONS[0], plan, max_new_tokens=1)
        finally:
            hook.remove()
        seen[plan] = torch.distributions.Categorical(logits=kept[-1])
    for plan in PLANS[:3]:
        r = next(r for r in found if (r.question, r.plan) == (QUESTIONS[0], plan))
        truth = float(torch.distributions.kl_divergence(seen["none"], seen[plan]))
        assert r.kl == r.worst == pytest.approx(truth, rel=1e-3, abs=1e-6)


@pytest.mark.parametrize("family", ["qwen3_vl", "qwen2_5_vl", "llava_onevision"])
def test_hold_by_layer(family: str) -> None:
    """From layer 0 on it is hold itself where rows stay in their places, and later layers are other ones."""
    model = model_of(family)
    plans = entries(["hold:tau=0.3,second=none,home=start", "uniform:keep=0.5"], [], ())
    given: dict[str, Any] = {"new_tokens": 3, "native_fps": 4, "layers": True}
    clip = moving_block(8, 84, 112)
    found = measure([clip], plans, [4.0], model, tokenizer_of(model), QUESTIONS[:1], **given)
    held, *layers, dropped = found
    assert [r.layer for r in found] == [None, *first_layers(model), None] and len(layers) > 1
    assert held.tokens < held.stock and dropped.plan == "uniform:keep=0.5"
    assert layers[0].kl == pytest.approx(held.kl, rel=1e-3) and layers[0].worst == pytest.approx(held.worst, rel=1e-3)
    assert layers[-1].kl != layers[0].kl > 0
    assert table(found)[2][1].endswith("from layer 1") and any("from layer n" in c for c in captions(found))
    nothing = torch.arange(10)
    with held_from(model, nothing, 0):  # calls of another length stay as they are
        again = measure([clip], plans[1:], [4.0], model, tokenizer_of(model), QUESTIONS[:1], new_tokens=3, native_fps=4)
    assert again[0].kl == pytest.approx(dropped.kl, rel=1e-4)


def test_tokens_that_are_never_said_do_not_count() -> None:
    p = torch.tensor([0.5, 0.5, 0.0]).log()
    assert divergence(p, torch.tensor([0.25, 0.25, 0.5]).log()) == pytest.approx(0.6931, abs=1e-4)
    assert divergence(p, p) == 0
    assert divergence(p, torch.tensor([1.0, 0.0, 0.0]).log()) == float("inf")


def test_tables_are_means(tmp_path: Path) -> None:
    made: dict[str, Any] = {
        "video": "a.mp4",
        "fps": 4.0,
        "stages": "",
        "answer": "",
        "steps": 2,
        "stock": 100,
        "notes": ["cut | here"],
    }
    some: list[tuple[Any, ...]] = [(10, 20, 0.1, 0.2, 0.5, False), (30, 40, 0.3, 0.6, 1.0, True)]
    names = ("tokens", "encoded", "kl", "worst", "agree", "same")
    found = [
        Reading(question=str(i), plan="grt | evs", **made, **dict(zip(names, v, strict=True)))
        for i, v in enumerate(some)
    ]
    assert table(found) == [
        (4.0, "grt | evs", ["20", "20.0", "30.0", "0.0", "0.2000", "0.3000", "0.600", "75.0", "50.0"])
    ]
    assert captions(found)[0].startswith("1 videos, 2 questions") and captions(found)[-1] == "cut | here"
    assert captions([*found, replace(found[0], plan="evs", notes=[])])[-1] == "grt | evs: cut | here"
    rows = [line.replace("\\|", "") for line in to_markdown(found, "x", []).splitlines() if line.startswith("|")]
    assert len(rows) == 3 and len({r.count("|") for r in rows}) == 1


def test_what_makes_no_sense_is_refused() -> None:
    model = model_of("qwen3_vl")
    one = entries(["grt"], [], ())
    clip, words = moving_block(4, 84, 84), tokenizer_of(model)
    for plans, questions, options, told in (
        ([], QUESTIONS, {}, "at least one plan"),
        (one, (), {}, "one question"),
        (one, QUESTIONS, {"new_tokens": 0}, "new_tokens=0"),
    ):
        with pytest.raises(InputError, match=told):
            measure([clip], plans, [4.0], model, words, questions, **options)
    with pytest.raises(VideoError):
        measure(["missing.mp4"], one, [4.0], model, words)
    other = model_of("internvl")
    with pytest.raises(UnsupportedError, match="'evs' drops"):
        measure([clip], one, [4.0], other, tokenizer_of(other))


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    random_model(geometry("qwen2.5-vl-3b")).save_pretrained(tmp_path / "model")
    byte_tokenizer().save_pretrained(tmp_path / "model")
    video = write_video(tmp_path / "clip.mp4", data.clip(1, "validation"))  # type: ignore[arg-type]
    out, _ = tmp_path / "out", capsys.readouterr()
    words = ["bench", "fidelity", str(video), "--model", str(tmp_path / "model"), "--max-new-tokens", "2"]
    assert cli.main([*words, "--out", str(out), "--question", "what?", "--plans", "grt; divprune"]) == 0
    told = capsys.readouterr()
    rows = [json.loads(line) for line in (out / "fidelity.jsonl").read_text().splitlines()]
    assert [(r["video"], r["question"], r["plan"]) for r in rows] == [
        ("clip.mp4", "what?", "grt"),
        ("clip.mp4", "what?", "divprune keep=0.25"),
    ]
    assert "same answer" in told.out and "same answer" in (out / "report.md").read_text() and not told.err
    assert cli.main([*words, "--out", str(out), "--plans", "nothing"]) == 2
    assert "unknown method 'nothing'" in capsys.readouterr().err


def test_the_teacher_leads_whatever_the_model_prefers() -> None:
    led, free, ids = Teacher(torch.tensor([2, 0])), Teacher(), torch.zeros(1, 1, dtype=torch.long)
    for token in (2, 0):
        scores = torch.tensor([[-1.0, 5.0, -9.0]])
        assert led(ids, scores).argmax() == token and torch.equal(free(ids, scores), scores)
    assert torch.equal(led.steps[1], torch.tensor([-1.0, 5.0, -9.0]).log_softmax(0)) and len(free.steps) == 2
