"""From the address of a video or picture to a file: data:, file: below allowed folders, http(s) of allowed hosts."""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from vtoken.qa.limits import check_size, file_within
from vtoken.serve.errors import Refused
from vtoken.serve.fetch import fetch
from vtoken.serve.settings import Settings

DATA = re.compile(r"data:(?P<kind>video|image)/[\w.+-]{1,40}(?:;[\w.+-]+=[\w.+-]+)*;base64,", re.ASCII)
PIXELS = 50_000_000  # of the largest picture
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")  # Pillow runs other programs for some of the others


@dataclass(frozen=True)
class Source:
    """A file to look at.

    Attributes:
        kind: "video" or "image".
        path: where it lies.
        key: the same for the same content.
        own: whether the server wrote the file, and removes it.
    """

    kind: str
    path: Path
    key: str
    own: bool


def source(
    kind: str, url: str, folder: Path, settings: Settings, stopped: Callable[[], bool] = lambda: False
) -> Source:
    """The file behind an address.

    Args:
        kind: "video" or "image".
        folder: where files that the server writes go.
        stopped: asked while an address is fetched; True ends it.

    Raises:
        Refused: the address is of no kind that this server takes, or too large.
        InputError: a file above the limit.
    """
    scheme = url[:10].partition(":")[0].lower()
    if scheme == "data":
        found = _data(kind, url, folder, settings)
    elif scheme == "file":
        found = _file(kind, url, settings)
    elif scheme in ("http", "https"):
        draft = folder / f".{id(url)}.part"
        try:
            fetch(url, draft, settings.hosts, settings.upload_bytes, stopped)
            found = _stored(kind, draft, folder)
        finally:
            draft.unlink(missing_ok=True)
    else:
        raise Refused(
            f"{kind}_url {url!r:.60}: give a data:{kind}/...;base64 address"
            + (", a file: address" if settings.folders else "")
            + (", an http or https address" if settings.hosts else ""),
            400,
            "url",
        )
    if kind == "image":
        _check_picture(found.path)
    return found


def _data(kind: str, url: str, folder: Path, settings: Settings) -> Source:
    head = DATA.match(url[:200])
    if head is None or head["kind"] != kind:
        raise Refused(f"{kind}_url {url!r:.60}: not of the form data:{kind}/TYPE;base64,DATA", 400, "url")
    if (len(url) - head.end()) * 3 // 4 > settings.upload_bytes + 2:
        raise Refused(f"the {kind} is larger than {settings.max_upload:g} MB (--max-upload)", 413, "url", "too_large")
    try:
        content = base64.b64decode(url[head.end() :].encode("ascii"), validate=True)
    except (binascii.Error, ValueError) as error:
        raise Refused(f"the data of {kind}_url is not base64 ({error})", 400, "url") from error
    if not content:
        raise Refused(f"the data of {kind}_url is empty", 400, "url")
    draft = folder / f".{id(url)}.part"
    draft.write_bytes(content)
    return _stored(kind, draft, folder)


def _stored(kind: str, draft: Path, folder: Path) -> Source:
    """A file of the server's own, named after its content."""
    with draft.open("rb") as file:
        found = hashlib.sha256()
        while piece := file.read(2**20):
            found.update(piece)
    digest = found.hexdigest()
    path = folder / f"{kind}-{digest[:16]}"
    draft.replace(path)
    return Source(kind, path, digest, True)


def _file(kind: str, url: str, settings: Settings) -> Source:
    if not settings.folders:
        raise Refused("this server opens no file: addresses (--allow-folder)", 400, "url", "not_allowed")
    try:
        place = urlsplit(url)
        given = unquote(place.path, errors="strict")
    except ValueError as error:
        raise Refused(f"{url!r:.120} is no address ({error})", 400, "url") from error
    path = file_within(given, settings.folders) if place.netloc in ("", "localhost") else None
    if path is None:  # the same words for files that are missing and files that may not be read
        raise Refused(f"{url!r:.120}: no file below the folders that this server opens", 400, "url", "not_allowed")
    check_size(path, settings.max_upload, "server")
    facts = path.stat()
    return Source(kind, path, f"{path}:{facts.st_mtime_ns}:{facts.st_size}", False)


def _check_picture(path: Path) -> None:
    from PIL import Image

    try:
        with Image.open(path, formats=FORMATS) as image:
            wide, high = image.size
    except Exception as error:  # also a bomb, which Pillow refuses by itself
        raise Refused(f"the picture cannot be read; give one of {', '.join(FORMATS)}", 400, "image_url") from error
    if wide * high > PIXELS:
        raise Refused(f"the picture has {wide}x{high} pixels; {PIXELS:,} at most", 400, "image_url", "too_large")
