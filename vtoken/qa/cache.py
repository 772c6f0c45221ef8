"""Clips and features of a video, kept for further plans about it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from vtoken.data.report import Report
from vtoken.errors import InputError
from vtoken.families.clips import Memory
from vtoken.families.features import Clip, Features
from vtoken.methods.plan import Plan
from vtoken.qa.media import Image, Video
from vtoken.qa.read import Sampling


class ClipMemory:
    """The gated clips of one video and their features, for one model.

    Hand the same memory to each ``ask_many`` about the video: what an earlier call decoded, gated and encoded in the
    same way is taken from it. Plans with the same gate (or none) and pathways share both; methods that act inside the
    encoder share the reading alone. Reports have the milliseconds of the run that did the work. The kept pixels and
    features stay as long as this object.
    """

    def __init__(self) -> None:
        self._about: tuple[Any, Any, Any] | None = None
        self._clips: dict[tuple[Sampling, str], tuple[list[Clip], Report]] = {}
        self._features: dict[tuple[int, frozenset[str], bool], tuple[Features, float]] = {}

    def read(
        self,
        about: tuple[Any, Any, Any],
        videos: Sequence[Video | Image],
        plan: Plan,
        sampling: Sampling,
        make: Callable[[Video | Image, Report], Clip],
    ) -> tuple[list[Clip], Report]:
        """The videos under the plan's gate, and the report of their reading; ``make`` reads each the first time.

        Args:
            about: model, processor and the video as the user gave it.

        Raises:
            InputError: the memory is about others.
        """
        self._about = self._about or about
        if any(mine is not given for mine, given in zip(self._about, about, strict=True)):
            raise InputError(
                "this ClipMemory is about another model, processor or video; make a new one for each video"
            )
        size = None if plan.resizer is None else str(plan)  # stages that share its budget count
        key = sampling, repr((size, plan.gate, plan.pathways))
        if key not in self._clips:
            report = Report()
            self._clips[key] = [make(video, report) for video in videos], report
        return self._clips[key]

    @property
    def entries(self) -> int:
        """How many readings and encodings are kept; a call that leaves it as it was did neither."""
        return len(self._clips) + len(self._features)

    @property
    def bytes(self) -> int:
        """Bytes of the pixels and features that are kept."""
        clips = sum(clip.rows.nbytes for found, _ in self._clips.values() for clip in found)
        features = [found for found, _ in self._features.values()]
        return clips + sum(f.x.nbytes + sum(s.nbytes for s in f.signals.values()) for f in features)

    def recall(self, report: Report, device: Any, hold: bool) -> Memory:
        """What ``encode_each_once`` takes; milliseconds of earlier work go to ``report``.

        Args:
            hold: whether the plan holds skipped cells, which changes features.
        """

        def features(clip: Clip, wants: frozenset[str], make: Callable[[], Features]) -> Features:
            key = id(clip), wants, hold
            if key in self._features:
                found, ms = self._features[key]
                report.add("encode", ms)
            else:
                own = Report()
                with own.stage("encode", device):
                    found = make()
                self._features[key] = found, own.milliseconds["encode"]
            return replace(found, signals=dict(found.signals))  # the engine adds to them

        return features


class Given(ClipMemory):
    """Clips that were read elsewhere, by ``read_for`` under the same plan: nothing is read again."""

    def __init__(self, clips: list[Clip], report: Report) -> None:
        super().__init__()
        self._given = clips, report

    def read(
        self,
        about: tuple[Any, Any, Any],
        videos: Sequence[Video],
        plan: Plan,
        sampling: Sampling,
        make: Callable[[Video, Report], Clip],
    ) -> tuple[list[Clip], Report]:
        """What was given."""
        return self._given
