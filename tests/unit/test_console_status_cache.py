"""services/admin/web/status_cache.py: the status that pages show."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any, cast

import pytest

from services.admin.context import AdminContext
from services.admin.monitoring import status
from services.admin.web.status_cache import IDLE_SECONDS, StatusCache
from shared.errors import Temporary


@asynccontextmanager
async def _away() -> Any:
    raise Temporary("the database is away")
    yield


async def test_an_old_status_is_read_again_and_a_fresh_one_is_returned_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def gather(_: AdminContext) -> dict[str, Any]:
        await asyncio.sleep(0.01)
        return {"ok": True}

    monkeypatch.setattr(status, "gather", gather)
    system = cast(AdminContext, SimpleNamespace(database=SimpleNamespace(transaction=_away)))
    watched = StatusCache(system, asyncio.Event())
    running = asyncio.create_task(watched.run())
    try:
        assert await watched.get_fresh() == {"ok": True}
        assert await watched.get_fresh() == {"ok": True}
        assert watched.generation == 1
        # when there was no request for a while, and no check
        watched.gathered_at -= IDLE_SECONDS + 1
        watched._asked_at = float("-inf")
        await watched.get_fresh()
        assert watched.generation == 2
    finally:
        running.cancel()
