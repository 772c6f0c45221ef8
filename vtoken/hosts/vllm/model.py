# pyright: reportMissingImports=false
"""What the gated models share: which settings of vLLM are refused, embeddings of kept cells, and M-RoPE positions."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from vllm.model_executor.layers.attention import MMEncoderAttention

from vtoken.errors import UnsupportedError
from vtoken.hosts.vllm.processing import server_plan
from vtoken.hosts.vllm.prompt import HOME, KEEP, KEPT, in_order, whole_prompt


def refuse(vllm_config: Any) -> None:
    """Settings of vLLM under which a gated model would be wrong; the processor has refused most of them by then.

    Raises:
        InputError: the plan of the server cannot run.
        UnsupportedError: a setting; the message names it.
    """
    server_plan(vllm_config.model_config)
    if vllm_config.lora_config is not None and vllm_config.lora_config.enable_tower_connector_lora:
        raise UnsupportedError("enable_tower_connector_lora was never run with a gated model; leave it off")


class GatedModel:
    """Mixin before a stock Qwen model of vLLM; a family writes ``_tower``."""

    config: Any
    visual: Any

    def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
        refuse(vllm_config)
        super().__init__(vllm_config=vllm_config, prefix=prefix)  # type: ignore[call-arg]

    def _tower(self, rows: Tensor, grids: list[list[int]], keep: Tensor) -> Tensor:
        """Embeddings [K, D] of the kept cells of some videos, in raster order.

        Args:
            rows: pixel rows of the kept cells.
            grids: [t, h, w] of each video in patches.
            keep: bool [cells of all videos].
        """
        raise NotImplementedError

    def embed_multimodal(self, **kwargs: Any) -> Any:
        """Embeddings of every image and video: those of gated videos have a row for every kept cell."""
        keep, home, kept = (kwargs.pop(name, None) for name in (KEEP, HOME, KEPT))
        if keep is None:
            return super().embed_multimodal(**kwargs)  # type: ignore[misc]
        assert home is not None and kept is not None
        videos = ("pixel_values_videos", "video_grid_thw", "second_per_grid_ts", "timestamps")
        own = {name: kwargs.pop(name) for name in videos if name in kwargs}
        found = super().embed_multimodal(**kwargs) if kwargs else ()  # type: ignore[misc]
        rows = self._tower(own["pixel_values_videos"], own["video_grid_thw"].tolist(), keep.cpu())
        return (*found, *in_order(rows, home.cpu(), kept.tolist()))

    def get_mrope_input_positions(self, input_tokens: list[int], mm_features: list[Any]) -> tuple[Tensor, int]:
        """Positions [3, N]: those that the stock model gives the whole prompt, without the columns of dropped cells."""
        marks = self.config.video_token_id, self.config.vision_start_token_id
        tokens, features, left = whole_prompt(input_tokens, mm_features, *marks)
        positions, _ = super().get_mrope_input_positions(tokens, features)  # type: ignore[misc]
        positions = positions[:, left]
        return positions, int(positions.max()) + 1 - len(input_tokens)

    def get_encoder_cudagraph_config(self) -> Any:
        """CUDA graphs of the encoder are for images alone: a replay counts a video's rows by its grid."""
        stock = super().get_encoder_cudagraph_config()  # type: ignore[misc]
        return replace(stock, modalities=[name for name in stock.modalities if name != "video"])


def ends(visual: Any, lengths: np.ndarray) -> tuple[Any, Tensor, Any]:
    """Sequences of a tower's attention as its backend wants them: their ends, the longest one, lengths where it asks.

    Args:
        lengths: int32 [n], rows of every sequence.
    """
    backend = visual.attn_backend
    stops = np.concatenate([np.zeros(1, np.int32), lengths.cumsum(dtype=np.int32)])
    longest = torch.tensor(MMEncoderAttention.compute_max_seqlen(backend, stops), dtype=torch.int32)
    given = MMEncoderAttention.maybe_recompute_cu_seqlens(
        backend,
        stops,
        visual.hidden_size,
        visual.tp_size,
        visual.device,
        fp8_padded_hidden_size=visual.fp8_padded_hidden_size,
    )
    return given, longest, MMEncoderAttention.maybe_compute_seq_lens(backend, stops, visual.device)
