"""Requests on the state of the system, and on the audit."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter

from services.admin.access import audit
from services.admin.web.api.schemas.common import ApiText, Before, PageLimit, SystemStatus
from services.admin.web.api.schemas.users import AuditRecord
from services.admin.web.page_context import PageDep, Reader

router = APIRouter()


@router.get("/status", response_model=SystemStatus, tags=["state"])
async def status(context: PageDep, user: Reader) -> Any:
    """Return the status of services, queues and accounts, the reconciliation, and the problems as texts."""
    return await context.status.get_fresh()


@router.get("/audit", response_model=list[AuditRecord], tags=["state"])
async def show_audit(
    context: PageDep, user: Reader, q: ApiText = "", before: Before = None, limit: PageLimit = 100
) -> Any:
    """List the audit, the latest entry first; `q` filters by user, address or id of a mail."""
    async with context.system.database.transaction() as connection:
        return await audit.page(connection, before, context.storable(q), limit)
