"""A stretch of network between two parts, which can be cut, slow, silent or gone."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Proxy:
    """port: on 127.0.0.1, leads to the first of ``targets`` there that answers, as the service of a cluster leads to
    its living members. delay: seconds that each piece waits. away: nothing listens."""

    def __init__(self, port: int, *targets: int) -> None:
        self.port, self.targets = port, targets
        self.delay = 0.0
        self.away = False
        self._open = asyncio.Event()
        self._open.set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Proxy]:
        """Serve while the block lasts."""
        await self._listen()
        try:
            yield self
        finally:
            await self.leave()

    async def _listen(self) -> None:
        self._server = await asyncio.start_server(self._carry, "127.0.0.1", self.port, backlog=512, reuse_address=True)

    def silence(self) -> None:
        """Nothing is lost, and nothing goes on, until ``resume``."""
        self._open.clear()

    async def leave(self) -> None:
        """Nothing listens any more, until ``resume``; what was connected is cut."""
        self.away = True
        if self._server is not None:
            self._server.close()
            self._server = None
        self.cut()
        await asyncio.sleep(0)

    async def resume(self) -> None:
        """Work again."""
        self.delay = 0.0
        self._open.set()
        if self.away:
            self.away = False
            await self._listen()

    def cut(self) -> int:
        """End every connection, whatever is on its way; how many that were."""
        for task in self._tasks:
            task.cancel()
        return len(self._tasks)

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        other: asyncio.StreamWriter | None = None
        try:
            there, other = await self._connect()
            ways = [asyncio.create_task(self._pump(reader, other)), asyncio.create_task(self._pump(there, writer))]
            try:
                await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
                await asyncio.wait(ways, timeout=0.2)  # what the other side still says
            finally:
                for way in ways:
                    way.cancel()
        except (OSError, asyncio.CancelledError):
            pass
        finally:
            self._tasks.discard(task)
            for each in (writer, other):
                if each is not None:
                    each.transport.abort()

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """:raises OSError: no target answers."""
        for target in self.targets:
            with contextlib.suppress(OSError):
                return await asyncio.open_connection("127.0.0.1", target)
        raise ConnectionRefusedError

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(1 << 18):
                if self.delay:
                    await asyncio.sleep(self.delay)
                await self._open.wait()
                writer.write(data)
                await writer.drain()
            if writer.can_write_eof():
                writer.write_eof()
