"""Requests on the accounts file."""

from __future__ import annotations

from fastapi import APIRouter
from fastapi.responses import Response

from services.admin.accounts import export
from services.admin.web.page_context import Administrator, PageDep

router = APIRouter()


@router.get("/accounts-file", tags=["accounts"], responses={200: {"content": {"application/yaml": {}}}})
async def export_accounts(context: PageDep, user: Administrator) -> Response:
    """Export the accounts file without passwords."""
    async with context.system.database.transaction() as connection:
        text = export.as_yaml(await export.build_document(connection))
    return Response(text, media_type="application/yaml")
