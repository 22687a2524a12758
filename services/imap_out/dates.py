"""Dates of IMAP: INTERNALDATE (RFC 3501 section 9, date-time) and the days of SEARCH (date). Pure."""

from __future__ import annotations

import re
from datetime import date, datetime, timedelta, timezone

_MONTHS = (b"jan", b"feb", b"mar", b"apr", b"may", b"jun", b"jul", b"aug", b"sep", b"oct", b"nov", b"dec")
_NAMES = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_DATE = re.compile(rb'"?(\d{1,2})-([A-Za-z]{3})-(\d{4})"?')
_DATE_TIME = re.compile(rb"([ \d]\d)-([A-Za-z]{3})-(\d{4}) (\d\d):(\d\d):(\d\d) ([+-])(\d\d)(\d\d)")


def parse_day(text: bytes) -> date | None:
    """Parse ``1-Feb-1994``; None if it is no date."""
    found = _DATE.fullmatch(text)
    if found is None or found[2].lower() not in _MONTHS:
        return None
    try:
        return date(int(found[3]), _MONTHS.index(found[2].lower()) + 1, int(found[1]))
    except ValueError:
        return None


def parse_internal_date(text: bytes) -> datetime | None:
    """Parse `` 7-Feb-1994 21:52:25 -0800``; None if it is no date with time and zone."""
    found = _DATE_TIME.fullmatch(text)
    if found is None or found[2].lower() not in _MONTHS:
        return None
    offset = timedelta(hours=int(found[8]), minutes=int(found[9]))
    try:
        zone = timezone(-offset if found[7] == b"-" else offset)
        return datetime(
            *(int(found[3]), _MONTHS.index(found[2].lower()) + 1, int(found[1])),
            *(int(found[4]), int(found[5]), min(int(found[6]), 59)),
            tzinfo=zone,
        )
    except ValueError:
        return None


def format_internal_date(moment: datetime) -> bytes:
    """Format a moment with its zone: `` 7-Feb-1994 21:52:25 -0800`` in quotes. :param moment: aware."""
    minutes = round((moment.utcoffset() or timedelta()).total_seconds()) // 60
    sign, minutes = ("-", -minutes) if minutes < 0 else ("+", minutes)
    return (
        f'"{moment.day:2}-{_NAMES[moment.month - 1]}-{moment.year:04} {moment:%H:%M:%S} '
        f'{sign}{minutes // 60:02}{minutes % 60:02}"'
    ).encode()
