"""Features of the frozen encoder and the frozen thinker, computed once and kept in a folder.

Of every episode: clips of eight frames from frame 40 on, each encoded by itself; what the thinker's layers held over
sparse frames that all lie before frame 48; points and poses. Files are safetensors of 64 episodes each; a build that
was cut off goes on where it stopped.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vtoken.encoders.vjepa import Dense
from vtoken.errors import InputError
from vtoken.output.files import replacing, write_text
from vtoken.thinkjepa.episodes import Timeline, source
from vtoken.thinkjepa.recipe import CLIP, FPS, NOW, PAST, SHARD, SPARSE, SPLITS, THINKER, THINKER_WEIGHTS, Recipe
from vtoken.thinkjepa.settings import NAMES
from vtoken.thinkjepa.streams import Streams


@dataclass
class Data:
    """Features of one split.

    Attributes:
        latents: float16 [N, C, S, P, D]: episodes, clips, time steps, patches, width.
        streams: the thinker's, float16, N samples.
        points: float32 [N, C * frames, points, 3], metres in the world.
        poses: float32 [N, C * frames, 4, 4], world to camera.
    """

    latents: Tensor
    streams: Streams
    points: Tensor
    poses: Tensor

    def __len__(self) -> int:
        return len(self.latents)

    @property
    def frames(self) -> int:
        """Frames of a clip."""
        return self.points.shape[1] // self.latents.shape[1]


def build(recipe: Recipe, folder: Path, splits: Sequence[str] = SPLITS, device: str = "auto") -> None:
    """Compute what is missing of a cache.

    Args:
        device: of encoder and thinker; "auto" is CUDA where there is one.

    Raises:
        InputError: the folder holds features of another recipe, data that cannot be used, or unknown checkpoints.
    """
    from vtoken.output.files import folder as made
    from vtoken.output.progress import progress

    unknown = set(splits) - set(SPLITS)
    if unknown:
        raise InputError(f"split {sorted(unknown)[0]!r} is unknown; known are {', '.join(SPLITS)}")
    marks, note = recipe.marks(), made(folder, "--cache") / "recipe.json"
    if note.is_file() and json.loads(note.read_text(encoding="utf-8"))["recipe"] != marks:
        raise InputError(f"{folder} holds features of another recipe; give another --cache, or remove the folder")
    given, clips = source(recipe)
    shards = [(s, i, given[s][i : i + SHARD]) for s in splits for i in range(0, len(given[s]), SHARD)]
    missing = [(_shard(folder, s, i), part) for s, i, part in shards if not _shard(folder, s, i).is_file()]
    make = _maker(recipe, clips, device) if missing else None  # before anything is written: it may refuse
    if not note.is_file():
        write_text(note, json.dumps({"recipe": marks, "clips": clips}, indent=1) + "\n")
    if make is None:
        return
    with progress(sum(len(part) for _, part in missing), "episodes") as advance:
        for path, part in missing:
            rows = []
            for load in part:
                rows.append(make(load()))
                advance(1, path.stem)
            _write(rows, path)


def load(folder: Path, split: str) -> Data:
    """The features of a split.

    Raises:
        InputError: there are none.
    """
    from safetensors.torch import load_file

    paths = sorted(folder.glob(f"{split}-*.safetensors"))
    if not paths:
        raise InputError(f"{folder} holds no features of the split {split!r}; `vtoken jepa train` makes them")
    parts = [load_file(path) for path in paths]
    streams = [Streams({n: p[n] for n in NAMES}, {n: p[f"{n}_mask"] for n in NAMES}) for p in parts]
    latents, points, poses = (torch.cat([p[n] for p in parts]) for n in ("latents", "points", "poses"))
    return Data(latents, Streams.stack(streams), points, poses)


def cost(folder: Path) -> dict[str, float]:
    """Means over the episodes: tokens of the thinker's prompt, visual ones among them, and its milliseconds."""
    from safetensors import safe_open

    names, rows = ("prompt", "tokens", "milliseconds"), []
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            rows.append(file.get_tensor("cost"))
    mean = torch.cat(rows).mean(0) if rows else torch.full((len(names),), torch.nan)
    return {name: round(float(v), 2) for name, v in zip(names, mean, strict=True)}


