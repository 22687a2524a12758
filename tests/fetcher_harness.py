"""Runs a fetcher in the test's process with a private database; its publications are collected."""

from __future__ import annotations

import asyncio
import secrets
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from services.fetcher import scheduler
from shared.amqp.broker import Publication
from shared.db.database import Database
from shared.provider.credentials import Credentials
from shared.provider.vault import Vault, new_key
from shared.runtime.process import Service
from shared.settings import Settings
from shared.store import polls
from tests.polling import until


@dataclass
class FetcherHarness:
    """A running fetcher with a private database."""

    service: Service
    database: Database
    vault: Vault
    published: list[Publication] = field(default_factory=list)  # instead of sent to a broker

    def publish(self, publications: Sequence[Publication]) -> None:
        """Collect publications instead of sending them."""
        self.published += publications

    async def rows(self, sql: str, *parameters: object) -> list[tuple[Any, ...]]:
        async with self.database.transaction() as connection:
            cursor = await connection.execute(sql, parameters)
            return await cursor.fetchall() if cursor.description else []

    async def add(self, address: str, port: int, **changes: object) -> int:
        """Add an external account at 127.0.0.1; ``changes`` replaces any column."""
        columns: dict[str, object] = {
            "address": address,
            "login": address,
            "password": self.vault.seal("secret"),
            "pop3_host": "127.0.0.1",
            "pop3_port": port,
            "pop3_tls": "none",
            "smtp_host": "127.0.0.1",
            "smtp_port": 25,
            "smtp_tls": "none",
            "smtp_auth": True,
            "smtp_connections": 1,
            "poll_seconds": 1,
            "history": "all",
            "delete_history": False,
            "reply_to_author": True,
        } | changes
        names, marks = ", ".join(columns), ", ".join(["%s"] * len(columns))
        [[id_]] = await self.rows(
            f"insert into external_accounts ({names}) values ({marks}) returning id", *columns.values()
        )
        return int(id_)

    async def bodies(self, external_id: int) -> list[bytes]:
        """Return the bytes of the mails fetched for an account, in the order of arrival."""
        found = await self.rows(
            """select m.head from inbound i join blobs m on m.id = i.blob_id
               where i.external_id = %s and i.source = 'fetched' order by i.id""",
            external_id,
        )
        return [bytes(head) for (head,) in found]

    async def subjects(self, external_id: int) -> list[str]:
        return [
            next(line for line in body.decode().split("\r\n") if line.startswith("Subject: "))[9:]
            for body in await self.bodies(external_id)
        ]

    async def states(self, external_id: int) -> dict[str, int]:
        """Count the ledger rows by state."""
        return dict(
            await self.rows(
                "select state, count(*)::int from uidl_ledger where external_id = %s group by state", external_id
            )
        )

    async def poll(self, external_id: int) -> polls.PollState:
        """Make the account due; wait until a poll that began afterwards has ended."""
        busy = await self._owner(external_id)
        if busy is not None:  # the running poll may have read the list before the test changed it

            async def over() -> bool:
                return await self._owner(external_id) != busy

            await until(over)
        async with self.database.transaction() as connection:
            await polls.poll_now(connection, external_id)
        return await self.polled(external_id)

    async def _owner(self, external_id: int) -> str | None:
        found = await self.rows("select owner from polls where external_id = %s", external_id)
        return str(found[0][0]) if found and found[0][0] is not None else None

    async def polled(self, external_id: int) -> polls.PollState:
        """Wait until a poll that begins now or later has ended."""
        [[start]] = await self.rows("select clock_timestamp()")

        async def ended() -> bool:
            [[owner, success, error]] = await self.rows(
                "select owner, last_success_at, last_error_at from polls where external_id = %s", external_id
            )
            return owner is None and any(at is not None and at > start for at in (success, error))

        await until(ended)
        async with self.database.transaction() as connection:
            return (await polls.load_poll_states(connection))[external_id]


_FOLDER = tempfile.TemporaryDirectory(prefix="mailgroup-fetchers-")


@asynccontextmanager
async def fetching(database_url: str, polls: bool = True, **settings: Any) -> AsyncIterator[FetcherHarness]:
    """Run a fetcher in this process; collect its publications instead of sending them.

    :param polls: poll the accounts; otherwise only the test touches them.
    """
    key = new_key()
    service = Service(
        "fetcher",
        Settings(
            database_url=database_url,
            broker_url="amqp://127.0.0.1:1/",
            secret_key=key,
            **{"allow_private_upstream": True, "data": Path(_FOLDER.name) / secrets.token_hex(8), **settings},
        ),
    )
    harness = FetcherHarness(service, service.database, Vault(key))
    service.broker.publish_behind = harness.publish  # type: ignore[method-assign]  # no broker here
    await service.database.open()
    credentials = Credentials(service.database, harness.vault, True)
    work = asyncio.create_task(scheduler.serve(service, credentials)) if polls else None
    try:
        yield harness
    finally:
        service.stopping.set()
        if work is not None:
            await work
        await service.database.close()


async def polls_well(harness: FetcherHarness, account: int) -> bool:
    return bool(
        await harness.rows("select 1 from polls where external_id = %s and last_success_at is not null", account)
    )


async def has(harness: FetcherHarness, account: int, count: int) -> bool:
    return len(await harness.bodies(account)) >= count


async def fails(harness: FetcherHarness, account: int) -> bool:
    return bool(await harness.rows("select 1 from polls where external_id = %s and last_error is not null", account))


async def is_quiet(harness: FetcherHarness, account: int) -> bool:
    return bool(
        await harness.rows(
            """select 1 from polls where external_id = %s and owner is null and quiet_until > now()
               and quiet_list is not null and first_contact_at is not null and first_contact_at < last_success_at""",
            account,
        )
    )


def mail(subject: str, body: str = "hello", received: str | None = None) -> bytes:
    trace = f"Received: from a by b; {received}\r\n" if received else ""
    return f"{trace}From: ann@customer.test\r\nTo: x@fetch.test\r\nSubject: {subject}\r\n\r\n{body}\r\n".encode()
