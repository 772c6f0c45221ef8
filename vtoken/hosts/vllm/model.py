# pyright: reportMissingImports=false
"""What all gated models share: which settings of vLLM are refused, and the embeddings of kept cells."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from vllm.model_executor.layers.attention import MMEncoderAttention

from vtoken.errors import UnsupportedError
from vtoken.hosts.vllm.processing import server_plan
from vtoken.hosts.vllm.prompt import HOME, KEEP, KEPT, in_order


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
    """Mixin before a stock model of vLLM; a family writes ``_tower``.

    Attributes:
        of_video: names of what the stock processor says of videos.
    """

    config: Any
    of_video: tuple[str, ...] = ("pixel_values_videos",)

    def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
        refuse(vllm_config)
        super().__init__(vllm_config=vllm_config, prefix=prefix)  # type: ignore[call-arg]

    def _tower(self, own: dict[str, Any], keep: Tensor) -> Tensor:
        """Embeddings [K, D] of the tokens of some videos, in raster order.

        Args:
            own: what the processor says of them, ``pixel_values_videos`` of the kept cells alone.
            keep: bool [cells of all videos].
        """
        raise NotImplementedError

    def embed_multimodal(self, **kwargs: Any) -> Any:
        """Embeddings of every image and video: those of gated videos have a row for every token."""
        keep, home, kept = (kwargs.pop(name, None) for name in (KEEP, HOME, KEPT))
        if keep is None:
            return super().embed_multimodal(**kwargs)  # type: ignore[misc]
        assert home is not None and kept is not None
        own = {name: kwargs.pop(name) for name in self.of_video if name in kwargs}
        found = super().embed_multimodal(**kwargs) if kwargs else ()  # type: ignore[misc]
        videos = in_order(self._tower(own, keep.cpu()), home.cpu(), kept.tolist())
        return (*found, *(self._close(rows) for rows in videos))

    def _close(self, rows: Tensor) -> Tensor:
        """The embeddings of one video from those of its cells, in the order of the prompt."""
        return rows


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
