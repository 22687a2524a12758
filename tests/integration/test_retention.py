"""services/admin/maintenance/retention.py with an injected clock: old rows are purged, and no row that is needed."""

from __future__ import annotations

import asyncio
import datetime
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import structlog

from services.admin.access import audit
from services.admin.mail import operations
from services.admin.maintenance import retention
from services.admin.maintenance.retention import Purge, StepsFailed
from services.admin.monitoring import reconciliation
from services.mailbox.worker import MailboxWorker
from services.router.worker import RouterWorker
from shared.db import leases
from shared.db.database import Connection, Database
from shared.errors import Permanent
from shared.model import Content
from shared.store import account_changes, blobs, folder_admin, folder_mails
from tests.company import COMPANY, SUPPORT, apply, arrive, everyone, mailbox_of
from tests.scripted_smtp import scripted_smtp
from tests.sender_harness import SenderHarness, sending

ALEX, JIM = "alex@local.com", "jim@local.com"
ANN = "ann@customer.org"


@pytest.fixture(autouse=True)
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retention, "PAUSE_SECONDS", 0.0)


async def purge(database: Database, days: float, retention_days: int = 14) -> Counter[str]:
    """Run retention as in so many days, in batches of two. Returns what was purged."""

    return +await Purge(database, retention_days, asyncio.Event(), later(days), batch=2).run()


def later(days: float) -> Callable[[Connection], Awaitable[datetime.datetime]]:
    """A clock that is so many days ahead."""

    async def clock(connection: Connection) -> datetime.datetime:
        return await retention.database_time(connection) + datetime.timedelta(days=days)

    return clock


async def rows(database: Database, sql: str, *parameters: object) -> list[tuple[Any, ...]]:
    async with database.transaction() as connection:
        cursor = await connection.execute(sql.encode(), parameters)
        return await cursor.fetchall() if cursor.description else []


async def counts(database: Database, *tables: str) -> list[int]:
    return [(await rows(database, f"select count(*) from {table}"))[0][0] for table in tables]


async def deliver(database: Database, count: int) -> list[int]:
    """So many mails for Alex and Jim; their ids."""
    externals, _ = await everyone(database)
    mails = [f"To: {SUPPORT}\r\nSubject: {n}\r\n\r\n".encode() + b"x" * 300_000 for n in range(count)]
    ids = await arrive(database, externals[SUPPORT].id, mails)
    await RouterWorker(database, 5).handle(ids)
    await MailboxWorker(database, 5).handle(ids)
    return ids


async def delete(database: Database, name: str, ids: list[int]) -> None:
    _, people = await everyone(database)
    async with database.transaction() as connection:
        entries = await folder_admin.list_mails(connection, people[name].id)
        wanted = [entry.uid for entry in entries if entry.mail_id in ids]
        await folder_mails.tombstone_mails(connection, people[name].id, wanted)


async def test_deleted_mail_goes_after_the_retention_time_with_its_last_copy(database: Database) -> None:
    # given five mails: three deleted by both, one by Alex alone
    await apply(database, COMPANY)
    ids = await deliver(database, 5)
    await delete(database, "Alex", ids[:4])
    await delete(database, "Jim", ids[:3])
    # then nothing is purged before its time
    assert await purge(database, 13) == Counter()
    # and after it copies, mails and bytes are purged, except mails that a person still has
    assert await purge(database, 15) == Counter(copies=7, mails=3, bytes=3)
    assert await counts(database, "inbound", "blobs", "blob_chunks", "folder_mails", "delivered") == [2, 2, 2, 3, 4]
    assert [len(await mailbox_of(database, address)) for address in (ALEX, JIM)] == [1, 2]
    # no purged mail returns, and the counts still balance
    async with database.snapshot() as connection:
        assert await operations.list_deleted(connection, ALEX) == []
        _, found = await reconciliation.load_accounts(connection, thoroughly=True)
    assert (found.fetched, found.books.delivered, found.difference) == (5, 5, 0)
    assert await purge(database, 15) == Counter()


async def test_a_removed_account_s_mail_is_purged_and_restore_is_over_then(database: Database) -> None:
    await apply(database, COMPANY)
    await deliver(database, 3)
    _, people = await everyone(database)
    async with database.transaction() as connection:
        await account_changes.remove_account(connection, "local", people["Alex"].id)
    assert await purge(database, 13) == Counter()
    assert await purge(database, 15) == Counter(copies=3, secrets=1)
    assert len(await mailbox_of(database, JIM)) == 3
    with pytest.raises(Permanent, match="removed longer ago than mail is kept"):
        async with database.transaction() as connection:
            await operations.restore_account(connection, ALEX)


