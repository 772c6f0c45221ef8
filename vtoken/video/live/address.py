"""Addresses (rtsp, http, hls, mpegts over tcp or udp, ...) and the X11 screen, through PyAV."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

from vtoken.errors import InputError
from vtoken.video import files
from vtoken.video.live.items import Counters, Lost
from vtoken.video.source import Picture

SCHEMES = (*files.SCHEMES, "tcp")
# no fflags=nobuffer: it throws away what was read to know the stream, and the first key frame with it
OPTIONS = {"rtsp_transport": "tcp", "analyzeduration": "200000", "probesize": "100000"}
WHOLE = 300  # frames without a key frame, after which a stream has none and is taken as it is


class Address:
    """A stream at an address. It cannot reach files of this machine.

    Args:
        url: such as rtsp://camera/stream.
        timeout: seconds to open it, and seconds without data after which it counts as lost.

    Raises:
        InputError: a scheme that is not opened.
    """

    returns, paced, stamped = True, True, False

    def __init__(self, url: str, timeout: tuple[float, float] = (10.0, 5.0)) -> None:
        scheme = url.partition("://")[0].lower()
        if scheme not in SCHEMES:
            raise InputError(f"{url}: {scheme}:// is not opened; known are {', '.join(SCHEMES)}")
        self.url, self.name, self.timeout = url, hidden(url), timeout

    def pictures(self, counters: Counters) -> Iterator[Picture]:
        """Decoded frames from the first key frame on."""
        rules = {
            "protocol_whitelist": files.PROTOCOLS,
            "format_whitelist": f"{files.VIDEO},{files.SOUND},{files.LIVE}",
        }
        yield from decoded(self.url, self.name, counters, options=OPTIONS | rules, timeout=self.timeout)


class Screen:
    """The screen of an X11 display.

    Args:
        display: such as ":0.0".
        fps: frames a second to grab.
    """

    returns, paced, stamped = True, True, False

    def __init__(self, display: str, fps: float) -> None:
        self.display, self.fps, self.name = display, fps, f"screen {display}"

    def pictures(self, counters: Counters) -> Iterator[Picture]:
        """Grabbed frames."""
        options = {"framerate": f"{self.fps:g}"}
        yield from decoded(self.display, self.name, counters, options=options, format="x11grab")


def decoded(url: str, name: str, counters: Counters, **given: Any) -> Iterator[Picture]:
    """Frames of one connection; those before the first key frame, and those that the decoder marks, are left out.

    Raises:
        Lost: it cannot be opened, has no picture, stalled or ended.
    """
    import av
    import av.logging
    from av.error import ExitError, FFmpegError

    av.logging.set_level(None)
    try:
        with av.open(url, metadata_errors="replace", **given) as file:
            if not file.streams.video:
                raise Lost(f"{name}: no picture in it")
            stream, whole, before = file.streams.video[0], False, 0
            stream.thread_type = "SLICE"  # threads over frames hold frames back
            for packet in files.packets(file, stream):  # type: ignore[arg-type]
                try:
                    frames = packet.decode()
                except (FFmpegError, ValueError):
                    counters.damaged += 1
                    continue
                for frame in frames:
                    whole, before = whole or frame.key_frame or before >= WHOLE, before + 1  # type: ignore[union-attr]
                    if not whole or frame.is_corrupt:
                        counters.damaged += 1
                        continue
                    yield Picture(frame.time, partial(frame.to_ndarray, format="rgb24"))  # type: ignore[union-attr]
    except ExitError as error:  # what PyAV makes of its own timeout
        raise Lost(
            f"{name}: no data for {given['timeout'][1]:g} s" if "timeout" in given else f"{name}: stopped"
        ) from error
    except (FFmpegError, OSError) as error:
        raise Lost(f"{name}: {files.first_line(error)}") from error
    raise Lost(f"{name}: the sender closed the stream")


def hidden(url: str) -> str:
    """An address without the password in it, for messages."""
    scheme, _, rest = url.partition("://")
    front, slash, path = rest.partition("/")
    return f"{scheme}://{front.rpartition('@')[2]}{slash}{path}"
