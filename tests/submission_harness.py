"""A submission server in this process, on a real PostgreSQL and RabbitMQ, and a client for it."""

from __future__ import annotations

import asyncio
import base64
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from deploy.machine import ports as free_ports
from services.smtp_in.commit_queue import CommitQueue
from services.smtp_in.listener import SmtpListener
from shared.amqp.broker import Broker
from shared.auth.authenticator import Authenticator
from shared.auth.passwords import hash_password
from shared.db.database import Database
from shared.model import External, Local, Relay, Server
from shared.net import server_tls
from shared.settings import Settings, load
from shared.store import account_changes, blobs, folders, submissions_admin

SERVER = Server("mail.company.com", 25, "none")
SECRET = hash_password("secret")


def plain(address: str, password: str = "secret") -> str:
    """An AUTH PLAIN command."""
    return "AUTH PLAIN " + base64.b64encode(f"\0{address}\0{password}".encode()).decode()


async def add_office(database: Database) -> dict[str, int]:
    """The company: support@ shared by Alex, Jim, Away (disabled, Jim for him) and Gone (disabled). Ids by name."""
    async with database.transaction() as connection:
        ids = {}
        for name in ("support", "sales"):
            address = f"{name}@company.com"
            ids[name] = await account_changes.save_external(
                connection,
                External(0, address, True, address, b"", SERVER, (Relay(SERVER),), 60, "all", None, False, True, ()),
            )
        for name, enabled in (("alex", True), ("jim", True), ("away", False), ("gone", False)):
            ids[name] = await account_changes.save_local(
                connection,
                Local(
                    0,
                    f"{name}@local.com",
                    enabled,
                    SECRET,
                    name.title(),
                    (),
                    (),
                    ids["support"],
                    ids["jim"] if name == "away" else None,
                ),
            )
            await folders.create_standard_folders(connection, ids[name])
    return ids


@dataclass
class Running:
    """A server in this process."""

    settings: Settings
    database: Database
    broker: Broker
    commit_queue: CommitQueue
    listener: SmtpListener
    ids: dict[str, int]
    cafile: Path

    def port(self, name: str) -> int:
        """Of smtp, submission, smtps."""
        return int(getattr(self.settings, f"{name}_port"))

    async def stored(self) -> list[tuple[submissions_admin.ListedSubmission, bytes]]:
        """All submissions with their bytes."""
        async with self.database.transaction() as connection:
            listed = await submissions_admin.list_submissions(connection, ["submitted"])
            cursor = await connection.execute("select id, blob_id from submissions")
            blob_ids = dict(await cursor.fetchall())
        return [
            (each, b"".join([part async for part in blobs.stream(self.database, blob_ids[each.id])])) for each in listed
        ]


def make_settings(folder: Path, **more: object) -> Settings:
    """Settings with ports that are free."""
    smtp, submission, smtps = free_ports.choose(3, str(folder))
    return load(data=folder, smtp_port=smtp, submission_port=submission, smtps_port=smtps, **more)


@asynccontextmanager
async def running(
    database: Database,
    broker_url: str,
    folder: Path,
    connections: int = 50,
    **more: object,
) -> AsyncIterator[Running]:
    """Start a server."""
    settings = make_settings(folder, **more)
    broker = Broker(broker_url, "test")
    await broker.open()
    await broker.wait_until_ready(20)
    logins = Authenticator(database, settings, "smtp_in")
    commit_queue = CommitQueue(database, broker, settings.max_message_bytes)
    listener = SmtpListener(settings, commit_queue, logins, server_tls.Certificate(settings), connections)
    await listener.open()
    commit_queue.start()
    yield Running(
        settings,
        database,
        broker,
        commit_queue,
        listener,
        await add_office(database),
        server_tls.self_signed_file(settings),
    )
    await listener.close(1)
    await commit_queue.stop()
    logins.close()
    await broker.close()


class Client:
    """Speaks SMTP line by line."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    @classmethod
    async def connect(cls, port: int, source: str = "127.0.0.1", context: ssl.SSLContext | None = None) -> Client:
        """Connect, from this address, with TLS from the start if there is a context."""
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", port, local_addr=(source, 0), ssl=context, server_hostname="localhost" if context else None
        )
        return cls(reader, writer)

    @classmethod
    async def logged_in(cls, server: Running, who: str = "alex") -> Client:
        """Connect to SMTP_PORT and log in."""
        client = await cls.connect(server.port("smtp"))
        assert (await client.reply())[-1].startswith("220")
        await client.ask("EHLO client.example", plain(f"{who}@local.com"))
        return client

    async def reply(self) -> list[str]:
        """The lines of the next reply; none at the end of the connection."""
        lines: list[str] = []
        async with asyncio.timeout(120):
            while line := (await self.reader.readline()).decode():
                lines.append(line.rstrip("\r\n"))
                if line[3:4] == " ":
                    break
        return lines

    async def ask(self, *commands: str) -> str:
        """Say commands one by one; the last reply's last line."""
        lines: list[str] = []
        for command in commands:
            self.writer.write(command.encode() + b"\r\n")
            lines = await self.reply()
        return lines[-1] if lines else ""

    async def send(self, mail: bytes, *recipients: str, sender: str = "alex@local.com") -> str:
        """Send a mail (with its final dot); the reply to it."""
        assert (
            await self.ask(
                f"MAIL FROM:<{sender}>", *(f"RCPT TO:<{r}>" for r in recipients or ("x@example.net",)), "DATA"
            )
        ).startswith("354")
        self.writer.write(mail)
        return (await self.reply() or [""])[-1]

    async def closed(self) -> bool:
        """Whether the server has closed the connection, after anything that it still said."""
        try:
            async with asyncio.timeout(120):
                await self.reader.read()
        except ConnectionError:  # closed with something of ours unread
            return True
        return self.reader.at_eof()