def _maker(recipe: Recipe, clips: int, device: str) -> Callable[[Any], dict[str, Tensor]]:
    """A function from an episode to its features."""
    from vtoken.qa.load import device_of
    from vtoken.qa.load import load as load_model

    if recipe.thinker == THINKER and not (THINKER_WEIGHTS / "config.json").is_file():
        raise InputError(
            f"thinker {THINKER!r}: its weights are in the repository and not in the installed package, and "
            f"{THINKER_WEIGHTS} does not exist; run `python -m vtoken jepa` in a clone, or name another checkpoint "
            "with --thinker"
        )
    dense = Dense.load(recipe.encoder, device_of(device))
    thinker, processor = load_model(str(THINKER_WEIGHTS) if recipe.thinker == THINKER else recipe.thinker, device)

    def make(episode: Any) -> dict[str, Tensor]:
        time = Timeline(episode)
        latents = encode(dense, time.frames(range(PAST, PAST + clips * CLIP)))
        streams, spent = listen(thinker, processor, time.frames(range(0, NOW, SPARSE)), recipe)
        rows = time.index[PAST : PAST + clips * CLIP]
        out = {"latents": latents.half(), "cost": torch.tensor(spent)}
        out |= {"points": torch.from_numpy(episode.points[rows]).float()}
        out |= {"poses": torch.from_numpy(episode.extrinsics[rows]).float()}
        out |= {n: _half(streams.tokens[n][0]) for n in NAMES}
        return out | {f"{n}_mask": streams.masks[n][0].cpu() for n in NAMES}

    return make


def _half(states: Tensor) -> Tensor:
    """float16 on the CPU; a few channels of large models are beyond its range."""
    most = torch.finfo(torch.float16).max
    return states.float().clamp(-most, most).half().cpu()


def encode(dense: Dense, frames: np.ndarray) -> Tensor:
    """uint8 [C * CLIP, H, W, 3] to latents [C, S, P, D]; each clip in a pass of its own, none sees another."""
    pixels = dense.pixels(frames)
    return dense.encode(pixels.view(-1, CLIP, *pixels.shape[1:])).cpu()


def listen(thinker: Any, processor: Any, frames: np.ndarray, recipe: Recipe) -> tuple[Streams, list[float]]:
    """Ask the thinker about sparse frames; its streams, and what it cost: prompt, visual tokens, milliseconds."""
    from vtoken.qa.api import ask
    from vtoken.thinkjepa.thinker import listening

    with listening(thinker, recipe.layers) as heard:
        answer = ask(
            thinker,
            processor,
            frames,
            recipe.question,
            fps="native",
            native_fps=FPS / SPARSE,
            plan=recipe.plan,
            max_new_tokens=recipe.new_tokens,
        )
    report = answer.report
    return heard.streams(len(answer.tokens)), [report.prompt, report.tokens, sum(report.milliseconds.values())]


def _write(rows: list[dict[str, Tensor]], path: Path) -> None:
    from safetensors.torch import save_file

    streams = Streams.stack(
        [Streams({n: r[n][None] for n in NAMES}, {n: r[f"{n}_mask"][None] for n in NAMES}) for r in rows]
    )
    out = {n: torch.stack([r[n] for r in rows]) for n in ("latents", "points", "poses", "cost")}
    out |= {n: streams.tokens[n] for n in NAMES} | {f"{n}_mask": streams.masks[n] for n in NAMES}
    with replacing(path) as draft:
        save_file({n: v.contiguous() for n, v in out.items()}, draft)
        draft.chmod(0o644)  # safetensors writes for the owner alone


def _shard(folder: Path, split: str, first: int) -> Path:
    return folder / f"{split}-{first // SHARD:04d}.safetensors"
