"""The pages of local accounts: the manual's dialog (4.2), the deleted mail, and the removed accounts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response

from services.admin.access import audit, users
from services.admin.access.users import CurrentUser
from services.admin.accounts import edit, export
from services.admin.accounts.errors import AccountProblem, AccountsError
from services.admin.accounts.field_problems import EMPTY
from services.admin.accounts.labels import LOCAL
from services.admin.accounts.passwords import MIN_CHARACTERS, TOO_SHORT, is_weak, require_strong
from services.admin.formatting import counted
from services.admin.mail import operations, search_index
from services.admin.web import client_autoconfig, languages
from services.admin.web.confirmation import Question, ask, is_confirmed
from services.admin.web.forms import (
    FieldErrors,
    Form,
    explain,
    lines_with_former,
    shown,
    tell_changes,
    typed_address,
)
from services.admin.web.page_context import (
    Administrator,
    NotFound,
    PageContext,
    PageDep,
    PathAddress,
    QueryText,
    Reader,
)
from shared.errors import Permanent
from shared.languages import stored_texts
from shared.languages.translation import gettext, lookup, marked, ngettext
from shared.model import External, Local
from shared.store import accounts, folder_admin, inbound_admin, last_logins

router = APIRouter(include_in_schema=False, prefix="/local")

_NEW: dict[str, Any] = {
    "address": "",
    "keep_address": True,
    "enabled": True,
    "user_name": "",
    "aliases": "",
    "addresses": "",
    "external": "",
    "delegate": "",
    "junk": False,
    "language": "",
    "kept": "",
    "version": "",
}
SHOWN_SHARERS = 20
"""Sharers on the page of an account; the list of local accounts has all of them."""
CHOICES = 200
"""Largest number of accounts that a list offers; with more, the user types the address."""


@router.get("")
async def show_list(
    request: Request,
    context: PageDep,
    user: Reader,
    after: QueryText = "",
    q: QueryText = "",
    external: QueryText = "",
) -> Response:
    """List the accounts, or those that share an external account, a page at a time."""
    shares = await _find_external(context, external) if external else None
    async with context.system.database.transaction() as connection:
        matches = await accounts.page_of_locals(
            connection,
            context.storable(after),
            context.storable(q),
            shares.id if shares else None,
            limit=accounts.PAGE + 1,
        )
        page = matches[: accounts.PAGE]
        ids = {person.external_id for person in page}
        externals = {e.id: e.address for e in await accounts.load_externals(connection, sorted(ids))}
        removed = await accounts.removed_locals(connection, 1)
    more = page[-1].address if len(matches) > len(page) else None
    return await context.render_page(
        request,
        user,
        "locals.html",
        people=page,
        externals=externals,
        more=more,
        after=after,
        q=q,
        removed=removed,
        shares=shares.address if shares else "",
    )


async def _find_external(context: PageContext, address: str) -> External:
    """:raises NotFound: there is no such external account."""
    async with context.system.database.transaction() as connection:
        external = await accounts.external_by_address(connection, context.storable(address))
    if external is None:
        raise NotFound(gettext("There is no external account %(address)s.", address=address))
    return external


@router.get("/removed")
async def removed(request: Request, context: PageDep, user: Reader) -> Response:
    """List the removed accounts that can be restored."""
    return await _list_removed(request, context, user)


async def _list_removed(
    request: Request, context: PageContext, user: CurrentUser, problems: Sequence[str] = ()
) -> Response:
    async with context.system.database.transaction() as connection:
        restorable = await accounts.removed_locals(connection)
    return await context.render_page(
        request,
        user,
        "removed.html",
        status=422 if problems else 200,
        removed=restorable,
        days=context.system.settings.retention_days,
        problems=problems,
    )


@router.post("/removed")
async def restore(request: Request, context: PageDep, user: Administrator) -> Response:
    """Restore a removed account."""
    address = context.storable(Form(await request.form()).text("address"))
    try:
        async with context.system.database.transaction() as connection:
            person = await operations.restore_account(connection, address)
            await audit.record_change(connection, user.name, marked("restored local account"), person.address)
    except Permanent as error:
        return await _list_removed(request, context, user, [stored_texts.shown(str(error))])
    except AccountsError as error:
        said = gettext("%(address)s cannot be brought back: %(error)s", address=address, error=error.words)
        return await _list_removed(request, context, user, [said])
    said = gettext("%(address)s is back, with its mail.", address=person.address)
    if not person.enabled:
        said = gettext("%(address)s is back, with its mail; it is disabled, as it was before.", address=person.address)
    return await context.redirect(user, context.path_to("/local", person.address), said)


@router.get("/new")
async def new(request: Request, context: PageDep, user: Administrator, external: QueryText = "") -> Response:
    """Show the empty dialog."""
    return await _dialog(request, context, user, None, _NEW | {"external": external})


@router.post("/new")
async def add(request: Request, context: PageDep, user: Administrator) -> Response:
    """Add an account."""
    return await _submit(request, context, user, None)


@router.get("/{address}")
async def show(request: Request, context: PageDep, user: Reader, address: PathAddress) -> Response:
    """Show the dialog of one account."""
    person = await load_local(context, address)
    return await _dialog(request, context, user, person, await _values(context, person))


@router.post("/{address}")
async def change(request: Request, context: PageDep, user: Administrator, address: PathAddress) -> Response:
    """Save the changes."""
    return await _submit(request, context, user, await load_local(context, address))


@router.post("/{address}/sign-out")
async def sign_out(context: PageDep, user: Administrator, address: PathAddress) -> Response:
    """End every console session of this account."""
    person = await load_local(context, address)
    async with context.system.database.transaction() as connection:
        await users.end_sessions_of(connection, person.id)
        await audit.record_change(connection, user.name, marked("signed out everywhere"), person.address)
    said = gettext("%(person)s is signed out of the console.", person=person.user_name)
    return await context.redirect(user, context.path_to("/local", person.address), said)


@router.post("/{address}/remove")
async def remove(request: Request, context: PageDep, user: Administrator, address: PathAddress) -> Response:
    """Ask whether to remove an account, and remove it; its mail is kept for the retention time."""
    person = await load_local(context, address)
    form, days = Form(await request.form()), context.system.settings.retention_days
    if not is_confirmed(form):
        async with context.system.database.transaction() as connection:
            drop = await folder_admin.load_summary(connection, person.id)
        effects = [
            gettext(
                "%(person)s cannot sign in any more. Mail with this name goes to everyone in the share.",
                person=person.user_name,
            ),
            gettext(
                "The mailbox has %(mails)s. They are kept for %(days)s days; until then the account can be "
                "brought back with them.",
                mails=counted(drop.mails),
                days=days,
            ),
        ]
        back = context.path_to("/local", person.address)
        title = gettext("Remove %(name)s?", name=person.address)
        question = Question(title, effects, gettext("Remove 1 local account"), back)
        return await ask(request, context, user, form, question)
    async with context.system.database.transaction() as connection:
        await edit.remove(connection, "local", person.address)
        await audit.record_change(connection, user.name, marked("removed local account"), person.address)
    said = gettext("%(address)s is removed. Its mail is kept for %(days)s days.", address=person.address, days=days)
    return await context.redirect(user, "/local", said)


@router.get("/{address}/deleted")
async def deleted(request: Request, context: PageDep, user: Reader, address: PathAddress) -> Response:
    """Show the deleted mail that is still kept."""
    person = await load_local(context, address)
    return await context.render_page(
        request, user, "deleted.html", person=person, **await load_deleted_mail(context, person)
    )


@router.post("/{address}/deleted")
async def undelete(request: Request, context: PageDep, user: Administrator, address: PathAddress) -> Response:
    """Undelete the ticked mails."""
    person = await load_local(context, address)
    notice = await undelete_mails(context, person, Form(await request.form()).ids(), user.name)
    return await context.redirect(user, f"{context.path_to('/local', person.address)}/deleted", notice)


# ------------------------------------------------------------------------------------------ with self_service.py


async def load_local(context: PageContext, address: str) -> Local:
    """Return a local account by its address. :raises NotFound: it does not exist."""
    async with context.system.database.transaction() as connection:
        person = (await accounts.locals_by_login(connection, [context.storable(address)])).get(
            context.storable(address)
        )
    if person is None:
        raise NotFound(gettext("There is no local account %(address)s.", address=address))
    return person


async def load_deleted_mail(context: PageContext, person: Local) -> dict[str, Any]:
    """Return the facts of the page of deleted mail."""
    async with context.system.database.transaction() as connection:
        entries = await folder_admin.list_latest_deleted(connection, person.id)
        # from the index: reading some hundred headers would take long
        headlines = await search_index.subjects(connection, [entry.mail_id for entry in entries])
    rows = [(entry, *headlines.get(entry.mail_id, ("", gettext("Mail %(id)s", id=entry.mail_id)))) for entry in entries]
    return {"rows": rows, "max_rows": folder_admin.DELETED_SHOWN, "days": context.system.settings.retention_days}


async def undelete_mails(context: PageContext, person: Local, ids: list[int], user: str) -> str:
    """Undelete mails by their inbound ids. :return: the text of the result."""
    async with context.system.database.transaction() as connection:
        undeleted = (await operations.undelete(connection, person.address, ids)).done if ids else []
        await audit.record_mails(
            connection, user, marked("brought back deleted mail"), undeleted, f"of {person.address}"
        )
    if not undeleted:
        return gettext("Nothing was chosen that could be brought back.")
    await context.system.announce_changes([person.address])
    return ngettext(
        "%(num)s mail is back; the mail client gets it as new mail at its next check.",
        "%(num)s mails are back; the mail client gets them as new mail at its next check.",
        len(undeleted),
    )


# ------------------------------------------------------------------------------------------ the dialog


async def _values(context: PageContext, person: Local) -> dict[str, Any]:
    async with context.system.database.transaction() as connection:
        externals = await accounts.load_externals(connection, [person.external_id])
        people = await accounts.load_locals(connection, [person.delegate_id] if person.delegate_id else [])
    entry = export.local_fields(person, externals, people)
    return _NEW | {name: shown(value) for name, value in entry.items()} | {"version": export.version_of(person)}


def _labels() -> dict[str, str]:
    return {name: lookup(label) for name, label in LOCAL.items()}


def _fields(form: Form, password: str | None, old: Local | None) -> dict[str, Any]:
    entry: dict[str, Any] = {
        **typed_address(form, old),
        "enabled": form.flag("enabled"),
        "user_name": form.text("user_name"),
        "aliases": form.lines("aliases"),
        "addresses": lines_with_former(form, "addresses", old),
        "external": form.text("external"),
        "delegate": form.text("delegate") or None,
        "junk": form.flag("junk"),
        "language": form.text("language") or None,
    }
    if password:
        entry["password"] = password
    return entry


def _check_password(password: str | None, old: Local | None) -> dict[str, str]:
    """Return the error of the typed password, beside its field."""
    if not password:
        return {"password": EMPTY} if old is None else {}
    return {"password": TOO_SHORT} if is_weak(password) else {}


async def _submit(request: Request, context: PageContext, user: CurrentUser, old: Local | None) -> Response:
    form = Form(await request.form())
    values = form.typed(_NEW)
    if old is not None:
        values["address"] = values["address"] or old.address
    password = form.secret("password") or context.kept_secrets.load(user.session_id, values["kept"])
    try:
        requested = edit.check_entry("local", _fields(form, password, old))
        async with context.system.database.transaction() as connection:
            if old is None and await accounts.local_by_login(connection, values["address"]):
                raise AccountsError(
                    [AccountProblem("is there already", "local", field=("address",), value=values["address"])]
                )
            if old is not None and values["version"]:
                await edit.require_version(connection, "local", old.address, values["version"])
            outcome = await context.apply(connection, requested, user)
            require_strong(requested)  # last: explain() tells it beside the mistakes that apply finds
    except edit.ChangedMeanwhile as error:
        values["kept"] = context.kept_secrets.store(user.session_id, password)
        values["version"] = error.version
        assert old is not None
        now = await _values(context, await load_local(context, old.address))
        lines, invalid = tell_changes(error, _labels(), values, now)
        return await _dialog(request, context, user, old, values, status=409, problems=lines, invalid=invalid)
    except AccountsError as error:
        problems, invalid = explain(error.problems, _labels(), values["address"], _check_password(password, old))
        values["kept"] = context.kept_secrets.store(user.session_id, password)
        return await _dialog(request, context, user, old, values, problems=problems, invalid=invalid)
    address = requested.local_accounts[0].address
    return await context.redirect(
        user, context.path_to("/local", address), *(outcome.lines_on_page or [gettext("Nothing was changed.")])
    )


async def _dialog(
    request: Request,
    context: PageContext,
    user: CurrentUser,
    person: Local | None,
    values: dict[str, Any],
    *,
    status: int = 200,
    problems: list[str] | None = None,
    invalid: FieldErrors | None = None,
) -> Response:
    async with context.system.database.transaction() as connection:
        externals = await accounts.page_of_externals(connection, limit=CHOICES + 1)
        shared = await accounts.load_externals(connection, [person.external_id] if person is not None else [])
        sharers = (
            await accounts.page_of_locals(connection, external_id=person.external_id, limit=CHOICES)
            if person is not None
            else []
        )
        drop = await folder_admin.load_summary(connection, person.id) if person is not None else None
        held = await inbound_admin.count_held(connection, person.external_id) if person is not None else 0
        sessions = await users.list_sessions(connection, person.id) if person is not None else []
        logins = await last_logins.load_last_logins(connection, person.id) if person is not None else []
        absent = await accounts.load_absent_delegates(connection, [person.id] if person is not None else [])
    servers, links = (
        client_autoconfig.servers_and_links(request, context, person.address) if person is not None else (None, None)
    )
    return await context.render_page(
        request,
        user,
        "local.html",
        status=422 if problems and status == 200 else status,
        person=person,
        values=values,
        externals=[external.address for external in externals] if len(externals) <= CHOICES else [],
        sharers=[each for each in sharers if person is not None and each.id != person.id],
        drop=drop,
        held=held,
        started=not any(external.hold for external in shared),
        sessions=sessions,
        logins=logins,
        absent_delegates=absent,
        shown_sharers=SHOWN_SHARERS,
        notice_languages=languages.offered(context.system.settings.language),
        servers=servers,
        links=links,
        min_characters=MIN_CHARACTERS,
        problems=problems or [],
        invalid=FieldErrors() if invalid is None else invalid,
    )
