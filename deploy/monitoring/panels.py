"""Makes Grafana's JSON of a dashboard from the title, description, unit and expressions of each panel."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

SOURCE = {"type": "prometheus", "uid": "prometheus"}
WIDTH = 24
RATE = "[$__rate_interval]"
_LINK = {
    "type": "dashboards",
    "title": "mailgroup",
    "tags": ["mailgroup"],
    "asDropdown": True,
    "keepTime": True,
    "includeVars": False,
    "targetBlank": False,
    "icon": "external link",
    "tooltip": "",
}
"""The menu of all dashboards, on each of them."""


@dataclass(frozen=True, slots=True)
class Panel:
    """One panel."""

    title: str
    description: str
    unit: str  # a unit of Grafana
    expressions: Mapping[str, str]  # PromQL by legend
    kind: str = "timeseries"  # Grafana's type: ``stat`` (a figure), ``bargauge`` (a bar each), or ``timeseries``
    alarm: float | None = None  # red from this value on
    below: tuple[str, float] | None = None  # color below this value
    names: Mapping[float, str] | None = None  # words for values
    stacked: bool = False
    width: int = 12  # in Grafana's grid of 24 columns
    height: int = 8  # in Grafana's grid


def figure(
    title: str,
    description: str,
    unit: str,
    expression: str,
    alarm: float | None = None,
    below: tuple[str, float] | None = None,
) -> Panel:
    """Return a panel with the number of this moment; without data it is grey and says so.

    :param expression: gives one value without labels, or nothing. :param alarm, below: as in ``Panel``.
    """
    return Panel(
        title, description, unit, {"": f"({expression}) or vector(NaN)"}, "stat", alarm, below, width=4, height=4
    )


def worst(expression: str) -> str:
    """Return the ten highest series of this moment: more bars are unreadable."""
    return f"topk(10, {expression})"


def worst_of_time(expression: str) -> str:
    """Return the ten series with the highest values in the time that the panel shows: more lines are unreadable.

    ``topk`` alone chooses at each point of a graph, so it would draw every series that was among the ten once.
    """
    return f"({expression}) and topk(10, max_over_time(({expression})[$__range:1m] @ end()))"


def at_once(expression: str, window: str) -> str:
    """Return an expression of a panel with a window instead of Grafana's variables, to be evaluated elsewhere."""
    return expression.replace("$__rate_interval", window).replace("$__range", window)


def per_minute(metric: str) -> str:
    """Return the increments of a counter a minute, of all processes; 0 before the first event."""
    return f"60 * (sum(rate({metric}{RATE})) or vector(0))"


@dataclass(frozen=True, slots=True)
class Board:
    """One dashboard."""

    uid: str  # part of its address: never change it
    title: str
    description: str
    rows: Mapping[str, Sequence[Panel]]  # panels by heading


def dashboard(board: Board) -> dict[str, Any]:
    """Return the JSON that Grafana provisions."""
    panels: list[dict[str, Any]] = []
    y = 0
    for heading, row in board.rows.items():
        panels.append(
            {
                "type": "row",
                "id": len(panels) + 1,
                "title": heading,
                "collapsed": False,
                "gridPos": {"x": 0, "y": y, "w": WIDTH, "h": 1},
                "panels": [],
            }
        )
        y += 1
        x = height = 0
        for panel in row:
            if x + panel.width > WIDTH:
                x, y, height = 0, y + height, 0
            place = {"x": x, "y": y, "w": panel.width, "h": panel.height}
            panels.append(_panel(panel, len(panels) + 1, place))
            x, height = x + panel.width, max(height, panel.height)
        y += height
    return {
        "uid": board.uid,
        "title": board.title,
        "description": board.description,
        "tags": ["mailgroup"],
        "schemaVersion": 39,
        "version": 1,
        "editable": False,
        "graphTooltip": 1,
        "refresh": "30s",
        "time": {"from": "now-6h", "to": "now"},
        "timezone": "browser",
        "templating": {"list": []},
        "annotations": {"list": []},
        "links": [_LINK],
        "panels": panels,
    }


def _panel(panel: Panel, number: int, place: Mapping[str, int]) -> dict[str, Any]:
    steps: list[dict[str, Any]] = [{"color": "green", "value": None}]
    if panel.below is not None:
        color, value = panel.below
        steps = [{"color": color, "value": None}, {"color": "green", "value": value}]
    if panel.alarm is not None:
        steps.append({"color": "red", "value": panel.alarm})
    defaults: dict[str, Any] = {"unit": panel.unit, "thresholds": {"mode": "absolute", "steps": steps}}
    options: dict[str, Any]
    instant = panel.kind != "timeseries"
    if instant:  # the value of now: the last one of a longer time would stay after its source has gone
        options = {"reduceOptions": {"calcs": ["lastNotNull"]}}
        options |= (
            {"colorMode": "background", "graphMode": "none"} if panel.kind == "stat" else {"displayMode": "basic"}
        )
        defaults |= {"noValue": "no data", "mappings": _mappings(panel)}
    else:
        options = {"legend": {"displayMode": "list", "placement": "bottom"}, "tooltip": {"mode": "multi"}}
        stacking = {"mode": "normal"} if panel.stacked else {"mode": "none"}
        defaults |= {"min": 0, "custom": {"fillOpacity": 12, "showPoints": "never", "stacking": stacking}}
    return {
        "type": panel.kind,
        "id": number,
        "title": panel.title,
        "description": panel.description,
        "datasource": SOURCE,
        "gridPos": dict(place),
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "options": options,
        "targets": [
            {
                "refId": chr(ord("A") + index),
                "datasource": SOURCE,
                "expr": expression,
                "legendFormat": legend,
                "instant": instant,
                "range": not instant,
            }
            for index, (legend, expression) in enumerate(panel.expressions.items())
        ],
    }


def _mappings(panel: Panel) -> list[dict[str, Any]]:
    missing = {"match": "null+nan", "result": {"text": "no data", "color": "#808080", "index": 0}}
    words = {f"{value:g}": {"text": word} for value, word in (panel.names or {}).items()}
    return [{"type": "special", "options": missing}, *([{"type": "value", "options": words}] if words else [])]
