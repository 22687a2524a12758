"""Mail that went to everyone and its answers, and the names in To that no account has."""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.responses import Response

from services.admin.accounts import edit
from services.admin.accounts.errors import AccountsError
from services.admin.mail import search_index, unknown_names
from services.admin.web.forms import Form
from services.admin.web.mail import Before
from services.admin.web.page_context import Administrator, PageDep, Reader
from shared.errors import Permanent
from shared.languages import stored_texts
from shared.languages.translation import gettext
from shared.store import accounts

NOBODY = "nobody"
"""The choice that hides a name: not an address, so it cannot be one."""

router = APIRouter(include_in_schema=False)


@router.get("/answers")
async def show(request: Request, context: PageDep, user: Reader, before: Before = None, done: bool = False) -> Response:
    """Show the unanswered mail, the oldest first, or the answered mail."""
    async with context.system.database.transaction() as connection:
        load = search_index.answered if done else search_index.unanswered
        mails = await load(connection, before, search_index.PAGE + 1)
    shown = mails[: search_index.PAGE]
    more = shown[-1].mail_id if len(mails) > len(shown) else None
    return await context.render_page(request, user, "answers.html", mails=shown, more=more, before=before, done=done)


@router.get("/names")
async def show_names(request: Request, context: PageDep, user: Reader) -> Response:
    """Show the names that no account has, and the accounts that could have them."""
    async with context.system.database.transaction() as connection:
        unknown = await unknown_names.list_names(connection)
        externals = {e.address: e.id for e in await accounts.load_externals(connection)}
        sharers = await accounts.load_sharers(connection, [externals[each.external] for each in unknown])
    rows = [(each, sharers[externals[each.external]]) for each in unknown]
    return await context.render_page(request, user, "names.html", rows=rows)


@router.post("/names")
async def assign_name(request: Request, context: PageDep, user: Administrator) -> Response:
    """Make a name an alias of a local account, or hide it."""
    form = Form(await request.form())
    name, external, to = form.text("name"), context.storable(form.text("external")), context.storable(form.text("to"))
    notice = gettext("“%(name)s” is not shown any more.", name=name)
    try:
        async with context.system.database.transaction() as connection:
            account = await accounts.external_by_address(connection, external)
            if account is None:
                raise Permanent(gettext("There is no external account %(address)s.", address=external))
            if not to:
                raise Permanent(gettext("Choose who is meant by “%(name)s”.", name=name))
            if to != NOBODY:
                requested = await edit.add_name(connection, to, name)
                await context.apply(connection, requested, user)
                person = requested.local_accounts[0].user_name
                notice = gettext("Mail to “%(name)s” goes to %(person)s from now on.", name=name, person=person)
            await unknown_names.forget_name(connection, account.id, name)
    except Permanent as error:
        notice = stored_texts.shown(str(error))
    except AccountsError as error:
        notice = error.words
    return await context.redirect(user, "/names", notice)
