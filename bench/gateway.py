"""mailgroup as in an installation: everything that ``up`` starts, with PostgreSQL and RabbitMQ in their defaults.

The project's own code creates the accounts and mailboxes that a measurement needs.
"""

from __future__ import annotations

import asyncio
import sys
import time
import urllib.request
from collections.abc import Awaitable, Callable, Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import psycopg

from bench.baselines import PASSWORD, await_until
from bench.processes import processor_seconds
from deploy.machine import ports
from deploy.machine.instance import Instance, with_free_ports
from deploy.machine.postgres import Postgres
from services.admin.accounts import apply
from services.admin.accounts.file_format import check
from shared.auth.passwords import HashingPool
from shared.db.database import Database
from shared.errors import Temporary
from shared.model import Content
from shared.provider.vault import Vault
from shared.settings import SERVICES, Settings
from shared.store import account_changes, accounts, blobs, folder_mails, inbound
from shared.store.folder_mails import Copy
from shared.store.inbound import Arrival
from tests.company import HASH, KEY

DOMAIN = "bench.local"
_SESSIONS = 2000
"""Limits the connections from one address, as in Dovecot's configuration: all load comes from this machine."""
_READY_SECONDS = 60.0
_BATCH_MAILS, _BATCH_OCTETS = 1_000, 32 * 1024 * 1024
_FAR = 86_400

T = TypeVar("T")


class Gateway:
    """A context manager; the gateway runs while it is open.

    settings: those in force, with its ports. connection: to its database, with one transaction a statement.
    """

    def __init__(self, folder: Path) -> None:
        """:param folder: for its data; PostgreSQL's user must be able to reach it."""
        folder.mkdir(parents=True, exist_ok=True)
        base = Settings(
            data=folder / "data",
            allow_private_upstream=True,
            secret_key=KEY,
            max_connections_per_address=_SESSIONS,
            max_connections_per_account=_SESSIONS,
        )
        self._instance = Instance(with_free_ports(base), say=lambda line: print(f"  {line}", file=sys.stderr))
        self.settings = self._instance.settings

    def __enter__(self) -> Self:
        self._instance.__enter__()
        self.settings = self._instance.settings
        self.connection = psycopg.connect(self.postgres.admin_url_of("mailgroup"), autocommit=True)
        return self

    @property
    def postgres(self) -> Postgres:
        """The private PostgreSQL."""
        assert self._instance.postgres is not None
        return self._instance.postgres

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.connection.close()
        self._instance.__exit__(kind, error, traceback)

    # ------------------------------------------------------------------------------------------ processes

    def pids(self) -> dict[str, int]:
        """Process ids of the services and servers, by name."""
        return self._instance.pids()

    def services(self) -> dict[str, int]:
        """Process ids of the services, by name."""
        return {name: pid for name, pid in self.pids().items() if name in SERVICES}

    def used(self) -> dict[str, float]:
        """Return the processor seconds of services and servers so far, by name, without those of ``connection``."""
        return processor_seconds(self.pids(), without=self.connection.info.backend_pid)

    def stop(self, service: str) -> None:
        """Stop a service until ``start``."""
        self._instance.stop_program(service)

    def start(self, service: str) -> None:
        """Start a service, and wait until it is ready."""
        self._instance.start_program(service)
        url = f"http://127.0.0.1:{self.settings.metrics_port_of(service)}/readyz"

        def ready() -> bool:
            try:
                urllib.request.urlopen(url, timeout=3).close()
            except OSError:
                return False
            return True

        await_until(ready, _READY_SECONDS)
        if service == "pop3_out":
            await_until(lambda: ports.greets(self.settings.pop3_port, b"+OK"), _READY_SECONDS)

    def restart(self, service: str) -> None:
        """Stop and start a service, which empties its memory."""
        self.stop(service)
        self.start(service)

    # ------------------------------------------------------------------------------------------ the database

    def value(self, sql: str, *parameters: object) -> Any:
        """The first column of the first row that the database answers."""
        row = self.connection.execute(sql.encode(), parameters).fetchone()
        return None if row is None else row[0]

    def await_value(self, wanted: object, sql: str, *parameters: object, seconds: float = 120.0) -> float:
        """Query the database until the value is ``wanted``. :return: Unix time. :raises Temporary: it never is."""
        deadline = time.monotonic() + seconds
        while (value := self.value(sql, *parameters)) != wanted:
            if time.monotonic() > deadline:
                raise Temporary(f"{value!r} instead of {wanted!r} after {seconds:g} s: {sql}")
            time.sleep(0.01)
        return time.time()

    def wait_until_idle(self) -> None:
        """Do the background work now that would otherwise disturb a measurement: vacuum, checkpoint, and the console's
        search index, which adds some hundred mails at a time."""
        self.connection.execute("update search_progress set up_to = (select last_value from mail_ids)")
        self.connection.execute("vacuum analyze")
        self.connection.execute("checkpoint")

    # ------------------------------------------------------------------------------------------ accounts

    def add(
        self,
        externals: Sequence[dict[str, Any]],
        people: Sequence[dict[str, Any]],
        due_in: float | None = None,
        apart: float = 0.0,
    ) -> float:
        """Add accounts, as ``apply`` does.

        :param due_in: seconds until the first poll of the external accounts; None: a day. :param apart: seconds between
            the polls of two accounts.
        :return: due time of the last poll (Unix time).
        """
        document = {"external_accounts": list(externals), "local_accounts": list(people)}

        async def work(database: Database) -> float:
            async with database.transaction(600.0) as connection:
                await apply.apply(connection, check(document, "bench"), Vault(KEY), HashingPool())
                cursor = await connection.execute(
                    """update polls set next_poll_at = clock_timestamp() + make_interval(
                           secs => %(due)s + %(apart)s * (array_position(%(names)s, e.address) - 1))
                       from external_accounts e where e.id = external_id and e.address = any(%(names)s)
                       returning extract(epoch from next_poll_at)::float8""",
                    {
                        "due": _FAR if due_in is None else due_in,
                        "apart": apart,
                        "names": [fields["address"] for fields in externals],
                    },
                )
                return max((float(row[0]) for row in await cursor.fetchall()), default=0.0)

        return self._with_database(work)

    def remove(self, externals: Sequence[str], people: Sequence[str]) -> None:
        """Remove accounts, as the commands do."""

        async def work(database: Database) -> None:
            async with database.transaction(600.0) as connection:
                await account_changes.lock_for_change(connection)
                for local in await accounts.load_locals(connection):
                    if local.address in people:
                        await account_changes.remove_account(connection, "local", local.id)
                for account in await accounts.load_externals(connection):
                    if account.address in externals:
                        await account_changes.remove_account(connection, "external", account.id)

        self._with_database(work)

    def _with_database(self, work: Callable[[Database], Awaitable[T]]) -> T:
        async def opened() -> T:
            database = Database(str(self.settings.database_url), "mailgroup-bench")
            await database.open()
            try:
                return await work(database)
            finally:
                await database.close()

        return asyncio.run(opened())

    def fill(self, address: str, bodies: Iterable[bytes]) -> None:
        """Deliver mails to a mailbox without the queues, with all rows of a delivery but the mail log."""

        async def put(database: Database, batch: list[bytes]) -> None:
            async with database.transaction() as connection:
                people = {person.address: person for person in await accounts.load_locals(connection)}
                local_id = people[address].id
                stored = await blobs.store_blobs(connection, [Content.from_bytes(body) for body in batch])
                arrivals = [Arrival("local", blob_id, recipients=((local_id, "bench"),)) for blob_id in stored]
                ids = await inbound.add_inbound(connection, arrivals)
                copies = await inbound.load_routed(connection, ids)
                await folder_mails.deliver_copies(
                    connection, [Copy([local_id], copy.inbound_id, copy.blob_id, copy.octets) for copy in copies]
                )
                await inbound.record_delivered(connection, copies, [], ids)

        async def work(database: Database) -> None:
            batch: list[bytes] = []
            for body in bodies:
                batch.append(body)
                if len(batch) == _BATCH_MAILS or len(batch) * len(body) > _BATCH_OCTETS:
                    await put(database, batch)
                    batch = []
            if batch:
                await put(database, batch)

        self._with_database(work)


