"""A TCP proxy between two parts, whose network can be cut, slow, silent or away."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Proxy:
    """Forwards connections to the first target that accepts, as a Kubernetes Service forwards to ready members."""

    def __init__(self, port: int, *targets: int) -> None:
        """:param port: of the proxy, on 127.0.0.1. :param targets: ports on 127.0.0.1."""
        self.port, self.targets = port, targets
        self.delay = 0.0  # seconds that each piece of data waits
        self.away = False  # the port does not listen
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
        """Hold back all data until ``resume``; no data is lost."""
        self._open.clear()

    async def leave(self) -> None:
        """Close the port until ``resume``, and cut every connection."""
        self.away = True
        if self._server is not None:
            self._server.close()
            self._server = None
        self.cut()
        await asyncio.sleep(0)

    async def resume(self) -> None:
        """Work normally again."""
        self.delay = 0.0
        self._open.set()
        if self.away:
            self.away = False
            await self._listen()

    def cut(self) -> int:
        """End every connection at once. :return: their number."""
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
                await asyncio.wait(ways, timeout=0.2)  # the last data of the other side
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
