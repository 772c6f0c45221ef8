# pyright: reportMissingImports=false
"""What the processors of all gated models share: the gate runs on what the stock processor made."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from vllm.logger import init_logger
from vllm.multimodal.inputs import MultiModalFieldConfig
from vllm.multimodal.processing import PromptReplacement

from vtoken.errors import UnsupportedError
from vtoken.families.clips import adapt
from vtoken.hosts.vllm.gating import GatedRows
from vtoken.hosts.vllm.plans import PLAN, asked, gate_of, of_server
from vtoken.hosts.vllm.prompt import HOME, KEEP, KEPT
from vtoken.methods.gate import Gate
from vtoken.video.preprocess import Preprocessor
from vtoken.video.processors import read_processor

logger = init_logger("vllm." + __name__)


def server_plan(model_config: Any) -> str:
    """The plan that a server was started with.

    Raises:
        InputError: it cannot run.
        UnsupportedError: a setting of vLLM under which a gated model would be wrong; the message names it.
    """
    media = model_config.multimodal_config
    if media.mm_encoder_tp_mode == "data":
        raise UnsupportedError(
            "mm_encoder_tp_mode='data' shares videos out by their whole grids, and gated ones have fewer rows; "
            "leave it at 'weights'"
        )
    if media.is_multimodal_pruning_enabled():
        rate = media.video_pruning_rate
        raise UnsupportedError(f"video_pruning_rate={rate}: the gate decides which cells stay; leave it out")
    return of_server(model_config.hf_config, media.mm_processor_kwargs)


class GatedProcessor:
    """Mixin before a stock processor of vLLM; a family writes ``_gate``, ``_sizes`` and ``_replacement``.

    Every video that has pixels gets three fields: ``video_keep`` bool [cells], ``video_home`` int64 [tokens] and
    ``video_kept``, its tokens, and ``pixel_values_videos`` has the rows of the kept cells alone.
    """

    info: Any

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.plan = server_plan(self.info.ctx.model_config)
        logger.info_once("vtoken: plan %s, with hold off and without a second stage.", self.plan)

    # The steps of a stock processor, in the order in which vLLM calls them.

    def get_dummy_inputs(self, *arguments: Any, **named: Any) -> Any:
        """Inputs that memory is measured with: every cell is kept, whatever the plan, which is the worst case."""
        return replace(super().get_dummy_inputs(*arguments, **named), hf_processor_mm_kwargs={PLAN: "none"})  # type: ignore[misc]

    def _get_mm_hashes(self, inputs: Any) -> Any:
        plan, others = asked(inputs.hf_processor_mm_kwargs, self.plan)
        return super()._get_mm_hashes(replace(inputs, hf_processor_mm_kwargs={**others, PLAN: plan}))  # type: ignore[misc]

    def _apply_hf_processor_main(self, mm_items: Any, hf_kwargs: Mapping[str, Any]) -> Any:
        plan, others = asked(hf_kwargs, self.plan)
        made = super()._apply_hf_processor_main(mm_items, others)  # type: ignore[misc]
        if "pixel_values_videos" not in made:
            return made
        found = list(self._gate(made, mm_items["video"], gate_of(plan), self._preprocessor(others)))
        made["pixel_values_videos"] = torch.cat([one.rows for one in found])
        made[KEEP], made[HOME] = torch.cat([one.keep for one in found]), torch.cat([one.home for one in found])
        made[KEPT] = torch.tensor([len(one.home) for one in found])
        return made

    def _get_mm_fields_config(self, hf_inputs: Any, hf_processor_mm_kwargs: Mapping[str, Any]) -> Any:
        _, others = asked(hf_processor_mm_kwargs, self.plan)
        stock = dict(super()._get_mm_fields_config(hf_inputs, others))  # type: ignore[misc]
        if KEPT not in hf_inputs:
            return stock
        sizes, (rows, cells) = MultiModalFieldConfig.flat_from_sizes, self._sizes(hf_inputs)
        return stock | {
            "pixel_values_videos": sizes("video", rows),
            KEEP: sizes("video", cells, keep_on_cpu=True),
            HOME: sizes("video", hf_inputs[KEPT], keep_on_cpu=True),
            KEPT: MultiModalFieldConfig.batched("video", keep_on_cpu=True),
        }

    def _get_prompt_updates(
        self, mm_items: Any, hf_processor_mm_kwargs: Mapping[str, Any], out_mm_kwargs: Any
    ) -> Sequence[Any]:
        _, others = asked(hf_processor_mm_kwargs, self.plan)
        stock = super()._get_prompt_updates(mm_items, others, out_mm_kwargs)  # type: ignore[misc]

        def gated(update: Any) -> Any:
            def text(number: int) -> Any:
                item = out_mm_kwargs["video"][number]
                return self._replacement(item) if KEEP in item else update.content(number)

            return PromptReplacement(modality="video", target=update.target, replacement=text)

        return [gated(update) if update.modality == "video" else update for update in stock]

    # What differs between families.

    def _gate(self, made: Any, videos: Any, gate: Gate | None, preprocess: Preprocessor) -> Iterable[GatedRows]:
        """The gated videos.

        Args:
            made: what the stock processor made.
            videos: the videos as vLLM describes them.
            gate: None keeps every cell.
            preprocess: geometry and normalisation of the videos' pixels.
        """
        raise NotImplementedError

    def _sizes(self, made: Any) -> tuple[Tensor, Tensor]:
        """Pixel rows and cells of ``video_keep`` of every video, integers [videos]."""
        raise NotImplementedError

    def _replacement(self, item: Any) -> Any:
        """What stands in the prompt for a gated video."""
        raise NotImplementedError

    # Shared.

    def _preprocessor(self, arguments: Mapping[str, Any]) -> Preprocessor:
        """Geometry and normalisation of the videos' pixels."""
        vision, video = self.info.get_hf_config().vision_config, self.info.get_hf_processor(**arguments).video_processor
        merge, temporal = getattr(vision, "spatial_merge_size", 1), getattr(vision, "temporal_patch_size", 1)
        return adapt(read_processor(video), vision.patch_size, merge, temporal)


def noise(videos: list[Any], seed: int = 0) -> list[Any]:
    """Dummy videos of the same shapes whose every cell changes in every frame."""
    random = np.random.default_rng(seed)

    def one(video: Any) -> Any:
        if isinstance(video, tuple):
            return (one(video[0]), *video[1:])
        return random.integers(0, 256, video.shape, np.uint8)

    return [one(video) for video in videos]


class NoisyVideos:
    """Mixin before a stock builder of dummy inputs."""

    def _get_dummy_videos(self, **named: Any) -> list[Any]:
        return noise(super()._get_dummy_videos(**named))  # type: ignore[misc]
