"""decord (extra ``decord``): sequential decoding to RGB, for comparison. Its last release is 0.6.0.

Its random access returns wrong frames and its batches can spin forever where a container promises more frames than
it holds, so frames are only ever taken one after the other, and never more of them than PyAV could decode.
Their times are PyAV's too: decord keeps its own in float32. In MPEG-TS and MPEG-PS it gives pictures of another place,
so it reads only the containers in which it was found right.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from vtoken.errors import VideoError, require
from vtoken.video import pyav
from vtoken.video.check import limited
from vtoken.video.source import Clip, Picture

NAME = "decord"
RIGHT = (*pyav.SEEKABLE, "avi")


def check(clip: Clip) -> None:
    """Raise MissingExtraError where decord is not installed, VideoError for a container that it reads wrongly."""
    require("decord", "decord", "backend='decord'")
    limited(NAME, clip, RIGHT)


def pictures(clip: Clip, start: float = 0.0) -> Iterator[Picture]:
    """Decode a clip in order from its beginning.

    Raises:
        MissingExtraError: decord is not installed.
        VideoError: decord cannot open the file, or gives no frame.
    """
    decord = require("decord", "decord", "backend='decord'")
    decord.logging.set_level(decord.logging.QUIET)
    remedy = "use backend='pyav'"
    try:
        reader = decord.VideoReader(clip.path, num_threads=1)
    except (decord.DECORDError, RuntimeError, OSError) as error:
        raise VideoError(f"{clip.path}: decord cannot open this video ({_reason(error)}); {remedy}") from error
    read, total, reason = 0, 0, "it gave no more"
    for picture in pyav.pictures(clip):  # decodes along and converts nothing
        total += 1
        if read < total - 1:
            continue  # only counts what decord lacks
        try:
            frame = reader.next().asnumpy()
        except StopIteration:
            continue
        except (decord.DECORDError, RuntimeError) as error:
            reason = _reason(error)
            continue
        read += 1
        yield Picture(picture.time, partial(clip.upright.after_turns, frame))
    if not read:
        raise VideoError(f"{clip.path}: decord opens this video but gives no frame; {remedy}")
    if read < total:
        clip.warn(f"decord read {read} of {total} frames ({reason}); {remedy}")


def _reason(error: BaseException) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return (lines or [type(error).__name__])[0].rsplit(": ", 1)[-1]
