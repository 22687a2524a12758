"""The pages that sign a user in and out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from fastapi import APIRouter, Form, Request
from fastapi.responses import RedirectResponse, Response

from services.admin.access import audit, users
from services.admin.web.page_context import COOKIE, OptionalUser, PageContext, PageDep, SignedIn, home_page, local_path
from services.admin.web.refill import MAX_OCTETS, TypedForm
from shared.auth.authenticator import Throttled
from shared.languages import stored_texts
from shared.languages.translation import gettext, marked
from shared.store import accounts

router = APIRouter(include_in_schema=False)

SHOWN_AGAIN = marked("You are signed in again. Nothing is saved yet: check what you typed, and press the button again.")
TYPE_AGAIN = marked("Passwords are not kept: type them again.")


@router.get("/sign-in")
async def show(request: Request, context: PageDep, user: OptionalUser, next: str = "") -> Response:
    """Show the form."""
    if user is not None:
        return RedirectResponse(local_path(next) or home_page(user), 303)
    return await _page(request, context, next=local_path(next))


async def _page(
    request: Request,
    context: PageContext,
    *,
    status: int = 200,
    next: str = "",
    name: str = "",
    typed: str = "",
    problems: Sequence[str] = (),
) -> Response:
    """:param typed: a form that was sent after its session had ended."""
    return await context.render_page(
        request, None, "sign_in.html", status=status, next=next, name=name, typed=typed, ended=False, problems=problems
    )


@router.post("/sign-in")
async def sign_in(
    request: Request,
    context: PageDep,
    name: Annotated[str, Form(max_length=400)] = "",
    password: Annotated[str, Form(max_length=2000)] = "",
    next: Annotated[str, Form(max_length=2000)] = "",
    typed: Annotated[str, Form(max_length=MAX_OCTETS)] = "",
) -> Response:
    """Check name and password, and begin a session."""
    peer = request.client.host if request.client else ""
    try:
        user = await context.sign_ins.verify(name.strip(), password, peer)
        problem, status = gettext("This name and password do not belong together."), 401
    except Throttled as error:
        said = stored_texts.shown(str(error))
        user, problem, status = None, f"{said[0].upper()}{said[1:]}.", 429
    if user is None:
        if status == 401:
            await _record_refusal(context, name.strip(), peer)
        return await _page(
            request, context, status=status, next=local_path(next), name=name, typed=typed, problems=[problem]
        )
    async with context.system.database.transaction() as connection:
        token = await users.begin_session(connection, user, peer, request.headers.get("user-agent", ""))
        await audit.record_sign_in(connection, user.name, peer)
        current = await users.user_for_session(connection, token)
        form = TypedForm.from_text(typed) if typed else None
        if current is not None and form is not None:
            lines = [gettext(SHOWN_AGAIN), *([gettext(TYPE_AGAIN)] if form.had_secrets else [])]
            await users.add_flash(connection, current.session_id, lines)
    to = local_path(next) or (home_page(current) if current else "/")
    if current is not None and form is not None:
        handle = context.kept_secrets.store(current.session_id, typed)
        to += f"{'&' if '?' in to else '?'}typed={handle}"
    # A cookie without an expiry ends with the browser's session. It is Secure if the browser connected by TLS. On plain
    # http (by default on loopback only) browsers would not send a Secure cookie back.
    response = RedirectResponse(to, 303)
    response.set_cookie(COOKIE, token, httponly=True, samesite="strict", secure=request.url.scheme == "https", path="/")
    return response


async def _record_refusal(context: PageContext, name: str, peer: str) -> None:
    """Record a refused sign-in, with the name if somebody has it."""
    async with context.system.database.transaction() as connection:
        if "@" in name:
            person = await accounts.local_by_login(connection, context.storable(name))
            known = person.address if person is not None else ""
        else:
            user = await users.identity(connection, name)
            known = user.name if user is not None else ""
        await audit.record_sign_in(connection, known, peer, refused=True)


@router.post("/sign-out")
async def sign_out(context: PageDep, user: SignedIn) -> Response:
    """End the session."""
    async with context.system.database.transaction() as connection:
        await users.end_session(connection, user.session_id)
    response = RedirectResponse("/sign-in", 303)
    response.delete_cookie(COOKIE, path="/", samesite="strict", httponly=True)
    return response
