"""The same prompts by transformers with vtoken: what a gated model of vLLM is compared with."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers as hf
from torch import Tensor

import vtoken
from vtoken import families
from vtoken.hosts.vllm.gating import homes, pooled_cells
from vtoken.hosts.vllm.plans import gate_of

FPS = 2.0


def metadata(clip: np.ndarray) -> dict[str, Any]:
    """What vLLM wants to know of frames that were sampled already."""
    n = len(clip)
    found = {"fps": FPS, "duration": n / FPS, "total_num_frames": n, "frames_indices": list(range(n))}
    return found | {"video_backend": "opencv"}


class Reference:
    """A checkpoint in transformers, wrapped for one plan at a time."""

    def __init__(self, folder: Path) -> None:
        self.model: Any = hf.AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
        self.processor: Any = hf.AutoProcessor.from_pretrained(folder)

    def inputs(self, text: str, clips: list[np.ndarray], pictures: list[Any]) -> dict[str, Any]:
        given: dict[str, Any] = {"text": [text], "return_tensors": "pt"}
        if pictures:
            given["images"] = pictures
        if clips:
            known = [metadata(clip) for clip in clips]
            given |= {"videos": clips, "video_metadata": known, "do_sample_frames": False}
        return dict(self.processor(**given))

    def answer(self, inputs: dict[str, Any], plan: str, tokens: int) -> Tensor:
        """Log-probabilities of greedy tokens, [tokens, vocabulary]."""
        vtoken.wrap(self.model, plan, positions="trained", fps=FPS)
        try:
            out = self.model.generate(
                **inputs, max_new_tokens=tokens, do_sample=False, return_dict_in_generate=True, output_logits=True
            )
        finally:
            vtoken.unwrap(self.model)
        return torch.stack([step[0] for step in out.logits]).float().log_softmax(-1)

    def masks(self, inputs: dict[str, Any], plan: str) -> list[tuple[Tensor, Tensor]]:
        """For every video what is encoded, bool [cells] or [patches], and the cells where its tokens stand, int64."""
        gate = gate_of(plan)
        assert gate is not None
        family: Any = families.of(self.model)
        found = []
        for clip in family.clips(self.model, inputs, gate, FPS, None):
            keep, cells = clip.gate.keep, None
            if hasattr(family, "pooled"):
                cells = pooled_cells(keep, partial(family.pooled, self.model))
            found.append((torch.from_numpy(keep.ravel()), homes(clip, gate, cells)))
        return found
