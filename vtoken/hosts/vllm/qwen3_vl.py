# pyright: reportMissingImports=false
"""Qwen3-VL in vLLM with a gate before its encoder."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from vllm.model_executor.models import qwen3_vl as stock
from vllm.multimodal import MULTIMODAL_REGISTRY

from vtoken.hosts.vllm.gating import segments
from vtoken.hosts.vllm.model import ends
from vtoken.hosts.vllm.processing import NoisyVideos
from vtoken.hosts.vllm.prompt import HOME
from vtoken.hosts.vllm.qwen import GatedQwen, QwenProcessor


class DummyInputs(NoisyVideos, stock.Qwen3VLDummyInputsBuilder):
    """Stock dummy inputs with noise for videos."""


class Processor(QwenProcessor, stock.Qwen3VLMultiModalProcessor):
    """Every time step has its stamp, its start and end marks, and a placeholder for every kept cell."""

    def _replacement(self, item: Any) -> Any:
        config = self.info.get_hf_config()
        return self.get_video_repl(
            tokens_per_frame=counts(item, self._merge()),
            timestamps=item["timestamps"].data,
            tokenizer=self.info.get_tokenizer(),
            vision_start_token_id=config.vision_start_token_id,
            vision_end_token_id=config.vision_end_token_id,
            video_token_id=config.video_token_id,
            select_token_id=True,
        )

    def _positions(self, item: Any) -> int:
        t, h, w = item["video_grid_thw"].data.tolist()
        return t * max(h, w) // self._merge()

    @classmethod
    def factor(cls, model_config: Any) -> int:
        """Enough for prompts whose whole videos have four times as many positions, and no more than that."""
        longest = model_config.hf_text_config.max_position_embeddings
        return min(4, -(-4 * model_config.max_model_len // longest))

    def _spacing(self, made: Any) -> Iterator[float | None]:
        frames = self.info.get_hf_config().vision_config.temporal_patch_size
        for times in made["timestamps"]:  # of the middles of time steps; the last step may have fewer frames
            whole = times[:-1] if len(times) > 2 else times
            yield float(whole[-1] - whole[0]) / (len(whole) - 1) / frames if len(whole) > 1 else None


class GatedQwen3(GatedQwen):
    """Mixin before the stock model, with or without experts: its tower runs on the kept cells; DeepStack rows too.

    Attributes:
        module: the one of vLLM whose layers read how long rotary tables are.
    """

    module: Any

    def __init__(self, *, vllm_config: Any, prefix: str = "model") -> None:
        usual = self.module.mrope_positions_factor
        factor = Processor.factor(vllm_config.model_config)
        self.module.mrope_positions_factor = lambda config: max(usual(config), factor)
        try:
            super().__init__(vllm_config=vllm_config, prefix=prefix)
        finally:
            self.module.mrope_positions_factor = usual

    def _tower(self, own: dict[str, Any], keep: Tensor) -> Tensor:
        grids = own["video_grid_thw"].tolist()
        known = metadata(self.visual, grids, keep)
        return self.visual(own["pixel_values_videos"], grid_thw=grids, encoder_metadata=known)


@MULTIMODAL_REGISTRY.register_processor(Processor, info=stock.Qwen3VLProcessingInfo, dummy_inputs=DummyInputs)
class GatedQwen3VL(GatedQwen3, stock.Qwen3VLForConditionalGeneration):
    """Qwen3-VL without experts."""

    module = stock


def metadata(visual: Any, grids: list[list[int]], keep: Tensor) -> dict[str, Any]:
    """What the stock tower needs to know of its rows, for the kept cells alone.

    Args:
        grids: [t, h, w] of each video in patches.
        keep: bool [cells of all videos], in raster order.
    """
    unit = visual.spatial_merge_size**2
    rows = keep.repeat_interleave(unit).to(visual.device)
    cos, sin = visual.rot_pos_emb(grids)
    lengths = torch.tensor([h * w // unit for t, h, w in grids for _ in range(t)])
    stops, longest, sequences = ends(visual, segments(keep, lengths) * unit)
    return {
        "pos_embeds": visual.fast_pos_embed_interpolate(grids)[rows],
        "rotary_pos_emb_cos": cos[rows],
        "rotary_pos_emb_sin": sin[rows],
        "cu_seqlens": stops,
        "max_seqlen": longest,
        "sequence_lengths": sequences,
    }


def counts(item: Any, merge: int) -> list[int]:
    """Tokens of every time step of a gated video."""
    steps, h, w = item["video_grid_thw"].data.tolist()
    step = item[HOME].data // (h * w // merge**2)
    return torch.bincount(step, minlength=steps).tolist()
