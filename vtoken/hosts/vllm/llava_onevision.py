# pyright: reportMissingImports=false
"""LLaVA-OneVision in vLLM with a gate before its encoder."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from vllm.model_executor.models import llava_onevision as stock
from vllm.multimodal import MULTIMODAL_REGISTRY
from vllm.multimodal.inputs import MultiModalFieldConfig

from vtoken.encoders.frames import images_of
from vtoken.encoders.pool import Pooling, pool
from vtoken.errors import InputError, UnsupportedError
from vtoken.hosts.vllm.gating import GatedRows, gate_frames, patch_map, spacing_of
from vtoken.hosts.vllm.model import GatedModel
from vtoken.hosts.vllm.processing import GatedProcessor, NoisyVideos
from vtoken.hosts.vllm.prompt import HOME
from vtoken.hosts.vllm.siglip import kept_patches
from vtoken.hosts.vllm.videos import TimedParser
from vtoken.methods.gate import Gate
from vtoken.video.preprocess import Preprocessor

FRAMES = "video_frames"  # of a gated video
AT_ONCE = 16  # frames that are pooled together: as many as those with which vLLM measures memory


def side_of(config: Any) -> int:
    """Patches in a row of a frame.

    Raises:
        UnsupportedError: a tower whose patches cannot leave.
    """
    vision, strategy = config.vision_config, config.vision_feature_select_strategy
    if "siglip" not in vision.model_type or strategy != "full" or not isinstance(config.vision_feature_layer, int):
        raise UnsupportedError(
            "patches can leave in a SigLIP tower with vision_feature_select_strategy='full' and one feature layer, and "
            f"this config has {vision.model_type}, {strategy!r} and {config.vision_feature_layer}: load the stock model"
        )
    return vision.image_size // vision.patch_size


def pooling_of(config: Any) -> Pooling:
    """The stock pooling of frames [T, patches, D], which reads of its model the config alone."""
    return partial(stock.LlavaOnevisionForConditionalGeneration.apply_pooling, SimpleNamespace(config=config))


class Info(stock.LlavaOnevisionProcessingInfo):
    """Stock settings; videos keep their times, which the stock model does not need."""

    def get_data_parser(self) -> TimedParser:
        return TimedParser(
            expected_hidden_size=self._get_expected_hidden_size(),
            allow_missing_mm_embeddings=self.allow_missing_mm_embeddings,
        )


class DummyInputs(NoisyVideos, stock.LlavaOnevisionDummyInputsBuilder):
    """Stock dummy inputs with noise for videos."""


class Processor(GatedProcessor, stock.LlavaOnevisionMultiModalProcessor):
    """A placeholder for every pooled cell to which a kept patch contributes, and the newline at the end of a video."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.side = side_of(self.info.get_hf_config())

    def _gate(self, made: Any, videos: Any, gate: Gate | None, preprocess: Preprocessor) -> Iterator[GatedRows]:
        config, size = self.info.get_hf_config(), self.info.get_hf_config().vision_config.image_size
        whole = made["pixel_values_videos"]
        made[FRAMES] = torch.tensor([len(frames) for frames in whole])
        for frames, known in zip(whole, videos.metadata, strict=True):
            if frames.shape[-2:] != (size, size):
                raise InputError(f"frames of {list(frames.shape[-2:])} pixels, and the model takes {size}x{size}")
            yield gate_frames(frames, spacing_of(known), gate, preprocess, pooling_of(config))

    def _sizes(self, made: Any) -> tuple[Tensor, Tensor]:
        cells = made[FRAMES] * self.side**2
        return torch.stack([own.sum() for own in made["video_keep"].split(cells.tolist())]), cells

    def _get_mm_fields_config(self, hf_inputs: Any, hf_processor_mm_kwargs: Any) -> Any:
        fields = super()._get_mm_fields_config(hf_inputs, hf_processor_mm_kwargs)
        gated = {FRAMES: MultiModalFieldConfig.batched("video", keep_on_cpu=True)} if FRAMES in hf_inputs else {}
        return fields | gated

    def _replacement(self, item: Any) -> list[int]:
        return [self.info.get_hf_config().video_token_index] * (len(item[HOME].data) + 1)


@MULTIMODAL_REGISTRY.register_processor(Processor, info=Info, dummy_inputs=DummyInputs)
class GatedLlavaOnevision(GatedModel, stock.LlavaOnevisionForConditionalGeneration):
    """The stock model, whose tower runs on the kept patches of a video; a video with all of them runs as it is."""

    of_video = ("pixel_values_videos", FRAMES)

    def _tower(self, own: dict[str, Any], keep: Tensor) -> Tensor:
        keeps = keep.view(-1, side_of(self.config) ** 2).split(own[FRAMES].tolist())
        parts = own["pixel_values_videos"].split([int(part.sum()) for part in keeps])
        return torch.cat([self._cells(*video) for video in zip(parts, keeps, strict=True)])

    def _cells(self, rows: Tensor, keep: Tensor) -> Tensor:
        """Embeddings [cells, D] of one video.

        Args:
            rows: [K, 3 * patch**2], pixel rows of its kept patches.
            keep: bool [T, patches].
        """
        vision = self.config.vision_config
        if bool(keep.all()):
            frames = images_of(rows.view(*keep.shape, -1), vision.patch_size, vision.image_size)
            return self._video_pixels_to_features(self.vision_tower, frames).flatten(0, 1)
        patches = self.multi_modal_projector(kept_patches(self.vision_tower, rows, keep))
        return pool(patches, patch_map(keep), self.apply_pooling, chunk=AT_ONCE)[0]

    def _close(self, rows: Tensor) -> Tensor:
        return torch.cat([rows, self.image_newline[None].to(rows)])
