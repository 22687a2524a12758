"""The page of the queue to the providers, of mail on hold (held) and of mail that needs attention (parked)."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from fastapi import APIRouter, Request
from fastapi.responses import Response

from services.admin.access import audit
from services.admin.access.users import CurrentUser
from services.admin.formatting import thousands
from services.admin.mail import operations, search_index
from services.admin.mail.operations import OperationResult
from services.admin.web.confirmation import ITEMS, Question, ask, is_confirmed
from services.admin.web.forms import Form
from services.admin.web.page_context import Administrator, PageContext, PageDep, Reader
from shared.db.database import Connection
from shared.languages.translation import gettext, lookup, marked, marked_plural, ngettext
from shared.store import accounts, provider_filings

router = APIRouter(include_in_schema=False)

SHOWN = 200
"""Limit of each list: mails; the page stays usable, and the oldest come first."""
REASON_CHARACTERS = 500
"""Limit of a reason: characters; the notice to the author quotes it."""


@dataclass(frozen=True, slots=True)
class _Action:
    """What can be done to mails of this page."""

    done: str  # as the audit says it
    result: tuple[str, str]  # what was done, for one mail and for several
    ask: tuple[str, str] | None = None  # the question, for one mail and for several; None: it is done at once
    button: tuple[str, str] = ("", "")  # of the question
    effect: str = ""  # what will happen to the mails
    reason: str = ""  # label of the field for a reason
    reason_needed: bool = False


_TRIED = marked_plural("%(num)s mail: tried now.", "%(num)s mails: tried now.")
ACTIONS = {
    "retry": _Action(marked("tried now"), _TRIED),
    "retry-all": _Action(
        marked("tried now"),
        _TRIED,
        marked_plural("Try to send %(num)s mail now?", "Try to send %(num)s mails now?"),
        marked_plural("Try to send %(num)s mail", "Try to send %(num)s mails"),
        marked("All mail that waits is sent now, unless the provider refuses it."),
    ),
    "cancel": _Action(
        marked("cancelled"),
        marked_plural("%(num)s mail: cancelled.", "%(num)s mails: cancelled."),
        marked_plural("Cancel %(num)s mail?", "Cancel %(num)s mails?"),
        marked_plural("Cancel %(num)s mail", "Cancel %(num)s mails"),
        marked("Recipients who do not have the mail yet never get it. The authors get a notice."),
        marked("Reason, for the author (may be empty)"),
    ),
    "requeue": _Action(
        marked("given five more tries"),
        marked_plural("%(num)s mail: given five more tries.", "%(num)s mails: given five more tries."),
        marked_plural("Continue with %(num)s mail?", "Continue with %(num)s mails?"),
        marked_plural("Continue with %(num)s mail", "Continue with %(num)s mails"),
        marked(
            "Each is delivered or sent as if it had just come. A mail that a restored backup held may be sent twice."
        ),
    ),
    "discard": _Action(
        marked("discarded"),
        marked_plural("%(num)s mail: discarded.", "%(num)s mails: discarded."),
        marked_plural("Discard %(num)s mail?", "Discard %(num)s mails?"),
        marked_plural("Discard %(num)s mail", "Discard %(num)s mails"),
        marked("Nobody gets this mail, and it cannot be brought back."),
        marked("Reason, for the record"),
        True,
    ),
}


@router.get("/queue")
async def show(request: Request, context: PageDep, user: Reader) -> Response:
    """Show the three lists, and below them what cannot be filed at the providers."""
    return await _list(request, context, user)


async def _list(request: Request, context: PageContext, user: CurrentUser, problems: Sequence[str] = ()) -> Response:
    async with context.system.database.transaction() as connection:
        queue = await operations.list_queue(connection, limit=SHOWN)
        held = await operations.list_held(connection, limit=SHOWN)
        parked = (await operations.list_parked(connection, limit=SHOWN))[:SHOWN]
        counts = await operations.count_queue(connection)
        ids = [mail["id"] for mails in (queue, held, parked) for mail in mails]
        headlines = await search_index.subjects(connection, ids)
        troubles = await provider_filings.load_troubles(connection)
        externals = await accounts.load_externals(connection, sorted(troubles)) if troubles else []
    return await context.render_page(
        request,
        user,
        "queue.html",
        status=422 if problems else 200,
        problems=problems,
        queue=queue,
        held=held,
        parked=parked,
        counts=[_count(number) for number in (counts.waiting, counts.held, counts.parked)],
        cut=max(counts.waiting, counts.held, counts.parked) > SHOWN,
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
        return await _list(request, context, user, [gettext("Choose what is to be done with the ticked mails.")])
    if do != "retry-all" and not ids:
        return await _list(request, context, user, [gettext("Nothing was ticked.")])
    if action.ask and not (is_confirmed(form) and (reason or not action.reason_needed)):
        return await ask(request, context, user, form, await _question(context, do, ids))
    async with context.system.database.transaction() as connection:
        done = await _execute(connection, do, ids, reason)
        await audit.record_mails(connection, user.name, action.done, done.done, reason)
    result = _of(action.result, len(done.done))
    if done.left:
        result += " " + gettext("Unchanged: %(ids)s.", ids=", ".join(map(str, done.left)))
    return await context.redirect(user, "/queue", result)


def _of(texts: tuple[str, str], count: int) -> str:
    return ngettext(*texts, count, num=thousands(count))


async def _question(context: PageContext, do: str, ids: Collection[int]) -> Question:
    action = ACTIONS[do]
    async with context.system.database.transaction() as connection:
        chosen, number = list(ids), len(ids)
        if do == "retry-all":
            chosen = [mail["id"] for mail in await operations.list_queue(connection, limit=ITEMS)]
            number = (await operations.count_queue(connection)).waiting
        headlines = await search_index.subjects(connection, chosen)
    assert action.ask is not None
    return Question(
        ngettext(*action.ask, number, num=_count(number)),
        [gettext(action.effect)],
        ngettext(*action.button, number, num=_count(number)),
        "/queue",
        [_headline(id_, *headlines.get(id_, ("", ""))) for id_ in chosen],
        lookup(action.reason),
        action.reason_needed,
        further=number - len(chosen),
    )


def _count(number: int) -> str:
    """Write a number of mails, or that it is larger than what is counted."""
    most = operations.COUNTED
    return thousands(number) if number <= most else gettext("more than %(number)s", number=thousands(most))


def _headline(id_: int, sender: str, subject: str) -> str:
    subject = subject or gettext("(no subject)")
    return f"{subject} ({id_}, {gettext('from %(sender)s', sender=sender)})" if sender else f"{subject} ({id_})"


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
