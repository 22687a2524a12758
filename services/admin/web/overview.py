"""Is mail flowing?"""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.responses import Response

from services.admin.web.desk import Here, Reader

router = APIRouter(include_in_schema=False)


@router.get("/")
async def show(request: Request, here: Here, who: Reader) -> Response:
    """The first page."""
    found = await here.watch.first()
    return await here.page(request, who, "overview.html", status_=found)
