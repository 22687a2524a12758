"""How the answers to an external account found their authors, over the last 30 days."""

from __future__ import annotations

from typing import Any

from shared.db.database import Connection
from shared.languages.translation import marked
from shared.store import inbound_admin

DAYS = 30
"""Span of the statistic: days."""
WAYS = {
    "name": marked("the name in To or Cc"),
    "tag": marked("the reply tag"),
    "reference": marked("In-Reply-To or References"),
    "report": marked("the mail that they report on"),
    "nobody": marked("nothing: they went to everybody"),
}
"""The ways, in the order of the rules, in words for people."""


async def load_found_authors(connection: Connection, external_id: int) -> dict[str, Any]:
    """Return the numbers of mails by the way, in the form of ``external answers --json``; mails that are still kept.

    A mail counts if it names a person, answers a mail, or is a notice about one.
    """
    found = await inbound_admin.count_found(connection, external_id, DAYS)
    return {"days": DAYS} | {way: found.get(way, 0) for way in inbound_admin.FOUND_BY}


def describe_found(found: dict[str, Any]) -> list[tuple[str, int, str]]:
    """Return words, number and share of each way. Pure."""
    total = sum(found[way] for way in WAYS)
    return [(words, found[way], f"{100 * found[way] / total:.0f} %" if total else "–") for way, words in WAYS.items()]
