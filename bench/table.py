"""Makes the lines of a report from figures: ratios of pairs, their median and spread, goals that are met. Pure."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from bench.processes import Run

BUSY = 0.9
"""Share of a core above which the generator itself may limit the figure."""

COLUMNS = ("work", "goal", "mailgroup", "anchor", "ratio", "verdict", "generator")
COST_COLUMNS = ("work", "mailgroup", "its processes", "anchor", "its programs", "ratio")
COSTS = "Processor time per mail, or per poll where polls are counted, ms:"
_NAMED = 0.01
"""Share of the total above which a process is listed separately."""


@dataclass(frozen=True, slots=True)
class Goal:
    """The goal for a ratio, or for the figure itself if ``unit`` is given."""

    relation: Literal["≥", "≤"]
    value: float
    unit: str = ""

    def __str__(self) -> str:
        return f"{self.relation} {self.value:g} {self.unit or '×'}"

    def verdict(self, figure: float) -> str:
        """Return ``met``, or the reached share of the goal."""
        reached = figure / self.value if self.relation == "≥" else self.value / figure if figure else 1.0
        return "met" if reached >= 1 else f"{reached:.0%} of it" if self.relation == "≥" else f"{1 / reached:.2f} of it"


@dataclass(frozen=True, slots=True)
class Line:
    """The result of one measurement."""

    work: str
    ours: tuple[float, ...]  # one figure for each pair
    unit: str
    goal: Goal | None = None
    anchor: tuple[float, ...] = ()  # one figure for each pair; empty: the goal applies to ours alone
    anchor_name: str = ""
    cpu: float | None = None  # the largest share of a core that a generator used
    runs: tuple[Sequence[Run], Sequence[Run]] = ((), ())  # ours and the anchor's, to report processor time

    @property
    def ratios(self) -> list[float]:
        """The ratios of ours to the anchor's, by pair."""
        return [ours / anchor for ours, anchor in zip(self.ours, self.anchor, strict=True)] if self.anchor else []

    def cells(self) -> tuple[str, ...]:
        """Return the texts in the order of COLUMNS."""
        judged = self.ratios if self.ratios and not (self.goal and self.goal.unit) else list(self.ours)
        anchor = f"{number(statistics.median(self.anchor))} {self.unit} ({self.anchor_name})" if self.anchor else ""
        return (
            self.work,
            "" if self.goal is None else str(self.goal),
            f"{spread(self.ours)} {self.unit}",
            anchor,
            spread(self.ratios) if self.ratios else "",
            "" if self.goal is None else self.goal.verdict(statistics.median(judged)),
            "" if self.cpu is None else f"{self.cpu:.2f}" + (" (the limit?)" if self.cpu > BUSY else ""),
        )

    def costs(self) -> tuple[str, ...]:
        """Return processor times as texts in the order of COST_COLUMNS; empty if they were not measured."""
        ours, anchor = ([cost_of(run) for run in runs] for runs in self.runs)
        if not ours or not all(ours):
            return ()
        totals, others = ([sum(cost.values()) for cost in costs] for costs in (ours, anchor))
        if not others:
            return self.work, spread(totals), _shares(ours), "", "", ""
        ratios = [one / other for one, other in zip(totals, others, strict=True)]
        return self.work, spread(totals), _shares(ours), spread(others), _shares(anchor), spread(ratios)


def cost_of(run: Run) -> dict[str, float]:
    """Return the milliseconds of a core for each item, by process."""
    return {name: seconds * 1e3 / run.items for name, seconds in run.processor.items()}


def medians(costs: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Return the median of each name, the largest first."""
    names = {name for cost in costs for name in cost}
    by_name = {name: statistics.median(cost.get(name, 0.0) for cost in costs) for name in names}
    return dict(sorted(by_name.items(), key=lambda item: (-item[1], item[0])))


def _shares(costs: Sequence[Mapping[str, float]]) -> str:
    by_name = medians(costs)
    named = {name: cost for name, cost in by_name.items() if cost >= _NAMED * sum(by_name.values())}
    rest = {name: cost for name, cost in by_name.items() if name not in named}
    if len(rest) > 1:
        rest = {"others": sum(rest.values())}
    return ", ".join(f"{name} {number(cost)}" for name, cost in (named | rest).items())


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Return the rows as an aligned table of any width: a terminal may wrap its lines, a file must not."""
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def rate_line(
    work: str, ours: Sequence[Run], anchor: Sequence[Run], goal: Goal | None, unit: str = "/s", anchor_name: str = ""
) -> Line:
    """Return a line of rates."""
    busy = [run.cpu for run in (*ours, *anchor) if run.cpu is not None]
    return Line(
        work,
        tuple(run.rate for run in ours),
        unit,
        goal,
        tuple(run.rate for run in anchor),
        anchor_name,
        max(busy, default=None),
        (ours, anchor),
    )


def throughput_line(
    work: str, ours: Sequence[Run], anchor: Sequence[Run], goal: Goal | None, anchor_name: str = ""
) -> Line:
    """Return a line of octets by time, in MB/s."""
    in_mails = rate_line(work, ours, anchor, goal, "MB/s", anchor_name)
    return replace(
        in_mails,
        ours=tuple(run.octets / run.seconds / 1e6 for run in ours),
        anchor=tuple(run.octets / run.seconds / 1e6 for run in anchor),
    )


def number(value: float) -> str:
    """Return a number with three significant digits."""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}" if abs(value) >= 0.1 else f"{value:.3g}"


def spread(values: Sequence[float]) -> str:
    """Return ``median [min..max]`` as text; of one value, this value."""
    middle = number(statistics.median(values))
    return middle if len(values) == 1 else f"{middle} [{number(min(values))}..{number(max(values))}]"
