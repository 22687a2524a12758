"""The pages that search mail, show the history of one mail, and act on it."""

from __future__ import annotations

import datetime
from typing import Annotated
from urllib.parse import urlencode

from fastapi import APIRouter, Path, Query, Request
from fastapi.responses import RedirectResponse, Response, StreamingResponse

from services.admin.access import audit
from services.admin.formatting import MAIL_RESULTS, thousands
from services.admin.mail import history, mail_search, operations
from services.admin.mail.history import MailHistory
from services.admin.mail.mail_search import Filter
from services.admin.mail.search_index import PAGE
from services.admin.web.confirmation import Question, ask, is_confirmed
from services.admin.web.folded_history import FOLDS_FROM, fold_events, fold_reasons
from services.admin.web.forms import Form
from services.admin.web.page_context import Administrator, NotFound, PageContext, PageDep, QueryText, Reader
from shared.errors import Permanent
from shared.languages import stored_texts
from shared.languages.translation import gettext, marked, ngettext
from shared.store import accounts, blobs

router = APIRouter(include_in_schema=False, prefix="/mail")

CHOICES = 200
"""Largest number of accounts that the filter offers as a list; with more, the user types the address."""
FAILED = ("failed", "cancelled")
"""States of recipients that did not get a submission."""
NOBODY = marked("There is nobody to send it to again, or it is older than five days.")

Id = Annotated[int, Path(ge=1, le=2**63 - 1)]
Before = Annotated[int | None, Query(ge=1, le=2**63 - 1)]


@router.get("")
async def search(
    request: Request,
    context: PageDep,
    user: Reader,
    q: QueryText = "",
    to: QueryText = "",
    result: Annotated[str, Query(max_length=20)] = "",
    account: QueryText = "",
    day: Annotated[str, Query(max_length=20)] = "",
    zone: Annotated[str, Query(max_length=60)] = "",
    before: Before = None,
) -> Response:
    """List the latest mail, or the mail that matches the query."""
    if q.strip().isascii() and q.strip().isdigit() and len(q.strip()) < 19:
        return RedirectResponse(f"/mail/{int(q)}", 303)
    problems = []
    try:
        date = datetime.date.fromisoformat(day) if day else None
    except ValueError:
        date, problems = None, [gettext("Day: %(day)s: a day has the form 2026-11-30.", day=day)]
    wanted = Filter(q, date, zone if date else "", to, result, account)
    async with context.system.database.transaction() as connection:
        query = await mail_search.prepare(connection, wanted)
        mails = await mail_search.search(connection, query, before, PAGE + 1)
        whole = before is None and len(mails) <= PAGE
        total = thousands(len(mails)) if whole else await mail_search.count(connection, wanted, query)
        choices = await accounts.page_of_externals(connection, limit=CHOICES + 1)
    shown = mails[:PAGE]
    parameters = {"q": q, "to": to, "result": result, "account": account, "day": day, "zone": zone if day else ""}
    return await context.render_page(
        request,
        user,
        "mails.html",
        mails=shown,
        more=shown[-1].id if len(mails) > len(shown) else None,
        total=total,
        accounts=[each.address for each in choices] if len(choices) <= CHOICES else [],
        results=MAIL_RESULTS,
        filtered=wanted != Filter(),
        query=urlencode({name: value for name, value in parameters.items() if value}),
        zone=zone,
        q=q,
        to=to,
        result=result,
        account=account,
        day=day,
        before=before,
        problems=problems,
    )


@router.get("/{id}")
async def show(request: Request, context: PageDep, user: Reader, id: Id) -> Response:
    """Show one mail."""
    story = await _load_history(context, id)
    async with context.system.database.transaction() as connection:
        people = await accounts.page_of_locals(connection, limit=501) if user.role == "administrator" else []
    return await context.render_page(
        request,
        user,
        "mail.html",
        story=story,
        people=people if len(people) < 501 else [],
        why=fold_reasons(story),
        events=fold_events(story),
        folds_from=FOLDS_FROM,
    )


