"""What a person finds who signs in with a local account: their own account and nothing else."""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.responses import RedirectResponse, Response

from services.admin.access import audit, users
from services.admin.web import client_autoconfig
from services.admin.web.forms import Form
from services.admin.web.local_accounts import bring_back, deleted_mail
from services.admin.web.page_context import COOKIE, NotSignedIn, PageContext, PageDep, Person
from shared.model import Local
from shared.store import account_changes, accounts, maildrops

router = APIRouter(include_in_schema=False, prefix="/mine")

SHORTEST = 8


@router.get("")
async def show(request: Request, here: PageDep, who: Person) -> Response:
    """Who they are for the gateway, the settings of their mail client, and where they are signed in."""
    return await _page(request, here, who)


async def _page(request: Request, here: PageContext, who: Person, problems: list[str] | None = None) -> Response:
    person = await _myself(here, who)
    async with here.system.database.transaction() as connection:
        external = await accounts.load_externals(connection, [person.external_id])
        drop = await maildrops.load_summary(connection, person.id)
        sessions = await users.list_sessions(connection, person.id)
    servers, links = client_autoconfig.facts(request, here, person.address)
    return await here.page(
        request,
        who,
        "mine.html",
        status=422 if problems else 200,
        person=person,
        external=external[0] if external else None,
        drop=drop,
        sessions=sessions,
        servers=servers,
        links=links,
        problems=problems or [],
    )


@router.post("/password")
async def change_password(request: Request, here: PageDep, who: Person) -> Response:
    """Another password: it is in force at once, and every session of before ends."""
    form = Form(await request.form())
    person = await _myself(here, who)
    peer = request.client.host if request.client else ""
    if await here.sign_ins.verify(person.address, form.secret("old"), peer) is None:
        return await _page(request, here, who, ["Present password: it is another one."])
    if len(form.secret("new")) < SHORTEST:
        return await _page(request, here, who, [f"New password: at least {SHORTEST} characters are needed."])
    if form.secret("new") != form.secret("again"):
        return await _page(request, here, who, ["New password: the two are not the same."])
    hashed = await here.system.passwords.hash(form.secret("new"))
    async with here.system.database.transaction() as connection:
        await account_changes.set_password_hash(connection, person.id, hashed)
        await audit.record_change(connection, who.name, "changed their password", person.address)
        agent = request.headers.get("user-agent", "")
        identity = users.Identity(None, person.id, person.address, hashed)
        token = await users.begin_session(connection, identity, peer, agent)
        found = await users.user_for_session(connection, token)
        if found is not None:
            await users.add_flash(
                connection, found.session_id, ["Your password is changed. Type it into your mail client, too."]
            )
    answer = RedirectResponse("/mine", 303)
    answer.set_cookie(COOKIE, token, httponly=True, samesite="strict", secure=request.url.scheme == "https", path="/")
    return answer


@router.post("/sessions")
async def end_session(request: Request, here: PageDep, who: Person) -> Response:
    """Sign out somewhere else."""
    ids = Form(await request.form()).ids()
    async with here.system.database.transaction() as connection:
        for session in await users.list_sessions(connection, who.local_id):
            if session.id in ids:
                await users.end_session(connection, session.id)
    return await here.go(who, "/mine", "That browser is signed out.")


@router.get("/deleted")
async def deleted(request: Request, here: PageDep, who: Person) -> Response:
    """Their deleted mail that is still kept."""
    person = await _myself(here, who)
    return await here.page(request, who, "deleted.html", person=person, **await deleted_mail(here, person))


@router.post("/deleted")
async def undelete(request: Request, here: PageDep, who: Person) -> Response:
    """Bring some of it back."""
    person = await _myself(here, who)
    said = await bring_back(here, person, Form(await request.form()).ids(), who.name)
    return await here.go(who, "/mine/deleted", said)


async def _myself(here: PageContext, who: Person) -> Local:
    assert who.local_id is not None
    async with here.system.database.transaction() as connection:
        found = await accounts.load_locals(connection, [who.local_id])
    if not found:
        raise NotSignedIn  # removed meanwhile
    return found[0]
