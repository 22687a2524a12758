"""Signing in and out."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Form, Request
from fastapi.responses import RedirectResponse, Response

from services.admin.access import users
from services.admin.web.page_context import COOKIE, OptionalUser, PageDep, SignedIn, home_page
from shared.auth.authenticator import Throttled

router = APIRouter(include_in_schema=False)


@router.get("/sign-in")
async def show(request: Request, context: PageDep, user: OptionalUser, next: str = "") -> Response:
    """The form."""
    if user is not None:
        return RedirectResponse(_inside(next) or home_page(user), 303)
    return await context.render_page(request, None, "sign_in.html", next=_inside(next), name="")


@router.post("/sign-in")
async def sign_in(
    request: Request,
    context: PageDep,
    name: Annotated[str, Form(max_length=400)] = "",
    password: Annotated[str, Form(max_length=2000)] = "",
    next: Annotated[str, Form(max_length=2000)] = "",
) -> Response:
    """Check name and password, and begin a session."""
    peer = request.client.host if request.client else ""
    try:
        user = await context.sign_ins.verify(name.strip(), password, peer)
        problem, status = "This name and password do not belong together.", 401
    except Throttled as error:
        user, problem, status = None, f"{str(error)[0].upper()}{str(error)[1:]}.", 429
    if user is None:
        return await context.render_page(
            request, None, "sign_in.html", status=status, next=_inside(next), name=name, problems=[problem]
        )
    async with context.system.database.transaction() as connection:
        token = await users.begin_session(connection, user, peer, request.headers.get("user-agent", ""))
        found = await users.user_for_session(connection, token)
    # A cookie without an end goes with the browser's session. Secure wherever the browser came by TLS; on plain http,
    # which is served on a loopback address only unless somebody says otherwise, browsers would not send it back.
    answer = RedirectResponse(_inside(next) or (home_page(found) if found else "/"), 303)
    answer.set_cookie(COOKIE, token, httponly=True, samesite="strict", secure=request.url.scheme == "https", path="/")
    return answer


@router.post("/sign-out")
async def sign_out(context: PageDep, user: SignedIn) -> Response:
    """End the session."""
    async with context.system.database.transaction() as connection:
        await users.end_session(connection, user.session_id)
    answer = RedirectResponse("/sign-in", 303)
    answer.delete_cookie(COOKIE, path="/", samesite="strict", httponly=True)
    return answer


def _inside(path: str) -> str:
    """A path of the console, or nothing: nobody is sent to another site. Pure."""
    inside = path.startswith("/") and not path.startswith(("//", "/\\")) and path.isprintable()
    return path if inside and "\\" not in path else ""
