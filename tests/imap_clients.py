"""A client of IMAP that sends the lines of a test and returns the answers, and the server in a process of its own."""

from __future__ import annotations

import asyncio
import os
import re
import socket
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from deploy.machine import ports
from shared.auth.passwords import hash_password
from shared.db.database import Database
from shared.model import Local
from shared.provider.vault import new_key
from shared.settings import SERVICES
from tests.integration.test_folder_mails import add_mails, add_people
from tests.polling import until

PASSWORD = "se cret"
SECONDS = 60.0
_LITERAL = re.compile(rb"~?\{(\d+)\}\r\n\Z")


@dataclass
class ImapClient:
    """A connection. greeting: the first line. tags count from a1."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    greeting: bytes = b""
    _tags: int = field(default=0)

    async def response(self) -> bytes:
        """The next response with its literals, without its last line end."""
        async with asyncio.timeout(SECONDS):
            whole = b""
            while True:
                whole += await self.reader.readuntil(b"\n")
                found = _LITERAL.search(whole)
                if found is None:
                    return whole.removesuffix(b"\r\n")
                whole += await self.reader.readexactly(int(found[1]))

    def send(self, octets: bytes) -> None:
        """Send octets as they are."""
        self.writer.write(octets)

    def start(self, command: bytes) -> bytes:
        """Send a command, and return its tag."""
        self._tags += 1
        tag = b"a%d" % self._tags
        self.send(tag + b" " + command + b"\r\n")
        return tag

    async def finish(self, tag: bytes) -> tuple[list[bytes], bytes]:
        """The untagged responses up to the answer to a command, and the answer without its tag."""
        untagged: list[bytes] = []
        while True:
            response = await self.response()
            if response.startswith(tag + b" "):
                return untagged, response.removeprefix(tag + b" ")
            untagged.append(response)

    async def run(self, command: bytes) -> tuple[list[bytes], bytes]:
        """Run a command: its untagged responses, and its answer."""
        return await self.finish(self.start(command))

    async def ok(self, command: bytes) -> list[bytes]:
        """Run a command that succeeds: its untagged responses."""
        untagged, answer = await self.run(command)
        assert answer.startswith(b"OK"), (command, untagged, answer)
        return untagged

    async def refused(self, command: bytes, kind: bytes = b"NO") -> bytes:
        """Run a command that fails: its answer."""
        _, answer = await self.run(command)
        assert answer.startswith(kind + b" "), (command, answer)
        return answer

    async def append(self, mail: bytes, before: bytes = b"INBOX") -> bytes:
        """APPEND a mail with a literal that waits. :return: the answer."""
        tag = self.start(b"APPEND %b {%d}" % (before, len(mail)))
        first = await self.response()
        if not first.startswith(b"+"):
            return first.removeprefix(tag + b" ")
        self.send(mail + b"\r\n")
        _, answer = await self.finish(tag)
        return answer

    async def idle(self) -> bytes:
        """Begin IDLE, and return its tag."""
        tag = self.start(b"IDLE")
        assert (await self.response()).startswith(b"+")
        return tag

    async def close(self) -> None:
        """Leave without a word."""
        self.writer.transport.abort()


@dataclass
class ImapServerProcess:
    """The service, started. alex, jim: accounts with PASSWORD."""

    process: asyncio.subprocess.Process
    log: Path
    clear: int
    implicit: int
    metrics: int
    database: Database
    alex: Local
    jim: Local
    clients: list[ImapClient] = field(default_factory=list)

    async def connect(self) -> ImapClient:
        """A connection without TLS."""
        client = ImapClient(*await asyncio.open_connection("127.0.0.1", self.clear, limit=1 << 26))
        self.clients.append(client)
        client.greeting = await client.response()
        return client

    async def login(self, folder: str | None = "INBOX", *enabled: str, user: str = "alex") -> ImapClient:
        """A session that has selected a folder."""
        client = await self.connect()
        await client.ok(b'LOGIN %b@local.com "%b"' % (user.encode(), PASSWORD.encode()))
        if enabled:
            await client.ok(b"ENABLE " + " ".join(enabled).encode())
        if folder is not None:
            await client.ok(b"SELECT " + folder.encode())
        return client


@asynccontextmanager
async def imap_server(
    database_url: str,
    database: Database,
    folder: Path,
    mails: Sequence[bytes] = (),
    broker_url: str = "amqp://127.0.0.1:1/",
    **settings: str,
) -> AsyncIterator[ImapServerProcess]:
    """The service as a process. :param mails: in INBOX of alex."""
    people = await add_people(database, "alex", "jim", password_hash=hash_password(PASSWORD))
    if mails:
        await add_mails(database, people["alex"], *mails)
    clear, implicit, metrics = ports.choose(3, str(folder))
    log = folder / "log"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MAILGROUP_")} | {
        "MAILGROUP_DATA": str(folder),
        "MAILGROUP_DATABASE_URL": database_url,
        "MAILGROUP_BROKER_URL": broker_url,
        "MAILGROUP_SECRET_KEY": new_key(),
        "MAILGROUP_IMAP_PORT": str(clear),
        "MAILGROUP_IMAPS_PORT": str(implicit),
        "MAILGROUP_METRICS_PORT": str(metrics - SERVICES.index("imap_out")),
    }
    environment |= {f"MAILGROUP_{name}": value for name, value in settings.items()}
    with log.open("wb") as file:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "services.imap_out", env=environment, stderr=file, stdout=file
        )
    server = ImapServerProcess(process, log, clear, implicit, metrics, database, people["alex"], people["jim"])
    try:
        await until(lambda: _listens(clear) and _listens(implicit), 60)
        yield server
        # no session ended by a defect
        assert "unexpectedly" not in log.read_text(encoding="utf-8")
    finally:
        for client in server.clients:
            await client.close()
        if process.returncode is None:
            process.kill()
        await process.wait()
        print(log.read_text(encoding="utf-8"))  # pytest shows it if the test failed


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
