# pyright: reportMissingImports=false
"""What the processors of the gated Qwen models share: the gate runs on what the stock processor made."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from vllm.logger import init_logger
from vllm.multimodal.inputs import MultiModalFieldConfig
from vllm.multimodal.processing import PromptReplacement

from vtoken.errors import InputError, UnsupportedError
from vtoken.hosts.vllm.gating import gate_rows
from vtoken.hosts.vllm.plans import PLAN, asked, gate_of, of_server
from vtoken.hosts.vllm.prompt import HOME, KEEP, KEPT
from vtoken.video.preprocess import Preprocessor
from vtoken.video.processors import read_processor

REMEMBERED = 100_000  # videos; far more than the processor's cache holds
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
    """Mixin before a stock Qwen processor of vLLM; a family writes ``_replacement`` and ``_spacing``.

    Every video that has pixels gets three fields: ``video_keep`` bool [cells], ``video_home`` int64 [kept] and
    ``video_kept``, and ``pixel_values_videos`` has the rows of the kept cells alone.
    """

    info: Any

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.plan = server_plan(self.info.ctx.model_config)
        self.added: OrderedDict[str, int] = OrderedDict()  # by a video's hash: cached ones have no data
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
        gate, preprocess = gate_of(plan), self._preprocessor(others)
        sizes = made["video_grid_thw"].prod(-1).tolist()
        videos = zip(made["pixel_values_videos"].split(sizes), made["video_grid_thw"], self._spacing(made), strict=True)
        found = [gate_rows(rows, grid, spacing, gate, preprocess) for rows, grid, spacing in videos]
        made["pixel_values_videos"] = torch.cat([one.rows for one in found])
        made[KEEP], made[HOME] = torch.cat([one.keep for one in found]), torch.cat([one.home for one in found])
        made[KEPT] = torch.tensor([len(one.home) for one in found])
        return made

    def _get_mm_fields_config(self, hf_inputs: Any, hf_processor_mm_kwargs: Mapping[str, Any]) -> Any:
        _, others = asked(hf_processor_mm_kwargs, self.plan)
        stock = dict(super()._get_mm_fields_config(hf_inputs, others))  # type: ignore[misc]
        if KEPT not in hf_inputs:
            return stock
        merge, sizes = self._merge() ** 2, MultiModalFieldConfig.flat_from_sizes
        kept, cells = hf_inputs[KEPT], hf_inputs["video_grid_thw"].prod(-1) // merge
        return stock | {
            "pixel_values_videos": sizes("video", kept * merge),
            KEEP: sizes("video", cells, keep_on_cpu=True),
            HOME: sizes("video", kept, keep_on_cpu=True),
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

    def _replacement(self, item: Any) -> Any:
        """What stands in the prompt for a gated video."""
        raise NotImplementedError

    def _spacing(self, made: Any) -> Iterator[float | None]:
        """Seconds from one frame to the next of every video."""
        raise NotImplementedError

    # Shared.

    def _room(self) -> int:
        """Positions that a request may have beyond its tokens, those of its answer included."""
        model = self.info.ctx.model_config
        tables = model.hf_text_config.max_position_embeddings * self.factor(model)
        return max(0, tables - model.max_model_len)

    @classmethod
    def factor(cls, model_config: Any) -> int:
        """How many times ``max_position_embeddings`` the model's rotary tables are long."""
        raise NotImplementedError

    def _merge(self) -> int:
        return self.info.get_hf_config().vision_config.spatial_merge_size

    def _preprocessor(self, arguments: Mapping[str, Any]) -> Preprocessor:
        """Geometry and normalisation of the videos' pixel rows."""
        vision, video = self.info.get_hf_config().vision_config, self.info.get_hf_processor(**arguments).video_processor
        return replace(
            read_processor(video),
            patch=vision.patch_size,
            merge=vision.spatial_merge_size,
            temporal=vision.temporal_patch_size,
        )


def counts(item: Any, merge: int) -> list[int]:
    """Tokens of every time step of a gated video."""
    steps, h, w = item["video_grid_thw"].data.tolist()
    step = item[HOME].data // (h * w // merge**2)
    return torch.bincount(step, minlength=steps).tolist()


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