@router.post("/{id}")
async def act(request: Request, context: PageDep, user: Administrator, id: Id) -> Response:
    """Copy or move a mail to another mailbox, or send a submission again; both are asked first."""
    form = Form(await request.form())
    again, to, away = (
        form.text("do") == "resend",
        context.storable(form.text("to")),
        context.storable(form.text("away")),
    )
    try:
        if not is_confirmed(form):
            story = await _load_history(context, id)
            question = _ask_to_resend(story) if again else _ask_to_give(story, to, away)
            return await ask(request, context, user, form, question)
        async with context.system.database.transaction() as connection:
            if again:
                if not (await operations.resend(connection, [id])).done:
                    raise Permanent(NOBODY)
                said = gettext("It is sent again.")
                await audit.record_mails(connection, user.name, marked("sent again"), [id])
            else:
                await operations.give_copy(connection, id, to, away)
                said = gettext("%(to)s has it now; the mail client gets it as new mail.", to=to)
                if away:
                    said = gettext(
                        "%(to)s has it now, and %(away)s no longer; the mail client gets it as new mail.",
                        to=to,
                        away=away,
                    )
                await audit.record_mails(connection, user.name, marked("gave a mail"), [id], f"to {to}")
        if not again:
            await context.system.announce_changes([to, away] if away else [to])
    except Permanent as error:
        said = stored_texts.shown(str(error))
    return await context.redirect(user, f"/mail/{id}", said)


def _ask_to_resend(story: MailHistory) -> Question:
    """:raises Permanent: every recipient has the mail."""
    recipients = [r.address for r in story.sent.recipients if r.state in FAILED] if story.sent else []
    if not recipients:
        raise Permanent(NOBODY)
    return Question(
        ngettext(
            "Send the mail again to %(num)s recipient?", "Send the mail again to %(num)s recipients?", len(recipients)
        ),
        [gettext("“%(subject)s” is sent to:", subject=_subject(story))],
        gettext("Send again"),
        f"/mail/{story.id}",
        recipients,
    )


def _ask_to_give(story: MailHistory, to: str, away: str) -> Question:
    """:raises Permanent: nobody is to get the mail."""
    if not to:
        raise Permanent(marked("Choose whose mailbox is to get the mail."))
    effects = [
        gettext(
            "“%(subject)s” is put into the mailbox of %(to)s as new mail, to be read.",
            subject=_subject(story),
            to=to,
        )
    ]
    title, button = gettext("Copy 1 mail to %(to)s?", to=to), gettext("Copy the mail")
    if away:
        effects.append(gettext("It is deleted from the mailbox of %(away)s.", away=away))
        title, button = gettext("Move 1 mail to %(to)s?", to=to), gettext("Move the mail")
    return Question(title, effects, button, f"/mail/{story.id}")


def _subject(story: MailHistory) -> str:
    return story.summary.subject or gettext("(no subject)")


@router.post("/{id}/raw")
async def raw(context: PageDep, user: Administrator, id: Id) -> Response:
    """Return the whole mail as a file, after the audit has recorded the access."""
    story = await _load_history(context, id)
    async with context.system.database.transaction() as connection:
        await audit.record_mails(connection, user.name, marked("looked into a mail"), [id], story.summary.author)
    return StreamingResponse(
        blobs.stream(context.system.database, story.blob_id),
        media_type="message/rfc822",
        headers={"Content-Disposition": f'attachment; filename="mail-{id}.eml"', "Content-Length": str(story.octets)},
    )


async def _load_history(context: PageContext, mail_id: int) -> MailHistory:
    async with context.system.database.transaction() as connection:
        story = await history.load_mail_history(connection, mail_id)
    if story is None:
        raise NotFound(gettext("There is no mail %(id)s, or it was purged.", id=mail_id))
    return story
