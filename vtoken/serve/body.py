"""The body of a chat completion: checked field by field, then as ``vtoken.ask`` takes it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from vtoken.errors import InputError
from vtoken.methods.plan import Plan
from vtoken.qa.limits import answer_length, question_text
from vtoken.serve.errors import Refused
from vtoken.serve.fields import Body, Loading, Message, Processing
from vtoken.serve.settings import Settings

CHARACTERS = 65_536  # of all texts of a request
MEDIA = 16  # videos and pictures of a request
NEW = "new"  # the chat_id of a first question
SHOWN = 160  # characters of a wrong value in a message
NEUTRAL = {  # what clients send without meaning it; any other value would be silently ignored, so it is refused
    "n": (1,),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "logit_bias": ({},),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "parallel_tool_calls": (True, False),
}
IGNORED = ("user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "reasoning_effort")


@dataclass(frozen=True)
class Asked:
    """A request in the terms of ``vtoken.ask``.

    Attributes:
        media: kind ("video", "image") and address of every item, in order.
        options: plan, budget, system, history and arguments of ``generate``.
        frames: fields of ``Sampling``.
        stop: texts that end the answer.
        chat: "new", the id of a chat that the server keeps, or None for neither.
    """

    media: list[tuple[str, str]]
    question: str
    options: dict[str, Any]
    frames: dict[str, Any]
    stream: bool = False
    include_usage: bool = False
    stop: tuple[str, ...] = ()
    seed: int | None = None
    chat: str | None = None

    @property
    def has_video(self) -> bool:
        return any(kind == "video" for kind, _ in self.media)


def parse(content: bytes, settings: Settings) -> Asked:
    """What a body asks for.

    Raises:
        Refused, InputError: a field that is wrong or that this server does not serve.
    """
    try:
        body = Body.model_validate_json(content)
    except ValidationError as error:
        raise _wrong(error) from None
    if body.model != settings.name:
        raise Refused(
            f"model={body.model!r:.{SHOWN}} is not served here; this server has {settings.name!r}",
            404,
            "model",
            "model_not_found",
        )
    _check_extra(body.model_extra or {})
    system, turns, media = _conversation(body.messages)
    question = question_text(turns.pop()["content"], "server", CHARACTERS)
    generate = _generate(body, settings)
    frames, plan = _frames(body, settings), _plan(body.mm_processor_kwargs or Processing(), settings)
    if body.chat_id is not None:
        _check_chat(body, system, turns, media)
    stop = (body.stop,) if isinstance(body.stop, str) else tuple(body.stop or ())
    if len(stop) > 4 or not all(0 < len(text) <= 100 for text in stop):
        raise Refused("stop: up to 4 texts of 1 to 100 characters", 400, "stop")
    options = {"plan": plan, "system": system, "history": turns, **generate}
    return Asked(
        media,
        question,
        options,
        frames,
        stream=bool(body.stream),
        include_usage=bool(body.stream_options and body.stream_options.include_usage),
        stop=stop,
        seed=body.seed,
        chat=body.chat_id,
    )


def _check_chat(body: Body, system: str | None, turns: list[dict[str, str]], media: list[tuple[str, str]]) -> None:
    """What a chat that the server keeps takes: the video at its first question, then one question at a time."""
    if turns:
        raise Refused("the server remembers the turns of a chat; send the new message alone", 400, "chat_id")
    if body.chat_id == NEW:
        if not any(kind == "video" for kind, _ in media):
            raise Refused("a new chat needs a video in its first message", 400, "chat_id")
        return
    if media or system is not None:
        raise Refused("videos, pictures and the system message of a chat come with its first question", 400, "chat_id")
    for name in ("mm_processor_kwargs", "media_io_kwargs"):
        if getattr(body, name) is not None:
            raise Refused(f"{name}: a chat keeps those of its first question; leave it out", 400, name)


def _wrong(error: ValidationError) -> Refused:
    # of the members of a union the one that went deepest is the one that was meant
    first = max(error.errors(include_input=False, include_url=False), key=lambda one: len(one["loc"]))
    members = ("str", "float")
    place = ".".join(str(part) for part in first["loc"] if part not in members and "[" not in str(part))[:SHOWN]
    return Refused(f"{place or 'body'}: {first['msg']}"[: 2 * SHOWN], 400, place or None)


def _check_extra(extra: dict[str, Any]) -> None:
    for name, value in extra.items():
        if name in IGNORED or value is None:
            continue
        if name not in NEUTRAL:
            raise Refused(f"{name[:SHOWN]}: this server does not know this field; leave it out", 400, name[:SHOWN])
        if value not in NEUTRAL[name]:
            raise Refused(f"{name}={value!r:.{SHOWN}} is not supported; leave it out", 400, name)


def _conversation(messages: list[Message]) -> tuple[str | None, list[dict[str, str]], list[tuple[str, str]]]:
    """System text, turns and media; media must be in the first turn of the user."""
    system: str | None = None
    turns: list[dict[str, str]] = []
    media: list[tuple[str, str]] = []
    if len(messages) > 1000:
        raise Refused(f"{len(messages)} messages; 1000 at most", 400, "messages")
    for i, message in enumerate(messages):
        texts, found = _parts(message, i)
        if message.role in ("system", "developer"):
            if i:
                raise Refused("a system message must be the first one", 400, f"messages.{i}")
            system = texts
            continue
        if found and any(turn["role"] == "user" for turn in turns):
            raise Refused(
                "videos and pictures belong into the first message of the user; ask about others in a new conversation",
                400,
                f"messages.{i}",
            )
        media += found
        turns.append({"role": message.role, "content": texts})
    if not turns or turns[-1]["role"] != "user":
        raise Refused("the last message must be one of the user", 400, "messages")
    if len(media) > MEDIA:
        raise Refused(f"{len(media)} videos and pictures; {MEDIA} at most", 400, "messages")
    if sum(len(turn["content"]) for turn in turns) + len(system or "") > CHARACTERS:
        raise Refused(f"the messages have more than {CHARACTERS:,} characters of text", 400, "messages", "too_large")
    return system, turns, media


def _parts(message: Message, index: int) -> tuple[str, list[tuple[str, str]]]:
    """The text of a message, and its media."""
    content = [] if message.content is None else message.content
    if isinstance(content, str):
        return content, []
    texts: list[str] = []
    media: list[tuple[str, str]] = []
    for j, part in enumerate(content):
        value = getattr(part, part.type)
        given = [n for n in ("text", "image_url", "video_url") if getattr(part, n) is not None]
        if value is None or given != [part.type]:
            raise Refused(f"a part of type {part.type} has the field {part.type} alone", 400, f"messages.{index}.{j}")
        if isinstance(value, str):
            texts.append(value)
        elif message.role != "user":
            raise Refused("only users send videos and pictures", 400, f"messages.{index}.{j}")
        else:
            media.append((part.type.removesuffix("_url"), value.url))
    return "\n".join(texts), media


def _generate(body: Body, settings: Settings) -> dict[str, Any]:
    """Arguments of ``generate``: greedy unless a temperature above 0 is given."""
    asked = body.max_completion_tokens if body.max_completion_tokens is not None else body.max_tokens
    options: dict[str, Any] = {}
    if asked is not None:
        options["max_new_tokens"] = answer_length(asked, settings.max_new_tokens)
    if body.temperature is not None and not 0 <= body.temperature <= 2:
        raise Refused(f"temperature={body.temperature:g} must be from 0 to 2", 400, "temperature")
    if body.top_p is not None and not 0 < body.top_p <= 1:
        raise Refused(f"top_p={body.top_p:g} must be above 0 and up to 1", 400, "top_p")
    if body.seed is not None and not -(2**63) <= body.seed < 2**63:
        raise Refused(f"seed={str(body.seed):.40} does not fit into 64 bits", 400, "seed")
    if body.temperature:
        options |= {"do_sample": True, "temperature": body.temperature, "top_k": 0}
        options |= {} if body.top_p is None else {"top_p": body.top_p}
    return options


def _frames(body: Body, settings: Settings) -> dict[str, Any]:
    own = body.mm_processor_kwargs or Processing()
    loading = (body.media_io_kwargs or Loading()).video
    names = ("fps", "num_frames", "max_frames", "start", "end")
    found = {n: v for n in names if (v := getattr(own, n)) is not None}
    found |= {n: v for n in ("fps", "num_frames") if (v := getattr(loading, n)) is not None and n not in found}
    for name in ("num_frames", "max_frames"):
        if name in found and not 1 <= found[name] <= settings.max_frames:
            raise Refused(f"{name}={found[name]} must be from 1 to {settings.max_frames}", 400, name)
    if "fps" in found and "num_frames" in found:
        raise Refused("fps and num_frames: give one of them", 400, "fps")
    if not isinstance(found.get("fps", 1.0), str) and not found.get("fps", 1.0) > 0:
        raise Refused(f"fps={found['fps']:g} must be above 0", 400, "fps")
    return {"max_frames": settings.max_frames} | found


def _plan(own: Processing, settings: Settings) -> Plan:
    text = settings.plan if own.vtoken is None else own.vtoken
    if len(text) > 1000:
        raise Refused("the plan has more than 1,000 characters", 400, "mm_processor_kwargs.vtoken")
    try:
        return Plan.parse(text, own.keep, own.tokens, own.per_second)
    except InputError as error:
        raise Refused(str(error)[:1000], 400, "mm_processor_kwargs.vtoken") from error
