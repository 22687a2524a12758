"""The objectives of the service (docs/slo.md), and Prometheus' rules that watch them: deploy/prometheus/slo.yml.

An alert fires when the error budget of 30 days is used up too fast, in a long and in a short window (Google, The Site
Reliability Workbook, chapter 5, "Multiwindow, Multi-Burn-Rate Alerts"). A mail that is late counts as soon as it is
late, not when it arrives at last: a service that delivers nothing any more would otherwise have no late mail. Inside,
mail never waits, so all late mail counts as long as it waits. A provider may refuse one mail for days, so mail to be
relayed counts only in the windows in which it became late. One or two late mails never fire, however small the traffic.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from shared.metrics import READABLE_SECONDS, RELAYED_SECONDS, WINDOWS

MIN_LATE_MAILS = 2.5
"""Late mails in the long window below which nothing fires: three, and a margin, because increase() extrapolates."""


@dataclass(frozen=True, slots=True)
class Objective:
    """A share of mails that have to be in time."""

    name: str  # label objective
    alert: str
    metric: str  # histogram
    seconds: float  # time limit of a mail; one of the histogram's buckets
    share: float  # of the mails, over 30 days
    in_window: bool  # a late mail that waits counts only in the windows in which it became late


OBJECTIVES = (
    Objective("readable", "MailReadableLate", "mailgroup_fetch_to_readable_seconds", READABLE_SECONDS, 0.995, False),
    Objective("relayed", "MailRelayedLate", "mailgroup_submit_to_relayed_seconds", RELAYED_SECONDS, 0.99, True),
)


@dataclass(frozen=True, slots=True)
class Burn:
    """A pair of windows, and how many times too fast the budget is used up in both."""

    long: str
    short: str
    factor: float
    severity: str


BURNS = (
    Burn("1h", "5m", 14.4, "critical"),  # 2 % of the budget in an hour
    Burn("6h", "30m", 6, "critical"),  # 5 % in six hours
    Burn("1d", "2h", 3, "warning"),  # 10 % in a day
    Burn("3d", "6h", 1, "warning"),  # 10 % in three days
)


def rules() -> dict[str, Any]:
    """Return the content of slo.yml."""
    recorded = [rule for objective in OBJECTIVES for window in WINDOWS for rule in _recorded(objective, window)]
    alerts = [
        _alert(objective, severity, [burn for burn in BURNS if burn.severity == severity])
        for objective in OBJECTIVES
        for severity in ("critical", "warning")
    ]
    return {
        "groups": [
            {"name": "mailgroup-objectives-recorded", "rules": recorded},
            {"name": "mailgroup-objectives", "rules": alerts},
        ]
    }


def _recorded(objective: Objective, window: str) -> list[dict[str, Any]]:
    total = f"sum(increase({objective.metric}_count[{window}]))"
    in_time = f'sum(increase({objective.metric}_bucket{{le="{objective.seconds}"}}[{window}]))'
    late = f'objective="{objective.name}", window="{window if objective.in_window else "any"}"'
    waiting = f"(max(mailgroup_late_messages{{{late}}}) or vector(0))"
    labels = {"objective": objective.name}
    return [
        {"record": _all(window), "expr": f"{total} + {waiting}", "labels": labels},
        {"record": _late(window), "expr": f"{total} - {in_time} + {waiting}", "labels": labels},
    ]


def _all(window: str) -> str:
    return f"objective:mailgroup_mails:increase{window}"


def _late(window: str) -> str:
    return f"objective:mailgroup_mails_late:increase{window}"


def late_share(name: str, window: str) -> str:
    """Return the expression of the share of late mails in a window of ``BURNS``; NaN without mail."""
    return f'{_late(window)}{{objective="{name}"}} / {_all(window)}{{objective="{name}"}}'


def _alert(objective: Objective, severity: str, burns: list[Burn]) -> dict[str, Any]:
    budget = round(1 - objective.share, 6)
    fast = [
        f"({late_share(objective.name, burn.long)} > {burn.factor} * {budget}"
        f" and {late_share(objective.name, burn.short)} > {burn.factor} * {budget}"
        f' and {_late(burn.long)}{{objective="{objective.name}"}} > {MIN_LATE_MAILS})'
        for burn in burns
    ]
    limit = f"{objective.seconds / 60:g} minute{'s' if objective.seconds > 60 else ''}"
    return {
        "alert": objective.alert,
        "expr": " or ".join(fast),
        "for": "1m",
        "labels": {"severity": severity},
        "annotations": {
            "summary": f"Too much mail is not {objective.name} within {limit}",
            "description": f"{{{{ $value | humanizePercentage }}}} of the mails were late. The objective is "
            f"{objective.share:.1%} within {limit}, and its error budget is used up "
            f"faster than allowed ({' or '.join(f'{burn.factor:g} times in {burn.long}' for burn in burns)}).",
            "runbook_url": '{{ range query "mailgroup:runbooks:info" }}{{ .Labels.url }}{{ end }}'
            f"/{objective.alert}.md",
        },
    }
