"""Load generator for a POP3 server: sessions of mail clients, with as little work as possible.

``retr`` logs in, sends STAT and reads every mail of the mailbox; ``poll`` logs in and sends STAT and UIDL; ``login``
logs in and quits; ``idle`` keeps its sessions open until standard input ends. Each session is a connection. The program
prints a line of JSON: items (mails or sessions), octets, seconds, cpu (its share of one core) and the median seconds of
a session. It exits with an error if a mail or an octet is missing.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from typing import cast

from bench import load_sessions
from bench.load_sessions import options

_END = b"\r\n.\r\n"
_BUFFER_OCTETS = 256 * 1024


class Client(asyncio.BufferedProtocol):
    """A session. It examines only the beginning and the end of the received octets."""

    def __init__(self) -> None:
        self.octets = 0
        self.first = b""
        self._buffer = bytearray(_BUFFER_OCTETS)
        self._transport: asyncio.Transport | None = None
        self._answered: asyncio.Future[bytes] | None = None
        self._lines = False
        self._missing = 0
        self._tail = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # those of uvloop have their own classes

    def get_buffer(self, sizehint: int) -> bytearray:
        return self._buffer

    def expect(self, replies: int = 1, lines: bool = False) -> asyncio.Future[bytes]:
        """Expect this number of replies. :param lines: multi-line ones. :return: the first one's status line."""
        self._missing, self._lines, self.first, self._tail = replies, lines, b"", b""
        self._answered = asyncio.get_running_loop().create_future()
        return self._answered

    def ask(self, command: bytes, replies: int = 1, lines: bool = False) -> asyncio.Future[bytes]:
        """Send a command, or several pipelined ones; the rest as ``expect``."""
        answered = self.expect(replies, lines)
        if self._transport is not None:
            self._transport.write(command)
        return answered

    def buffer_updated(self, count: int) -> None:
        self.octets += count
        if self._answered is None:
            return
        if len(self.first) < 128:
            self.first += bytes(self._buffer[: min(count, 128)])
        if not self._lines or self.first.startswith(b"-ERR"):
            if self._buffer[count - 1] == 10:
                self._answer()
        elif self._missing == 1 and count >= len(_END):
            if self._buffer.endswith(_END, 0, count):
                self._answer()
            self._tail = bytes(self._buffer[count - len(_END) + 1 : count])
        else:
            data = self._tail + self._buffer[:count]
            self._missing -= data.count(_END)
            self._tail = data[-len(_END) + 1 :]
            if self._missing <= 0:
                self._answer()

    def _answer(self) -> None:
        answered, self._answered = self._answered, None
        if answered is None or answered.done():
            return
        if self.first.startswith(b"+OK"):
            answered.set_result(self.first[: self.first.index(b"\n") + 1])
        else:
            answered.set_exception(ConnectionError(f"the server replied {self.first!r}"))

    def connection_lost(self, exc: Exception | None) -> None:
        if self._answered is not None and not self._answered.done():
            self._answered.set_exception(ConnectionError(f"connection lost: {exc}"))

    def close(self) -> None:
        """End the connection."""
        if self._transport is not None:
            self._transport.close()


async def log_in(wanted: argparse.Namespace, index: int) -> Client:
    """Open a session of the user of this index."""
    client = Client()
    greeted = client.expect()
    await asyncio.get_running_loop().create_connection(lambda: client, "127.0.0.1", wanted.port)
    await greeted
    await client.ask(b"USER %s\r\n" % wanted.user.format(i=index % wanted.users).encode())
    await client.ask(b"PASS %s\r\n" % wanted.password.encode())
    return client


async def read(client: Client, wanted: argparse.Namespace, count: int) -> None:
    """Read a mailbox of ``count`` mails of ``--octets`` octets each."""
    before, status = client.octets, b""
    for start in range(1, count + 1, wanted.pipeline):
        numbers = range(start, min(start + wanted.pipeline, count + 1))
        commands = b"".join(b"RETR %d\r\n" % number for number in numbers)
        status = await client.ask(commands, len(numbers), lines=True)
    expected = count * (len(status) + wanted.octets + 3)  # mails of one size have status lines of one length
    if client.octets - before != expected:
        sys.exit(f"{client.octets - before} octets came instead of {expected}")


async def session(wanted: argparse.Namespace, index: int) -> tuple[int, int]:
    """Run one session. :return: items, and received octets."""
    client, items = await log_in(wanted, index), 1
    if wanted.mode != "login":
        count = int((await client.ask(b"STAT\r\n")).split()[1])
        if count != wanted.mails:
            sys.exit(f"{count} mails are in the mailbox instead of {wanted.mails}")
        if wanted.mode == "poll":
            before = client.octets
            await client.ask(b"UIDL\r\n", lines=True)
            if client.octets - before < 5 * count:  # a number, a space, an id and a line end
                sys.exit(f"{client.octets - before} octets are no list of {count} mails")
        else:
            await read(client, wanted, count)
            items = count
    await client.ask(b"QUIT\r\n")
    client.close()
    return items, client.octets


async def idle(wanted: argparse.Namespace) -> None:
    """Keep the sessions open until standard input ends."""
    clients = [await log_in(wanted, index) for index in range(wanted.sessions)]
    print(json.dumps({"items": len(clients)}), flush=True)
    await asyncio.to_thread(sys.stdin.read)
    for client in clients:
        client.close()


def main() -> None:
    """Read the command line and run."""
    load_sessions.run(options(__doc__, ["retr", "poll", "login", "idle"]).parse_args(), session, idle)


if __name__ == "__main__":
    main()
