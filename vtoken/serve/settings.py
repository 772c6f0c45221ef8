"""What ``vtoken serve`` was started with."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from vtoken.errors import InputError
from vtoken.qa.settings import Shared


@dataclass(frozen=True)
class Settings(Shared):
    """Flags of the server, beside those of ``Shared``.

    Attributes:
        served_name: name of the model in requests; empty for ``model`` itself.
        plan: stages for requests that bring no plan, such as "grt" or "grt | divprune:keep=0.25".
        api_key: what clients must send as ``Authorization: Bearer KEY``; empty for none.
        folders: file: addresses may name files below these folders alone.
        hosts: hosts that http and https addresses may name; "*" is every public one. A host named here may also
            have a private address.
        queue: requests that may wait for the model; one more gets status 429.
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

    ABOVE: ClassVar = ("max_tokens", "max_new_tokens", "body_seconds", "grace")
    FROM: ClassVar = ("queue", "keep_videos", "keep_seconds", "keep_memory", "keep_chats")

    served_name: str = ""
    plan: str = "grt"
    port: int = 8000
    api_key: str = ""
    folders: tuple[Path, ...] = ()
    hosts: tuple[str, ...] = ()
    queue: int = 64
    max_tokens: int = 262_144
    max_new_tokens: int = 1024
    keep_videos: int = 4
    keep_seconds: float = 600.0
    keep_memory: float = 1024.0
    keep_chats: int = 16
    body_seconds: float = 30.0
    grace: float = 120.0

    def __post_init__(self) -> None:
        super().__post_init__()
        for folder in self.folders:
            if not folder.is_dir():
                raise InputError(f"--allow-folder {folder}: there is no such folder")

    @property
    def name(self) -> str:
        """Name of the model in requests and answers."""
        return self.served_name or self.model

    @property
    def body_bytes(self) -> int:
        """Largest body: one upload of the largest size in base64, and a megabyte of text."""
        return self.upload_bytes * 4 // 3 + 2**20
