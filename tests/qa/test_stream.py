"""Streams: the answers of a file that ends at this moment, bounded memory, and events when something turns."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

import vtoken
from tests.families.tiny import model_of, moving_block
from tests.families.tokenizer import tokenizer_of
from vtoken.errors import InputError, UnsupportedError
from vtoken.qa.stream.watch import Watch, probability_of_yes, yes_and_no
from vtoken.video.live import Counters, Live
from vtoken.video.live.items import Lost
from vtoken.video.source import Picture

EXACT = "grt:hold=off,merge=none,run_position=start"
NAMES = ["qwen2_vl", "qwen2_5_vl", "llava_onevision", "llava_next_video"]  # their grid is that of a file of any length
FAST = {"qwen2_5_vl", "llava_onevision"}
MOST = [n if n in FAST else pytest.param(n, marks=pytest.mark.slow) for n in NAMES]
SLOW = pytest.mark.slow
OPTIONS: dict[str, Any] = {"max_new_tokens": 4, "system": "look"}


def video(frames: int = 24, rest: int | None = None) -> np.ndarray:
    out = moving_block(frames, 56, 56, seed=3)
    if rest is not None:
        out[rest:] = out[rest]
    return out


def timed(frames: np.ndarray, fps: float = 4) -> Iterator[tuple[float, np.ndarray]]:
    return ((i / fps, frame) for i, frame in enumerate(frames))


def stream_of(name: str, frames: np.ndarray, **options: Any) -> vtoken.Stream:
    model = model_of(name)
    given: dict[str, Any] = OPTIONS | {"plan": "grt"} | options
    return vtoken.stream(model, tokenizer_of(model), timed(frames), **given)


def of_file(name: str, frames: np.ndarray, question: str, plan: str) -> vtoken.Answer:
    model = model_of(name)
    return vtoken.ask(model, tokenizer_of(model), frames, question, plan=plan, native_fps=4, fps="native", **OPTIONS)


@pytest.mark.parametrize("plan", ["none", EXACT])
@pytest.mark.parametrize("name", MOST)
def test_an_answer_is_that_of_the_file_up_to_this_moment(name: str, plan: str) -> None:
    frames = video()
    with stream_of(name, frames, plan=plan) as s:
        s.run(until=3.75)
        early = s.ask("what moves?")
        again = s.ask("what moves?")
        s.run()
        late = s.ask("what moves?")
    assert early.as_of == 3.75 and late.as_of == 5.75
    assert early.tokens.tolist() == again.tokens.tolist()
    assert early.tokens.tolist() == of_file(name, frames[:16], "what moves?", plan).tokens.tolist()
    assert late.tokens.tolist() == of_file(name, frames, "what moves?", plan).tokens.tolist()


def test_the_length_of_chunks_changes_nothing() -> None:
    found = []
    for chunk in (0.5, 1.0, 2.5):
        with stream_of("qwen3_vl", video(rest=12), chunk=chunk) as s:
            s.run()
            found.append((s.ask("what moves?").tokens.tolist(), s.report.cached, s.report.computed))
    assert found[0] == found[1] == found[2] and len(found[0][0]) == 4


@pytest.mark.parametrize(
    "policy", ["pyramid", "tar_van", *(pytest.param(p, marks=SLOW) for p in ("fifo", "random", "proxy", "recall"))]
)
def test_the_cache_stays_within_its_limit(policy: str) -> None:
    with stream_of("qwen3_vl", video(80), policy=policy, tokens=96) as s:
        head, most = s.state.stored, 0
        for until in range(1, 21):
            s.run(until=float(until))
            most = max(most, s.report.cached)
        assert s.ask("what moves?").text == s.ask("what moves?").text
        report = s.report
    assert head < most <= head + 96 and report.evicted > 0 and report.nbytes > 0
    assert report.seen == report.sampled == 80 and report.seconds == pytest.approx(19.75)
    assert 0 < report.computed < report.cells and report.gated > 0


def test_what_left_cannot_be_told_any_more() -> None:
    """A cache of few tokens answers from other states than a whole one; one that is large enough does not."""
    answers = []
    for tokens in (64, 4096, 8192):
        with stream_of("qwen2_5_vl", video(), tokens=tokens) as s:
            s.run()
            answers.append(s.state.logits(torch.tensor([60, 61])))
    assert torch.equal(answers[1], answers[2]) and (answers[0] - answers[1]).abs().max() > 1e-3


def test_lowered_positions_change_no_answer() -> None:
    for name in ("qwen2_5_vl", "qwen3_vl"):
        with stream_of(name, video()) as s:
            s.run(until=3.0)
            before = s.state.logits(torch.tensor([60, 61]))
            s.memory.shift(s.state.cache, 500)
            s.state.lower(500)
            torch.testing.assert_close(s.state.logits(torch.tensor([60, 61])), before, atol=1e-4, rtol=1e-4)
            s.run()
            lowered = s.state.logits(torch.tensor([60, 61]))
        with stream_of(name, video()) as s:
            s.run()
            torch.testing.assert_close(lowered, s.state.logits(torch.tensor([60, 61])), atol=1e-4, rtol=1e-4)


def test_positions_are_lowered_before_they_reach_the_models_last() -> None:
    model = vtoken_model("qwen3_vl", 400)
    with vtoken.stream(model, tokenizer_of(model), timed(video(80)), tokens=64, fps=4) as s:
        tops = []
        for until in range(1, 21):
            s.run(until=float(until))
            tops.append(s.state.clock.next)
    assert max(tops) <= 400 and min(np.diff(tops)) < 0


def vtoken_model(name: str, positions: int) -> Any:
    from tests.families.tiny import FAMILIES

    model = FAMILIES[name].build()
    model.config.get_text_config(decoder=True).max_position_embeddings = positions
    return model


def test_a_watch_turns_with_hysteresis() -> None:
    watch = Watch("the door is open", every=1.0)
    told = [watch.told(t, p) for t, p in enumerate([0.9, 0.6, 0.8, 0.9, 0.5, 0.3, 0.8])]
    assert told == [None, None, None, "begins", None, "ends", None] and watch.asked == 7


def test_a_watch_is_asked_only_when_something_changed() -> None:
    frames = video(64, rest=16)  # still from 4 s on
    with stream_of("qwen3_vl", frames) as s:
        watch = s.watch("it moves", every=0.5, up=1.0, asks=1)
        s.run(until=5.0)
        moving = watch.asked
        s.run()
        assert 4 <= moving <= 10 and watch.asked <= moving + 1
    with stream_of("qwen3_vl", frames) as s:
        often = s.watch("it moves", every=0.5, up=0.0, down=0.0, asks=1)
        events = s.run()
        assert [e.kind for e in events] == ["begins"] and often.true
        assert events[0].time < 1 and len(events[0].frames) and events[0].frames[-1][0] == events[0].time


def test_the_probability_of_a_watch_is_that_of_the_first_token() -> None:
    model, name = model_of("qwen2_5_vl"), "qwen2_5_vl"
    words = yes_and_no(tokenizer_of(model))
    with stream_of(name, video(), plan="none") as s:
        s.run()
        found = s.probability("is it red?")
    rows: list[torch.Tensor] = []
    hook = model.get_output_embeddings().register_forward_hook(lambda _, __, out: rows.append(out[0, -1]))
    try:
        of_file(name, video(), "is it red?", "none")
    finally:
        hook.remove()
    assert found == pytest.approx(probability_of_yes(rows[0], words), abs=1e-5)
    assert 0 < found < 1


def test_questions_are_answered_while_a_thread_reads() -> None:
    half, go = threading.Event(), threading.Event()

    def source() -> Iterator[tuple[float, np.ndarray]]:
        for at, frame in timed(video()):
            if at == 4.0:
                half.set()
                assert go.wait(60)
            yield at, frame

    model = model_of("qwen3_vl")
    with vtoken.stream(model, tokenizer_of(model), source(), plan="grt", fps=4, **OPTIONS) as s:
        s.watch("it moves", up=0.0, down=0.0)
        s.start()
        assert half.wait(60)
        while s.report.seconds < 3:
            time.sleep(0.01)
        early = s.ask("what moves?")
        go.set()
        events = list(s)
        assert s.wait(60) and [e.kind for e in events] == ["begins"]
        late = s.ask("what moves?")
    assert early.as_of is not None and early.as_of < 4 and late.as_of == 5.75


class Broken:
    """A source that is lost once and comes back."""

    returns, paced, stamped, name = True, False, False, "broken"

    def __init__(self) -> None:
        self.connections = 0

    def pictures(self, counters: Counters) -> Iterator[Picture]:
        self.connections += 1
        for frame in video(8):
            yield Picture(None, lambda frame=frame: frame)
        raise Lost("the cable was pulled")


def test_a_gap_is_an_event_and_the_stream_goes_on() -> None:
    model, broken = model_of("qwen3_vl"), Broken()
    with vtoken.stream(model, tokenizer_of(model), Live(broken), **OPTIONS) as s:
        event = next(iter(s))
        assert event.kind == "gap" and "cable" in str(event)
        s.run(until=event.time + 0.5)
        assert s.report.gaps >= 1 and broken.connections >= 2


def test_errors_of_a_thread_are_raised_where_events_are_taken() -> None:
    def source() -> Iterator[tuple[float, Any]]:
        yield 0.0, video()[0]
        yield 1.0, "no frame"

    model = model_of("qwen3_vl")
    with vtoken.stream(model, tokenizer_of(model), source()) as s:
        s.start()
        with pytest.raises(InputError, match="frame"):
            list(s)


def test_two_streams_of_one_model_answer_as_alone() -> None:
    other = video()[:, ::-1].copy()
    with stream_of("qwen3_5", video()) as a, stream_of("qwen3_5", other) as b:
        for until in (2.0, 4.0, 9.0):
            a.run(until=until)
            b.run(until=until)
            a.ask("what moves?")
        one, two = (s.state.logits(torch.tensor([60, 61])) for s in (a, b))
    with stream_of("qwen3_5", video()) as a:
        a.run()
        torch.testing.assert_close(a.state.logits(torch.tensor([60, 61])), one, atol=1e-5, rtol=1e-5)
    assert (one - two).abs().max() > 1e-3


def test_what_makes_no_sense_is_refused() -> None:
    model = model_of("qwen3_vl")
    tokenizer = tokenizer_of(model)
    with pytest.raises(UnsupportedError, match="question"):
        vtoken.stream(model, tokenizer, timed(video()), plan="cdpruner:keep=0.5")
    with pytest.raises(UnsupportedError, match="dynamic cache"):
        vtoken.stream(model, tokenizer, timed(video()), cache_implementation="quantized")
    with pytest.raises(InputError, match="policy"):
        vtoken.stream(model, tokenizer, timed(video()), policy="divprune")
    with pytest.raises(InputError, match="chunk"):
        vtoken.stream(model, tokenizer, timed(video()), chunk=0)
    with pytest.raises(InputError, match="statement"):
        Watch(" ")
    s = stream_of("qwen3_vl", video())
    with pytest.raises(InputError, match="nothing was seen"):
        s.ask("what moves?")
    s.run()
    with pytest.raises(InputError, match="question"):
        s.ask(" ")
    s.close()
    assert s.report.nbytes == 0
    with pytest.raises(InputError, match="closed"):
        s.ask("what moves?")


def test_a_wrapped_model_watches_and_chats_under_its_own_plan() -> None:
    from tests.families.tiny import FAMILIES

    plain, frames = model_of("qwen3_vl"), video()
    model = FAMILIES["qwen3_vl"].build()
    model.load_state_dict(plain.state_dict())
    vtoken.wrap(model, "grt:threshold=20")
    found = []
    for one, plan in ((model, None), (plain, "grt:threshold=20")):
        with vtoken.stream(one, tokenizer_of(one), timed(frames), plan, **OPTIONS) as s:
            s.run()
            answer = s.ask("what moves?")
        chat = vtoken.Chat(one, tokenizer_of(one), frames, plan, native_fps=4, fps="native", **OPTIONS)
        turns = [chat.ask(q).tokens.tolist() for q in ("what moves?", "why?")]
        found.append((answer.tokens.tolist(), answer.report.plan, answer.report.tokens, turns))
    assert found[0] == found[1]
