"""The page of the queue to the providers, of mail on hold (held) and of mail that needs attention (parked)."""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.responses import Response

from services.admin.access import audit
from services.admin.mail import operations, search_index
from services.admin.web.forms import Form
from services.admin.web.page_context import Administrator, PageDep, Reader

router = APIRouter(include_in_schema=False)

SHOWN = 200
"""Limit of each list: mails; the page stays usable, and the oldest come first."""


@router.get("/queue")
async def show(request: Request, context: PageDep, user: Reader) -> Response:
    """Show the three lists."""
    async with context.system.database.transaction() as connection:
        queue = await operations.list_queue(connection)
        held = await operations.list_held(connection)
        parked = await operations.list_parked(connection)
        ids = [mail["id"] for mails in (queue, held, parked) for mail in mails[:SHOWN]]
        headlines = await search_index.subjects(connection, ids)
    return await context.render_page(
        request,
        user,
        "queue.html",
        queue=queue[:SHOWN],
        held=held[:SHOWN],
        parked=parked[:SHOWN],
        counts=(len(queue), len(held), len(parked)),
        shown=SHOWN,
        headlines=headlines,
    )


@router.post("/queue")
async def act(request: Request, context: PageDep, user: Administrator) -> Response:
    """Retry, cancel, requeue or discard the ticked mails."""
    form = Form(await request.form())
    ids, do, reason = form.ids(), form.text("do"), form.text("reason")[:500]
    action = ""
    if do == "retry-all":
        ids = []
    elif not ids:
        return await context.redirect(user, "/queue", "Nothing was ticked.")
    if do == "discard" and not reason:
        return await context.redirect(
            user, "/queue", "A mail is discarded for a reason: write it into the field beside the button."
        )
    async with context.system.database.transaction() as connection:
        match do:
            case "retry" | "retry-all":
                done, action = await operations.retry(connection, ids or None), "tried now"
            case "cancel":
                done, action = await operations.cancel(connection, ids, reason or operations.CANCELLED), "cancelled"
            case "requeue":
                done, action = await operations.requeue(connection, ids), "given five more tries"
            case "discard":
                done, action = await operations.discard(connection, ids, reason), "discarded"
            case _:
                return await context.redirect(user, "/queue", "Nothing was chosen to be done.")
        await audit.record_mails(connection, user.name, action, done.done, reason)
    unchanged = f" Unchanged: {', '.join(map(str, done.left))}." if done.left else ""
    return await context.redirect(user, "/queue", f"{len(done.done)} mails: {action}.{unchanged}")
