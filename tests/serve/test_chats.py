"""Chats by an id, whose video stays in the cache, and questions without a video."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import openai
import pytest

import vtoken
from tests.serve.conftest import QUESTION, ask
from vtoken.qa.plain import NOTE
from vtoken.serve.chats import Chats
from vtoken.serve.errors import Refused
from vtoken.serve.server import Server

LATER = "Which still shape is blue?"


def further(client: Any, chat_id: str, question: str = LATER, **options: Any) -> Any:
    """The next question of a chat."""
    messages = [{"role": "user", "content": question}]
    extra = {"chat_id": chat_id}
    return client.chat.completions.create(model="reference", messages=messages, extra_body=extra, **options)


def begun(client: Any, data: str, **options: Any) -> Any:
    extra = {"mm_processor_kwargs": {"vtoken": "grt", "fps": 8}, "chat_id": "new"}
    return ask(client, data, extra=extra, **options)


@pytest.mark.parametrize("plan", ["grt", "grt | cdpruner"])
def test_turns_are_those_of_a_chat(
    client: openai.OpenAI, reference: tuple[Any, Any], panels: Path, data: str, plan: str
) -> None:
    own = vtoken.Chat(*reference, panels, plan, fps=8, **({"keep": 0.4} if "|" in plan else {}))
    kwargs = {"vtoken": plan, "fps": 8} | ({"keep": 0.4} if "|" in plan else {})
    first = ask(client, data, extra={"mm_processor_kwargs": kwargs, "chat_id": "new"})
    name = first.vtoken["chat_id"]
    stream = list(further(client, name, stream=True, stream_options={"include_usage": True}))
    third = further(client, name, "And the red one?")
    want = [own.ask(text) for text in (QUESTION, LATER, "And the red one?")]
    assert first.choices[0].message.content == want[0].text and not first.vtoken["reused"]
    assert "".join(c.choices[0].delta.content or "" for c in stream if c.choices).strip() == want[1].text
    assert stream[-2].vtoken["chat_id"] == name and stream[-2].vtoken["reused"]
    assert third.choices[0].message.content == want[2].text
    assert third.usage.prompt_tokens == want[2].report.prompt
    if plan == "grt":  # the other one chooses anew, and reports the reading that it goes on from
        assert "decode" not in third.vtoken["report"]["milliseconds"]


def test_ids_are_random_and_unknown_ones_are_told(client: openai.OpenAI, server: Server, data: str) -> None:
    names = {begun(client, data).vtoken["chat_id"] for _ in range(2)}
    assert len(names) == 2 and all(len(name) > 30 for name in names)
    with pytest.raises(openai.NotFoundError, match="no such chat") as told:
        further(client, "chat-1")
    assert told.value.code == "chat_not_found"
    root = server.service.answering.root
    assert not [p for p in root.rglob("*") if p.is_file() and "video" in p.name and p.parent.name not in kept(server)]


def kept(server: Server) -> set[str]:
    """Folders of the videos that the server keeps for requests outside of chats."""
    return {k.folder.name for k in server.service.answering.store._known.values()}


def test_a_turn_that_was_cut_at_a_stop_text_is_remembered_so(client: openai.OpenAI, server: Server, data: str) -> None:
    whole = begun(client, data).choices[0].message.content
    first = begun(client, data, stop=[whole[-1]])
    chat = server.service.answering.chats._known[first.vtoken["chat_id"]].chat
    assert chat.turns[-1]["content"] == first.choices[0].message.content == whole.partition(whole[-1])[0]


class Fake:
    """A chat of 10 bytes."""

    nbytes = 10


def opened(chats: Chats) -> str:
    with chats.using(None, Fake) as (name, _):  # type: ignore[arg-type]
        return name


def test_chats_have_a_number_an_age_and_a_size() -> None:
    now = [0.0]
    chats = Chats(2, 60.0, 100, lambda: now[0])
    first, second, third = (opened(chats) for _ in range(3))
    assert list(chats._known) == [second, third] and first not in chats._known
    with chats.using(second, Fake):  # type: ignore[arg-type]
        now[0] = 100.0
        chats.sweep()
        assert list(chats._known) == [second]  # what is being asked stays
    now[0] = 150.0
    assert second in chats._known
    now[0] = 161.0
    with pytest.raises(Refused, match="no such chat"), chats.using(second, Fake):  # type: ignore[arg-type]
        pass
    small = Chats(9, 60.0, 25, lambda: now[0])
    made = [opened(small) for _ in range(3)]
    assert list(small._known) == made[1:]
    with pytest.raises(RuntimeError), small.using(None, Fake):  # type: ignore[arg-type]
        raise RuntimeError
    assert len(small) == 2
    with pytest.raises(Refused, match="keeps no chats"), Chats(0, 1.0, 1).using(None, Fake):  # type: ignore[arg-type]
        pass


def test_text_alone_is_answered(client: openai.OpenAI, reference: tuple[Any, Any]) -> None:
    model, words = reference
    messages: list[Any] = [{"role": "user", "content": QUESTION}]
    got = client.chat.completions.create(model="reference", messages=messages, max_tokens=12)
    stream = client.chat.completions.create(model="reference", messages=messages, max_tokens=12, stream=True)
    text = "".join(c.choices[0].delta.content or "" for c in stream if c.choices).strip()
    assert text == got.choices[0].message.content and got.vtoken["report"]["notes"] == [NOTE]
    assert got.usage.prompt_tokens_details.video_tokens == 0 and 1 <= got.usage.completion_tokens <= 12
    vtoken.wrap(model, "none")
    prompt = words.apply_chat_template(
        [{"role": "user", "content": QUESTION}], add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    made = model.generate(**prompt, do_sample=False, max_new_tokens=12)[0, prompt["input_ids"].shape[1] :]
    assert got.choices[0].message.content == words.decode(made, skip_special_tokens=True).strip()
    assert got.usage.prompt_tokens == prompt["input_ids"].shape[1]
