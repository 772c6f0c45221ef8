"""The fields of a chat completion and their types, as OpenAI and vLLM name them."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Number = Annotated[float, Field(allow_inf_nan=False)]


class Strict(BaseModel):
    """A part of a body; names that it does not know are refused."""

    model_config = ConfigDict(extra="forbid", strict=True)


class Address(Strict):
    url: str
    detail: str | None = None


class Part(Strict):
    type: Literal["text", "image_url", "video_url"]
    text: str | None = None
    image_url: Address | None = None
    video_url: Address | None = None


class Message(Strict):
    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[Part] | None = None
    name: str | None = None
    refusal: None = None


class Processing(Strict):
    """``mm_processor_kwargs``: the plan and its budget, and which frames are read."""

    vtoken: str | None = None
    keep: Number | None = None
    tokens: int | None = None
    per_second: Number | None = None
    fps: Number | Literal["native"] | None = None
    num_frames: int | None = None
    max_frames: int | None = None
    start: Number | None = None
    end: Number | None = None


class Rate(Strict):
    fps: Number | None = None
    num_frames: int | None = None


class Loading(Strict):
    """``media_io_kwargs`` as on vLLM."""

    video: Rate = Rate()


class StreamOptions(Strict):
    include_usage: bool = False
    include_obfuscation: bool = False


class Body(BaseModel):
    """A chat completion as it comes; further fields are in ``model_extra``."""

    model_config = ConfigDict(extra="allow", strict=True)

    model: str
    messages: list[Message]
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    temperature: Number | None = None
    top_p: Number | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    mm_processor_kwargs: Processing | None = None
    media_io_kwargs: Loading | None = None
    chat_id: str | None = None
