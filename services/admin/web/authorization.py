"""Authorizing an external account: the code or page of its provider, and waiting until somebody has agreed there."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response

from services.admin.access.users import CurrentUser
from services.admin.accounts import oauth_flow
from services.admin.web.external_accounts import load_external
from services.admin.web.forms import Form
from services.admin.web.page_context import Administrator, PageContext, PageDep, PathAddress, QueryText
from services.admin.web.server_events import event_stream
from shared.errors import Permanent, Temporary
from shared.model import External

router = APIRouter(include_in_schema=False)

LOOK_SECONDS = 1.0
_LOOPBACK = ("127.0.0.1", "localhost", "::1")


@router.get("/external/{address}/authorize")
async def show(
    request: Request, context: PageDep, user: Administrator, address: PathAddress, run: QueryText = ""
) -> Response:
    """How it stands. run: the authorization that this browser looks at."""
    return await _show(request, context, user, await load_external(context, address), run)


@router.post("/external/{address}/authorize")
async def act(request: Request, context: PageDep, user: Administrator, address: PathAddress) -> Response:
    """Begin, bring the address that the browser shows in the end, or stop."""
    external = await load_external(context, address)
    form = Form(await request.form())
    page = context.path_to("/external", external.address) + "/authorize"
    try:
        match form.text("do"):
            case "begin":
                begun = await oauth_flow.start_authorization(context.system, external, user.name, redirect_uri(request, context))
                return await context.redirect(user, f"{page}?run={begun.key}")
            case "bring":
                await oauth_flow.complete_redirect(context.system, external, form.text("url"))
            case "stop":
                await oauth_flow.stop_authorization(context.system, external, user.name)
            case _:
                raise Permanent("Nothing was chosen to be done.")
    except (Permanent, Temporary) as error:
        return await _show(request, context, user, external, "", [str(error)])
    return await context.redirect(user, page)


@router.get("/external/{address}/authorize/live")
async def live(
    request: Request, context: PageDep, user: Administrator, address: PathAddress, run: QueryText = ""
) -> Response:
    """Tells the page when it has another thing to say."""
    external = await load_external(context, address)

    async def newer() -> dict[str, Any]:
        await asyncio.sleep(LOOK_SECONDS)
        progress = await oauth_flow.load_progress(context.system, external)
        return {"reload": progress is None or progress.key != run or progress.state != "waits"}

    return event_stream(request, context, newer)


@router.get("/authorized")
async def receive_redirect(request: Request, context: PageDep) -> Response:
    """Where the provider sends the browser of whoever agreed.

    The cookie does not come with a visit from another site, so nobody is signed in here: the answer is known by what
    only the provider and the browser were told, and is good for nothing without what we kept for ourselves (PKCE).
    """
    progress = await oauth_flow.complete_any(context.system, str(request.url))
    if progress.state == "failed":
        raise Permanent(progress.words)
    text = "You may close this page; the one where it was begun goes on."
    return await context.render_page(request, None, "message.html", title="Authorized", text=text)


def redirect_uri(request: Request, context: PageContext) -> str:
    """Where a browser may bring the answer: on loopback, which is all that providers allow to programs (RFC 8252).

    With a console elsewhere nothing answers there; the address that the browser shows then is pasted.
    """
    url = request.url
    port = url.port if url.hostname in _LOOPBACK and url.port else context.system.settings.admin_port
    return f"http://127.0.0.1:{port}/authorized"


async def _show(
    request: Request,
    context: PageContext,
    user: CurrentUser,
    external: External,
    run: str,
    problems: list[str] | None = None,
) -> Response:
    progress = await oauth_flow.load_progress(context.system, external)
    lost = bool(run) and (progress is None or progress.key != run)
    return await context.render_page(
        request,
        user,
        "authorize.html",
        status=409 if problems else 200,
        external=external,
        progress=progress,
        lost=lost,
        authorized=oauth_flow.is_authorized(context.system, external),
        problems=problems or [],
    )
