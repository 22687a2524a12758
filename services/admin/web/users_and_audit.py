"""The pages of users, tokens, the audit and the accounts file."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Mapping, Sequence

from fastapi import APIRouter, Request
from fastapi.responses import Response
from starlette.datastructures import UploadFile

from services.admin.access import audit, user_changes, users
from services.admin.access.users import TOKEN_DAYS, CurrentUser
from services.admin.accounts import export
from services.admin.accounts.apply import FILE_SECONDS, ApplyResult
from services.admin.accounts.errors import AccountsError
from services.admin.accounts.file_format import read_text
from services.admin.accounts.passwords import describe_weak
from services.admin.web.confirmation import Question, ask, is_confirmed
from services.admin.web.forms import FieldErrors, Form
from services.admin.web.mail import Before
from services.admin.web.page_context import Administrator, PageContext, PageDep, QueryText, Reader
from shared.errors import Permanent
from shared.languages import stored_texts
from shared.languages.translation import gettext, marked

router = APIRouter(include_in_schema=False)

QUESTIONS = {
    "remove": (
        marked("Remove user %(name)s?"),
        marked("The user is signed out everywhere and cannot sign in any more."),
        marked("Remove 1 user"),
    ),
    "end-token": (
        marked("Revoke token %(name)s?"),
        marked("Scripts that use it are refused from now on. A revoked token does not come back."),
        marked("Revoke 1 token"),
    ),
}
"""What is asked first: the title, the effect and the button."""
_EMPTY = {"name": "", "role": "observer", "token-name": "", "token-role": "observer", "token-days": str(TOKEN_DAYS)}
"""The values of the empty forms for a new user and a new token."""


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
async def show_users(request: Request, context: PageDep, user: Administrator, token: QueryText = "") -> Response:
    """Show the users of the console, their sessions, and the tokens. :param token: handle of a new one, shown once."""
    return await _users(request, context, user, token=context.kept_secrets.take(user.session_id, token) or "")


async def _users(
    request: Request,
    context: PageContext,
    user: CurrentUser,
    *,
    status: int = 200,
    problems: Sequence[str] = (),
    invalid: FieldErrors | None = None,
    values: Mapping[str, str] = _EMPTY,
    token: str = "",
) -> Response:
    async with context.system.database.transaction() as connection:
        everyone = await users.list_users(connection)
        sessions = await users.list_sessions(connection)
        tokens = await users.list_tokens(connection)
    return await context.render_page(
        request,
        user,
        "users.html",
        status=status,
        users=everyone,
        sessions=sessions,
        tokens=tokens,
        token=token,
        problems=problems,
        invalid=FieldErrors() if invalid is None else invalid,
        values=values,
    )


@router.post("/users")
async def change_users(request: Request, context: PageDep, user: Administrator) -> Response:
    """Add, change or remove a user; end a session; create or revoke a token."""
    form = Form(await request.form())
    try:
        if form.text("do") in QUESTIONS and not is_confirmed(form):
            return await ask(request, context, user, form, await _question(context, form))
        done = await _change_users(context, user, form)
    except users.UserChanged as error:
        lines = [
            gettext(
                "%(error)s, and nothing is saved yet. Compare, and press again; type a new password again.",
                error=stored_texts.shown(str(error)),
            )
        ]
        return await _users(request, context, user, status=409, problems=lines)
    except Permanent as error:
        said, label = stored_texts.shown(str(error)), str(error).partition(": ")[0]
        prefix = {"token": "token-", "password": f"{form.text('id')}-"}.get(form.text("do"), "")
        named = label in ("Name", "Role", "Password", "Days")
        errors = FieldErrors.of({f"{prefix}{label.lower()}": said.partition(": ")[2]} if named else {})
        values = {prefix + name: form.text(name) for name in ("name", "role", "days")}
        return await _users(request, context, user, status=422, problems=[said], invalid=errors, values=_EMPTY | values)
    if form.text("do") == "token":
        handle = context.kept_secrets.store(user.session_id, done)
        return await context.redirect(user, f"/users?token={handle}#tokens")
    return await context.redirect(user, "/users", done)


async def _question(context: PageContext, form: Form) -> Question:
    """:raises Permanent: the user or token is not there any more."""
    async with context.system.database.transaction() as connection:
        everyone: Sequence[users.ConsoleUser | users.ApiToken] = (
            await users.list_users(connection) if form.text("do") == "remove" else await users.list_tokens(connection)
        )
    name = next((each.name for each in everyone if each.id in form.ids()), None)
    if name is None:
        raise Permanent(gettext("That is not there any more."))
    title, effect, button = QUESTIONS[form.text("do")]
    return Question(gettext(title, name=name), [gettext(effect)], gettext(button), "/users")


async def _change_users(context: PageContext, user: CurrentUser, form: Form) -> str:
    """:return: the new token, or what was done. :raises Permanent: it is not allowed."""
    do, name, role = form.text("do"), context.storable(form.text("name")), form.text("role")
    chosen_id = next(iter(form.ids()), 0)
    hashed = ""
    if do in ("add", "password"):
        hashed = await user_changes.hash_password(context.system.passwords, form.secret("password"))
    async with context.system.database.transaction() as connection:
        if do in ("password", "role", "remove"):
            await users.require_version(connection, chosen_id, form.text("version"))
        match do:
            case "add":
                done = await user_changes.add_user(connection, user.name, name, role, hashed)
            case "password":
                done = await user_changes.set_password(connection, user.name, chosen_id, hashed)
            case "role":
                done = await user_changes.set_role(connection, user.name, chosen_id, role)
            case "remove":
                done = await user_changes.remove_user(connection, user.name, chosen_id)
            case "end-session":
                done = await user_changes.end_session(connection, user.name, chosen_id)
            case "token":
                typed = form.number("days")
                days = TOKEN_DAYS if typed is None else typed
                if not isinstance(days, int):
                    raise Permanent(marked("Days: type a number."))
                return await user_changes.create_token(connection, user.name, name, role, days)
            case "end-token":
                done = await user_changes.revoke_token(connection, user.name, chosen_id)
            case _:
                raise Permanent(gettext("Nothing was chosen to be done."))
    return stored_texts.shown(f"{done[:1].upper()}{done[1:]}.")


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
    """Rolls back the transaction of a dry run. outcome: what would be changed. warning: of weak passwords."""

    def __init__(self, outcome: ApplyResult, warning: list[str]) -> None:
        super().__init__()
        self.outcome = outcome
        self.warning = warning


@router.post("/accounts-file")
async def import_file(request: Request, context: PageDep, user: Administrator) -> Response:
    """Show what an accounts file would change; after this is confirmed, apply the file if it still changes the same."""
    data = await request.form()
    form, file = Form(data), data.get("file")
    content = await file.read() if isinstance(file, UploadFile) else b""
    kept = context.kept_secrets.load(user.session_id, form.text("kept"))
    try:
        if form.text("kept") and kept is None:
            raise AccountsError([gettext("the chosen file is not kept any more; choose the file once more")])
        text = kept if kept is not None else content.decode()
        requested = await asyncio.to_thread(read_text, text, "file", None)  # 1 MiB takes seconds
        async with context.system.database.transaction(FILE_SECONDS) as connection:
            outcome = await context.apply(connection, requested, user, form.flag("prune"))
            warning = [gettext("Warning: %(accounts)s.", accounts=describe_weak(outcome.weak))] if outcome.weak else []
            if not is_confirmed(form) or form.text("seen") != _digest(outcome.lines):
                raise _DryRun(outcome, warning)
    except (AccountsError, UnicodeDecodeError) as error:
        lines = error.lines if isinstance(error, AccountsError) else [gettext("file: is not UTF-8 text")]
        lines = [line.removeprefix("file: ") for line in lines]
        return await context.render_page(request, user, "accounts_file.html", status=422, problems=lines, lines=None)
    except _DryRun as tried:
        changed = [
            gettext("Accounts were changed meanwhile, and nothing is applied yet. See what the file would change now.")
        ]
        return await context.render_page(
            request,
            user,
            "accounts_file.html",
            status=409 if is_confirmed(form) else 200,
            problems=changed if is_confirmed(form) else [],
            lines=[*tried.outcome.lines_on_page, *tried.warning],
            changes=len(tried.outcome.changes),
            seen=_digest(tried.outcome.lines),
            kept=context.kept_secrets.store(user.session_id, text),
            prune=form.flag("prune"),
        )
    return await context.redirect(
        user, "/accounts-file", *(outcome.lines_on_page or [gettext("Nothing was to be changed.")]), *warning
    )


def _digest(lines: list[str]) -> str:
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()
