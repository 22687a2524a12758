"""What became of a mail: found by Message-ID, address or id; told event by event."""

from __future__ import annotations

from typing import Any

from services.admin.mail import search_index
from shared.db.database import Connection
from shared.store import inbound_admin, maillog, submissions_admin

MAX_MAILS = 100
"""So many mails of an address, the latest ones, inbound and submitted each."""


async def trace(connection: Connection, what: str) -> list[dict[str, Any]]:
    """The history of each mail found, in the form of ``trace --json``: a mail is an inbound mail or a submission."""
    what = what.strip().removeprefix("<").removesuffix(">")
    arrived = await inbound_admin.find_inbound(connection, what, MAX_MAILS)
    sent = await submissions_admin.find_submission(connection, what, MAX_MAILS)
    history = await maillog.load_history(connection, list(arrived), list(sent))
    states = await search_index.load_states(connection, [*arrived, *sent])
    mails = []
    for id_, message_id in sorted({**arrived, **sent}.items()):
        events = [
            {"at": at, "event": event.event, "rule": event.rule, "who": event.who, "reply": event.reply}
            for at, event in history
            if (event.inbound_id == id_ if id_ in arrived else event.submission_id == id_)
        ]
        state, status = states[id_]
        mails.append({"id": id_, "message_id": message_id, "state": state, "status": status, "events": events})
    return mails
