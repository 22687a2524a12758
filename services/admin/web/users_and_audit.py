"""The pages of users, tokens, the audit and the accounts file."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter, Request
from fastapi.responses import Response
from starlette.datastructures import UploadFile

from services.admin.access import audit, users
from services.admin.accounts import export
from services.admin.accounts.errors import AccountsError
from services.admin.accounts.file_format import read_text
from services.admin.accounts.passwords import describe_weak
from services.admin.web.forms import Form
from services.admin.web.mail import Before
from services.admin.web.page_context import Administrator, PageDep, QueryText, Reader
from shared.errors import Permanent

router = APIRouter(include_in_schema=False)

CHANGE_SECONDS = 600.0
"""Limit of the transaction that applies an accounts file: seconds; ten thousand accounts take minutes."""
KEPT_CHARACTERS = 100_000
"""Largest tried file that may be applied without a second upload: characters; larger ones are not kept in memory."""
MIN_CHARACTERS = 10
"""Shortest password of a console user: characters."""


@router.get("/audit")
async def show_audit(
    request: Request, context: PageDep, user: Reader, q: QueryText = "", before: Before = None
) -> Response:
    """Show the audit, the latest entry first."""
    async with context.system.database.transaction() as connection:
        entries = await audit.page(connection, before, context.storable(q.strip()), audit.PAGE + 1)
    shown = entries[: audit.PAGE]
    more = shown[-1].id if len(entries) > len(shown) else None
    return await context.render_page(request, user, "audit.html", entries=shown, more=more, q=q, before=before)


@router.get("/users")
async def show_users(request: Request, context: PageDep, user: Administrator) -> Response:
    """Show the users of the console, their sessions, and the tokens."""
    return await _users(request, context, user)


async def _users(
    request: Request, context: PageDep, user: Administrator, problems: list[str] | None = None, token: str = ""
) -> Response:
    async with context.system.database.transaction() as connection:
        everyone = await users.list_users(connection)
        sessions = await users.list_sessions(connection)
        tokens = await users.list_tokens(connection)
    return await context.render_page(
        request,
        user,
        "users.html",
        status=422 if problems else 200,
        users=everyone,
        sessions=sessions,
        tokens=tokens,
        token=token,
        problems=problems or [],
    )


@router.post("/users")
async def change_users(request: Request, context: PageDep, user: Administrator) -> Response:
    """Add, change or remove a user; end a session; create or revoke a token."""
    form = Form(await request.form())
    do, name, role = form.text("do"), context.storable(form.text("name")), form.text("role")
    chosen_id = next(iter(form.ids()), 0)
    try:
        hashed = None
        if do in ("add", "password"):
            if len(form.secret("password")) < MIN_CHARACTERS:
                raise Permanent(f"Password: at least {MIN_CHARACTERS} characters are needed.")
            hashed = await context.system.passwords.hash(form.secret("password"))
        async with context.system.database.transaction() as connection:
            match do:
                case "add":
                    await users.add(connection, name, role, hashed or "")
                case "password":
                    name = await users.set_password(connection, chosen_id, hashed or "")
                case "role":
                    name = await users.set_role(connection, chosen_id, role)
                case "remove":
                    name = await users.remove(connection, chosen_id)
                case "end-session":
                    await users.end_session(connection, chosen_id)
                case "token":
                    token = await users.create_token(connection, name, role, user.name)
                    await audit.record_change(connection, user.name, "made a token", name, role)
                case "end-token":
                    name = await users.end_token(connection, chosen_id)
                case _:
                    raise Permanent("Nothing was chosen to be done.")
            if do != "token":
                await audit.record_change(
                    connection, user.name, f"console: {do}", name, role if do in ("add", "role") else ""
                )
    except Permanent as error:
        return await _users(request, context, user, [str(error)])
    if do == "token":
        return await _users(request, context, user, token=token)
    return await context.redirect(user, "/users", "Done.")


@router.get("/accounts-file")
async def show_file(request: Request, context: PageDep, user: Administrator) -> Response:
    """Show the import and export of the accounts file."""
    return await context.render_page(request, user, "accounts_file.html", lines=None)


@router.get("/accounts-file/accounts.yaml")
async def export_file(context: PageDep, user: Administrator) -> Response:
    """Export the accounts file without passwords."""
    async with context.system.database.transaction() as connection:
        text = export.as_yaml(await export.build_document(connection))
    return Response(
        text, media_type="application/yaml", headers={"Content-Disposition": 'attachment; filename="accounts.yaml"'}
    )


class _DryRun(Exception):
    """Rolls back the transaction of a dry run."""


@router.post("/accounts-file")
async def import_file(request: Request, context: PageDep, user: Administrator) -> Response:
    """Apply an accounts file, or show what it would change."""
    data = await request.form()
    form, file = Form(data), data.get("file")
    content = await file.read() if isinstance(file, UploadFile) else b""
    kept = context.kept_secrets.load(user.session_id, form.text("kept"))
    outcome = None
    try:
        if form.text("kept") and kept is None:
            raise AccountsError(["the tried file is not kept any more; choose the file once more"])
        text = kept if kept is not None else content.decode()
        requested = await asyncio.to_thread(read_text, text, "file", None)  # 1 MiB takes seconds
        async with context.system.database.transaction(CHANGE_SECONDS) as connection:
            outcome = await context.apply(connection, requested, user, form.flag("prune"))
            warning = [f"Warning: {describe_weak(outcome.weak)}."] if outcome.weak else []
            if form.text("do") != "apply":
                raise _DryRun
    except (AccountsError, UnicodeDecodeError) as error:
        lines = error.lines if isinstance(error, AccountsError) else ["file: is not UTF-8 text"]
        lines = [line.removeprefix("file: ") for line in lines]
        return await context.render_page(request, user, "accounts_file.html", status=422, problems=lines, lines=None)
    except _DryRun:
        assert outcome is not None
        kept = context.kept_secrets.store(user.session_id, text) if len(text) <= KEPT_CHARACTERS else ""
        prune = form.flag("prune")
        lines = [*outcome.lines, *warning]
        return await context.render_page(request, user, "accounts_file.html", lines=lines, kept=kept, prune=prune)
    return await context.redirect(user, "/accounts-file", *(outcome.lines or ["Nothing was to be changed."]), *warning)
