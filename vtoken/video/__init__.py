"""Video in: reading, sampling by time, preprocessing for vision encoders, and synthetic clips with known truth."""

from vtoken.video.opening import BACKENDS, open_video
from vtoken.video.reader import VideoReader
from vtoken.video.source import VideoWarning

__all__ = ["BACKENDS", "VideoReader", "VideoWarning", "open_video"]