async def test_sign_ins_are_purged_and_changes_stay(database: Database) -> None:
    async with database.transaction() as connection:
        await audit.record_sign_in(connection, "admin", "127.0.0.1")
        await audit.record_sign_in(connection, "", "127.0.0.1", refused=True)
        await audit.record_change(connection, "admin", "changed local account", ALEX)
    assert await purge(database, 89) == Counter()
    assert await purge(database, 91) == Counter(sign_ins=2)
    assert await rows(database, "select did from audit") == [("changed local account",)]


async def submit(harness: SenderHarness, *to: str) -> int:
    id_ = await harness.submit(*to)
    await harness.until(id_, state="done")
    return id_


async def test_a_sent_mail_is_purged_except_bytes_that_others_refer_to(database_url: str) -> None:
    async with scripted_smtp() as provider, sending(database_url) as harness:
        # given a mail that was relayed, one that went to Jim too, and one that waits
        await harness.accounts({SUPPORT: provider.port})
        await submit(harness, ANN)
        shared = await submit(harness, ANN, JIM)
        provider.always("RCPT", "451 4.3.0 later")
        waiting = await harness.submit(ANN)
        await harness.until(waiting, state="queued", tries=1)
        await MailboxWorker(harness.database, 5).handle([r[0] for r in await harness.rows("select id from inbound")])
        # then the first two are purged, and Jim still has his copy
        assert await purge(harness.database, 15) == Counter(submissions=2)
        assert len(await mailbox_of(harness.database, JIM)) == 1
        assert await harness.rows("select id from submissions") == [(waiting,)]
        assert await harness.rows("select submission_id from inbound") == [(None,)]
        # and the bytes of the first one go with the copy in its author's Sent
        await harness.rows(
            """update folder_mails set expunged_at = now(), expunged_as = 'deleted'
               where folder_id in (select id from folders where special_use = 'sent')"""
        )
        assert await purge(harness.database, 15) == Counter(copies=3, bytes=1)
        # and an answer still finds its author, for five years
        assert len(await harness.rows("select 1 from sent_mail where submission_id = %s", shared)) == 1
        assert await purge(harness.database, 5 * 365) != Counter()
        assert len(await harness.rows("select 1 from sent_mail")) == 3
        assert (await purge(harness.database, 5 * 366 + 1))["authors"] == 3


async def test_a_cancelled_mail_is_kept_until_its_author_has_a_notice(database_url: str) -> None:
    async with scripted_smtp() as provider, sending(database_url) as harness:
        await harness.accounts({SUPPORT: provider.port})
        provider.always("RCPT", "451 4.3.0 later")
        id_ = await harness.submit(ANN)
        await harness.until(id_, state="queued", tries=1)
        async with harness.database.transaction() as connection:
            await operations.cancel(connection, [id_])
        await harness.rows("update submissions set cancelled = 'not told yet'")
        assert (await purge(harness.database, 15))["submissions"] == 0


async def test_old_traces_discarded_mails_and_orphans_are_purged(database: Database) -> None:
    await apply(database, COMPANY)
    externals, _ = await everyone(database)
    ids = await arrive(database, externals[SUPPORT].id, [b"Subject: x\r\n\r\n"])
    await RouterWorker(database, 5).handle(ids)
    await rows(database, "update inbound set state = 'held'")
    async with database.transaction() as connection:
        await operations.discard(connection, ids, "test")
        [orphan] = await blobs.store_blobs(connection, [Content.from_bytes(b"x" * 300_000)])
    events = (await counts(database, "maillog"))[0]
    # bytes that a transaction may just be about to refer to stay
    assert await purge(database, 0.5) == Counter()
    assert await purge(database, 2) == Counter(bytes=1)
    assert await rows(database, "select id from blobs where id = %s", orphan) == []
    assert await purge(database, 15) == Counter(mails=1, bytes=1)
    assert await purge(database, 89) == Counter()
    assert await purge(database, 91) == Counter(events=events)
    async with database.snapshot() as connection:
        _, found = await reconciliation.load_accounts(connection, thoroughly=True)
    assert (found.fetched, found.difference) == (1, 0)


