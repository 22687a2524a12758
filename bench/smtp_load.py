"""Load generator for an SMTP server: EHLO, AUTH PLAIN, some mails, QUIT, in many sessions at a time.

It prints a line of JSON: items (mails with the reply 250), seconds, cpu (its share of one core), and for each mail the
seconds from writing its final dot to the reply. It exits with an error if the server refuses anything. Each mail has a
unique Message-ID.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
import secrets
import time
from typing import Any, cast

import uvloop

from bench.mails import mail


class Client(asyncio.Protocol):
    """A session; replies are awaited one at a time."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._rest = b""
        self._replies: list[bytes] = []
        self._answered: asyncio.Future[bytes] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # those of uvloop have their own classes

    def data_received(self, data: bytes) -> None:
        *lines, self._rest = (self._rest + data).split(b"\r\n")
        self._replies += [line for line in lines if line[3:4] != b"-"]
        if self._answered is not None and self._replies and not self._answered.done():
            self._answered.set_result(self._replies.pop(0))

    def connection_lost(self, exc: Exception | None) -> None:
        if self._answered is not None and not self._answered.done():
            self._answered.set_exception(ConnectionError(f"connection lost: {exc}"))

    async def reply(self, wanted: bytes, what: bytes = b"the connection") -> None:
        """Wait for the next reply. :raises ConnectionError: it does not begin with ``wanted``."""
        if not self._replies:
            self._answered = asyncio.get_running_loop().create_future()
            reply = await self._answered
        else:
            reply = self._replies.pop(0)
        if not reply.startswith(wanted):
            raise ConnectionError(f"the server replied to {what!r} with {reply!r}")

    async def ask(self, command: bytes, wanted: bytes) -> None:
        """Send a command and wait for its reply, as ``reply``."""
        assert self._transport is not None
        self._transport.write(command)
        await self.reply(wanted, command[:60])

    def close(self) -> None:
        """End the connection."""
        assert self._transport is not None
        self._transport.close()


async def load(wanted: argparse.Namespace) -> dict[str, Any]:
    """Send all mails, in ``--concurrency`` sessions at a time."""
    identity = f"{0:012d}.{secrets.token_hex(4)}@bench.example"
    left = wanted.mails
    numbers = iter(range(wanted.mails))
    latencies: list[float] = []

    async def work(slot: int) -> None:
        nonlocal left
        name = wanted.user.format(i=slot % wanted.users)
        credentials = base64.b64encode(f"\0{name}\0{wanted.password}".encode())
        address = wanted.sender.format(i=slot % wanted.users)
        template = mail(wanted.octets, to=wanted.recipient, author=address, message_id=identity) + b".\r\n"
        before, number_zero, after = template.partition(b"%012d" % 0)
        sender = b"MAIL FROM:<%s>\r\n" % address.encode()
        recipient = b"RCPT TO:<%s>\r\n" % wanted.recipient.encode()
        while left > 0:
            count = min(wanted.per_session, left)
            left -= count
            _, client = await asyncio.get_running_loop().create_connection(Client, "127.0.0.1", wanted.port)
            await client.reply(b"220")
            await client.ask(b"EHLO bench.example\r\n", b"250")
            await client.ask(b"AUTH PLAIN " + credentials + b"\r\n", b"235")
            for number in (next(numbers) for _ in range(count)):
                await client.ask(sender, b"250")
                await client.ask(recipient, b"250")
                await client.ask(b"DATA\r\n", b"354")
                body = before + b"%0*d" % (len(number_zero), number) + after
                began = time.perf_counter()
                await client.ask(body, b"250")
                latencies.append(time.perf_counter() - began)
                if wanted.pause:
                    await asyncio.sleep(wanted.pause)
            await client.ask(b"QUIT\r\n", b"221")
            client.close()

    started, busy = time.perf_counter(), time.process_time()
    await asyncio.gather(*(work(slot) for slot in range(wanted.concurrency)))
    seconds = time.perf_counter() - started
    cpu = (time.process_time() - busy) / seconds
    return {"items": len(latencies), "seconds": seconds, "cpu": cpu, "latencies": latencies if wanted.latencies else []}


def main() -> None:
    """Read the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--user", required=True, help="{i} is replaced by the number of the user, from 0")
    parser.add_argument("--users", type=int, default=1, help="number of users")
    parser.add_argument("--password", required=True)
    parser.add_argument("--sender", required=True, help="envelope sender; {i} as in --user")
    parser.add_argument("--recipient", default="someone@example.net")
    parser.add_argument("--mails", type=int, required=True)
    parser.add_argument("--octets", type=int, required=True, help="octets of each mail")
    parser.add_argument("--concurrency", type=int, default=1, help="sessions at a time")
    parser.add_argument("--per-session", type=int, default=10, help="mails in a session")
    parser.add_argument("--pause", type=float, default=0.0, help="seconds after each mail")
    parser.add_argument("--latencies", action="store_true", help="print the latencies")
    wanted = parser.parse_args()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        print(json.dumps(runner.run(load(wanted))))


if __name__ == "__main__":
    main()