def external(address: str, pop3_port: int = 1, smtp_port: int = 1, **fields: Any) -> dict[str, Any]:
    """Return an external account at servers of this machine, as in the accounts file; polled once a day."""
    return {
        "address": address,
        "password": PASSWORD,
        "poll_seconds": _FAR,
        "pop3": {"host": "127.0.0.1", "port": pop3_port, "tls": "none"},
        "smtp": {"host": "127.0.0.1", "port": smtp_port, "tls": "none", "auth": False, "connections": 20},
    } | fields


def imap_external(address: str, port: int, fingerprint: str | None = None, **fields: Any) -> dict[str, Any]:
    """Return an external account that is fetched from by IMAP, else as ``external``.

    :param fingerprint: of the certificate of a server with implicit TLS; None: a server without TLS.
    """
    server = {"host": "127.0.0.1", "port": port, "tls": "none"}
    if fingerprint is not None:
        server |= {"tls": "implicit", "tls_fingerprint": fingerprint}
    account = external(address, **fields) | {"imap": server}
    del account["pop3"]
    return account


def person(name: str, of: str, **fields: Any) -> dict[str, Any]:
    """Return the local account ``name@bench.local``, as in the accounts file. of: the external address it shares."""
    return {
        "address": f"{name}@{DOMAIN}",
        "user_name": name,
        "external": of,
        "password_hash": HASH,
    } | fields
