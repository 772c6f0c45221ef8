"""Foresight: how far what a clip shows is from what V-JEPA 2 expected of its past."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from vtoken.pathways.dense import Dense
from vtoken.pathways.losses import normed


class Foresight:
    """Surprise of one clip, step by step; a step (tubelet) is the frames that V-JEPA 2 takes as one.

    Surprise is V-JEPA 2's own loss: L1 between the predicted latent and the layer-normed one observed. Past and
    present are encoded in passes of their own, so the prediction knows nothing of what it is held against.

    Args:
        dense: the model.
        past: time steps that a prediction looks back.
    """

    def __init__(self, dense: Dense, past: int) -> None:
        self.dense, self.past = dense, past
        self._known: Tensor | None = None

    def forget(self) -> None:
        """A new scene: nothing is expected."""
        self._known = None

    def look(self, frames: np.ndarray) -> Tensor:
        """Surprise of the next frames, encoded together; inf where there is no past.

        Args:
            frames: uint8 [n, H, W, 3], n a multiple of the tubelet.

        Returns:
            float32 [n / tubelet, s, s].
        """
        clip = self.dense.pixels(frames, whole=True)[None]
        seen, side = self.dense.encode(clip), int(self.dense.patches**0.5)
        lead = 0
        if self._known is None:  # the first step alone tells what is expected of the others
            lead = 1
            self._known = seen if seen.shape[1] == 1 else self.dense.encode(clip[:, : self.dense.tubelet])
        out = torch.full((seen.shape[1], self.dense.patches), torch.inf)
        if seen.shape[1] > lead:
            expected = self.dense.predict(self._known, seen.shape[1] - lead)
            out[lead:] = (expected - normed(seen[:, lead:])).abs().mean(-1)[0].float().cpu()
        self._known = seen[:, -self.past :] if lead else torch.cat([self._known, seen], 1)[:, -self.past :]
        return out.view(-1, side, side)


def on_grid(surprise: Tensor, rows: int, columns: int) -> Tensor:
    """Maps [n, s, s] in the cells of a grid, float32 [n, rows, columns]: averaged where coarser, linear where finer."""
    if columns == 1 < rows:  # torch's antialiased resize on a CPU is wrong for an output of one column
        return on_grid(surprise.mT, columns, rows).mT
    known = surprise.isfinite()
    filled = torch.where(known, surprise, 0.0)[:, None]
    out = interpolate(filled, (rows, columns), mode="bilinear", antialias=True, align_corners=False)[:, 0]
    return out.masked_fill(~known.flatten(1).all(1)[:, None, None], torch.inf)
