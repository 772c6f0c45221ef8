"""What `vtoken bench` measures: clips x rates x plans."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vtoken.errors import InputError
from vtoken.families.family import Family
from vtoken.methods.plan import Plan
from vtoken.video import open_video

RESIZE = "resize"
BASELINES = ("none", "random", "uniform", RESIZE)
NEAR = 1.05  # 30 asked of a clip at 29.97 is that clip at its own rate


@dataclass(frozen=True)
class Job:
    """What is measured: clips x rates x plans.

    Attributes:
        clips: name in the table, source and sampling rates of each clip.
        plans: text and plan; the baselines are among them.
        options: ``start``, ``end`` and ``backend`` of ``open_video``.
        notes: rates that were left out.
    """

    clips: dict[str, tuple[Any, list[float]]]
    plans: dict[str, Plan]
    options: dict[str, Any]
    notes: list[str]

    @classmethod
    def of(
        cls,
        videos: Sequence[Any],
        rates: Sequence[float],
        plans: Sequence[str],
        budget: dict[str, Any],
        **options: Any,
    ) -> Job:
        """The job of a command line; clips are opened once, so that bad input ends it before any work.

        Rates above a clip's own would give every frame once more and are left out, unless none remains.

        Raises:
            InputError, VideoError: an unknown plan, a bad budget, or a clip that cannot be read.
        """
        parsed = {t: parse(t, budget) for t in dict.fromkeys([*BASELINES, *plans])}
        names = [Path(v).name for v in videos]
        clips, notes = {}, []
        for name, video in zip(names, videos, strict=True):
            label = name if names.count(name) == 1 else str(video)
            with open_video(video, fps=rates[0], **options) as reader:
                native = reader.native_fps or max(rates)
            fit = [rate for rate in rates if rate <= native * NEAR]
            if left := [f"{rate:g}" for rate in rates if fit and rate not in fit]:
                notes.append(f"{label}: fps {', '.join(left)} left out: above the clip's own {native:.4g}")
            clips[label] = (video, fit or [rates[0]])
        return cls(clips, parsed, options, notes)

    def on(self, family: Family) -> Job:
        """The job without the baseline ``resize`` where a family takes frames of one size only."""
        if family.any_size or RESIZE not in self.plans:
            return self
        plans = {text: plan for text, plan in self.plans.items() if text != RESIZE}
        return replace(self, plans=plans)


def parse(text: str, budget: dict[str, Any]) -> Plan:
    """A plan that takes the shared budget only where one of its stages needs it."""
    try:
        return Plan.parse(text)
    except InputError:
        return Plan.parse(text, **budget)
