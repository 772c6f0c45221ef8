"""Recipe: what features are made from, and the clock of their windows."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from vtoken.encoders.vjepa import TINY
from vtoken.reference import VJEPA

THINKER = "hands"  # the reference model, fine-tuned on the hand set
THINKER_WEIGHTS = Path(__file__).parents[2] / "training" / "thinker" / "weights"  # what training.thinker.think exports
QUESTION = "Where does the lamp flash?"
FPS = 8.0
CLIP = 8  # frames of a clip: past and future of one window
PAST = 40  # first frame of the first window's past
NOW = PAST + CLIP
CLIPS = 9  # up to frame 111: 32 time steps of two frames to roll out
SPARSE = 4  # every fourth frame before NOW for the thinker
SHARD = 64
SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class Recipe:
    """What the features are made from; two builds of one recipe are equal.

    Attributes:
        data: "hands" for the synthetic set, or a folder of episodes in EgoDex's form.
        encoder: V-JEPA 2 checkpoint, "tiny" for the one in the package.
        thinker: vision-language checkpoint, "hands" for the one in the repository (not in the wheel).
        plan: stages that cut the thinker's tokens.
        question: what the thinker is asked about the sparse frames.
        layers: its decoder layers; None for those of ``spread_layers``.
        new_tokens: most tokens that it writes.
        episodes: of the hand set, by split.
    """

    data: str = "hands"
    encoder: str = TINY
    thinker: str = THINKER
    plan: str = "none"
    question: str = QUESTION
    layers: tuple[int, ...] | None = None
    new_tokens: int = 16
    episodes: dict[str, int] = field(default_factory=lambda: {"train": 640, "validation": 64, "test": 192})

    def marks(self) -> dict[str, Any]:
        """Everything that features depend on, weights included."""
        thinker = str(THINKER_WEIGHTS) if self.thinker == THINKER else self.thinker
        encoder = str(VJEPA) if self.encoder == TINY else self.encoder
        told = json.loads(json.dumps(asdict(self)))  # tuples as they come back from a file
        return told | {"encoder_weights": _mark(encoder), "thinker_weights": _mark(thinker), "form": 1}


def _mark(name: str) -> str:
    """A mark that identifies a checkpoint: of a folder, sizes and beginnings of its weight files."""
    files = sorted(Path(name).glob("*.safetensors")) if Path(name).is_dir() else []
    if not files:
        return name
    digest = hashlib.sha256()
    for file in files:
        digest.update(str(file.stat().st_size).encode())
        with file.open("rb") as open_file:
            digest.update(open_file.read(1 << 22))
    return digest.hexdigest()[:16]
