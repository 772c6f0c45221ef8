"""What ``vtoken serve`` was started with."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from vtoken.errors import InputError

LIMITS = ("max_upload", "max_seconds", "max_frames", "max_tokens", "max_new_tokens", "body_seconds", "grace")


@dataclass(frozen=True)
class Settings:
    """Flags of the server.

    Attributes:
        model: checkpoint: "reference", a hub id or a folder.
        served_name: name of the model in requests; empty for ``model`` itself.
        plan: stages for requests that bring no plan, such as "grt" or "grt | divprune:keep=0.25".
        device, dtype: see ``vtoken.load``.
        host, port: where to listen; port 0 takes a free one.
        api_key: what clients must send as ``Authorization: Bearer KEY``; empty for none.
        folders: file: addresses may name files below these folders alone.
        hosts: hosts that http and https addresses may name; "*" is every public one. A host named here may also
            have a private address.
        queue: requests that may wait for the model; one more gets status 429.
        max_upload: largest video or picture, in megabytes (2**20 bytes).
        max_seconds: longest part of a video that is read.
        max_frames: most frames of one video; a higher rate is lowered, and the report says so.
        max_tokens: most visual tokens that the stock model would have had for one request.
        max_new_tokens: longest answer, tokens.
        keep_videos: videos that are kept with their features for further questions.
        keep_seconds: seconds after which a video or chat that nobody asked about is forgotten.
        keep_memory: most memory of kept videos, in megabytes; chats have as much again.
        keep_chats: chats that are kept with their video in the cache; 0 refuses new ones.
        body_seconds: seconds in which the body of a request must be there.
        grace: seconds in which answers in flight may end after SIGTERM.

    Raises:
        InputError: a limit that is not above 0, or a folder that is not there.
    """

    model: str = "reference"
    served_name: str = ""
    plan: str = "grt"
    device: str = "auto"
    dtype: str = "auto"
    host: str = "127.0.0.1"
    port: int = 8000
    api_key: str = ""
    folders: tuple[Path, ...] = ()
    hosts: tuple[str, ...] = ()
    queue: int = 64
    max_upload: float = 200.0
    max_seconds: float = 300.0
    max_frames: int = 1024
    max_tokens: int = 262_144
    max_new_tokens: int = 1024
    keep_videos: int = 4
    keep_seconds: float = 600.0
    keep_memory: float = 1024.0
    keep_chats: int = 16
    body_seconds: float = 30.0
    grace: float = 120.0

    def __post_init__(self) -> None:
        for name in LIMITS:
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise InputError(f"{flag(name)}={value} must be above 0")
        for name in ("queue", "keep_videos", "keep_seconds", "keep_memory", "keep_chats"):
            if not getattr(self, name) >= 0:
                raise InputError(f"{flag(name)}={getattr(self, name)} must be at least 0")
        if not 0 <= self.port <= 65535:
            raise InputError(f"--port={self.port} must be from 0 (any free one) to 65535")
        for folder in self.folders:
            if not folder.is_dir():
                raise InputError(f"--allow-folder {folder}: there is no such folder")

    @property
    def name(self) -> str:
        """Name of the model in requests and answers."""
        return self.served_name or self.model

    @property
    def upload_bytes(self) -> int:
        """``max_upload`` in bytes."""
        return int(self.max_upload * 2**20)

    @property
    def body_bytes(self) -> int:
        """Largest body: one upload of the largest size in base64, and a megabyte of text."""
        return self.upload_bytes * 4 // 3 + 2**20


def flag(name: str) -> str:
    """The flag of a field."""
    return "--" + name.replace("_", "-")
