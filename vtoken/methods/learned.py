"""A small network that scores visual tokens, and the folder that its weights are kept in."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import asdict, dataclass, fields
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize, scaled_dot_product_attention

from vtoken.errors import InputError
from vtoken.output.files import folder, replacing, write_text

FORMAT, VERSION = "vtoken-scorer", 1
CONFIG, WEIGHTS = "config.json", "model.safetensors"
WAVES = 8  # frequencies of each coordinate
LONGEST = 64.0  # seconds, rows or columns of the slowest wave
LOOKED = 64  # rows of the embedding table that name a checkpoint


@dataclass(frozen=True)
class Shape:
    """What a scorer is made for.

    Attributes:
        model_type: of the language model's config, such as "qwen3_vl".
        width: of the visual tokens, and of the embedded words.
        text: whether it reads the question.
        checkpoint: fingerprint of the model that it was trained on; "" where unknown.
        keep: smallest and largest keep ratio in training.
        hidden, blocks, heads: size of the network.
    """

    model_type: str
    width: int
    text: bool = True
    checkpoint: str = ""
    keep: tuple[float, float] = (0.1, 0.5)
    hidden: int = 128
    blocks: int = 2
    heads: int = 4

    def __post_init__(self) -> None:
        for name in ("width", "hidden", "blocks", "heads"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise InputError(f"{name}={value!r} of a scorer must be a whole number of at least 1")
        if self.hidden % self.heads:
            raise InputError(f"hidden={self.hidden} of a scorer must be a multiple of heads={self.heads}")


class ScorerNet(nn.Module):
    """Self-attention over the visual tokens of a sample, cross-attention to the question, and one number a token.

    Beside its features a token has waves of its time, row and column, and how like it is to the tokens of its cell
    before and after it. The blocks are those of published scorers (512 wide there); sizes and waves are ours.
    """

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape, d = shape, shape.hidden
        self.norm, self.enter = nn.LayerNorm(shape.width), nn.Linear(shape.width, d)
        self.place, self.like = nn.Linear(6 * WAVES, d), nn.Linear(4, d)
        self.words = nn.Sequential(nn.LayerNorm(shape.width), nn.Linear(shape.width, d)) if shape.text else None
        self.blocks = nn.ModuleList([Block(d, shape.heads, shape.text) for _ in range(shape.blocks)])
        self.leave = nn.Sequential(nn.LayerNorm(d), nn.Linear(d, 1))

    def forward(self, x: Tensor, place: Tensor, text: Tensor | None) -> Tensor:
        """Scores float32 [n].

        Args:
            x: float [n, width], visual tokens.
            place: float [n, 3], seconds (time steps where they are unknown), row and column.
            text: float [m, width], embedded words of the question; None where the scorer does not read it.
        """
        x, place = x.float(), place.float()
        h = self.enter(self.norm(x)) + self.place(waves(place)) + self.like(neighbours(x, place))
        words = None if self.words is None or text is None else self.words(text.float())
        for block in self.blocks:
            h = block(h, words)
        return self.leave(h).squeeze(1)


class Block(nn.Module):
    """Self-attention, cross-attention to the question, and a gated feed-forward layer, each before a residual sum."""

    def __init__(self, d: int, heads: int, text: bool) -> None:
        super().__init__()
        self.own = Attention(d, heads)
        self.cross = Attention(d, heads) if text else None
        self.norm, self.up, self.down = nn.LayerNorm(d), nn.Linear(d, 4 * d), nn.Linear(2 * d, d)

    def forward(self, h: Tensor, words: Tensor | None) -> Tensor:
        h = h + self.own(h, None)
        if self.cross is not None and words is not None:
            h = h + self.cross(h, words)
        gate, value = self.up(self.norm(h)).chunk(2, -1)
        return h + self.down(nn.functional.silu(gate) * value)


class Attention(nn.Module):
    def __init__(self, d: int, heads: int) -> None:
        super().__init__()
        self.heads, self.norm = heads, nn.LayerNorm(d)
        self.q, self.kv, self.out = nn.Linear(d, d), nn.Linear(d, 2 * d), nn.Linear(d, d)

    def forward(self, h: Tensor, other: Tensor | None) -> Tensor:
        h = self.norm(h)
        q, (k, v) = self.q(h), self.kv(h if other is None else other).chunk(2, -1)
        q, k, v = (x.unflatten(-1, (self.heads, -1)).transpose(0, 1)[None] for x in (q, k, v))
        return self.out(scaled_dot_product_attention(q, k, v)[0].transpose(0, 1).flatten(1))


def waves(place: Tensor) -> Tensor:
    """Sines and cosines of three coordinates [n, 3] at ``WAVES`` frequencies: float32 [n, 6 WAVES]."""
    lengths = torch.logspace(math.log10(0.25), math.log10(LONGEST), WAVES, device=place.device)
    angle = (2 * math.pi / lengths * place[:, :, None]).flatten(1)
    return torch.cat([angle.sin(), angle.cos()], 1)


def neighbours(x: Tensor, place: Tensor) -> Tensor:
    """Cosine with the token of the same cell before and after, and whether there is one: float32 [n, 4]."""
    cell = place[:, 1] * (place[:, 2].max() + 1 if len(place) else 1) + place[:, 2]
    order = place[:, 0].argsort(stable=True)
    order = order[cell[order].argsort(stable=True)]
    along = (normalize(x[order][1:], dim=1) * normalize(x[order][:-1], dim=1)).sum(1)
    same = (cell[order][1:] == cell[order][:-1]).float()
    out = x.new_zeros(len(x), 4)
    out[order[1:], 0], out[order[1:], 1] = along * same, same
    out[order[:-1], 2], out[order[:-1], 3] = along * same, same
    return out


def fingerprint(table: Tensor) -> str:
    """Short name of a checkpoint, from the first rows of its embedding table [V, D]."""
    rows = table[:LOOKED].detach().float().cpu().contiguous()
    return hashlib.sha256(rows.numpy().tobytes()).hexdigest()[:16]


def save(net: ScorerNet, path: str | Path) -> Path:
    """Write a scorer as a folder of ``config.json`` and float16 ``model.safetensors``."""
    from safetensors.torch import save_file

    out = folder(path)
    config = {"format": FORMAT, "version": VERSION} | asdict(net.shape)
    with replacing(out / WEIGHTS) as draft:
        save_file({n: w.detach().half().cpu().contiguous() for n, w in net.state_dict().items()}, str(draft))
    write_text(out / CONFIG, json.dumps(config, indent=1) + "\n")
    return out


def load(path: str | Path, device: torch.device | str = "cpu") -> ScorerNet:
    """Read a scorer onto a device; the same folder is read once for each.

    Raises:
        InputError: the folder or a file is missing, or is not a scorer of this version.
    """
    path = Path(path).expanduser()
    for name in (CONFIG, WEIGHTS):
        if not (path / name).is_file():
            raise InputError(f"{path}: no scorer is there ({name} is missing); `vtoken train scorer` makes one")
    return _load(path, str(device), *(int((path / name).stat().st_mtime_ns) for name in (CONFIG, WEIGHTS)))


@lru_cache(maxsize=4)
def _load(path: Path, device: str, *_changed: int) -> ScorerNet:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        config: Any = json.loads((path / CONFIG).read_text(encoding="utf-8"))
        found = config.get("format"), config.get("version")
    except (ValueError, AttributeError) as error:
        raise InputError(f"{path / CONFIG}: is no JSON object ({error})") from error
    if found != (FORMAT, VERSION):
        raise InputError(f"{path / CONFIG}: format {found[0]!r} {found[1]!r}; this vtoken reads {FORMAT!r} {VERSION}")
    try:
        net = ScorerNet(Shape(**{f.name: _plain(config[f.name]) for f in fields(Shape)}))
        net.load_state_dict({n: w.float() for n, w in load_file(str(path / WEIGHTS)).items()})
    except (KeyError, TypeError) as error:
        raise InputError(f"{path / CONFIG}: a field is missing or wrong ({error})") from error
    except (RuntimeError, SafetensorError) as error:
        first = str(error).strip().splitlines()[0]
        raise InputError(f"{path / WEIGHTS}: does not fit {CONFIG} or is damaged ({first})") from error
    return net.to(device).eval().requires_grad_(False)


def _plain(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
