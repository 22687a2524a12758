"""Mail between the manual's company (tests/company.py) and a customer, as the services record, route and deliver it."""

from __future__ import annotations

import asyncio
import datetime

from services.admin.maintenance import retention
from services.admin.maintenance.retention import Purge
from services.mailbox.worker import MailboxWorker
from services.router.worker import RouterWorker
from shared.amqp.payloads import WorkItem, read_payload
from shared.db.database import Connection, Database
from shared.model import Content, EnvelopeRecipient
from shared.store import submissions
from shared.store.submissions import Submission
from tests.company import SUPPORT, arrive, everyone, mailbox_of

ALEX, JIM, KIM = "alex@local.com", "jim@local.com", "kim@local.com"
ANN = "anna@x.example"
BODY = b"Dear Anna,\r\n\r\nthe price is 100.\r\n"
SENT = b"From: Alex <support@company.com>\r\nTo: anna@x.example\r\nMessage-ID: <ours@local.com>\r\n\r\n" + BODY


async def submit(database: Database, name: str, mail: bytes, *to: str, through: str = SUPPORT) -> int:
    """A submission as smtp_in commits it; its id."""
    externals, people = await everyone(database)
    message_id = mail.partition(b"Message-ID: <")[2].partition(b">")[0].decode()
    recipients = tuple(EnvelopeRecipient(address, "relay") for address in to or (ANN,))
    content = Content.from_bytes(mail)
    submission = Submission(people[name].id, externals[through].id, content, ALEX, message_id, False, False, recipients)
    async with database.transaction() as connection:
        [id_] = await submissions.record_submissions(connection, [submission])
    assert id_ is not None
    return id_


async def fetch(database: Database, *mails: bytes, account: str = SUPPORT) -> list[int]:
    """Mails that the provider lists, routed and delivered."""
    externals, _ = await everyone(database)
    rows = await arrive(database, externals[account].id, mails)
    routed = await RouterWorker(database, 5).handle(rows)
    await MailboxWorker(database, 5).handle(
        [row for publication in routed for row in read_payload(WorkItem, publication.body).ids]
    )
    return rows


def customer_mail(message_id: str, answers: str = "") -> bytes:
    reference = f"In-Reply-To: <{answers}>\r\n" if answers else ""
    return (f"From: {ANN}\r\nTo: {SUPPORT}\r\nMessage-ID: <{message_id}>\r\n{reference}\r\nHi\r\n").encode()


async def readers(database: Database, mail: bytes) -> list[str]:
    """Who has this mail."""
    return [address for address in (ALEX, JIM, KIM) if mail in await mailbox_of(database, address)]


async def purge(database: Database, days: float) -> None:
    """A pass of the retention as it is done so many days from now."""

    async def clock(connection: Connection) -> datetime.datetime:
        return await retention.database_time(connection) + datetime.timedelta(days=days)

    await Purge(database, 14, asyncio.Event(), clock).run()
