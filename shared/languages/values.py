"""Dates, times and numbers in the language that applies."""

from __future__ import annotations

import datetime

from shared.languages.translation import SOURCE, language


def format_moment(at: datetime.datetime, zone: datetime.tzinfo = datetime.UTC) -> str:
    """Return a time to the minute, with its zone: 2026-01-31 12:00 UTC, 31. Januar 2026, 12:00 UTC.

    :param at: with a zone. :param zone: in which it is shown.
    """
    local = at.astimezone(zone)
    name = "UTC" if not local.utcoffset() else f"{local:%z}"
    if language() == SOURCE:
        return f"{local:%Y-%m-%d %H:%M} {name}"
    from babel.dates import format_date, format_time  # late: most processes write no such text

    locale = language().replace("-", "_")
    day, time = format_date(local.date(), "long", locale), format_time(local.time(), "short", locale=locale)
    return f"{day}, {time} {name}"


def format_count(count: int) -> str:
    """Return a number with its thousands set apart: 12,345; in German 12.345."""
    if language() == SOURCE:
        return f"{count:,}"
    from babel.numbers import format_decimal

    return format_decimal(count, locale=language().replace("-", "_"))
