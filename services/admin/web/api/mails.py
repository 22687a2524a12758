"""Requests on single mails: search, history, content, copies."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from fastapi.responses import Response, StreamingResponse

from services.admin.access import audit
from services.admin.mail import history, mail_search, operations, trace
from services.admin.monitoring.status import iso
from services.admin.web.api.schemas.common import ApiText, Before, ChangeLines, MailStatus, PageLimit
from services.admin.web.api.schemas.mails import CopyRequest, Day, MailDetails, MailListEntry
from services.admin.web.mail import Id
from services.admin.web.page_context import Administrator, NotFound, PageDep, Reader
from shared.db.database import Connection
from shared.store import blobs

router = APIRouter()

MAX_EVENTS = 2_000
"""Events of a mail in a response, at most: the first ones; a mail to a thousand people has a thousand."""


@router.get("/mails", response_model=list[MailListEntry], tags=["mail"])
async def search(
    context: PageDep,
    user: Reader,
    q: ApiText = "",
    day: Day | None = None,
    to: ApiText = "",
    result: MailStatus | None = None,
    account: ApiText = "",
    before: Before = None,
    limit: PageLimit = 50,
) -> Any:
    """Search mail, the latest first: all words of `q` in subject, names and addresses, or their beginnings; or the
    address of an account. `day` is one of UTC. `to` is the beginning of a recipient's name or address."""
    async with context.system.database.transaction() as connection:
        wanted = mail_search.Filter(q, day, to=to, result=result or "", account=account)
        return await mail_search.search(connection, wanted, before, limit)


@router.get("/mails/{id}", response_model=MailDetails, tags=["mail"])
async def show_mail(context: PageDep, user: Reader, id: Id) -> Any:
    """Return one mail with its recipients, the reasons, and its history: the first 2,000 events."""
    async with context.system.database.transaction() as connection:
        story = await require_history(connection, id)
        [traced] = await trace.describe(
            connection, [id] if story.arrived else [], [id] if story.sent else [], MAX_EVENTS
        )
    return {
        **traced,
        "at": iso(story.at),
        "sender": story.summary.author,
        "subject": story.summary.subject,
        "octets": story.octets,
        "state": story.state,
        "status": story.status,
        "sentences": story.sentences,
    }


@router.get(
    "/mails/{id}/raw",
    tags=["mail"],
    response_class=StreamingResponse,
    responses={200: {"content": {"message/rfc822": {}}, "description": "The mail as received (RFC 5322)."}},
)
async def raw(context: PageDep, user: Administrator, id: Id) -> Response:
    """Return the whole mail. The audit records the access."""
    async with context.system.database.transaction() as connection:
        story = await require_history(connection, id)
        await audit.record_mails(connection, user.name, "looked into a mail", [id], story.summary.author)
    return StreamingResponse(blobs.stream(context.system.database, story.blob_id), media_type="message/rfc822")


@router.post("/mails/{id}/give", response_model=ChangeLines, tags=["mail"])
async def give(context: PageDep, user: Administrator, id: Id, given: CopyRequest) -> Any:
    """Copy a delivered mail into a mailbox as new mail, and optionally remove it from another one."""
    async with context.system.database.transaction() as connection:
        await operations.give_copy(connection, id, given.to, given.away_from)
        await audit.record_mails(connection, user.name, "gave a mail", [id], f"to {given.to}")
    await context.system.announce_changes([given.to, given.away_from] if given.away_from else [given.to])
    return {"changed": [f"mail {id}: {given.to} has it"]}


async def require_history(connection: Connection, mail_id: int) -> history.MailHistory:
    """Load the history of a mail. :raises NotFound: there is no such mail."""
    story = await history.load_mail_history(connection, mail_id)
    if story is None:
        raise NotFound(f"{mail_id}: there is no such mail")
    return story
