"""Updates of an open page (server-sent events)."""

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
"""Interval between two checks that the session has not ended: seconds."""

Newer = Callable[[], Awaitable[dict[str, Any]]]


def event_stream(request: Request, context: PageContext, newer: Newer) -> Response:
    """Stream each result of ``newer`` that differs from the last. newer: waits for a change, for a limited time."""
    return StreamingResponse(
        _events(request, context, newer), media_type="text/event-stream", headers={"X-Accel-Buffering": "no"}
    )


async def _events(request: Request, context: PageContext, newer: Newer) -> AsyncIterator[str]:
    sent: dict[str, Any] = {}
    checked = asyncio.get_running_loop().time()
    while not context.stopping.is_set() and not await request.is_disconnected():
        result = await newer()
        if asyncio.get_running_loop().time() - checked > CHECK_SECONDS:  # no updates after the end of a session
            checked = asyncio.get_running_loop().time()
            async with context.system.database.statement() as connection:
                if await users.user_for_session(connection, request.cookies.get(COOKIE, "")) is None:
                    return
        if result != sent:
            sent = result
            yield f"data: {json.dumps(result)}\n\n"
        else:
            yield ": nothing new\n\n"
