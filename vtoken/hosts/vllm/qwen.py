# pyright: reportMissingImports=false
"""What the gated Qwen models share: rows in grids, M-RoPE positions of the whole prompt, and room for these."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from torch import Tensor

from vtoken.errors import InputError
from vtoken.hosts.vllm.gating import GatedRows, gate_rows
from vtoken.hosts.vllm.model import GatedModel
from vtoken.hosts.vllm.processing import GatedProcessor
from vtoken.hosts.vllm.prompt import HOME, KEEP, KEPT, whole_prompt
from vtoken.methods.gate import Gate
from vtoken.video.preprocess import Preprocessor

REMEMBERED = 100_000  # videos; far more than the processor's cache holds


class QwenProcessor(GatedProcessor):
    """Mixin before a stock Qwen processor; a family writes ``_replacement`` and what is listed below."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.added: OrderedDict[str, int] = OrderedDict()  # by a video's hash: cached ones have no data

    def _gate(self, made: Any, videos: Any, gate: Gate | None, preprocess: Preprocessor) -> Iterator[GatedRows]:
        grids = made["video_grid_thw"]
        parts = made["pixel_values_videos"].split(grids.prod(-1).tolist())
        for rows, grid, spacing in zip(parts, grids, self._spacing(made), strict=True):
            yield gate_rows(rows, grid, spacing, gate, preprocess)

    def _sizes(self, made: Any) -> tuple[Tensor, Tensor]:
        merge = self._merge() ** 2
        return made[KEPT] * merge, made["video_grid_thw"].prod(-1) // merge

    def apply(self, inputs: Any, timing_ctx: Any) -> Any:
        """A request as the engine gets it.

        Raises:
            InputError: positions of its videos, which are those of all their cells, end beyond what the model can take.
        """
        made = super().apply(inputs, timing_ctx)  # type: ignore[misc]
        hashes, total = made["mm_hashes"].get("video", ()), 0
        for name, item in zip(hashes, made["mm_kwargs"].get("video", ()), strict=True):
            if item is not None and KEEP in item:
                self.added[name] = self._positions(item) - len(item[HOME].data)
            if name in self.added:
                self.added.move_to_end(name)
                total += self.added[name]
        while len(self.added) > REMEMBERED:
            self.added.popitem(last=False)
        if total > (room := self._room()):
            raise InputError(
                f"positions count the whole video, here {total} more than its kept cells, and the model has room for "
                f"{room}; ask about fewer frames, or start vLLM with a smaller max_model_len"
            )
        return made

    # What differs between families.

    def _positions(self, item: Any) -> int:
        """How many positions a whole video takes, its marks and stamps aside."""
        raise NotImplementedError

    def _spacing(self, made: Any) -> Iterator[float | None]:
        """Seconds from one frame to the next of every video."""
        raise NotImplementedError

    @classmethod
    def factor(cls, model_config: Any) -> int:
        """How many times ``max_position_embeddings`` the model's rotary tables are long."""
        raise NotImplementedError

    # Shared.

    def _room(self) -> int:
        """Positions that a request may have beyond its tokens, those of its answer included."""
        model = self.info.ctx.model_config
        tables = model.hf_text_config.max_position_embeddings * self.factor(model)
        return max(0, tables - model.max_model_len)

    def _merge(self) -> int:
        return self.info.get_hf_config().vision_config.spatial_merge_size


class GatedQwen(GatedModel):
    """Mixin before a stock Qwen model."""

    visual: Any
    of_video = ("pixel_values_videos", "video_grid_thw", "second_per_grid_ts", "timestamps")

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
