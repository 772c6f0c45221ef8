"""One measured row: an operation beside its limit and beside other forms."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from vtoken.bench.kernels.case import Case, Form, Setting
from vtoken.bench.kernels.limits import Limits
from vtoken.bench.measure import Cost, measure

MIB = 2**20


@dataclass
class Row:
    """Times in milliseconds by the chosen clock, memory in bytes.

    Attributes:
        frames: of them ``ms`` is, 0 where it is not given per frame.
        extra: memory that the call adds at its peak, result included; None where the system does not report it.
        bandwidth, rate: bytes and FLOP a second, by the cost model.
        bound: what limits it, ``copy`` or ``product``; ``share`` is the least possible time over ``ms``.
        forms: by kind (plain, published, beside): name, milliseconds, times slower, memory, and whether a part was
            scaled.
        verdicts: targets: held or not, and in words.
    """

    op: str
    size: str
    dtype: str
    ms: float
    cpu_ms: float
    frames: int
    extra: int | None
    bandwidth: float
    rate: float
    bound: str
    share: float
    forms: dict[str, dict[str, Any]] = field(default_factory=dict)
    verdicts: list[tuple[bool, str]] = field(default_factory=list)

    def times(self, kind: str) -> float | None:
        """How many times slower a form is."""
        return self.forms[kind]["times"] if kind in self.forms else None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def measure_case(case: Case, setting: Setting, limits: Limits, clock: str) -> Row:
    """Measure an operation, and its other forms once or more."""
    seconds = 0.1 if setting.quick else 2.0
    case.run()  # what every process pays once
    cost = measure(case.run, seconds, setting.device)[0]
    spent = getattr(cost, clock)
    least, bound = limits.seconds(case.moved, case.flops, case.product)
    row = Row(
        op=case.op,
        size=case.size,
        dtype=str(setting.dtype).removeprefix("torch."),
        ms=spent * 1e3,
        cpu_ms=cost.cpu * 1e3,
        frames=case.frames,
        extra=cost.peak,
        bandwidth=case.moved / spent,
        rate=case.flops / spent,
        bound=bound,
        share=least / spent,
    )
    for kind in ("plain", "published", "beside"):
        if kind == "published" and case.published is case.plain and case.plain:
            row.forms[kind] = row.forms["plain"]
        elif form := getattr(case, kind):
            row.forms[kind] = _form(form, spent, seconds, setting, clock)
    for target in case.targets:
        if target.on == ("cuda" if setting.cuda else "cpu") and not setting.quick and (told := target.verdict(row)):
            row.verdicts.append(told)
    return row


def _form(form: Form, ours: float, seconds: float, setting: Setting, clock: str) -> dict[str, Any]:
    costs: list[tuple[float, Cost]] = []
    for factor, call in form.parts:
        costs.append((factor, measure(call, seconds / 2, setting.device)[0]))
    spent = sum(factor * getattr(cost, clock) for factor, cost in costs)
    peaks = [cost.peak for _, cost in costs if cost.peak is not None]
    return {
        "name": form.name,
        "ms": spent * 1e3,
        "times": spent / ours,
        "extra": max(peaks, default=None),
        "scaled": form.scaled,
    }
