"""The plans of statements: kept from a quiet time while tables grow, and for large batches."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from services.imap_out import structures_ahead
from services.router.worker import RouterWorker
from services.sender.submission_worker import SubmissionWorker
from shared.db.database import Connection, Database
from shared.model import Content, EnvelopeRecipient
from shared.store import folder_batches, inbound, relay_queue, submissions
from shared.store.folder_batches import FlagChange, StoreResult
from shared.store.folder_edits import copy_mails, expunge_mails, move_mails
from shared.store.folder_mails import tombstone_mails
from shared.store.folder_views import DELETED
from shared.store.folders import find_special
from shared.store.relay_queue import ClaimRequest
from shared.store.submissions import Submission
from tests.company import COMPANY, SUPPORT, apply, arrive, everyone
from tests.correspondence import ALEX, ANN, JIM, customer_mail, fetch
from tests.servers import rows_read

PLANNED = 4
"""Times that each statement is executed before its plan is kept, at least."""
GROWTH, BATCH = 600, 200
MOST_ROWS = 250
"""Limit of the rows that one mail's statements read; most are rows of its own, some of them several times."""
MOST_ROWS_OF_A_CHANGE = 100
"""The same of a change of one mail in a folder: its folders, which have some dead versions, the person and the mail."""
MOST_ROWS_OF_A_LOOK = 8
"""The same of a look whether a mail needs a structure, for each mail."""
MOST_SCANS = 10
"""Limit of the index scans for each mail that the mailbox service loads."""


class OneConnection(Database):
    """A database as a service uses it, with one connection, so that its plans can be kept and its reads counted."""

    def __init__(self, url: str) -> None:
        super().__init__(url, "mailgroup-test", few_rows=True)
        self.connection: Connection

    @asynccontextmanager
    async def statement(self, seconds: float | None = None) -> AsyncIterator[Connection]:
        yield self.connection


@pytest.fixture
async def quiet(database_url: str) -> AsyncIterator[OneConnection]:
    """The manual's company on a connection that keeps the first plan of each statement."""
    database = OneConnection(database_url)
    async with database.own_connection() as database.connection:
        await apply(database, COMPANY)
        await database.connection.execute("set plan_cache_mode = force_generic_plan")
        yield database


async def submit(database: OneConnection, *numbers: int) -> list[int]:
    """Mails of Alex to a customer and to Jim, as smtp_in commits them; their ids."""
    externals, people = await everyone(database)
    recipients = (EnvelopeRecipient(ANN, "relay"), EnvelopeRecipient(JIM, "local", people["Jim"].id))
    mails = [
        Submission(
            people["Alex"].id, externals[SUPPORT].id, Content.from_bytes(b"Message-ID: <%d@us>\r\n\r\nHi\r\n" % number),
            ALEX, f"{number}@us", False, False, recipients,
        )
        for number in numbers
    ]  # fmt: skip
    ids = await submissions.record_submissions(database.connection, mails)
    return [id_ for id_ in ids if id_ is not None]


async def send(database: OneConnection, *numbers: int) -> None:
    """Submissions on their whole way to the claim of the relay."""
    externals, _ = await everyone(database)
    ids = await submit(database, *numbers)
    await SubmissionWorker(database, 5, lambda _: None).handle(ids)
    async with database.transaction() as connection:
        request = ClaimRequest(externals[SUPPORT].id, "me", 60.0, prefetch=BATCH, prefetch_octets=1_000_000)
        claimed = (await relay_queue.claim(connection, request)).mails
        assert len(claimed) == len(ids)
        await connection.execute(
            "update submissions set state = 'done', claim_owner = null, claim_expires = null where id = any(%s)", (ids,)
        )


async def answer(database: OneConnection, *numbers: int) -> None:
    """Answers of a customer on their whole way into mailboxes."""
    await fetch(database, *(customer_mail(f"{number}@customer", f"{number}@us") for number in numbers))


@pytest.mark.parametrize("work", [send, answer])
async def test_plan_of_a_quiet_time_reads_few_rows(quiet: OneConnection, work: Callable[..., Awaitable[None]]) -> None:
    # given plans that were made while there were few mails
    for number in range(PLANNED):
        await send(quiet, number)
        await answer(quiet, number)
    # and many mails since then
    for first in range(PLANNED, GROWTH, BATCH):
        numbers = range(first, first + BATCH)
        await send(quiet, *numbers)
        await answer(quiet, *numbers)
    # when one more comes
    async with quiet.connection.transaction():
        before = await rows_read(quiet.connection)
        await work(quiet, GROWTH * 2)
        read = await rows_read(quiet.connection) - before
    # then it is found by the indexes
    assert read < MOST_ROWS


async def store_flag(connection: Connection, local_id: int, inbox: int, archive: int, uid: int) -> None:
    [result] = await folder_batches.store_flags(connection, [FlagChange(local_id, inbox, [uid], "add", DELETED)])
    assert isinstance(result, StoreResult) and [mail.uid for mail in result.changed] == [uid]


