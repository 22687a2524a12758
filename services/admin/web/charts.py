"""The bar chart of the overview as SVG. Pure."""

from __future__ import annotations

import datetime
from collections.abc import Sequence

from markupsafe import Markup, escape

from shared.languages.translation import gettext

WIDTH, HEIGHT, FOOT, LEFT = 960, 230, 26, 44
"""Size of the chart, and of its margins for the hours and the scale: units of the viewBox."""
_STEPS = (1, 2, 5)
_MIN_END = 4


def scale_end(highest: int) -> int:
    """Return the end of the scale: 4, or 1, 2 or 5 times a power of ten, at least ``highest``; half of it is whole."""
    power = 10
    while highest > _MIN_END:
        for step in _STEPS:
            if step * power >= highest:
                return step * power
        power *= 10
    return _MIN_END


def _tick_class(hour: int) -> str:
    """Return the class of the label of an hour: every third is shown, on a phone every sixth; live.js does the same."""
    return "off" if hour % 3 else "between" if hour % 6 else ""


def bar_chart(hours: Sequence[tuple[datetime.datetime, int, int]], first: str, second: str) -> Markup:
    """Draw two bars for each hour. first, second: what they count, for the tooltips and the label of the image."""
    end = scale_end(max((max(one, other) for _, one, other in hours), default=0))
    slot = (WIDTH - LEFT) / max(len(hours), 1)
    height = HEIGHT - FOOT - 8
    parts = []
    for part in (0, 0.5, 1):
        y = HEIGHT - FOOT - height * part
        parts.append(f'<line x1="{LEFT}" x2="{WIDTH}" y1="{y:.1f}" y2="{y:.1f}"/>')
        shown = "" if part else ' class="between"'  # on a phone the first hour stands there
        parts.append(f'<text{shown} x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{end * part:g}</text>')
    for index, (hour, one, other) in enumerate(hours):
        x = LEFT + index * slot
        for number, count, name in ((0, one, first), (1, other, second)):
            tall = height * count / end
            place = x + slot * (0.12 + 0.38 * number)
            parts.append(
                f'<rect class="bar{" second" if number else ""}" x="{place:.1f}" y="{HEIGHT - FOOT - tall:.1f}" '
                f'width="{slot * 0.34:.1f}" height="{tall:.1f}" rx="1.5"><title data-hour="{hour:%Y-%m-%dT%H:%M:%SZ}">'
                f"{hour:%H}:00 UTC: {count} {escape(name)}</title></rect>"
            )
        place = x + slot / 2
        parts.append(
            f'<text class="{_tick_class(hour.hour)}" data-hour="{hour:%Y-%m-%dT%H:%M:%SZ}" x="{place:.1f}" '
            f'y="{HEIGHT - 4}" text-anchor="middle">{hour:%H}:00</text>'
        )
    totals = f"{sum(one for _, one, _ in hours)} {first}, {sum(other for _, _, other in hours)} {second}"
    label = escape(gettext("Mails in the last %(hours)s hours: %(totals)s", hours=len(hours), totals=totals))
    return Markup(
        f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">{"".join(parts)}</svg>'
    )
