"""The optimizer of the reference model's training."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class Optimizer:
    """Muon for the matrices inside blocks, AdamW for embeddings, heads, biases and norms."""

    def __init__(self, blocks: list[nn.Parameter], rest: list[nn.Parameter]) -> None:
        # the patch embedding of five dimensions is a matrix to Muon: a view of the same memory
        self.views = [(p, nn.Parameter(p.data.flatten(1))) for p in blocks if p.dim() > 2]
        matrices = [p for p in blocks if p.dim() == 2] + [v for _, v in self.views]
        muon = torch.optim.Muon(matrices, lr=1e-3, weight_decay=0.01, adjust_lr_fn="match_rms_adamw")
        rest = rest + [p for p in blocks if p.dim() < 2]
        self.parts = [muon, torch.optim.AdamW(rest, lr=1e-3, betas=(0.9, 0.98), weight_decay=0.0, fused=True)]

    def step(self, loss: Tensor, lr: float) -> None:
        """One update; Muon runs at twice AdamW's rate."""
        groups = [g for o in self.parts for g in o.param_groups]
        for o, factor in zip(self.parts, (2.0, 1.0), strict=True):
            for group in o.param_groups:
                group["lr"] = lr * factor
            o.zero_grad(set_to_none=True)
        for p, _ in self.views:
            p.grad = None
        loss.backward()
        for p, view in self.views:
            view.grad = None if p.grad is None else p.grad.flatten(1)
        nn.utils.clip_grad_norm_([p for g in groups for p in g["params"]], 1.0)
        for o in self.parts:
            o.step()

    def state_dict(self) -> list[Any]:
        return [o.state_dict() for o in self.parts]

    def load_state_dict(self, held: list[Any]) -> None:
        for o, part in zip(self.parts, held, strict=True):
            o.load_state_dict(part)
