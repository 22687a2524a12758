"""Requests on the accounts file."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from fastapi.responses import Response

from services.admin.accounts import export
from services.admin.accounts.apply import FILE_SECONDS
from services.admin.accounts.errors import AccountsError
from services.admin.accounts.file_format import read_text
from services.admin.web.api.schemas.common import ChangeLines
from services.admin.web.page_context import Administrator, PageDep

router = APIRouter(tags=["accounts"])

_Flag = Annotated[bool, Query()]


@router.get("/accounts-file", responses={200: {"content": {"application/yaml": {}}}})
async def export_accounts(context: PageDep, user: Administrator) -> Response:
    """Export the accounts file without passwords."""
    async with context.system.database.transaction() as connection:
        text = export.as_yaml(await export.build_document(connection))
    return Response(text, media_type="application/yaml")


_YAML = {"requestBody": {"required": True, "content": {"application/yaml": {"schema": {}}}}}


@router.put("/accounts-file", response_model=ChangeLines, openapi_extra=_YAML)
async def apply_accounts(
    request: Request, context: PageDep, user: Administrator, prune: _Flag = False, dry_run: _Flag = False
) -> Any:
    """Create and change the accounts as the file in the body says (YAML or JSON, up to 4 MiB).

    `prune` removes the accounts that it does not name; `dry_run` changes nothing and returns what would be changed.
    """
    try:
        text = (await request.body()).decode()
    except UnicodeDecodeError as error:
        raise AccountsError(["file: is not UTF-8 text"]) from error
    if not text.strip():  # with prune, a request that lost its body would remove every account
        raise AccountsError(["file: is empty"])
    requested = await asyncio.to_thread(read_text, text, "file", None)  # 1 MiB takes seconds
    async with context.system.database.transaction(FILE_SECONDS, kept=not dry_run) as connection:
        outcome = await context.apply(connection, requested, user, prune)
    return {"changed": outcome.lines}
