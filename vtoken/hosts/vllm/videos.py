# pyright: reportMissingImports=false
"""Videos whose times reach the gate, for stock processors that take frames alone."""

from __future__ import annotations

from typing import Any

from vllm.multimodal.parse import MultiModalDataParser, VideoProcessorItems


class TimedVideos(VideoProcessorItems):
    """Videos as (frames, what is known of them): the times are part of the hash, and stay where others are cached.

    The processor gets the frames alone.
    """

    def __init__(self, plain: VideoProcessorItems) -> None:
        self.plain, known = plain, plain.metadata
        timed = [one if meta is None else (one, meta) for one, meta in zip(plain.data, known, strict=True)]
        super().__init__(timed, known)

    def get_processor_data(self) -> Any:
        return self.plain.get_processor_data()

    def get_num_frames(self, item_idx: int) -> int:
        return self.plain.get_num_frames(item_idx)

    def get_frame_size(self, item_idx: int) -> Any:
        return self.plain.get_frame_size(item_idx)


class TimedParser(MultiModalDataParser):
    """The stock parser, whose videos keep their times."""

    def _parse_video_data(self, data: Any) -> Any:
        found = super()._parse_video_data(data)
        return TimedVideos(found) if isinstance(found, VideoProcessorItems) else found
