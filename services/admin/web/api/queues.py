"""Requests on mail that waits to be sent, is on hold (held) or needs attention (parked)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from fastapi import APIRouter

from services.admin.access import audit
from services.admin.access.users import CurrentUser
from services.admin.mail import operations
from services.admin.web.api.schemas.common import ApiText, MailSelection, OperationOutcome
from services.admin.web.api.schemas.mails import HeldMail, ParkedMail, QueuedSubmissionEntry
from services.admin.web.page_context import Administrator, PageContext, PageDep, Reader
from shared.db.database import Connection
from shared.errors import Permanent

router = APIRouter()


@router.get("/queue", response_model=list[QueuedSubmissionEntry], tags=["mail"])
async def queue(context: PageDep, user: Reader, q: ApiText = "") -> Any:
    """List the submissions that wait to be sent, the oldest first; `q` as in the search of mail."""
    async with context.system.database.transaction() as connection:
        return await operations.list_queue(connection, q)


@router.post("/queue/retry", response_model=OperationOutcome, tags=["mail"])
async def retry(context: PageDep, user: Administrator, chosen: MailSelection) -> Any:
    """Try to send these submissions now."""
    return await operate(context, user, "tried now", operations.retry, chosen)


@router.post("/queue/cancel", response_model=OperationOutcome, tags=["mail"])
async def cancel(context: PageDep, user: Administrator, chosen: MailSelection) -> Any:
    """Cancel these submissions; their authors get a failure notice."""
    async with context.system.database.transaction() as connection:
        done = await operations.cancel(connection, chosen.ids, chosen.reason or operations.CANCELLED)
        await audit.record_mails(connection, user.name, "cancelled", done.done, chosen.reason)
    return done


@router.get("/held", response_model=list[HeldMail], tags=["mail"])
async def held(context: PageDep, user: Reader, q: ApiText = "") -> Any:
    """List mail on hold (held): no enabled user shares the account; `q` as in the search of mail."""
    async with context.system.database.transaction() as connection:
        return await operations.list_held(connection, q)


@router.get("/parked", response_model=list[ParkedMail], tags=["mail"])
async def parked(context: PageDep, user: Reader, q: ApiText = "") -> Any:
    """List mail that needs attention (parked); `q` as in the search of mail."""
    async with context.system.database.transaction() as connection:
        return await operations.list_parked(connection, text=q)


@router.post("/parked/requeue", response_model=OperationOutcome, tags=["mail"])
async def requeue(context: PageDep, user: Administrator, chosen: MailSelection) -> Any:
    """Requeue these mails with five more tries."""
    return await operate(context, user, "given five more tries", operations.requeue, chosen)


@router.post("/parked/discard", response_model=OperationOutcome, tags=["mail"])
async def discard(context: PageDep, user: Administrator, chosen: MailSelection) -> Any:
    """Discard mails that are parked or on hold, for a reason."""
    if not chosen.reason.strip():
        raise Permanent("reason: is needed to discard a mail")
    async with context.system.database.transaction() as connection:
        done = await operations.discard(connection, chosen.ids, chosen.reason)
        await audit.record_mails(connection, user.name, "discarded", done.done, chosen.reason)
    return done


@router.post("/submissions/resend", response_model=OperationOutcome, tags=["mail"])
async def resend(context: PageDep, user: Administrator, chosen: MailSelection) -> Any:
    """Send submissions again to the external recipients that did not get them."""
    return await operate(context, user, "sent again", operations.resend, chosen)


async def operate(
    context: PageContext,
    user: CurrentUser,
    did: str,
    act: Callable[[Connection, list[int]], Awaitable[operations.OperationResult]],
    chosen: MailSelection,
) -> Any:
    """Run an operation that takes nothing but the ids of mails."""
    async with context.system.database.transaction() as connection:
        done = await act(connection, chosen.ids)
        await audit.record_mails(connection, user.name, did, done.done)
    return done
