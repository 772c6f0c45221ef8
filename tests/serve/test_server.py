"""The server as OpenAI's own client sees it: the answers of the public API, its figures, queue and errors."""

from __future__ import annotations

import json
import re
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

import vtoken
from tests.serve.conftest import QUESTION, ask, message
from vtoken.demos.clips import samples
from vtoken.serve.server import Server, serving
from vtoken.serve.settings import Settings


def untimed(report: dict[str, Any]) -> dict[str, Any]:
    return {
        name: value for name, value in report.items() if name not in ("milliseconds", "total_ms", "peak_bytes", "plan")
    }


@pytest.mark.parametrize(
    "kwargs",
    [
        {"vtoken": "none", "fps": 4},
        {"vtoken": "grt", "fps": 8},
        {"vtoken": "grt | divprune", "keep": 0.2, "fps": 16, "start": 1.0, "end": 3},
        {"vtoken": "evs", "tokens": 40, "num_frames": 12, "fps": None},
    ],
)
def test_an_answer_is_that_of_the_public_api(
    client: openai.OpenAI, reference: tuple[Any, Any], panels: Path, data: str, kwargs: dict[str, Any]
) -> None:
    given = {n: v for n, v in kwargs.items() if v is not None}
    got = ask(client, data, kwargs=kwargs, extra={"mm_processor_kwargs": given})
    want = vtoken.ask(*reference, panels, QUESTION, plan=given.pop("vtoken"), **given)
    assert got.choices[0].message.content == want.text and got.choices[0].finish_reason == "stop"
    assert untimed(got.vtoken["report"]) == untimed(json.loads(json.dumps(want.report.to_dict())))
    assert got.vtoken["plan"] == want.report.plan and got.model == "reference"
    details = got.usage.prompt_tokens_details
    assert (details.video_tokens, details.video_tokens_full) == (want.report.tokens, want.report.cells)
    assert got.usage.prompt_tokens == want.report.prompt and got.usage.completion_tokens == len(want.tokens)
    assert got.usage.total_tokens == got.usage.prompt_tokens + got.usage.completion_tokens


def test_a_stream_has_the_words_of_the_whole_answer(client: openai.OpenAI, data: str) -> None:
    question = "Which symbols does the red panel show in order?"
    whole = ask(client, data, question)
    stream = ask(client, data, question, stream=True, stream_options={"include_usage": True})
    chunks = list(stream)
    texts = [c.choices[0].delta.content or "" for c in chunks if c.choices]
    assert "".join(texts) == whole.choices[0].message.content and sum(map(bool, texts)) > 2
    assert chunks[0].choices[0].delta.role == "assistant" and chunks[-2].choices[0].finish_reason == "stop"
    assert chunks[-1].usage == whole.usage and chunks[-2].vtoken["held"] == whole.vtoken["held"]
    assert len({c.id for c in chunks}) == 1


def test_addresses_of_files_and_data_are_the_same_video(client: openai.OpenAI, panels: Path, data: str) -> None:
    first, second = ask(client, f"file://{panels}"), ask(client, data)
    assert first.choices[0].message.content == second.choices[0].message.content
    assert first.usage == second.usage


