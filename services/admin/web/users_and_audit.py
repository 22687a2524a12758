"""The console itself: who may use it, tokens for scripts, who did what, and the accounts file."""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.responses import Response
from starlette.datastructures import UploadFile

from services.admin.access import audit, users
from services.admin.accounts import export as documents
from services.admin.accounts.errors import AccountsError
from services.admin.accounts.file_format import read_text
from services.admin.web.forms import Form
from services.admin.web.mail import Before
from services.admin.web.page_context import Administrator, PageDep, QueryText, Reader
from shared.errors import Permanent

router = APIRouter(include_in_schema=False)

CHANGE_SECONDS = 600.0
KEPT_CHARACTERS = 100_000
"""Of a file that was tried and may be applied then without being chosen once more."""
SHORTEST = 10
"""Characters of a password of the console."""


@router.get("/audit")
async def show_audit(
    request: Request, here: PageDep, who: Reader, q: QueryText = "", before: Before = None
) -> Response:
    """Who did what, the latest first."""
    async with here.system.database.transaction() as connection:
        found = await audit.page(connection, before, here.text(q.strip()), audit.PAGE + 1)
    shown = found[: audit.PAGE]
    more = shown[-1].id if len(found) > len(shown) else None
    return await here.page(request, who, "audit.html", entries=shown, more=more, q=q, before=before)


@router.get("/users")
async def show_users(request: Request, here: PageDep, who: Administrator) -> Response:
    """Who may use the console, where they are signed in, and tokens."""
    return await _users(request, here, who)


async def _users(
    request: Request, here: PageDep, who: Administrator, problems: list[str] | None = None, token: str = ""
) -> Response:
    async with here.system.database.transaction() as connection:
        everyone = await users.list_users(connection)
        sessions = await users.list_sessions(connection)
        tokens = await users.list_tokens(connection)
    return await here.page(
        request,
        who,
        "users.html",
        status=422 if problems else 200,
        users=everyone,
        sessions=sessions,
        tokens=tokens,
        token=token,
        problems=problems or [],
    )


@router.post("/users")
async def change_users(request: Request, here: PageDep, who: Administrator) -> Response:
    """Add, change or remove a user; end a session; make or end a token."""
    form = Form(await request.form())
    do, name, role = form.text("do"), here.text(form.text("name")), form.text("role")
    id_ = next(iter(form.ids()), 0)
    try:
        hashed = None
        if do in ("add", "password"):
            if len(form.secret("password")) < SHORTEST:
                raise Permanent(f"Password: at least {SHORTEST} characters are needed.")
            hashed = await here.system.passwords.hash(form.secret("password"))
        async with here.system.database.transaction() as connection:
            match do:
                case "add":
                    await users.add(connection, name, role, hashed or "")
                case "password":
                    name = await users.set_password(connection, id_, hashed or "")
                case "role":
                    name = await users.set_role(connection, id_, role)
                case "remove":
                    name = await users.remove(connection, id_)
                case "end-session":
                    await users.end_session(connection, id_)
                case "token":
                    token = await users.create_token(connection, name, role, who.name)
                    await audit.record_change(connection, who.name, "made a token", name, role)
                case "end-token":
                    name = await users.end_token(connection, id_)
                case _:
                    raise Permanent("Nothing was chosen to be done.")
            if do != "token":
                await audit.record_change(
                    connection, who.name, f"console: {do}", name, role if do in ("add", "role") else ""
                )
    except Permanent as error:
        return await _users(request, here, who, [str(error)])
    if do == "token":
        return await _users(request, here, who, token=token)
    return await here.go(who, "/users", "Done.")


@router.get("/accounts-file")
async def show_file(request: Request, here: PageDep, who: Administrator) -> Response:
    """Import and export."""
    return await here.page(request, who, "accounts_file.html", lines=None)


@router.get("/accounts-file/accounts.yaml")
async def export(here: PageDep, who: Administrator) -> Response:
    """The accounts file, passwords left out."""
    async with here.system.database.transaction() as connection:
        text = documents.as_yaml(await documents.build_document(connection))
    return Response(
        text, media_type="application/yaml", headers={"Content-Disposition": 'attachment; filename="accounts.yaml"'}
    )


class _Undo(Exception):
    """What was tried is not to be kept."""


@router.post("/accounts-file")
async def import_(request: Request, here: PageDep, who: Administrator) -> Response:
    """Make the accounts what a file says, or only tell what that would change."""
    data = await request.form()
    form, file = Form(data), data.get("file")
    content = await file.read() if isinstance(file, UploadFile) else b""
    kept = here.kept.find(who.session_id, form.text("kept"))
    outcome = None
    try:
        if form.text("kept") and kept is None:
            raise AccountsError(["what was tried is not kept any more; choose the file once more"])
        text = kept if kept is not None else content.decode()
        wanted = read_text(text, "file", None)
        async with here.system.database.transaction(CHANGE_SECONDS) as connection:
            outcome = await here.apply(connection, wanted, who, form.flag("prune"))
            if form.text("do") != "apply":
                raise _Undo
    except (AccountsError, UnicodeDecodeError) as error:
        lines = error.lines if isinstance(error, AccountsError) else ["file: is not UTF-8 text"]
        lines = [line.removeprefix("file: ") for line in lines]
        return await here.page(request, who, "accounts_file.html", status=422, problems=lines, lines=None)
    except _Undo:
        assert outcome is not None
        kept = here.kept.keep(who.session_id, text) if len(text) <= KEPT_CHARACTERS else ""
        prune = form.flag("prune")
        return await here.page(request, who, "accounts_file.html", lines=outcome.lines, kept=kept, prune=prune)
    return await here.go(who, "/accounts-file", *(outcome.lines or ["Nothing was to be changed."]))
