"""Session: what ``model.vtoken`` is."""

from __future__ import annotations

from typing import Any

from vtoken.data.report import Report
from vtoken.engine.call import Call
from vtoken.engine.check import check
from vtoken.families.base import Family
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
        report: tokens and milliseconds of the last call.
    """

    def __init__(
        self,
        family: Family,
        plan: Plan,
        fps: float | None = None,
        preprocess: Preprocessor | None = None,
        positions: str = "stock",
    ) -> None:
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
        self._plan = check(Plan.parse(plan), self.family)

    def call(self, model: Any) -> Call:
        """One call of the model under the plan in force."""
        return Call(model, self.family, self.plan, self.fps, self.preprocess, positions=self.positions, stateful=True)
