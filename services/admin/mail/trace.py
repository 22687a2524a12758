"""The trace of a mail: its events, found by Message-ID, address or id."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from services.admin.mail import search_index
from shared.db.database import Connection
from shared.store import inbound_admin, maillog, submissions_admin

MAX_MAILS = 100
"""Mails of an address that are traced, at most: the latest ones, and as many submissions."""


async def trace(connection: Connection, what: str) -> list[dict[str, Any]]:
    """Return the trace of each mail and submission that is found, in the form of ``trace --json``."""
    what = what.strip().removeprefix("<").removesuffix(">")
    return await describe(
        connection,
        await inbound_admin.find_inbound(connection, what, MAX_MAILS),
        await submissions_admin.find_submission(connection, what, MAX_MAILS),
    )


async def describe(
    connection: Connection,
    arrived: Mapping[int, str | None],
    sent: Mapping[int, str | None],
    max_events: int = maillog.MAX_EVENTS,
) -> list[dict[str, Any]]:
    """Return the traces of these mails and submissions. :param arrived, sent: their Message-IDs by id."""
    history = await maillog.load_history(connection, list(arrived), list(sent), max_events)
    states = await search_index.load_states(connection, [*arrived, *sent])
    events: dict[int | None, list[dict[str, Any]]] = defaultdict(list)
    for at, event in history:
        mail_id = event.inbound_id if event.inbound_id in arrived else event.submission_id
        events[mail_id].append(
            {"at": at, "event": event.event, "rule": event.rule, "who": event.who, "reply": event.reply}
        )
    mails = []
    for mail_id, message_id in sorted({**arrived, **sent}.items()):
        state, status = states[mail_id]
        mails.append(
            {"id": mail_id, "message_id": message_id, "state": state, "status": status, "events": events[mail_id]}
        )
    return mails
