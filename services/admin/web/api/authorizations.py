"""Requests on the OAuth authorization of an external account."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request

from services.admin.accounts import oauth_flow
from services.admin.web.api.account_requests import require_external
from services.admin.web.api.schemas.accounts import AuthorizationState, RedirectAddress
from services.admin.web.api.schemas.common import AddressInPath
from services.admin.web.authorization import redirect_uri
from services.admin.web.page_context import Administrator, NotFound, PageDep

router = APIRouter()


@router.post("/external-accounts/{address}/authorization", response_model=AuthorizationState, tags=["accounts"])
async def authorize(request: Request, context: PageDep, user: Administrator, address: AddressInPath) -> Any:
    """Begin the OAuth authorization of an account, or return the pending one."""
    async with context.system.database.transaction() as connection:
        external = await require_external(connection, address)
    return await oauth_flow.start_authorization(context.system, external, user.name, redirect_uri(request, context))


@router.get("/external-accounts/{address}/authorization", response_model=AuthorizationState, tags=["accounts"])
async def show_authorization(context: PageDep, user: Administrator, address: AddressInPath) -> Any:
    """Return the pending authorization, or the result of the latest one."""
    async with context.system.database.transaction() as connection:
        external = await require_external(connection, address)
    progress = await oauth_flow.load_progress(context.system, external)
    if progress is None:
        raise NotFound(f"{address}: there is no authorization")
    return progress


@router.post("/external-accounts/{address}/authorization/answer", response_model=AuthorizationState, tags=["accounts"])
async def answer_authorization(
    context: PageDep, user: Administrator, address: AddressInPath, brought: RedirectAddress
) -> Any:
    """Complete an authorization with the redirect address of the browser, if that page could not be reached."""
    async with context.system.database.transaction() as connection:
        external = await require_external(connection, address)
    return await oauth_flow.complete_redirect(context.system, external, brought.url)


@router.delete("/external-accounts/{address}/authorization", response_model=AuthorizationState, tags=["accounts"])
async def stop_authorization(context: PageDep, user: Administrator, address: AddressInPath) -> Any:
    """Stop the pending authorization; an earlier one stays valid."""
    async with context.system.database.transaction() as connection:
        external = await require_external(connection, address)
    await oauth_flow.stop_authorization(context.system, external, user.name)
    return await show_authorization(context, user, address)