def test_a_repeated_question_does_not_read_the_video_again(
    client: openai.OpenAI, server: Server, data: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import vtoken.qa.api as api

    ask(client, data, "What colour?", kwargs={"fps": 3})
    reads: list[Any] = []
    real = api.read_clip
    monkeypatch.setattr(api, "read_clip", lambda *given: reads.append(given) or real(*given))
    again = ask(client, data, kwargs={"fps": 3})
    assert not reads and again.vtoken["reused"] and len(server.service.answering.store) >= 1
    assert not ask(client, data, kwargs={"fps": 5}).vtoken["reused"] and len(reads) == 1


def test_a_conversation_and_a_system_message(
    client: openai.OpenAI, reference: tuple[Any, Any], panels: Path, data: str
) -> None:
    turns = [{"role": "user", "content": "Which still shape is blue?"}, {"role": "assistant", "content": "star"}]
    messages = [{"role": "system", "content": "Which is it?"}, message(data, "Which still shape is blue?"), turns[1]]
    got = ask(client, data, messages=[*messages, {"role": "user", "content": QUESTION}])
    want = vtoken.ask(*reference, panels, QUESTION, plan="grt", fps=8, system="Which is it?", history=turns)
    assert got.choices[0].message.content == want.text and got.usage.prompt_tokens == want.report.prompt


def test_length_stop_and_sampling(client: openai.OpenAI, data: str) -> None:
    question = "Which symbols does the red panel show in order?"
    whole = ask(client, data, question).choices[0].message.content
    short = ask(client, data, question, max_tokens=2)
    assert short.choices[0].finish_reason == "length" and short.usage.completion_tokens == 2
    word = whole.split()[3]
    for stream in (False, True):
        made = ask(client, data, question, stop=[word, "never"], stream=stream)
        text = "".join(c.choices[0].delta.content or "" for c in made) if stream else made.choices[0].message.content
        assert text.strip() == whole.partition(word)[0].strip()
    drawn = [ask(client, data, question, temperature=1.5, seed=s).choices[0].message.content for s in (1, 1, 2, 3)]
    assert drawn[0] == drawn[1] and len(set(drawn)) > 1


def test_models_health_and_metrics(client: openai.OpenAI, server: Server, data: str) -> None:
    assert [m.id for m in client.models.list()] == ["reference"] and client.models.retrieve("reference").owned_by
    assert httpx.get(f"{server.url}/health").json() == {"status": "ok"}

    def read(name: str) -> float:
        text = httpx.get(f"{server.url}/metrics").text
        return sum(float(v) for v in re.findall(rf"^{re.escape(name)} (\S+)$", text, re.M))

    names = {"sent": 'vtoken_visual_tokens_total{of="sent"}', "full": 'vtoken_visual_tokens_total{of="full"}'}
    names |= {"200": 'vtoken_requests_total{status="200"}', "404": 'vtoken_requests_total{status="404"}'}
    before = {key: read(name) for key, name in names.items()}
    used = ask(client, data).usage.prompt_tokens_details
    with pytest.raises(openai.NotFoundError, match="is not served here"):
        ask(client, data, model="another")
    grown = {key: read(name) - before[key] for key, name in names.items()}
    assert grown == {"sent": used.video_tokens, "full": used.video_tokens_full, "200": 1, "404": 1}
    assert read("vtoken_requests_present") == 0 and read("vtoken_answer_seconds_count") > 0


def test_32_clients_at_once_get_their_own_answers(
    server: Server, reference: tuple[Any, Any], panels: Path, data: str
) -> None:
    questions = [q for q, _ in samples()["panels"].questions]
    plans = [{"vtoken": "none", "fps": 4}, {"vtoken": "grt", "fps": 8}, {"vtoken": "evs", "keep": 0.3, "fps": 8}]
    cases = [(questions[i % len(questions)], plans[i % len(plans)], bool(i % 2)) for i in range(32)]

    def one(case: tuple[str, dict[str, Any], bool]) -> str:
        question, kwargs, stream = case
        client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="x", max_retries=0)
        made = ask(client, data, question, extra={"mm_processor_kwargs": kwargs}, stream=stream)
        return "".join(c.choices[0].delta.content or "" for c in made) if stream else made.choices[0].message.content

    with ThreadPoolExecutor(32) as pool:
        found = list(pool.map(one, cases))
    for (question, kwargs, _), text in zip(cases, found, strict=True):
        options = dict(kwargs)
        assert text == vtoken.ask(*reference, panels, question, plan=options.pop("vtoken"), **options).text
    assert server.service.desk.taken == 0


def test_a_full_queue_is_told_and_a_client_that_leaves_makes_room(data: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the model held up, one request is at work and one waits; the third is told to come later."""
    import vtoken.serve.answering as answering

    with serving(Settings(port=0, device="cpu", queue=1)) as made:
        free, ran = threading.Event(), []
        real = answering.steps_of

        def held(work: Any, *given: Any) -> Any:
            ran.append(work.args[3])
            free.wait(60)
            return real(work, *given)

        monkeypatch.setattr(answering, "steps_of", held)
        base = f"{made.url}/v1"
        clients = [openai.OpenAI(base_url=base, api_key="x", max_retries=0, timeout=60) for _ in range(4)]
        with ThreadPoolExecutor(4) as pool:
            first = pool.submit(ask, clients[0], data, "first?")
            _until(lambda: ran == ["first?"])
            with socket.create_connection(made.url.removeprefix("http://").split(":"), 30) as left:  # type: ignore[arg-type]
                body = json.dumps({"model": "reference", "messages": [message(data, "second?")]}).encode()
                head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
                left.sendall(head.encode() + body)
                _until(lambda: made.service.desk.taken == 2)
                with pytest.raises(openai.RateLimitError) as full:
                    ask(clients[1], data, "third?")
                assert full.value.response.headers["Retry-After"] and "ask again" in str(full.value)
                _until(lambda: len(made.service.desk._all) == 2)
            _until(lambda: any(job.stop.is_set() for job in made.service.desk._all.values()))
            free.set()
            assert first.result().choices[0].finish_reason
        _until(lambda: made.service.desk.taken == 0)
        assert ask(clients[1], data, "third?").choices and ran == ["first?", "third?"]


def _until(true: Any) -> None:
    for _ in range(3000):
        if true():
            return
        time.sleep(0.01)
    raise AssertionError("it did not happen")
