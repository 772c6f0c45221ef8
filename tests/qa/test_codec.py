"""The gate codec behind every way in: a file has packets, and everything else is gated as by grt."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import vtoken
from tests.families.tiny import model_of, moving_block
from tests.families.tokenizer import tokenizer_of
from vtoken.hosts.vllm.plans import gate_of
from vtoken.methods.plan import Plan
from vtoken.video.write import write_video

OPTIONS: dict[str, Any] = {"max_new_tokens": 4, "system": "look"}
EVERY = "packet_threshold=0"  # the same looks as grt


class Film:
    """A block that moves, then rests: frames at 25 a second."""

    size, fps = (56, 84), 25.0

    def __len__(self) -> int:
        return 40

    def frames(self) -> Any:
        moving = moving_block(15, *self.size, seed=3)
        return [*moving, *[moving[-1]] * 25]


@pytest.fixture
def film(tmp_path: Path) -> Path:
    return write_video(tmp_path / "film.mp4", Film(), crf=28)


@pytest.mark.parametrize("name", ["qwen2_5_vl", "llava_onevision"])
@pytest.mark.parametrize("rest", ["", ":hold=off", " | divprune:keep=0.5"])
def test_asking_about_a_file(name: str, rest: str, film: Path) -> None:
    model = model_of(name)
    joint = "," if rest.startswith(":") else ":"
    plans = [f"codec{rest}", f"codec:{EVERY}{joint}{rest.lstrip(':')}".rstrip(":"), f"grt{rest}"]
    plans[1] = plans[1].replace(": |", " |")
    left, every, plain = (
        vtoken.ask(model, tokenizer_of(model), film, "what moves?", plan=p, fps="native", **OPTIONS) for p in plans
    )
    assert every.text == plain.text and every.report.encoded == plain.report.encoded
    assert left.report.encoded <= plain.report.encoded and not any("packets" in n for n in left.report.notes)


def test_chats_many_questions_streams_and_wrapped_models(film: Path) -> None:
    model = model_of("qwen2_5_vl")
    tokenizer, frames = tokenizer_of(model), moving_block(24, 56, 56, seed=3)
    asked: dict[str, Any] = {"native_fps": 4, "fps": "native", **OPTIONS}
    texts, notes = [], []
    for plan in ("codec", "grt"):
        many = vtoken.ask_many(model, tokenizer, frames, ["what moves?", "where?"], plan=plan, **asked)
        chat = vtoken.Chat(model, tokenizer, frames, plan=plan, **asked)
        with vtoken.stream(
            model, tokenizer, ((i / 4, f) for i, f in enumerate(frames)), plan=plan, **OPTIONS
        ) as stream:
            stream.run(until=3.75)
            texts.append([*(a.text for a in many), chat.ask("what moves?").text, stream.ask("what moves?").text])
            notes.append(sum("packets" in note for note in stream.report.notes))
        assert sum("packets" in note for note in many[0].report.notes) == (plan == "codec")
    assert texts[0] == texts[1] and notes == [1, 0]


def test_vllm_gates_as_grt() -> None:
    codec, grt = gate_of("codec:threshold=8"), gate_of("grt:threshold=8")
    assert codec is not None and grt is not None
    assert {n: v for n, v in vars(codec).items() if hasattr(grt, n)} == vars(grt)
    assert [stage.name for stage in Plan.parse("codec").reducers] == [
        stage.name for stage in Plan.parse("grt").reducers
    ]
