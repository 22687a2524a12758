"""The pages of users, tokens, the audit and the accounts file."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter, Request
from fastapi.responses import Response
from starlette.datastructures import UploadFile

from services.admin.access import audit, user_changes, users
from services.admin.accounts import export
from services.admin.accounts.apply import FILE_SECONDS
from services.admin.accounts.errors import AccountsError
from services.admin.accounts.file_format import read_text
from services.admin.accounts.passwords import describe_weak
from services.admin.web.forms import Form
from services.admin.web.mail import Before
from services.admin.web.page_context import Administrator, PageDep, QueryText, Reader
from shared.errors import Permanent

router = APIRouter(include_in_schema=False)

KEPT_CHARACTERS = 100_000
"""Largest tried file that may be applied without a second upload: characters; larger ones are not kept in memory."""


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
    chosen_id, token = next(iter(form.ids()), 0), ""
    try:
        hashed = ""
        if do in ("add", "password"):
            hashed = await context.system.passwords.hash(user_changes.require_length(form.secret("password")))
        async with context.system.database.transaction() as connection:
            match do:
                case "add":
                    await user_changes.add_user(connection, user.name, name, role, hashed)
                case "password":
                    await user_changes.set_password(connection, user.name, chosen_id, hashed)
                case "role":
                    await user_changes.set_role(connection, user.name, chosen_id, role)
                case "remove":
                    await user_changes.remove_user(connection, user.name, chosen_id)
                case "end-session":
                    await user_changes.end_session(connection, user.name, chosen_id)
                case "token":
                    token = await user_changes.create_token(connection, user.name, name, role)
                case "end-token":
                    await user_changes.revoke_token(connection, user.name, chosen_id)
                case _:
                    raise Permanent("Nothing was chosen to be done.")
    except Permanent as error:
        return await _users(request, context, user, [str(error)])
    if token:
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


@router.post("/accounts-file")
async def import_file(request: Request, context: PageDep, user: Administrator) -> Response:
    """Apply an accounts file, or show what it would change."""
    data = await request.form()
    form, file = Form(data), data.get("file")
    content = await file.read() if isinstance(file, UploadFile) else b""
    kept = context.kept_secrets.load(user.session_id, form.text("kept"))
    is_dry = form.text("do") != "apply"
    try:
        if form.text("kept") and kept is None:
            raise AccountsError(["the tried file is not kept any more; choose the file once more"])
        text = kept if kept is not None else content.decode()
        requested = await asyncio.to_thread(read_text, text, "file", None)  # 1 MiB takes seconds
        async with context.system.database.transaction(FILE_SECONDS, kept=not is_dry) as connection:
            outcome = await context.apply(connection, requested, user, form.flag("prune"))
            warning = [f"Warning: {describe_weak(outcome.weak)}."] if outcome.weak else []
    except (AccountsError, UnicodeDecodeError) as error:
        lines = error.lines if isinstance(error, AccountsError) else ["file: is not UTF-8 text"]
        lines = [line.removeprefix("file: ") for line in lines]
        return await context.render_page(request, user, "accounts_file.html", status=422, problems=lines, lines=None)
    if is_dry:
        kept = context.kept_secrets.store(user.session_id, text) if len(text) <= KEPT_CHARACTERS else ""
        prune = form.flag("prune")
        lines = [*outcome.lines, *warning]
        return await context.render_page(request, user, "accounts_file.html", lines=lines, kept=kept, prune=prune)
    return await context.redirect(user, "/accounts-file", *(outcome.lines or ["Nothing was to be changed."]), *warning)
