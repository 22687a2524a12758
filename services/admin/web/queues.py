"""The page of the queue to the providers, of mail on hold (held) and of mail that needs attention (parked)."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from fastapi import APIRouter, Request
from fastapi.responses import Response

from services.admin.access import audit
from services.admin.formatting import counted
from services.admin.mail import operations, search_index
from services.admin.mail.operations import OperationResult
from services.admin.web.confirmation import Question, ask, is_confirmed
from services.admin.web.forms import Form
from services.admin.web.page_context import Administrator, PageContext, PageDep, Reader
from shared.db.database import Connection
from shared.store import accounts, provider_filings

router = APIRouter(include_in_schema=False)

SHOWN = 200
"""Limit of each list: mails; the page stays usable, and the oldest come first."""
REASON_CHARACTERS = 500
"""Limit of a reason: characters; the notice to the author quotes it."""


@dataclass(frozen=True, slots=True)
class _Action:
    """What can be done to mails of this page."""

    done: str  # as the result and the audit say it
    ask: str = ""  # the imperative of the question; '': it is done at once
    effect: str = ""  # what will happen to the mails
    reason: str = ""  # label of the field for a reason
    reason_needed: bool = False


ACTIONS = {
    "retry": _Action("tried now"),
    "retry-all": _Action(
        "tried now", "Try to send", "All mail that waits is sent now, unless the provider refuses it."
    ),
    "cancel": _Action(
        "cancelled",
        "Cancel",
        "Recipients who do not have the mail yet never get it. The authors get a notice.",
        "Reason, for the author (may be empty)",
    ),
    "requeue": _Action(
        "given five more tries",
        "Continue with",
        "Each is delivered or sent as if it had just come. A mail that a restored backup held may be sent twice.",
    ),
    "discard": _Action(
        "discarded", "Discard", "Nobody gets this mail, and it cannot be brought back.", "Reason, for the record", True
    ),
}


@router.get("/queue")
async def show(request: Request, context: PageDep, user: Reader) -> Response:
    """Show the three lists, and below them what cannot be filed at the providers."""
    async with context.system.database.transaction() as connection:
        queue = await operations.list_queue(connection)
        held = await operations.list_held(connection)
        parked = await operations.list_parked(connection)
        ids = [mail["id"] for mails in (queue, held, parked) for mail in mails[:SHOWN]]
        headlines = await search_index.subjects(connection, ids)
        troubles = await provider_filings.load_troubles(connection)
        externals = await accounts.load_externals(connection, sorted(troubles)) if troubles else []
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
        unfiled=[(external.address, troubles[external.id]) for external in externals if external.enabled],
    )


@router.post("/queue")
async def act(request: Request, context: PageDep, user: Administrator) -> Response:
    """Retry, cancel, requeue or discard the ticked mails; what cannot be undone is asked first."""
    form = Form(await request.form())
    do, reason = form.text("do"), form.text("reason")[:REASON_CHARACTERS]
    ids = [] if do == "retry-all" else form.ids()
    action = ACTIONS.get(do)
    if action is None:
        return await context.redirect(user, "/queue", "Choose what is to be done with the ticked mails.")
    if do != "retry-all" and not ids:
        return await context.redirect(user, "/queue", "Nothing was ticked.")
    if action.ask and not (is_confirmed(form) and (reason or not action.reason_needed)):
        return await ask(request, context, user, form, await _question(context, do, ids))
    async with context.system.database.transaction() as connection:
        done = await _execute(connection, do, ids, reason)
        await audit.record_mails(connection, user.name, action.done, done.done, reason)
    unchanged = f" Unchanged: {', '.join(map(str, done.left))}." if done.left else ""
    return await context.redirect(user, "/queue", f"{counted(len(done.done))}: {action.done}.{unchanged}")


async def _question(context: PageContext, do: str, ids: Collection[int]) -> Question:
    action = ACTIONS[do]
    async with context.system.database.transaction() as connection:
        chosen = [mail["id"] for mail in await operations.list_queue(connection)] if do == "retry-all" else list(ids)
        headlines = await search_index.subjects(connection, chosen)
    what = f"{action.ask} {counted(len(chosen))}"
    return Question(
        f"{what}{' now' if do == 'retry-all' else ''}?",
        [action.effect],
        what,
        "/queue",
        [_headline(id_, *headlines.get(id_, ("", ""))) for id_ in chosen],
        action.reason,
        action.reason_needed,
    )


def _headline(id_: int, sender: str, subject: str) -> str:
    return f"{subject or '(no subject)'} ({id_}{f', from {sender}' if sender else ''})"


async def _execute(connection: Connection, do: str, ids: Collection[int], reason: str) -> OperationResult:
    match do:
        case "cancel":
            return await operations.cancel(connection, ids, reason or operations.CANCELLED)
        case "requeue":
            return await operations.requeue(connection, ids)
        case "discard":
            return await operations.discard(connection, ids, reason)
        case _:
            return await operations.retry(connection, ids or None)
