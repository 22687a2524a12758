"""A TCP proxy that adds a round-trip time (ms) to a server: ``python -m bench.delay LISTEN_PORT PORT ROUND_TRIP``.

It delays every octet by half a round trip in each direction, and does not limit the rate. A proxy is used because not
every kernel can delay packets of the loopback interface.
"""

from __future__ import annotations

import asyncio
import sys
from typing import cast

import uvloop


class Side(asyncio.Protocol):
    """One end of a connection; its peer is the other one."""

    def __init__(self, target: int, delay: float, peer: Side | None = None) -> None:
        """:param target: port of the server. :param delay: seconds one way. :param peer: None for the client's end."""
        self._target, self._delay, self._peer = target, delay, peer
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._early: list[bytes] = []
        self._dialing: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # those of uvloop have their own classes
        if self._peer is None:
            self._dialing = asyncio.create_task(self._dial())

    async def _dial(self) -> None:
        await asyncio.sleep(2 * self._delay)
        _, self._peer = await self._loop.create_connection(
            lambda: Side(self._target, self._delay, self), "127.0.0.1", self._target
        )
        for data in self._early:
            self.data_received(data)

    def data_received(self, data: bytes) -> None:
        if self._peer is None:
            self._early.append(data)
        elif self._peer._transport is not None:
            self._loop.call_later(self._delay, self._peer._transport.write, data)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._peer is not None and self._peer._transport is not None:
            self._loop.call_later(self._delay, self._peer._transport.close)


async def serve(listen: int, target: int, round_trip: float) -> None:
    """Serve until cancelled. :param round_trip: milliseconds."""
    server = await asyncio.get_running_loop().create_server(
        lambda: Side(target, round_trip / 2000), "127.0.0.1", listen, backlog=512
    )
    await server.serve_forever()


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])))
