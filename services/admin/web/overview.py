"""Is mail flowing? And, on an empty system, what is to be done first."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response, StreamingResponse

from services.admin import users
from services.admin.web import charts
from services.admin.web.desk import COOKIE, Desk, Here, Reader

router = APIRouter(include_in_schema=False)

CHECK_SECONDS = 30.0


@router.get("/")
async def show(request: Request, here: Here, who: Reader) -> Response:
    """The first page."""
    await here.watch.first()
    day = here.watch.day
    if day is not None and not (day.externals and day.people):
        async with here.system.database.transaction() as connection:
            await here.watch.count(connection)  # it may have been added just now
    return await here.page(request, who, "overview.html", **_facts(here))


@router.get("/live")
async def live(request: Request, here: Here, who: Reader) -> Response:
    """The part of the first page that changes, whenever it has changed (server-sent events)."""
    return StreamingResponse(
        _stream(request, here), media_type="text/event-stream", headers={"X-Accel-Buffering": "no"}
    )


async def _stream(request: Request, here: Desk) -> AsyncIterator[str]:
    number, shown, checked = -1, "", asyncio.get_running_loop().time()
    while not here.stopping.is_set() and not await request.is_disconnected():
        number = await here.watch.newer(number)
        if asyncio.get_running_loop().time() - checked > CHECK_SECONDS:  # a session that has ended sees nothing more
            checked = asyncio.get_running_loop().time()
            async with here.system.database.statement() as connection:
                if await users.viewer(connection, request.cookies.get(COOKIE, "")) is None:
                    return
        part = here.render("state.html", **_facts(here))
        if part != shown:
            shown = part
            yield f"data: {json.dumps({'html': part, 'troubles': len(here.watch.problems)})}\n\n"
        else:
            yield ": nothing new\n\n"


def _facts(here: Desk) -> dict[str, Any]:
    day = here.watch.day
    return {
        "status_": here.watch.look(),
        "day": day,
        "chart": charts.bars(day.hours, "fetched", "sent by us") if day is not None else "",
    }
