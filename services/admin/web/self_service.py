"""The pages of a user who signs in with a local account: the own account and nothing else."""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.responses import RedirectResponse, Response

from services.admin.access import audit, users
from services.admin.accounts.field_problems import CHOOSE
from services.admin.accounts.passwords import MIN_CHARACTERS, TOO_SHORT, is_weak
from services.admin.web import client_autoconfig, languages
from services.admin.web.forms import FieldErrors, Form
from services.admin.web.local_accounts import load_deleted_mail, undelete_mails
from services.admin.web.page_context import COOKIE, NotSignedIn, PageContext, PageDep, Person
from shared.errors import Permanent
from shared.languages import stored_texts
from shared.languages.translation import codes, gettext, marked
from shared.model import Local
from shared.store import account_changes, accounts, folder_admin

router = APIRouter(include_in_schema=False, prefix="/mine")

LABELS = {
    "old": marked("Current password"),
    "new": marked("New password"),
    "again": marked("Once more"),
    "language": marked("Language"),
}


@router.get("")
async def show(request: Request, context: PageDep, user: Person) -> Response:
    """Show the account, the settings of its mail client, and its sessions."""
    return await _page(request, context, user)


async def _page(request: Request, context: PageContext, user: Person, field: str = "", words: str = "") -> Response:
    """:param field: the field that is wrong. :param words: why."""
    person = await _myself(context, user)
    async with context.system.database.transaction() as connection:
        external = await accounts.load_externals(connection, [person.external_id])
        drop = await folder_admin.load_summary(connection, person.id)
        sessions = await users.list_sessions(connection, person.id)
    labels = {name: gettext(label) for name, label in LABELS.items()}
    servers, links = client_autoconfig.servers_and_links(request, context, person.address)
    return await context.render_page(
        request,
        user,
        "mine.html",
        status=422 if field else 200,
        person=person,
        external=external[0] if external else None,
        drop=drop,
        sessions=sessions,
        servers=servers,
        links=links,
        min_characters=MIN_CHARACTERS,
        notice_languages=languages.offered(context.system.settings.language),
        problems=[f"{labels[field]}: {stored_texts.shown(words)}"] if field else [],
        labels=labels,
        invalid=FieldErrors.of({field: stored_texts.shown(words)} if field else {}),
    )


@router.post("/password")
async def change_password(request: Request, context: PageDep, user: Person) -> Response:
    """Change the password: the new one is valid at once, and all earlier sessions end."""
    form = Form(await request.form())
    person = await _myself(context, user)
    peer = request.client.host if request.client else ""
    verified = await context.sign_ins.verify(person.address, form.secret("old"), peer)
    if verified is None:
        return await _page(request, context, user, "old", marked("it is wrong"))
    if is_weak(form.secret("new")):
        return await _page(request, context, user, "new", TOO_SHORT)
    if form.secret("new") != form.secret("again"):
        return await _page(request, context, user, "again", marked("it is not the same"))
    hashed = await context.system.passwords.hash(form.secret("new"))
    async with context.system.database.transaction() as connection:
        if not await account_changes.replace_password_hash(connection, person.id, verified.password_hash, hashed):
            raise Permanent(
                marked("Your account was changed at the same moment. Sign in again, and change the password then.")
            )
        await audit.record_change(connection, user.name, marked("changed their password"), person.address)
        agent = request.headers.get("user-agent", "")
        identity = users.Identity(None, person.id, person.address, hashed)
        token = await users.begin_session(connection, identity, peer, agent)
        current = await users.user_for_session(connection, token)
        if current is not None:
            said = gettext("Your password is changed. Type it into your mail client, too.")
            await users.add_flash(connection, current.session_id, [said])
    response = RedirectResponse("/mine", 303)
    response.set_cookie(COOKIE, token, httponly=True, samesite="strict", secure=request.url.scheme == "https", path="/")
    return response


@router.post("/language")
async def change_language(request: Request, context: PageDep, user: Person) -> Response:
    """Change the language of the notices to the user."""
    chosen = Form(await request.form()).text("language") or None
    person = await _myself(context, user)
    if chosen is not None and chosen not in codes():
        return await _page(request, context, user, "language", CHOOSE)
    async with context.system.database.transaction() as connection:
        await account_changes.save_language(connection, person.id, chosen)
        detail = f"{person.language or 'none'} -> {chosen or 'none'}"
        await audit.record_change(connection, user.name, "changed their language", person.address, detail)
    return await context.redirect(user, "/mine", gettext("The language of notices to you is saved."))


@router.post("/sessions")
async def end_session(request: Request, context: PageDep, user: Person) -> Response:
    """End a session of another browser."""
    ids = Form(await request.form()).ids()
    async with context.system.database.transaction() as connection:
        for session in await users.list_sessions(connection, user.local_id):
            if session.id in ids:
                await users.end_session(connection, session.id)
    return await context.redirect(user, "/mine", gettext("That browser is signed out."))


@router.get("/deleted")
async def deleted(request: Request, context: PageDep, user: Person) -> Response:
    """Show the deleted mail that is still kept."""
    person = await _myself(context, user)
    return await context.render_page(
        request, user, "deleted.html", person=person, **await load_deleted_mail(context, person)
    )


@router.post("/deleted")
async def undelete(request: Request, context: PageDep, user: Person) -> Response:
    """Undelete the ticked mails."""
    person = await _myself(context, user)
    notice = await undelete_mails(context, person, Form(await request.form()).ids(), user.name)
    return await context.redirect(user, "/mine/deleted", notice)


async def _myself(context: PageContext, user: Person) -> Local:
    assert user.local_id is not None
    async with context.system.database.transaction() as connection:
        people = await accounts.load_locals(connection, [user.local_id])
    if not people:
        raise NotSignedIn  # the account was removed during the session
    return people[0]
