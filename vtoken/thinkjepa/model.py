"""ThinkJEPA: guided predictor and trajectory head, as one module with one configuration."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vtoken.encoders.foresight import normed
from vtoken.errors import InputError
from vtoken.output.files import replacing, write_text
from vtoken.thinkjepa.head import TrajectoryHead, held, to_world
from vtoken.thinkjepa.predictor import GuidedPredictor, fresh_predictor
from vtoken.thinkjepa.pyramid import Pyramid
from vtoken.thinkjepa.settings import Design
from vtoken.thinkjepa.streams import Streams


@dataclass
class Prediction:
    """Latents [B, S, P, D] of the future, and points [B, F, N, 3] in metres: of the past as read, of the future."""

    latents: Tensor
    past_points: Tensor
    points: Tensor


class ThinkJepa(nn.Module):
    """Past latents, the thinker's states and observed poses in; future latents and points out.

    Nothing of the future is an argument.

    Args:
        core: a ``VJEPA2Predictor``; None for a fresh one of ``config``.
        config: the encoder's ``VJEPA2Config``.
        design: see ``Design``.
        width, levels: of the thinker's states, with all its levels.
        points: points of a frame.
    """

    def __init__(
        self, config: Any, design: Design, width: int, levels: int, points: int = 52, core: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.config, self.design = config, design
        self.sizes = {"width": width, "levels": levels, "points": points}
        core = fresh_predictor(config) if core is None else core
        use = () if design.mode == "jepa" else design.streams
        guide = Pyramid(
            width,
            len(design.chosen(levels)),
            config.pred_hidden_size,
            config.pred_num_hidden_layers,
            design.guidance,
            use,
            design.gate,
            config.pred_num_attention_heads,
        )
        self.predictor = GuidedPredictor(core, guide, design.causal)
        patches = self.predictor.patches
        self.head = TrajectoryHead(
            config.hidden_size, patches, points, config.tubelet_size, design.pool, design.queries
        )

    @property
    def guide(self) -> Pyramid:
        assert self.predictor.guide is not None
        return self.predictor.guide

    def levels(self, streams: Streams) -> Streams:
        """The levels that this design reads."""
        if streams.levels != self.sizes["levels"]:
            raise InputError(f"guidance has {streams.levels} levels; this model was made for {self.sizes['levels']}")
        chosen = self.design.chosen(streams.levels)
        return Streams({n: x[:, chosen] for n, x in streams.tokens.items()}, streams.masks)

    def predict(self, past: Tensor, steps: int, streams: Streams) -> Tensor:
        """Latents [B, steps, P, D] after those of the past [B, T, P, D]."""
        return self.predictor(self.seen(past), steps, self.levels(streams))

    def target(self, latents: Tensor) -> Tensor:
        """Latents of the encoder as this model takes and predicts them."""
        return normed(latents) if self.design.normed else latents

    def seen(self, past: Tensor) -> Tensor:
        """The dense past as this design sees it."""
        return torch.zeros_like(past) if self.design.mode == "vlm" else self.target(past)

    def forward(self, past: Tensor, steps: int, streams: Streams, poses: Tensor) -> Prediction:
        """Predict.

        Args:
            past: float [B, T, P, D].
            steps: time steps of the future.
            streams: the thinker's states.
            poses: float [B, T * tubelet, 4, 4], world to camera, of the past; the last one is held for the future.
        """
        future = self.predict(past, steps, streams)
        points = self.head(torch.cat([self.seen(past), future], 1))
        n = past.shape[1] * self.head.frames
        where = torch.cat([poses, held(poses, points.shape[1] - n)], 1)
        world = to_world(points, where)
        return Prediction(future, world[:, :n], world[:, n:])

    def save(self, folder: Path, notes: dict[str, Any] | None = None) -> None:
        """Write ``config.json`` and ``model.safetensors``, each under a temporary name first."""
        from safetensors.torch import save_file

        folder.mkdir(parents=True, exist_ok=True)
        told = {
            "design": asdict(self.design),
            "sizes": self.sizes,
            "vjepa": self.config.to_dict(),
            "notes": notes or {},
        }
        with replacing(folder / "model.safetensors") as draft:
            save_file({k: v.contiguous() for k, v in self.state_dict().items()}, draft)
            draft.chmod(0o644)  # safetensors writes for the owner alone
        write_text(folder / "config.json", json.dumps(told, indent=1) + "\n")

    @classmethod
    def load(cls, folder: Path) -> tuple[ThinkJepa, dict[str, Any]]:
        """A saved model in eval mode, and the notes that were saved with it.

        Raises:
            InputError: the folder holds none.
        """
        from safetensors.torch import load_file
        from transformers import VJEPA2Config

        path = folder / "config.json"
        if not path.is_file() or not (folder / "model.safetensors").is_file():
            raise InputError(f"{folder} holds no trained predictor; make one with `vtoken jepa train --out {folder}`")
        try:
            told = json.loads(path.read_text(encoding="utf-8"))
            design = Design(**told["design"] | {"streams": tuple(told["design"]["streams"])})
            model = cls(VJEPA2Config(**told["vjepa"]), design, **told["sizes"])
            model.load_state_dict(load_file(folder / "model.safetensors"))
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise InputError(f"{folder} holds no predictor that can be read ({str(error).splitlines()[0]})") from error
        return model.eval(), told["notes"]