async def store_at_once(connection: Connection, local_id: int, inbox: int, archive: int, uid: int) -> None:
    [result] = await folder_batches.store_at_once(connection, [FlagChange(local_id, inbox, [uid], "add", DELETED)])
    assert result is not None and [mail.uid for mail in result.changed] == [uid]


async def copy(connection: Connection, local_id: int, inbox: int, archive: int, uid: int) -> None:
    assert [old for old, _ in (await copy_mails(connection, local_id, inbox, archive, [uid])).uids] == [uid]


async def move(connection: Connection, local_id: int, inbox: int, archive: int, uid: int) -> None:
    assert [old for old, _ in (await move_mails(connection, local_id, inbox, archive, [uid])).uids] == [uid]


async def expunge(connection: Connection, local_id: int, inbox: int, archive: int, uid: int) -> None:
    await connection.execute(
        "update folder_mails set flags = flags | %s where folder_id = %s and uid = %s", (DELETED, inbox, uid)
    )
    assert (await expunge_mails(connection, local_id, inbox, [uid])).uids == [uid]


async def delete(connection: Connection, local_id: int, inbox: int, archive: int, uid: int) -> None:
    assert len(await tombstone_mails(connection, local_id, [uid])) == 1


@pytest.mark.parametrize("change", [store_flag, store_at_once, copy, move, expunge, delete])
async def test_a_change_of_one_mail_reads_no_other_mail(
    quiet: OneConnection, change: Callable[[Connection, int, int, int, int], Awaitable[None]]
) -> None:
    # given plans that were made for a small folder, and many mails since then
    _, people = await everyone(quiet)
    local_id = people["Alex"].id
    await answer(quiet, *range(PLANNED))
    inbox, archive = [(await find_special(quiet.connection, local_id, use)).id for use in ("inbox", "archive")]
    for uid in range(1, PLANNED + 1):
        async with quiet.connection.transaction():
            await change(quiet.connection, local_id, inbox, archive, uid)
    await answer(quiet, *range(PLANNED, GROWTH))
    # when a mail is changed
    async with quiet.connection.transaction():
        before = await rows_read(quiet.connection)
        await change(quiet.connection, local_id, inbox, archive, GROWTH)
        read = await rows_read(quiet.connection) - before
    # then no other mail is read
    assert read < MOST_ROWS_OF_A_CHANGE


async def test_the_next_mails_without_a_structure_are_found_by_indexes(quiet: OneConnection) -> None:
    # given looks at the first mails, and many mails with their structures since then
    _, people = await everyone(quiet)
    await quiet.connection.execute(
        "insert into last_logins (local_id, protocol, at, peer) values (%s, 'imap', now(), '')", (people["Alex"].id,)
    )
    await answer(quiet, *range(PLANNED))
    await quiet.connection.execute("update blobs set created_at = now() - interval '1 hour'")
    for _ in range(PLANNED):
        following = await structures_ahead.list_next(quiet.connection, 0, BATCH)
        assert len(following.wanted) == PLANNED
    await answer(quiet, *range(PLANNED, GROWTH))
    await quiet.connection.execute(
        "insert into mail_structures (blob_id, structure) select id, '' from blobs where id % 10 > 0"
    )
    await quiet.connection.execute("update blobs set created_at = now() - interval '1 hour'")
    # when the next mails are looked at
    async with quiet.connection.transaction():
        before = await rows_read(quiet.connection)
        following = await structures_ahead.list_next(quiet.connection, following.last or 0, BATCH)
        read = await rows_read(quiet.connection) - before
    # then each costs some rows of its own
    assert len(following.wanted) == BATCH // 10
    assert read < MOST_ROWS_OF_A_LOOK * BATCH


async def test_a_batch_for_the_mailboxes_is_loaded_mail_by_mail(quiet: OneConnection) -> None:
    # given a batch of routed mails
    externals, _ = await everyone(quiet)
    mails = [customer_mail(f"{number}@customer", f"{number}@us") for number in range(BATCH)]
    ids = await arrive(quiet, externals[SUPPORT].id, mails)
    await RouterWorker(quiet, 5).handle(ids)
    await quiet.connection.execute("analyze inbound, deliveries")
    # when they are loaded
    async with quiet.connection.transaction():
        before = await _index_scans(quiet.connection)
        routed = await inbound.load_routed(quiet.connection, ids)
        scans = await _index_scans(quiet.connection) - before
    # then the work grows with their number, not with its square
    assert {mail.inbound_id for mail in routed} == set(ids)
    assert scans <= MOST_SCANS * BATCH


async def _index_scans(connection: Connection) -> int:
    cursor = await connection.execute("select sum(idx_scan)::int from pg_stat_xact_user_tables")
    [row] = await cursor.fetchall()
    return int(row[0])
