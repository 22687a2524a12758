"""A sender in the test's process, with its own database and the manual's company; its publications are collected."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from services.sender.background import SenderBackground, run_background
from services.sender.delivery import OutboundDelivery
from services.sender.submission_worker import SubmissionWorker
from shared.amqp.broker import Publication
from shared.db.database import Database
from shared.model import Content, EnvelopeRecipient, External, Local, RecipientKind
from shared.provider.credentials import Credentials
from shared.provider.vault import Vault
from shared.runtime.process import Service
from shared.settings import Settings
from shared.store import submissions, submissions_admin
from shared.store.submissions import Submission
from shared.store.submissions_admin import ListedSubmission
from tests import company
from tests.company import SALES, SUPPORT
from tests.polling import until
from tests.scripted_smtp import ScriptedSmtp, scripted_smtp

_numbers = itertools.count(1)
_FOLDER = tempfile.TemporaryDirectory(prefix="mailgroup-senders-")

MAIL = b"""\
From: alex@local.com\r
To: ann@customer.org\r
Subject: hello\r
\r
a body\r
.with dots\r
"""


class SenderHarness:
    """A sender without a broker, and what the tests need to use it."""

    def __init__(self, database_url: str, ehlo_name: str | None = None) -> None:
        self.service = Service(
            "sender",
            Settings(
                database_url=database_url,
                broker_url="amqp://127.0.0.1:1/",
                secret_key=company.KEY,
                allow_private_upstream=True,
                data=Path(_FOLDER.name) / hashlib.sha256(database_url.encode()).hexdigest(),
            ),
        )
        self.database: Database = self.service.database
        self.publications: list[Publication] = []  # in place of the broker
        self.externals: dict[str, External] = {}  # by address
        self.people: dict[str, Local] = {}  # by user name
        self.relaying = OutboundDelivery(
            self.database,
            Credentials(self.database, Vault(company.KEY), True),
            self.service.owner,
            True,
            self.publications.extend,
            ehlo_name,
        )
        self.stage = SubmissionWorker(self.database, 5.0, self.relaying.schedule)
        self.upkeep = SenderBackground(self.service, self.relaying)

    async def accounts(self, ports: dict[str, int], local_fields: dict[str, Any] | None = None, **smtp: Any) -> None:
        """Create the manual's company. :param ports: of the external accounts' SMTP servers on 127.0.0.1."""
        server = {"host": "127.0.0.1", "tls": "none", "auth": True, "connections": 2} | smtp
        await company.apply(
            self.database,
            {
                "external_accounts": [
                    company.external(
                        address,
                        smtp=server | {"port": ports.get(address, 1)},
                        aliases=["help@company.com"] if address == SUPPORT else [],
                    )
                    for address in (SUPPORT, SALES)
                ],
                "local_accounts": [
                    company.local("Alex", **(local_fields or {})),
                    company.local("Jim"),
                    company.local("Kim", SALES),
                    company.local("Tom", SALES),
                ],
            },
        )
        self.externals, self.people = await company.everyone(self.database)

    async def rows(self, sql: str, *parameters: object) -> list[tuple[Any, ...]]:
        """Execute a statement and return its rows."""
        async with self.database.transaction() as connection:
            cursor = await connection.execute(sql.encode(), parameters)
            return await cursor.fetchall() if cursor.description else []

    async def submit(
        self,
        *to: str,
        mail: bytes = MAIL,
        author: str = "Alex",
        sender: str | None = None,
        message_id: str | None = None,
        smtputf8: bool = False,
        dsn_params: str | None = None,
        dsn_params_of: dict[str, str] | None = None,
    ) -> int:
        """Submit a mail as smtp_in does, and handle it. Returns the submission's id.

        :param dsn_params: RET and ENVID. :param dsn_params_of: NOTIFY and ORCPT by recipient.
        """
        person = self.people[author]
        local_ids = {local.address: local.id for local in self.people.values()}
        external_ids = {address: external.id for address, external in self.externals.items()}

        def kind(address: str) -> RecipientKind:
            return "local" if address in local_ids else "external" if address in external_ids else "relay"

        recipients = tuple(
            EnvelopeRecipient(
                address,
                kind(address),
                local_ids.get(address) or external_ids.get(address),
                (dsn_params_of or {}).get(address),
            )
            for address in to
        )
        async with self.database.transaction() as connection:
            [submission_id] = await submissions.record_submissions(
                connection,
                [
                    Submission(
                        person.id,
                        person.external_id,
                        Content.from_bytes(mail),
                        person.address if sender is None else sender,
                        message_id or f"{next(_numbers)}@local.com",
                        not mail.isascii(),
                        smtputf8,
                        recipients,
                        dsn_params=dsn_params,
                    )
                ],
            )
        assert submission_id is not None
        self.publications += await self.stage.handle([submission_id])
        return submission_id

    async def listed(self, submission_id: int) -> ListedSubmission:
        """Return a submission as the administrator sees it."""
        async with self.database.transaction() as connection:
            [submission] = await submissions_admin.list_submissions(connection, ids=[submission_id])
        return submission

    async def until(self, submission_id: int, **wanted: object) -> ListedSubmission:
        """Wait until a submission has these values."""

        async def has_values() -> bool:
            submission = await self.listed(submission_id)
            return all(getattr(submission, name) == value for name, value in wanted.items())

        try:
            await until(has_values)
        except TimeoutError as error:
            raise AssertionError(f"never {wanted}, but {await self.listed(submission_id)}") from error
        return await self.listed(submission_id)

    async def events(self, submission_id: int) -> list[tuple[str, str | None]]:
        """Return the events of a submission, each with its address."""
        return [
            (row[0], row[1])
            for row in await self.rows(
                "select event, who from maillog where submission_id = %s order by id", submission_id
            )
        ]

    async def notices(self, name: str) -> list[bytes]:
        """Return the notices in a person's mailbox."""
        return [
            bytes(row[0])
            for row in await self.rows(
                """select m.head from inbound i join blobs m on m.id = i.blob_id
                   join deliveries d on d.inbound_id = i.id
               where i.source = 'notice' and d.local_id = %s order by i.id""",
                self.people[name].id,
            )
        ]

    async def make_due(self) -> None:
        """End every back-off now."""
        await self.rows("update submissions set next_try_at = now()")
        await self.rows("update relays set next_try_at = now()")


