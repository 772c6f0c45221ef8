# pyright: reportMissingImports=false
"""Qwen2.5-VL in vLLM with a gate before its encoder."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from vllm.model_executor.models import qwen2_5_vl as stock
from vllm.multimodal import MULTIMODAL_REGISTRY

from vtoken.hosts.vllm.gating import segments
from vtoken.hosts.vllm.model import ends
from vtoken.hosts.vllm.processing import NoisyVideos
from vtoken.hosts.vllm.prompt import HOME
from vtoken.hosts.vllm.qwen import GatedQwen, QwenProcessor


class DummyInputs(NoisyVideos, stock.Qwen2_5_VLDummyInputsBuilder):
    """Stock dummy inputs with noise for videos."""


class Processor(QwenProcessor, stock.Qwen2_5_VLMultiModalProcessor):
    """One run of placeholders, a placeholder for every kept cell."""

    def _replacement(self, item: Any) -> list[int]:
        return [self.info.get_hf_config().video_token_id] * len(item[HOME].data)

    def _positions(self, item: Any) -> int:
        t, h, w = item["video_grid_thw"].data.tolist()
        seconds = float(item["second_per_grid_ts"].data) if "second_per_grid_ts" in item else 1.0
        rate = getattr(self.info.get_hf_config().vision_config, "tokens_per_second", 1.0)
        return max(int((t - 1) * seconds * rate) + 1, h // self._merge(), w // self._merge())

    @classmethod
    def factor(cls, model_config: Any) -> int:
        """vLLM makes the tables of Qwen2 with M-RoPE four times as long."""
        return 4

    def _spacing(self, made: Any) -> Iterator[float | None]:
        steps, frames = made.get("second_per_grid_ts"), self.info.get_hf_config().vision_config.temporal_patch_size
        for number in range(len(made["video_grid_thw"])):
            yield None if steps is None else float(steps[number]) / frames


@MULTIMODAL_REGISTRY.register_processor(Processor, info=stock.Qwen2_5_VLProcessingInfo, dummy_inputs=DummyInputs)
class GatedQwen2_5_VL(GatedQwen, stock.Qwen2_5_VLForConditionalGeneration):
    """The stock model, whose tower runs on the kept cells of a video, in the windows and at the places they have."""

    def _tower(self, own: dict[str, Any], keep: Tensor) -> Tensor:
        known = metadata(self.visual, own["video_grid_thw"].tolist(), keep)
        return self.visual(own["pixel_values_videos"], grid_thw=None, encoder_metadata=known)


def metadata(visual: Any, grids: list[list[int]], keep: Tensor) -> dict[str, Any]:
    """What the stock tower needs to know of its rows, for the kept cells alone.

    Args:
        grids: [t, h, w] of each video in patches.
        keep: bool [cells of all videos], in raster order.
    """
    unit, cos, sin, order = visual.spatial_merge_unit, [], [], []
    frames, windows = [], []
    done = 0
    for (t, h, w), own in zip(grids, keep.split([t * h * w // unit for t, h, w in grids]), strict=True):
        own_cos, own_sin, window, window_ends, _ = visual.get_rope_by_thw(t, h, w)
        window = window.cpu()
        left = own[window]  # rows, cos and sin are in the order of windows
        place = left.to(own_cos.device)
        cos.append(own_cos.unflatten(0, (-1, unit))[place].flatten(0, 1))
        sin.append(own_sin.unflatten(0, (-1, unit))[place].flatten(0, 1))
        number = own.long().cumsum(0) - 1
        order.append(number[window[left]] + done)
        done += int(own.sum())
        lengths = torch.diff(window_ends.cpu().long() // unit, prepend=torch.zeros(1, dtype=torch.long))
        windows.append(segments(left, lengths))
        frames.append(segments(own, torch.full((t,), len(own) // t)))
    index = torch.cat(order)
    reverse = torch.empty_like(index).index_copy(0, index, torch.arange(len(index)))
    device = visual.device
    found: dict[str, Any] = {
        "rotary_pos_emb_cos": torch.cat(cos).to(device),
        "rotary_pos_emb_sin": torch.cat(sin).to(device),
        "window_index": index.to(device),
        "reverse_indices": reverse.to(device),
    }
    found["cu_seqlens"], found["max_seqlen_full"], found["sequence_lengths_full"] = ends(
        visual, np.concatenate(frames) * unit
    )
    found["cu_window_seqlens"], found["max_seqlen_window"], found["sequence_lengths_window"] = ends(
        visual, np.concatenate(windows) * unit
    )
    return found