async def test_the_ledger_keeps_mails_that_the_provider_may_list(database: Database) -> None:
    await apply(database, COMPANY)
    ids = await deliver(database, 3)
    for state, id_ in zip(("fetched", "closed", "vanished"), ids, strict=True):
        await rows(database, "update uidl_ledger set state = %s, before = null where inbound_id = %s", state, id_)
    assert await purge(database, 15) == Counter(ledger=1)
    assert await rows(database, "select state from uidl_ledger order by id") == [("fetched",), ("vanished",)]
    assert (await purge(database, 366))["ledger"] == 1
    assert await rows(database, "select state from uidl_ledger") == [("fetched",)]
    # a mail that is purged leaves its digest there
    await delete(database, "Alex", ids)
    await delete(database, "Jim", ids)
    await purge(database, 15)
    assert await counts(database, "inbound") == [0]
    assert len(await rows(database, "select 1 from uidl_ledger where sha256 is not null and octets > 300000")) == 1


async def test_only_one_process_purges(database: Database) -> None:
    async with database.transaction() as connection:
        assert await leases.take_lease(connection, retention.LEASE, "first", 60)
        assert not await leases.take_lease(connection, retention.LEASE, "second", 60)
        assert await leases.take_lease(connection, retention.LEASE, "first", 60)
        await leases.release_lease(connection, retention.LEASE, "second")
        assert not await leases.take_lease(connection, retention.LEASE, "second", 60)
        await leases.release_lease(connection, retention.LEASE, "first")
        assert await leases.take_lease(connection, retention.LEASE, "second", 60)


async def test_a_batch_that_takes_too_long_is_halved_until_it_does_not(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given deleted copies, of which more than four at once take half a minute
    await apply(database, COMPANY)
    ids = await deliver(database, 20)
    await delete(database, "Alex", ids)
    await rows(
        database,
        """create function delay() returns trigger language plpgsql as $$
               begin if (select count(*) from gone) > 4 then perform pg_sleep(30); end if; return null; end $$;
           create trigger delay after delete on folder_mails referencing old table as gone
               for each statement execute function delay()""",
    )
    monkeypatch.setattr(retention, "BATCH_SECONDS", 2.0)
    # when
    pass_ = Purge(database, 14, asyncio.Event(), later(15))
    with structlog.testing.capture_logs() as logged:
        total = await pass_.run()
    # then all are purged in smaller batches
    assert total["copies"] == 20
    halved = [line["rows"] for line in logged if line["event"] == "purge batch halved"]
    assert halved and halved == [500 // 2**n for n in range(1, len(halved) + 1)] and halved[-1] in (3, 1)


async def test_a_step_that_fails_stops_no_other_step(database: Database) -> None:
    # given deleted mail that the database does not let go, and old traces
    await apply(database, COMPANY)
    ids = await deliver(database, 2)
    await delete(database, "Alex", ids)
    await rows(
        database,
        """create function forbid() returns trigger language plpgsql as $$
               begin raise exception 'no'; end $$;
           create trigger forbid before delete on folder_mails for each row execute function forbid()""",
    )
    # when
    with structlog.testing.capture_logs() as logged, pytest.raises(StepsFailed, match="tombstones"):
        await Purge(database, 14, asyncio.Event(), later(91)).run()
    # then the other steps are done, and the log names the one
    assert await counts(database, "maillog", "folder_mails") == [0, 4]
    assert [line["step"] for line in logged if line["event"] == "purge step failed"] == ["tombstones"]


async def test_names_and_index_rows_go_with_their_mails(database: Database) -> None:
    await apply(database, COMPANY)
    ids = await deliver(database, 3)
    await rows(
        database,
        """insert into search_index (mail_id, at, sender, subject, terms)
           select id, now(), '', '', '{}'::text[] from inbound
           union all select 999999999, now(), '', '', '{}'""",
    )
    await rows(
        database,
        """insert into unknown_names (external_id, name, shown, mails, last_mail_id, last_at)
           select min(id), 'x', 'X', 7, 1, now() from external_accounts""",
    )
    assert await purge(database, 1) == Counter(index=1)
    assert [row[0] for row in await rows(database, "select mail_id from search_index order by 1")] == ids
    assert (await purge(database, 91))["names"] == 1


async def test_tables_that_are_purged_are_vacuumed_when_few_rows_are_dead(database: Database) -> None:
    found = await rows(
        database,
        """select c.relname, t.reloptions from pg_class c left join pg_class t on t.oid in (c.oid, c.reltoastrelid)
           where c.relname in ('blobs', 'blob_chunks', 'inbound', 'deliveries', 'folder_mails', 'uidl_ledger',
                   'maillog')
               and (t.oid = c.oid or c.relname in ('blobs', 'blob_chunks'))""",
    )
    assert len(found) == 9  # the bytes are in the TOAST tables of blobs and blob_chunks
    assert {tuple(options) for _, options in found} == {("autovacuum_vacuum_scale_factor=0.02",)}
