"""services/admin/mail/indexing.py: mail that outsiders made to be slow is indexed in bounded batches, or skipped."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import pytest
import structlog
from prometheus_client import generate_latest

from services.admin.mail import indexing, mail_search, search_index, unknown_names
from services.admin.mail.indexing import SearchIndexer
from services.admin.monitoring import background_work
from shared.db.database import Database
from shared.errors import Temporary
from tests.company import COMPANY, SUPPORT, apply, arrive, everyone
from tests.integration.test_retention import rows

HONEST = b"From: Anna <anna@customer.example>\r\nTo: support@company.com\r\nSubject: Printer smokes\r\n\r\nHelp\r\n"


def crowded(number: int) -> bytes:
    """A header full of short addresses and names."""
    to = b",".join(b'"n%d-%d"<support@company.com>' % (number, n) for n in range(400)) + b"," + b"a@b.c," * 4000
    return b"From: " + b"x@y.z," * 500 + b"\r\nTo: " + to[:31_000] + b"\r\nSubject: =?utf-8?q?x?=\r\n\r\n"


def made_up_names(number: int) -> bytes:
    """A header with as many names beside the account's address as a router reads, nearly."""
    return b"To: " + b",\r\n ".join(b'"n%d-%d"<support@company.com>' % (number, n) for n in range(90)) + b"\r\n\r\n"


async def deliver(database: Database, mails: Sequence[bytes]) -> list[int]:
    """So many mails, as they are after their delivery."""
    await apply(database, COMPANY)
    externals, _ = await everyone(database)
    ids = await arrive(database, externals[SUPPORT].id, mails)
    await rows(database, "update inbound set state = 'delivered', created_at = now() - interval '1 minute'")
    return ids


async def index_all(indexer: SearchIndexer) -> int:
    """Index until nothing is left. :return: the number of batches that failed."""
    failed = 0
    while True:
        try:
            if not (await indexer.index_next()).mails:
                return failed
        except Exception:
            failed += 1
            assert failed < 50


@asynccontextmanager
async def measured(used: list[float]) -> AsyncIterator[None]:
    """Measures how long the event loop works without letting another task run: seconds of processor time."""

    async def tick() -> None:
        while True:
            began = time.thread_time()
            await asyncio.sleep(0.001)
            used.append(time.thread_time() - began)

    task = asyncio.create_task(tick())
    yield
    task.cancel()


async def test_mails_with_thousands_of_addresses_delay_neither_index_nor_loop(database: Database) -> None:
    # given five hundred of the worst headers, and an honest mail behind them
    await deliver(database, [*(crowded(n) for n in range(500)), HONEST])
    used: list[float] = []
    # when
    async with measured(used):
        assert await index_all(SearchIndexer(database)) == 0
    # then the honest mail is found, and the loop ran all the time
    assert len(used) > 50 and max(used) < 0.5
    async with database.transaction() as connection:
        assert [mail.subject for mail in await mail_search.search(connection, mail_search.Filter("printer"))] == [
            "Printer smokes"
        ]
    assert await rows(database, "select count(*), max(cardinality(terms)) from search_index") == [(501, 120)]


async def test_names_that_outsiders_make_up_are_limited_and_forgotten(database: Database) -> None:
    # given mails with ninety names each, and a name that several customers write
    named = [b'To: "Alexander" <support@company.com>\r\n\r\n'] * 3
    await deliver(database, [*named, *(made_up_names(n) for n in range(200))])
    await index_all(SearchIndexer(database))
    # then a mail counts for five, an account has five hundred, and the honest name is among them
    [(count, most)] = await rows(
        database, "select count(*), max(c) from (select count(*) c from unknown_names group by last_mail_id) m"
    )
    assert count > 45 and most == unknown_names.NAMES_OF_MAIL
    [(count,)] = await rows(database, "select count(*) from unknown_names")
    assert unknown_names.NAMES_OF_ACCOUNT // 2 <= count <= unknown_names.NAMES_OF_ACCOUNT
    async with database.transaction() as connection:
        first, *others = await unknown_names.list_names(connection)
    assert (first.name, first.mails) == ("Alexander", 3)
    assert len(others) == unknown_names.PAGE - 1


SLOW = """create function delay() returns trigger language plpgsql as $$
    begin if new.subject = 'slow' then {what}; end if; return new; end $$;
    create trigger delay before insert on search_index for each row execute function delay()"""


@pytest.mark.parametrize("what", ["perform pg_sleep(60)", "raise exception 'no'"])
async def test_a_mail_that_cannot_be_indexed_is_skipped_and_shown(
    database: Database, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given a mail among others with which the database does not finish, or fails
    monkeypatch.setattr(indexing, "BATCH_SECONDS", 3.0)
    mails = [b"Subject: before\r\n\r\n"] * 9 + [b"Subject: slow\r\n\r\n"] + [b"Subject: behind\r\n\r\n"] * 9
    ids = await deliver(database, mails)
    await rows(database, SLOW.format(what=what))
    # when
    with structlog.testing.capture_logs() as logged:
        failed = await index_all(SearchIndexer(database))
    # then the batch was halved, that mail was tried alone, and all others are indexed
    assert failed < 20
    assert [line["lines"] for line in logged if line["event"] == "mail not indexed"] == [
        [{"id": ids[9], "trace_id": ids[9]}]
    ]
    async with database.transaction() as connection:
        subjects = await search_index.subjects(connection, ids)
        assert [mail.id for mail in await mail_search.search(connection, mail_search.Filter(SUPPORT))][9] == ids[9]
    assert [subjects[id_][1] for id_ in ids] == ["before"] * 9 + [search_index.NOT_INDEXED] + ["behind"] * 9


async def test_without_a_database_no_mail_is_skipped(database: Database) -> None:
    await deliver(database, [HONEST])
    away = SearchIndexer(Database("postgresql://127.0.0.1:1/none", "test", connections=1))
    away._database._pool.timeout = 0.2
    await away._database.open()
    for _ in range(indexing.MAX_TRIES + 7):
        with pytest.raises(Temporary):
            await away.index_next()
    await away._database.close()
    away._database = database
    assert (await away.index_next()).mails == 1
    assert await rows(database, "select subject from search_index") == [("Printer smokes",)]


async def test_a_work_that_fails_is_a_problem_and_stops_no_other(database: Database) -> None:
    # given a work that fails, and one that does not
    for work in background_work.WORKS:
        background_work.FAILING.labels(work).set(0)
    calls: list[str] = []

    async def fail() -> None:
        calls.append("fails")
        raise ZeroDivisionError

    async def succeed() -> None:
        calls.append("succeeds")

    async def enough(seconds: float) -> bool:
        await asyncio.sleep(0.01)
        return calls.count("fails") >= 2 and calls.count("succeeds") >= 2

    # when both are repeated until each of them went on
    with structlog.testing.capture_logs() as logged:
        await asyncio.gather(
            background_work.repeat("purge", 0.01, fail, database, enough),
            background_work.repeat("day count", 0.01, succeed, database, enough),
        )
    # then the status and the monitor name the one
    assert {line["event"] for line in logged} == {"purge failed"}
    said = "purge failed: old data is not deleted; see its log"
    assert background_work.describe_failures(generate_latest().decode()) == [said]
    assert [problem.text for problem in background_work.find_failures()] == [f"service admin: {said}"]
    # until it succeeds
    await background_work.run_once("purge", succeed, database)
    assert background_work.find_failures() == []
