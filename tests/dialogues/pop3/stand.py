"""A POP3 server over mailboxes in memory, and a player for dialogues with it.

A dialogue is a text file. ``C:`` lines are sent, those that follow one another in one write; ``S:`` lines are expected
next (``…`` at the end: whatever follows). In parentheses: ``(tls)`` the client starts TLS, ``(closed)`` the server has
closed, ``(gone)`` the client leaves without a word, ``(left 1 3)`` these mails of alex are still there, ``(broken)``
the store fails from here on, ``(whole)`` it works again. The first line names the connection: ``clear``, ``tls`` or
``no-passwords`` (clear, where passwords are not taken).
"""

from __future__ import annotations

import asyncio
import re
import socket
import ssl
from array import array
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import uvloop

from deploy.machine import ports
from services.pop3_out.listener import Pop3Listener
from services.pop3_out.snapshot import Snapshot
from shared.auth.authenticator import Throttled
from shared.errors import Permanent, Temporary
from shared.model import Local
from shared.net.server_tls import Certificate
from shared.runtime.served_listener import MAX_CONNECTIONS
from shared.settings import Settings

ALEX = Local(1, "alex@local.com", True, "hash of secret", "Alex", (), (), 1, None)
KIM = Local(2, "kim@local.com", True, "hash of open sesame", "Kim", (), (), 1, None)
PASSWORDS = {("alex@local.com", "secret"): ALEX, ("kim@local.com", " open  sesame "): KIM}

ONE = b"Subject: one\r\nX-Dot: .\r\n\r\nHello\r\nAlex\r\n"
TWO = b"Subject: two\r\n\r\n.\r\n..\r\n.dot\r\nend\r\n"
THREE = b"\r\nno header\r\n"


@dataclass
class MemoryStore:
    """Mailboxes in memory: for each account its mails by row, which are the ids of their bytes as well."""

    mails: dict[int, dict[int, bytes]] = field(
        default_factory=lambda: {ALEX.id: {11: ONE, 12: TWO, 13: THREE}, KIM.id: {}}
    )
    gone: set[int] = field(default_factory=set)
    broken: bool = False
    reads: list[tuple[int, ...]] = field(default_factory=list)
    gate: asyncio.Event | None = None  # spans and removals wait for it

    def _check(self) -> None:
        if self.broken:
            raise Temporary("the store is away")

    async def load_snapshot(self, local_id: int) -> Snapshot:
        self._check()
        rows = [row for row in self.mails[local_id] if row not in self.gone]
        sizes = [len(self.mails[local_id][row]) for row in rows]
        return Snapshot(local_id, "stamp", 1, array("q", rows), array("q", rows), array("q", rows), array("q", sizes))

    def _bytes(self, blob_id: int) -> bytes | None:
        return next((box[blob_id] for box in self.mails.values() if blob_id in box), None)

    async def read_mails(self, blob_ids: Sequence[int], octets: int) -> dict[int, bytes]:
        self._check()
        await asyncio.sleep(0)
        self.reads.append(tuple(blob_ids))
        found = {blob_id: self._bytes(blob_id) for blob_id in blob_ids}
        return {blob_id: body for blob_id, body in found.items() if body is not None}

    async def read_span(self, blob_id: int, start: int, length: int) -> bytes:
        self._check()
        if self.gate is not None:
            await self.gate.wait()
        body = self._bytes(blob_id)
        if body is None:
            raise Permanent(f"the bytes of blob {blob_id} are gone")
        self.reads.append((blob_id, start))
        return body[start : start + length]

    async def delete_mails(self, local: Local, row_ids: Sequence[int]) -> None:
        if self.gate is not None:
            await self.gate.wait()
        self._check()
        self.gone.update(row_ids)

    def left(self, local: Local) -> list[int]:
        """Which mails are there still: 1 is the first that ever was."""
        return [number for number, row in enumerate(self.mails[local.id], 1) if row not in self.gone]


