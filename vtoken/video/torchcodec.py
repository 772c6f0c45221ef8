"""torchcodec (extra ``torchcodec``): sequential decoding to RGB, on a CUDA device where there is one.

In AVI with B-frames it gives wrong frames, so it reads only the containers in which it was found right.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import partial
from typing import Any

from vtoken.errors import VideoError, require
from vtoken.video.check import limited
from vtoken.video.pyav import SEEKABLE
from vtoken.video.source import Clip, Picture

NAME = "torchcodec"
BATCH = 16  # frames a call


def check(clip: Clip) -> None:
    """Raise MissingExtraError where torchcodec cannot be imported, VideoError for a container that it reads wrongly."""
    require("torchcodec.decoders", "torchcodec", "backend='torchcodec'")
    limited(NAME, clip, SEEKABLE)


def pictures(clip: Clip, start: float = 0.0) -> Iterator[Picture]:
    """Decode a clip in order from its beginning.

    Raises:
        MissingExtraError: torchcodec is not installed, or was built for another torch or FFmpeg.
        VideoError: torchcodec cannot open the file, or gives no frame.
    """
    decoders = require("torchcodec.decoders", "torchcodec", "backend='torchcodec'")
    remedy = "use backend='pyav'"
    try:
        decoder = _decoder(decoders, clip)
    except (RuntimeError, ValueError, OSError) as error:
        raise VideoError(f"{clip.path}: torchcodec cannot open this video ({_reason(error)}); {remedy}") from error
    read, total = 0, len(decoder)
    while read < total:
        batch = _batch(decoder, read, min(read + BATCH, total))
        if batch is None:
            break
        frames, times = batch
        for frame, time in zip(frames, times, strict=True):
            yield Picture(time, partial(clip.upright.after_turns, frame))
        read += len(frames)
    if not read:
        raise VideoError(f"{clip.path}: torchcodec opens this video but gives no frame; {remedy}")
    if read < total:
        clip.warn(f"torchcodec read {read} of {total} frames and failed; {remedy}")


def _decoder(decoders: Any, clip: Clip) -> Any:
    """A decoder on the GPU if it takes this codec there, else on the CPU."""
    import torch

    options = {"stream_index": clip.stream, "dimension_order": "NHWC", "seek_mode": "exact"}
    if torch.cuda.is_available():
        try:
            decoder = decoders.VideoDecoder(clip.path, device="cuda", **options)
            decoder.get_frames_in_range(0, 1)
            return decoder
        except RuntimeError as error:
            clip.note(f"torchcodec decodes this video on the CPU ({_reason(error)})")
    threads = min(8, os.cpu_count() or 1)
    return decoders.VideoDecoder(clip.path, device="cpu", num_ffmpeg_threads=threads, **options)


def _batch(decoder: Any, start: int, stop: int) -> tuple[Any, list[float]] | None:
    """Frames [n, H, W, 3] and their times; where the whole range fails, the part before the failing frame."""
    for end in range(stop, start, -1):
        try:
            batch = decoder.get_frames_in_range(start, end)
            return batch.data.cpu().numpy(), batch.pts_seconds.tolist()
        except (RuntimeError, IndexError):
            continue
    return None


def _reason(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
