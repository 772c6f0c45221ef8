"""Session: what ``model.vtoken`` is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vtoken.data.report import Report
from vtoken.engine.call import Call
from vtoken.engine.check import check, on_model
from vtoken.engine.kv import Kv
from vtoken.families.family import Family
from vtoken.methods.plan import Plan, PlanLike
from vtoken.video.preprocess import Preprocessor


class Session:
    """The plan of a wrapped model and the report of its last call.

    Attributes:
        plan: the plan in force; assign text or a Plan to change it.
        family: the model's family.
        fps: sampling rate of the videos that an ordinary processor hands over, frames a second; None if unknown.
        preprocess: how that processor resizes and normalises; None for the family's preset.
        positions: "stock" or "trained", see ``wrap``.
        signals: those that only the user can give, by name.
        kv: what becomes of the cache; its method stands behind every plan that is assigned.
        report: tokens and milliseconds of the last call.
    """

    def __init__(
        self,
        family: Family,
        plan: Plan,
        fps: float | None = None,
        preprocess: Preprocessor | None = None,
        positions: str = "stock",
        signals: Mapping[str, Any] | None = None,
        kv: Kv | None = None,
    ) -> None:
        self.kv = kv or Kv()
        self.signals = dict(signals or {})
        self.family, self.fps, self.preprocess, self.positions = family, fps, preprocess, positions
        self.plan = plan
        self.report = Report(str(plan))
        self.before: dict[str, Any] = {}  # instance attributes that wrap covered
        self.placed: dict[str, Any] = {}  # what wrap put there

    @property
    def plan(self) -> Plan:
        return self._plan

    @plan.setter
    def plan(self, plan: PlanLike) -> None:
        self._plan = check(self.kv.added(Plan.parse(plan)), self.family, self.signals)

    def call(self, model: Any) -> Call:
        """One call of the model under the plan in force."""
        report = Report()
        return Call(
            model,
            self.family,
            on_model(self.plan, model, report),
            self.fps,
            self.preprocess,
            positions=self.positions,
            stateful=True,
            signals=self.signals,
            report=report,
        )
