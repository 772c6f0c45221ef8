"""Episodes in EgoDex's form, from a local folder.

EgoDex (Hoque et al. 2025, arXiv:2505.11709) keeps an episode in two files of one name: ``0.mp4`` and ``0.hdf5`` in a
folder per task. The HDF5 file holds ``camera/intrinsic`` [3, 3], ``transforms/camera`` [N, 4, 4] (the pose of the
camera in the world), ``transforms/<joint>`` [N, 4, 4] in the world, optionally ``confidences/<joint>`` [N], and
descriptions as attributes (``llm_description``).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from vtoken.errors import InputError, VideoError, require
from vtoken.thinkjepa.hands.layout import POINTS

EXTRA = ("jepa", "reading EgoDex")


@dataclass(frozen=True, eq=False)
class Recording:
    """One recorded episode; pictures are decoded when asked for.

    Attributes:
        video: the MP4 file.
        fps: of the video.
        points: float32 [T, 52, 3], metres in the world, in the order of ``layout.POINTS``.
        confidence: float32 [T, 52], 0 to 1, or None where the file has none.
        extrinsics: float32 [T, 4, 4], world to camera.
        intrinsics: float32 [3, 3], pixels of the video.
        group: the parent folder, which is the task: a split must not cut through it.
        scene: attributes of the file.
    """

    video: Path
    fps: float
    points: np.ndarray
    confidence: np.ndarray | None
    extrinsics: np.ndarray
    intrinsics: np.ndarray
    group: str
    scene: dict[str, Any]

    def __len__(self) -> int:
        return len(self.points)

    @cached_property
    def frames(self) -> np.ndarray:
        """uint8 RGB [T, H, W, 3]; all of them, so for short episodes."""
        return self.drawn(range(len(self)))

    def drawn(self, index: range | Sequence[int]) -> np.ndarray:
        """uint8 RGB [n, H, W, 3] of frames in rising order, read in one pass.

        Raises:
            InputError: frames that do not rise, or none.
            VideoError: the video has not all of them.
        """
        from vtoken.video import open_video

        wanted = list(index)
        if wanted != sorted(set(wanted)) or not wanted or wanted[0] < 0:
            raise InputError(f"frames {wanted[:4]} ... must be different and rising")
        found, at = [], 0
        half = 0.5 / self.fps  # a frame's time may be rounded
        begin, end = max(0.0, wanted[0] / self.fps - half), wanted[-1] / self.fps + half
        with open_video(self.video, start=begin, end=end) as reader:
            for frames in reader:
                for i, number in enumerate(np.round(frames.pts * self.fps)):
                    if at < len(wanted) and number == wanted[at]:
                        found.append(frames.rgb(i))
                        at += 1
        if at < len(wanted):
            raise VideoError(f"{self.video}: no frame {wanted[at]}, though the poses have {len(self)}")
        return np.stack(found)


def read(folder: str | os.PathLike[str]) -> list[Recording]:
    """All episodes below a folder, in the order of their paths.

    Raises:
        InputError: no such folder, no episodes, or a file that lacks a field or has one of another shape.
        VideoError: an episode's video is missing or cannot be read.
        MissingExtraError: h5py is not installed.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; give the one that EgoDex was unpacked to")
    files = sorted(folder.rglob("*.hdf5"))
    if not files:
        raise InputError(f"{folder}: no .hdf5 files in it; EgoDex has one beside every .mp4")
    return [_read(file, folder) for file in files]


def _read(file: Path, root: Path) -> Recording:
    from vtoken.video import open_video

    h5py = require("h5py", *EXTRA)
    video = file.with_suffix(".mp4")
    if not video.is_file():
        raise VideoError(f"{file}: its video {video.name} is missing")
    try:
        with h5py.File(file, "r") as held:
            camera = _field(held, file, "transforms/camera", (None, 4, 4))
            joints = [_field(held, file, f"transforms/{name}", (len(camera), 4, 4)) for name in POINTS]
            lens = _field(held, file, "camera/intrinsic", (3, 3))
            sure = None
            if "confidences" in held:
                sure = np.stack([_field(held, file, f"confidences/{n}", (len(camera),)) for n in POINTS], 1)
            scene = {str(k): v.decode() if isinstance(v, bytes) else v for k, v in held.attrs.items()}
    except OSError as error:
        raise InputError(f"{file}: not an HDF5 file that can be read ({error})") from error
    with open_video(video) as reader:
        if reader.native_fps is None:
            raise InputError(f"{video}: the file does not say its frame rate; write it again with one")
        fps = float(reader.native_fps)
    points = np.stack([joint[:, :3, 3] for joint in joints], 1).astype(np.float32)
    poses = np.linalg.inv(camera).astype(np.float32)
    group = file.parent.relative_to(root).as_posix()
    group = root.name if group == "." else group
    return Recording(video, fps, points, sure, poses, lens.astype(np.float32), group, scene)


def _field(held: Any, file: Path, name: str, shape: tuple[int | None, ...]) -> np.ndarray:
    """A field as numbers, float64; refused where it is missing, of another shape, or not finite."""
    if name not in held:
        raise InputError(f"{file}: no field {name!r}, which EgoDex's files have")
    value = np.asarray(held[name], np.float64)
    if value.ndim != len(shape) or any(b not in (None, a) for a, b in zip(value.shape, shape, strict=True)):
        raise InputError(f"{file}: {name} is {list(value.shape)}, {list(shape)} expected")
    if not len(value) or not np.isfinite(value).all():
        raise InputError(f"{file}: {name} is empty or has numbers that are not finite")
    return value


def write(episode: Any, path: str | os.PathLike[str], crf: int = 12) -> Path:
    """An episode as EgoDex keeps it: ``path`` with .hdf5 and with .mp4; only the joints' places, with no turns.

    Args:
        episode: with ``frames``, ``fps``, ``points``, ``extrinsics`` and ``intrinsics``.
        crf: x264's quality.

    Raises:
        MissingExtraError: h5py is not installed.
    """
    from vtoken.reference.synthetic import SyntheticClip, Truth
    from vtoken.video.write import write_video

    h5py = require("h5py", *EXTRA)
    path = Path(path).with_suffix(".hdf5")
    path.parent.mkdir(parents=True, exist_ok=True)
    frames = episode.frames
    clip = SyntheticClip(path.stem, episode.fps, frames.shape[1:3], len(frames), Truth(), lambda i: frames[i])
    write_video(path.with_suffix(".mp4"), clip, crf=crf)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    with h5py.File(part, "w") as out:
        out["camera/intrinsic"] = episode.intrinsics
        out["transforms/camera"] = np.linalg.inv(episode.extrinsics.astype(np.float64)).astype(np.float32)
        for i, name in enumerate(POINTS):
            turn = np.tile(np.eye(4, dtype=np.float32), (len(frames), 1, 1))
            turn[:, :3, 3] = episode.points[:, i]
            out[f"transforms/{name}"] = turn
        out.attrs["llm_description"] = "two hands bring an object to its place"
    os.replace(part, path)
    return path
