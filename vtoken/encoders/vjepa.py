"""The dense branch: a frozen V-JEPA 2, past and future encoded in passes of their own."""

from __future__ import annotations

import sys
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vtoken.encoders.compat import device_of, dtype_of
from vtoken.errors import InputError
from vtoken.reference import VJEPA

PAPER = "V-JEPA 2 (arXiv 2506.09985)"
SURPRISE = "surprise"  # the signal: how far a cell is from what was expected
TINY = "tiny"
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Dense:
    """A frozen ``VJEPA2Model``: frames to latents, and latents to what its own predictor expects next.

    Args:
        model: the model; its parameters are frozen and it is put into eval mode.
    """

    def __init__(self, model: Any) -> None:
        self.model = model.eval().requires_grad_(False)
        config = model.config
        self.tubelet: int = config.tubelet_size
        self.size: int = config.crop_size
        self.width: int = config.hidden_size
        self.patches: int = (config.crop_size // config.patch_size) ** 2

    @classmethod
    def load(cls, name: str = TINY, device: Any = "cpu") -> Dense:
        """A checkpoint by hub id or folder; "tiny" is the small one that ships with the package.

        Raises:
            InputError: no such checkpoint, or one that is no V-JEPA 2.
        """
        from transformers import AutoConfig, VJEPA2Model
        from transformers.utils.logging import disable_progress_bar

        if not sys.stderr.isatty():
            disable_progress_bar()
        where = str(VJEPA) if name == TINY else name
        if name == TINY and not (VJEPA / "config.json").is_file():
            raise InputError(
                f"encoder {name!r}: its weights are missing from {VJEPA}; train them with "
                "`python -m training.vjepa.pretrain`, or name another checkpoint"
            )
        try:
            config: Any = AutoConfig.from_pretrained(where)
            if config.model_type != "vjepa2":
                raise InputError(f"encoder {name!r} is a {config.model_type!r}; a V-JEPA 2 checkpoint is needed")
            model: Any = VJEPA2Model.from_pretrained(where, dtype=torch.float32)
        except (OSError, ValueError, KeyError) as error:
            if isinstance(error, InputError):
                raise
            said = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
            raise InputError(f"encoder {name!r} cannot be read ({said}); give a hub id or a folder") from error
        return cls(model.to(device))

    @property
    def device(self) -> torch.device:
        return device_of(self.model)

    def pixels(self, frames: np.ndarray, squeeze: bool = False) -> Tensor:
        """uint8 RGB [T, H, W, 3] to float32 [T, 3, S, S]: the square in the middle, averaged over areas, normalised.

        Frames are processed independently.

        Args:
            squeeze: resize the whole frame to the square instead of its centre.

        Raises:
            InputError: not an array of RGB frames.
        """
        import cv2

        if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8 or 0 in frames.shape:
            raise InputError(f"frames must be uint8 [T, H, W, 3], got {frames.dtype} {list(frames.shape)}")
        side = min(frames.shape[1:3])
        top, left = ((n - side) // 2 for n in frames.shape[1:3])
        square = frames if squeeze else frames[:, top : top + side, left : left + side]
        way = cv2.INTER_AREA if side >= self.size else cv2.INTER_LINEAR
        small = np.stack([cv2.resize(f, (self.size, self.size), interpolation=way) for f in square])
        values = (small.astype(np.float32) / 255 - np.array(MEAN, np.float32)) / np.array(STD, np.float32)
        return torch.from_numpy(np.ascontiguousarray(np.moveaxis(values, -1, 1)))

    @torch.inference_mode()
    def encode(self, clips: Tensor) -> Tensor:
        """Latents of clips, each encoded alone.

        Args:
            clips: float [B, T, 3, S, S] with T a multiple of the tubelet.

        Returns:
            float [B, T / tubelet, P, D].

        Raises:
            InputError: another size or length.
        """
        if clips.dim() != 5 or clips.shape[1] % self.tubelet or tuple(clips.shape[3:]) != (self.size, self.size):
            raise InputError(
                f"clips must be [B, T, 3, {self.size}, {self.size}] with T a multiple of {self.tubelet}, "
                f"got {list(clips.shape)}"
            )
        out = self.model.encoder(clips.to(self.device, dtype_of(self.model))).last_hidden_state
        return out.view(len(clips), clips.shape[1] // self.tubelet, self.patches, self.width)

    @torch.inference_mode()
    def predict(self, past: Tensor, steps: int) -> Tensor:
        """What the checkpoint's own predictor expects: [B, T, P, D] to the next ``steps``, float [B, steps, P, D]."""
        b, t, p, d = past.shape
        index = torch.arange((t + steps) * p, device=past.device).expand(b, -1)
        out = self.model.predictor(
            encoder_hidden_states=past.flatten(1, 2),
            context_mask=[index[:, : t * p]],
            target_mask=[index[:, t * p :]],
        )
        return out.last_hidden_state.view(b, steps, p, d)


@lru_cache(maxsize=2)
def loaded(encoder: str) -> Dense:
    """A checkpoint, on the GPU where there is one; kept for the next clip.

    Raises:
        InputError: see ``Dense.load``.
    """
    return Dense.load(encoder, "cuda" if torch.cuda.is_available() else "cpu")


def named(method: str, encoder: str) -> None:
    """Raises InputError: no checkpoint was named."""
    if not encoder:
        raise InputError(
            f"{method}:encoder= must name a V-JEPA 2 checkpoint: {method}:encoder=facebook/vjepa2-vitl-fpc64-256 (a "
            f"hub id or a folder), or {method}:encoder={TINY}, the toy in the package, trained on drawn clips alone"
        )


def notes(method: str, encoder: str) -> tuple[str, ...]:
    """Notes for the report about a checkpoint."""
    if encoder != TINY:
        return ()
    return (f"{method}: encoder={TINY} is a toy trained on drawn clips; for real video name a V-JEPA 2 checkpoint",)