class MemoryLogins:
    """Knows PASSWORDS."""

    async def verify(self, address: str, password: str, peer: str) -> Local | None:
        await asyncio.sleep(0)
        if address == "away@local.com":
            raise Temporary("the database is away")
        if address == "guessed@local.com":
            raise Throttled("too many")
        return PASSWORDS.get((address.lower(), password))


@dataclass
class Stand:
    """A running server."""

    settings: Settings
    store: MemoryStore
    listener: Pop3Listener

    async def connect(self, tls: bool = False) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A connection, the greeting not yet read."""
        port = self.settings.pop3s_port if tls else self.settings.pop3_port
        client = socket.socket()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 * 1024)  # or else the kernel takes megabytes
        client.setblocking(False)
        await asyncio.get_running_loop().sock_connect(client, ("127.0.0.1", port))
        return await asyncio.open_connection(
            sock=client,
            ssl=trusting() if tls else None,
            server_hostname="localhost" if tls else None,
            limit=64 * 1024 * 1024,
        )

    async def logged_in(self, tls: bool = False) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A connection in the state TRANSACTION, as alex."""
        reader, writer = await self.connect(tls)
        writer.write(b"USER alex@local.com\r\nPASS secret\r\n")
        for _ in range(3):
            assert (await reader.readline()).startswith(b"+OK")
        return reader, writer


def trusting() -> ssl.SSLContext:
    """A client's context that takes any certificate."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


@asynccontextmanager
async def stand(folder: Path, connections: int = MAX_CONNECTIONS, **settings: Any) -> AsyncIterator[Stand]:
    """A server, its data in ``folder``."""
    clear, under_tls = ports.choose(2, str(folder))
    chosen = Settings(data=folder, pop3_port=clear, pop3s_port=under_tls, **settings)
    store = MemoryStore()
    listener = Pop3Listener(chosen, store, MemoryLogins(), Certificate(chosen), connections)
    await listener.open()
    try:
        yield Stand(chosen, store, listener)
    finally:
        for connection in list(listener.registry.connections):  # or else the stop would wait for them
            connection.abort()
        await listener.close()


async def play(server: Stand, script: str) -> None:
    """Play a dialogue; AssertionError names the line that did not come true."""
    lines = [line for line in script.splitlines() if line and not line.startswith("#")]
    reader, writer = await server.connect(tls=lines[0] == "tls")
    pending: list[str] = []
    for number, line in enumerate(lines[1:], 2):
        if line.startswith("C: "):
            pending.append(line[3:])
            continue
        if pending:
            writer.write("".join(f"{command}\r\n" for command in pending).encode())
            pending = []
        if line.startswith("S: "):
            got = (await asyncio.wait_for(reader.readline(), 60)).decode()
            wanted = line[3:]
            right = got.startswith(wanted[:-1]) if wanted.endswith("…") else got == f"{wanted}\r\n"
            assert right, f"line {number}: expected {wanted!r}, got {got!r}"
        elif line == "(tls)":
            await writer.start_tls(trusting())
        elif line == "(closed)":
            assert await asyncio.wait_for(reader.read(1), 60) == b"", f"line {number}: it is not closed"
        elif line == "(gone)":
            writer.transport.abort()
            await asyncio.sleep(0.05)
        elif line in {"(broken)", "(whole)"}:
            server.store.broken = line == "(broken)"
        elif left := re.fullmatch(r"\(left([ \d]*)\)", line):
            await asyncio.sleep(0.02)
            assert server.store.left(ALEX) == [int(word) for word in left[1].split()], f"line {number}"
        else:
            raise ValueError(f"line {number}: {line!r} is no line of a dialogue")
    writer.close()


def on_loop(loop: str, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run ``work`` on a fresh event loop: "asyncio", the standard library's, or "uvloop"."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop if loop == "uvloop" else asyncio.new_event_loop) as runner:
        runner.run(work())
