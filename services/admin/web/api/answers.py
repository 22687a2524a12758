"""Requests on mail that went to everyone and its answers, and on names in To that no account has."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter

from services.admin.accounts import edit
from services.admin.mail import search_index, unknown_names
from services.admin.web.api.account_requests import require_external, require_local
from services.admin.web.api.schemas.common import Before, ChangeLines, PageLimit
from services.admin.web.api.schemas.mails import AssignedName, HiddenName, SharedMailEntry, UnknownNameEntry
from services.admin.web.page_context import Administrator, PageDep, Reader

router = APIRouter(tags=["mail"])


@router.get("/answers", response_model=list[SharedMailEntry])
async def list_answers(
    context: PageDep, user: Reader, answered: bool = False, before: Before = None, limit: PageLimit = 50
) -> Any:
    """List mail that went to everyone: what nobody has answered, the oldest first, or else the answered mail.

    Pass the last id of a page as `before`; of unanswered mail the next page has the later mails.
    """
    async with context.system.database.transaction() as connection:
        load = search_index.answered if answered else search_index.unanswered
        return await load(connection, before, limit)


@router.get("/unknown-names", response_model=list[UnknownNameEntry])
async def list_unknown_names(context: PageDep, user: Reader, limit: PageLimit = 50) -> Any:
    """List the names beside an external address that no sharer has, the most frequent first."""
    async with context.system.database.transaction() as connection:
        return await unknown_names.list_names(connection, limit)


@router.post("/unknown-names/assign", response_model=ChangeLines)
async def assign_unknown_name(context: PageDep, user: Administrator, given: AssignedName) -> Any:
    """Make an unknown name a further name of a local account."""
    async with context.system.database.transaction() as connection:
        external = await require_external(connection, given.external)
        person = await require_local(connection, given.to)
        requested = await edit.add_name(connection, person.address, given.name)
        outcome = await context.apply(connection, requested, user)
        await unknown_names.forget_name(connection, external.id, given.name)
    return {"changed": outcome.lines}


@router.post("/unknown-names/hide", response_model=ChangeLines)
async def hide_unknown_name(context: PageDep, user: Administrator, given: HiddenName) -> Any:
    """Remove a name from the list, until another mail has it."""
    async with context.system.database.transaction() as connection:
        external = await require_external(connection, given.external)
        await unknown_names.forget_name(connection, external.id, given.name)
    return {"changed": [f"name {given.name}: hidden"]}
