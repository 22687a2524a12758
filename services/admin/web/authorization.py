"""The page that authorizes an external account by OAuth: it shows the code or the link, and waits for the consent."""

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
from shared.languages import stored_texts
from shared.languages.translation import gettext, marked
from shared.model import External

router = APIRouter(include_in_schema=False)

CHECK_SECONDS = 1.0
"""Interval between two checks for a browser that waits: seconds; one query each."""
_LOOPBACK = ("127.0.0.1", "localhost", "::1")


@router.get("/external/{address}/authorize")
async def show(
    request: Request, context: PageDep, user: Administrator, address: PathAddress, run: QueryText = ""
) -> Response:
    """Show the state of the authorization. run: the authorization that this browser shows."""
    return await _show(request, context, user, await load_external(context, address), run)


@router.post("/external/{address}/authorize")
async def act(request: Request, context: PageDep, user: Administrator, address: PathAddress) -> Response:
    """Begin or stop the authorization, or complete it with the redirect address that the browser shows."""
    external = await load_external(context, address)
    form = Form(await request.form())
    page = context.path_to("/external", external.address) + "/authorize"
    try:
        match form.text("do"):
            case "begin":
                begun = await oauth_flow.start_authorization(
                    context.system, external, user.name, redirect_uri(request, context)
                )
                return await context.redirect(user, f"{page}?run={begun.key}")
            case "bring":
                await oauth_flow.complete_redirect(context.system, external, form.text("url"))
            case "stop":
                await oauth_flow.stop_authorization(context.system, external, user.name)
            case _:
                raise Permanent(marked("Nothing was chosen to be done."))
    except (Permanent, Temporary) as error:
        return await _show(request, context, user, external, "", [stored_texts.shown(str(error))])
    return await context.redirect(user, page)


@router.get("/external/{address}/authorize/live")
async def live(
    request: Request, context: PageDep, user: Administrator, address: PathAddress, run: QueryText = ""
) -> Response:
    """Notify the page when the state of the authorization has changed."""
    external = await load_external(context, address)

    async def newer() -> dict[str, Any]:
        await asyncio.sleep(CHECK_SECONDS)
        progress = await oauth_flow.load_progress(context.system, external)
        return {"reload": progress is None or progress.key != run or progress.state != "waits"}

    return event_stream(request, context, newer)


@router.get("/authorized")
async def receive_redirect(request: Request, context: PageDep) -> Response:
    """Receive the redirect of the provider (RFC 6749 section 4.1.2).

    The browser sends no cookie with a request from another site (SameSite=Strict), so no user is signed in here. The
    ``state`` parameter identifies the request, and the code is useless without our PKCE verifier (RFC 7636).
    """
    progress = await oauth_flow.complete_any(context.system, str(request.url))
    if progress.state == "failed":
        raise Permanent(progress.words)
    text = gettext("You may close this page; the page where you started it continues.")
    return await context.render_page(request, None, "message.html", title=gettext("Authorized"), text=text, typed=None)


def redirect_uri(request: Request, context: PageContext) -> str:
    """Return the redirect URI: on loopback, the only one that providers allow to native applications (RFC 8252).

    If the console runs on another machine, nothing answers there, and the user pastes the address that the browser
    shows.
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
    replaced = bool(run) and (progress is None or progress.key != run)
    return await context.render_page(
        request,
        user,
        "authorize.html",
        status=409 if problems else 200,
        external=external,
        progress=progress,
        replaced=replaced,
        authorized=oauth_flow.is_authorized(context.system, external),
        problems=problems or [],
    )
