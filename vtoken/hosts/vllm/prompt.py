"""The prompt of gated videos, and as it would be without a gate. Nothing of vLLM is imported here."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from vtoken.hosts.vllm.gating import shown

KEEP, HOME, KEPT = "video_keep", "video_home", "video_kept"  # fields of a gated video, see ``processing``


def in_order(rows: Tensor, home: Tensor, kept: list[int]) -> list[Tensor]:
    """The embeddings of each video, in the order of the prompt."""
    parts = zip(rows.split(kept), home.split(kept), strict=True)
    return [part[own.argsort().to(part.device)] for part, own in parts]


def whole_prompt(tokens: list[int], features: list[Any], video: int, mark: int) -> tuple[list[int], list[Any], Tensor]:
    """The prompt as it would be without a gate.

    Args:
        tokens: ids of the prompt.
        features: its images and videos as vLLM describes them.
        video, mark: ids of the placeholder of videos and of the mark before one.

    Returns:
        ids, features at their places among these, and bool [N], the columns that are in the gated prompt.
    """
    ids: list[int] = []
    left: list[Tensor] = []
    moved: list[Any] = []
    done = 0
    for feature in sorted(features, key=lambda f: f.mm_position.offset):
        start, stop = feature.mm_position.offset, feature.mm_position.offset + feature.mm_position.length
        ids += tokens[done:start]
        left.append(torch.ones(start - done, dtype=torch.bool))
        own, mask = tokens[start:stop], torch.ones(stop - start, dtype=torch.bool)
        if feature.modality == "video" and KEEP in feature.data:
            own, mask = whole_video(own, feature.data, video, mark)
        place = replace(feature.mm_position, offset=len(ids), length=len(own), is_embed=None)
        moved.append(replace(feature, mm_position=place))
        ids += own
        left.append(mask)
        done = stop
    left.append(torch.ones(len(tokens) - done, dtype=torch.bool))
    return ids + tokens[done:], moved, torch.cat(left)


def whole_video(tokens: list[int], data: Any, video: int, mark: int) -> tuple[list[int], Tensor]:
    """The ids of one video with a placeholder for every cell, and which of them the gated prompt has.

    Placeholders stand in one run, or in one run a time step, behind a time stamp and a start mark and before an end
    mark; a step without a kept cell has these alone.
    """
    there = shown(data[HOME].data, len(data[KEEP].data))
    if all(token == video for token in tokens):
        return [video] * len(there), there
    ids: list[int] = []
    mask: list[Tensor] = []
    done = 0
    for step in there.view(int(data["video_grid_thw"].data[0]), -1):
        first = tokens.index(mark, done) + 1
        ids += [*tokens[done:first], *[video] * len(step)]
        mask += [torch.ones(first - done, dtype=torch.bool), step]
        done = first + int(step.sum())
    mask.append(torch.ones(len(tokens) - done, dtype=torch.bool))
    return ids + tokens[done:], torch.cat(mask)
