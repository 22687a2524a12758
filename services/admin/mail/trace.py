"""The trace of a mail: its events, found by id, Message-ID, address, or words in subject, names and addresses."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from services.admin.mail import mail_search, search_index
from services.admin.monitoring.status import iso, load_why_waits
from shared.db.database import Connection
from shared.store import inbound_admin, maillog, submissions_admin

MAX_MAILS = 100
"""Mails of an address that are traced, at most: the latest ones, and as many submissions."""


async def trace(connection: Connection, what: str) -> list[dict[str, Any]]:
    """Return the trace of each mail and submission that is found, in the form of ``trace --json``.

    :param what: an id, a Message-ID, an address, or words as in the console's search.
    """
    what = what.strip().removeprefix("<").removesuffix(">")
    arrived = await inbound_admin.find_inbound(connection, what, MAX_MAILS)
    sent = await submissions_admin.find_submission(connection, what, MAX_MAILS)
    further = []
    is_named = what.isdigit() or what in (*arrived.values(), *sent.values())
    if not is_named and search_index.query_terms(what):
        further = await mail_search.search(connection, mail_search.Filter(what), limit=MAX_MAILS)
    return await describe(
        connection,
        sorted({*arrived, *(mail.id for mail in further if not mail.sent)})[-MAX_MAILS:],
        sorted({*sent, *(mail.id for mail in further if mail.sent)})[-MAX_MAILS:],
    )


async def describe(
    connection: Connection, arrived: Sequence[int], sent: Sequence[int], max_events: int = maillog.MAX_EVENTS
) -> list[dict[str, Any]]:
    """Return the traces of the mails and submissions with these ids.

    A submission is traced to its end: what it became inside has its events there, and is listed as no other mail. why:
    no relay takes the mail, which waits.
    """
    inside = await inbound_admin.list_inside(connection, sent)
    history = await maillog.load_history(connection, [*arrived, *inside], sent, max_events)
    events: dict[int | None, list[dict[str, Any]]] = defaultdict(list)
    for at, event in history:
        mail_id = event.inbound_id if event.inbound_id in arrived else event.submission_id
        events[inside.get(event.inbound_id or 0, mail_id)].append(
            {"at": at, "event": event.event, "rule": event.rule, "who": event.who, "reply": event.reply}
        )
    waiting = await why_waiting(connection, sent) if sent else {}
    mails = await search_index.load_mails(connection, {*arrived, *sent} - {*inside})
    return [
        {
            "id": mail_id,
            "message_id": mail.message_id,
            "at": iso(mail.at),
            "sender": mail.sender,
            "subject": mail.subject,
            "state": mail.state,
            "status": mail.status,
            "events": events[mail_id],
            **({"why": waiting[mail_id]} if mail_id in waiting else {}),
        }
        for mail_id, mail in sorted(mails.items())
    ]


async def why_waiting(connection: Connection, sent: Sequence[int]) -> dict[int, str]:
    """Return why these submissions wait, by id: of those that are queued while no relay of their account takes mail."""
    queued = [each for each in await submissions_admin.list_submissions(connection, ids=sent) if each.state == "queued"]
    if not queued:
        return {}
    reasons = await load_why_waits(connection)
    return {each.id: reasons[each.external] for each in queued if each.external in reasons}


async def related_ids(connection: Connection, mail_id: int) -> set[int]:
    """Return the ids of a mail, of the submission that it was, and of the mails that it became inside."""
    mail = await inbound_admin.load_detail(connection, mail_id)
    submission_id = mail.submission_id if mail is not None and mail.submission_id else mail_id
    return {mail_id, submission_id, *(await inbound_admin.list_inside(connection, [submission_id]))}
