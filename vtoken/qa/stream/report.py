"""What a stream did so far."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass
class StreamReport:
    """Counts of a stream.

    Attributes:
        plan, policy: what runs.
        seconds: from the first frame to the newest that was read.
        seen, sampled, dropped: frames that came, that were taken at ``fps``, and that the source threw away because the
            model was late.
        gaps: interruptions of the source.
        cells: visual tokens that the stock model would have had; ``gated`` those that the gate skipped.
        computed: visual tokens that went through the language model.
        cached, evicted: columns in the cache now, and columns that left it.
        nbytes: of the cache.
        lag: seconds from the newest frame that the source had to the newest that was read; 0 for a file.
        asked: questions and asks of watches.
        milliseconds: wall time by stage.
        notes: fallbacks and warnings.
    """

    plan: str = ""
    policy: str = ""
    seconds: float = 0.0
    seen: int = 0
    sampled: int = 0
    dropped: int = 0
    gaps: int = 0
    cells: int = 0
    gated: int = 0
    computed: int = 0
    cached: int = 0
    evicted: int = 0
    nbytes: int = 0
    lag: float = 0.0
    asked: int = 0
    milliseconds: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Plain values that ``json.dumps`` takes."""
        return asdict(self)

    def __str__(self) -> str:
        share = f"{self.computed / self.cells:.1%}" if self.cells else "-"
        spent = "  ".join(f"{name} {ms:,.0f}" for name, ms in self.milliseconds.items() if ms >= 0.5)
        lines = [
            f"plan    {self.plan};  policy {self.policy}",
            f"frames  {self.seen:,} seen, {self.sampled:,} taken, {self.dropped:,} dropped;  "
            f"{self.seconds:,.1f} s;  lag {self.lag:.2f} s;  {self.gaps} gaps",
            f"tokens  {self.cells:,} -> {self.computed:,} ({share});  {self.cached:,} cached, "
            f"{self.evicted:,} evicted;  {self.nbytes / 2**20:,.1f} MiB;  {self.asked} asks",
            f"ms      {spent}",
        ]
        return "\n".join(lines + [f"note    {n}" for n in dict.fromkeys(self.notes)])
