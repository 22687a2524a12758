"""Times and time spans of the pages. The page has them in UTC; live.js shows them in the time zone of the browser."""

from __future__ import annotations

import datetime

from markupsafe import Markup

from services.admin.formatting import ago
from shared.languages.translation import gettext


def time_span(value: float | datetime.datetime | None) -> str:
    """Format the time since a moment, or a time span in seconds."""
    if value is None:
        return gettext("never")
    if isinstance(value, datetime.datetime):
        value = (datetime.datetime.now(datetime.UTC) - value).total_seconds()
    return ago(max(0.0, value))


def since(at: datetime.datetime | None) -> Markup | str:
    """Format the time since a moment, with the moment itself as title."""
    if at is None:
        return gettext("never")
    at = at.astimezone(datetime.UTC)
    return Markup('<time datetime="{}" data-since title="{} UTC">{}</time>').format(
        at.strftime("%Y-%m-%dT%H:%M:%SZ"),
        at.strftime("%Y-%m-%d %H:%M:%S"),
        gettext("%(time)s ago", time=time_span(at)),
    )


def moment(at: datetime.datetime | str | None) -> Markup | str:
    """Format a time in UTC. :param at: a text has the form of ISO 8601."""
    if at is None:
        return gettext("never")
    if isinstance(at, str):
        at = datetime.datetime.fromisoformat(at)
    at = at.astimezone(datetime.UTC)
    return Markup('<time datetime="{}">{} UTC</time>').format(
        at.strftime("%Y-%m-%dT%H:%M:%SZ"), at.strftime("%Y-%m-%d %H:%M:%S")
    )
