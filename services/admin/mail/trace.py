"""The trace of a mail: its events, found by Message-ID, address or id."""

from __future__ import annotations

from typing import Any

from services.admin.mail import search_index
from shared.db.database import Connection
from shared.store import inbound_admin, maillog, submissions_admin

MAX_MAILS = 100
"""Mails of an address that are traced, at most: the latest ones, and as many submissions."""


async def trace(connection: Connection, what: str) -> list[dict[str, Any]]:
    """Return the trace of each mail and submission that is found, in the form of ``trace --json``."""
    what = what.strip().removeprefix("<").removesuffix(">")
    arrived = await inbound_admin.find_inbound(connection, what, MAX_MAILS)
    sent = await submissions_admin.find_submission(connection, what, MAX_MAILS)
    history = await maillog.load_history(connection, list(arrived), list(sent))
    states = await search_index.load_states(connection, [*arrived, *sent])
    mails = []
    for mail_id, message_id in sorted({**arrived, **sent}.items()):
        events = [
            {"at": at, "event": event.event, "rule": event.rule, "who": event.who, "reply": event.reply}
            for at, event in history
            if (event.inbound_id == mail_id if mail_id in arrived else event.submission_id == mail_id)
        ]
        state, status = states[mail_id]
        mails.append({"id": mail_id, "message_id": message_id, "state": state, "status": status, "events": events})
    return mails
