"""decord (extra ``decord``): sequential decoding to RGB, for comparison. Its last release is 0.6.0.

Its random access returns wrong frames and its batches can spin forever where a container promises more frames than
it holds, so frames are only ever taken one after the other, and never more of them than PyAV could decode.
Their times are PyAV's too: decord keeps its own in float32.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np

from vtoken.errors import VideoError, require
from vtoken.video import pyav
from vtoken.video.source import Clip, Picture


def check() -> None:
    """Raise MissingExtraError where decord is not installed."""
    require("decord", "decord", "backend='decord'")


def pictures(clip: Clip, start: float = 0.0) -> Iterator[Picture]:
    """Decode a clip in order from its beginning.

    Raises:
        MissingExtraError: decord is not installed.
        VideoError: decord cannot open the file, or gives no frame.
    """
    decord = require("decord", "decord", "backend='decord'")
    decord.logging.set_level(decord.logging.QUIET)
    remedy = "use backend='pyav'"
    times = [picture.time for picture in pyav.pictures(clip)]  # a pass that decodes and converts nothing
    try:
        reader = decord.VideoReader(clip.path, num_threads=1)
    except (decord.DECORDError, RuntimeError, OSError) as error:
        raise VideoError(f"{clip.path}: decord cannot open this video ({_reason(error)}); {remedy}") from error
    read, reason = 0, "it gave no more"
    for time in times:
        try:
            frame = reader.next().asnumpy()
        except StopIteration:
            break
        except (decord.DECORDError, RuntimeError) as error:
            reason = _reason(error)
            break
        read += 1
        yield Picture(time, partial(np.asarray, frame))
    if not read:
        raise VideoError(f"{clip.path}: decord opens this video but gives no frame; {remedy}")
    if read < len(times):
        clip.warn(f"decord read {read} of {len(times)} frames ({reason}); {remedy}")


def _reason(error: BaseException) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return (lines or [type(error).__name__])[0].rsplit(": ", 1)[-1]