@asynccontextmanager
async def sending(database_url: str, ehlo_name: str | None = None) -> AsyncIterator[SenderHarness]:
    """Run a sender without a broker."""
    harness = SenderHarness(database_url, ehlo_name)
    await harness.database.open()
    work = asyncio.create_task(run_background(harness.service, harness.relaying))
    try:
        yield harness
    finally:
        harness.service.stopping.set()
        await asyncio.wait_for(harness.relaying.stop(1.0, 1.0), 120)
        await work
        await harness.database.close()


def provider_fixture(hello: str | None = None) -> Any:
    """Return the fixture ``provider`` of a test file: a scripted SMTP server. :param hello: its reply to EHLO."""

    @pytest.fixture
    async def provider() -> AsyncIterator[ScriptedSmtp]:
        async with scripted_smtp() as script:
            script.always("EHLO", hello)
            yield script

    return provider


def harness_fixture(**smtp: Any) -> Any:
    """Return the fixture ``harness`` of a test file: a sender with the manual's company, which relays to ``provider``.

    :param smtp: further fields of both external accounts' SMTP servers.
    """

    @pytest.fixture
    async def harness(database_url: str, provider: ScriptedSmtp) -> AsyncIterator[SenderHarness]:
        async with sending(database_url) as running:
            await running.accounts({SUPPORT: provider.port, SALES: provider.port}, **smtp)
            yield running

    return harness


def replies(found: ListedSubmission) -> Sequence[tuple[str, str | None]]:
    """Return state and reply of each recipient."""
    return [(recipient.state, recipient.reply) for recipient in found.recipients]
