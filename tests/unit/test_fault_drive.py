"""The driver of the fault tests does not stop the proxies that its event loop runs."""

from __future__ import annotations

import asyncio
import threading
from types import SimpleNamespace
from typing import Any, cast

from tests.faults.drive import Drive
from tests.faults.plan import SHORT
from tests.faults.stand import Stand


class StandWithProxy:
    """A database that answers once the event loop has had its turn, as a commit that waits for a standby does."""

    system = SimpleNamespace(settings=SimpleNamespace(imap_port=1))  # nobody reads by IMAP here

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.asked: list[str] = []
        self._loop = loop

    def ask(self, sql: str) -> list[tuple[object, ...]]:
        """Answer a statement. :raises AssertionError: the loop stands still."""
        carried = threading.Event()
        self._loop.call_soon_threadsafe(carried.set)
        assert threading.current_thread() is not threading.main_thread() and carried.wait(60)
        self.asked.append(sql.split()[0])
        return [(1,)] if self.asked == ["select"] else []


async def test_a_commit_that_waits_for_a_standby_does_not_block_its_proxy(monkeypatch: Any) -> None:
    stand = StandWithProxy(asyncio.get_running_loop())
    sleep = asyncio.sleep
    monkeypatch.setattr(asyncio, "sleep", lambda seconds: sleep(0))
    await Drive(cast(Stand, stand), SHORT, seed=1)._settle_copies()
    assert stand.asked == ["select", "update", "select"]
