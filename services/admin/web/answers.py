"""Mail that went to everyone: who answered it. And the names in To that nobody has."""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.responses import Response

from services.admin.accounts import edit
from services.admin.accounts.errors import AccountsError
from services.admin.mail import search_index
from services.admin.web.forms import Form
from services.admin.web.mail import Before
from services.admin.web.page_context import Administrator, PageDep, Reader
from shared.errors import Permanent
from shared.store import accounts

NOBODY = "nobody"
"""No address: what is chosen to have a name shown no more."""

router = APIRouter(include_in_schema=False)


@router.get("/answers")
async def show(request: Request, context: PageDep, user: Reader, before: Before = None, done: bool = False) -> Response:
    """What nobody has answered, the oldest first; or what was answered."""
    async with context.system.database.transaction() as connection:
        ask = search_index.answered if done else search_index.unanswered
        found = await ask(connection, before, search_index.PAGE + 1)
    shown = found[: search_index.PAGE]
    more = shown[-1].mail_id if len(found) > len(shown) else None
    return await context.render_page(request, user, "answers.html", mails=shown, more=more, before=before, done=done)


@router.get("/names")
async def show_names(request: Request, context: PageDep, user: Reader) -> Response:
    """Names that nobody has, and who could have them."""
    async with context.system.database.transaction() as connection:
        found = await search_index.unknown_names(connection)
        externals = {e.address: e.id for e in await accounts.load_externals(connection)}
        sharers = await accounts.load_sharers(connection, [externals[each.external] for each in found])
    rows = [(each, sharers[externals[each.external]]) for each in found]
    return await context.render_page(request, user, "names.html", rows=rows)


@router.post("/names")
async def assign_name(request: Request, context: PageDep, user: Administrator) -> Response:
    """Make a name an alias of a person, or forget it."""
    form = Form(await request.form())
    name, external, to = form.text("name"), context.storable(form.text("external")), context.storable(form.text("to"))
    said = f"“{name}” is not shown any more."
    try:
        async with context.system.database.transaction() as connection:
            account = await accounts.external_by_address(connection, external)
            if account is None:
                raise Permanent(f"There is no external account {external}.")
            if not to:
                raise Permanent(f"Choose who is meant by “{name}”.")
            if to != NOBODY:
                wanted = await edit.add_name(connection, to, name)
                await context.apply(connection, wanted, user)
                said = f"Mail to “{name}” goes to {wanted.local_accounts[0].user_name} from now on."
            await search_index.forget_name(connection, account.id, name)
    except (Permanent, AccountsError) as error:
        said = str(error)
    return await context.redirect(user, "/names", said)
