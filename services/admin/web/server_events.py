"""What is renewed while somebody looks at a page (server-sent events)."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from fastapi import Request
from fastapi.responses import Response, StreamingResponse

from services.admin.access import users
from services.admin.web.page_context import COOKIE, PageContext

CHECK_SECONDS = 30.0

Newer = Callable[[], Awaitable[dict[str, Any]]]


def event_stream(request: Request, context: PageContext, newer: Newer) -> Response:
    """Tell what ``newer`` finds whenever it is another thing than before. newer: waits for a while for something."""
    return StreamingResponse(
        _events(request, context, newer), media_type="text/event-stream", headers={"X-Accel-Buffering": "no"}
    )


async def _events(request: Request, context: PageContext, newer: Newer) -> AsyncIterator[str]:
    told: dict[str, Any] = {}
    checked = asyncio.get_running_loop().time()
    while not context.stopping.is_set() and not await request.is_disconnected():
        found = await newer()
        if asyncio.get_running_loop().time() - checked > CHECK_SECONDS:  # a session that has ended sees nothing more
            checked = asyncio.get_running_loop().time()
            async with context.system.database.statement() as connection:
                if await users.user_for_session(connection, request.cookies.get(COOKIE, "")) is None:
                    return
        if found != told:
            told = found
            yield f"data: {json.dumps(found)}\n\n"
        else:
            yield ": nothing new\n\n"
