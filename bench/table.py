"""Figures become lines: ratios of the pairs of a run, their median and spread, and whether a goal is met. Pure."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from bench.processes import Run

BUSY = 0.9
"""A generator that uses more of its core than this may be the limit of what it measures."""

COLUMNS = ("work", "goal", "mailgroup", "anchor", "ratio", "verdict", "generator")


@dataclass(frozen=True, slots=True)
class Goal:
    """What is wanted of a ratio, or of the figure itself if ``unit`` is given."""

    relation: Literal["≥", "≤"]
    value: float
    unit: str = ""

    def __str__(self) -> str:
        return f"{self.relation} {self.value:g} {self.unit or '×'}"

    def verdict(self, figure: float) -> str:
        """``met``, or by how much it is missed."""
        reached = figure / self.value if self.relation == "≥" else self.value / figure if figure else 1.0
        return "met" if reached >= 1 else f"{reached:.0%} of it" if self.relation == "≥" else f"{1 / reached:.2f} of it"


@dataclass(frozen=True, slots=True)
class Line:
    """What one work came to. ours, anchor: a figure a pair, in ``unit``; no anchor: ours alone is judged.

    cpu: the largest share of a core that a generator used.
    """

    work: str
    ours: tuple[float, ...]
    unit: str
    goal: Goal | None = None
    anchor: tuple[float, ...] = ()
    anchor_name: str = ""
    cpu: float | None = None

    @property
    def ratios(self) -> list[float]:
        """Ours to the anchor's, pair by pair."""
        return [ours / anchor for ours, anchor in zip(self.ours, self.anchor, strict=True)] if self.anchor else []

    def cells(self) -> tuple[str, ...]:
        """As texts, in the order of COLUMNS."""
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


def of_runs(
    work: str, ours: Sequence[Run], anchor: Sequence[Run], goal: Goal | None, unit: str = "/s", anchor_name: str = ""
) -> Line:
    """A line of rates."""
    busy = [run.cpu for run in (*ours, *anchor) if run.cpu is not None]
    return Line(
        work,
        tuple(run.rate for run in ours),
        unit,
        goal,
        tuple(run.rate for run in anchor),
        anchor_name,
        max(busy, default=None),
    )


def number(value: float) -> str:
    """With three digits that mean something."""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}" if abs(value) >= 0.1 else f"{value:.3g}"


def spread(values: Sequence[float]) -> str:
    """Median [least..most]; of one value, that."""
    middle = number(statistics.median(values))
    return middle if len(values) == 1 else f"{middle} [{number(min(values))}..{number(max(values))}]"
