"""Mail that is made to cost router or sender much, on real servers: batches stay small, and other mail passes."""

from __future__ import annotations

import threading
import tracemalloc
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from services.router import deferred_mails, header_reader
from services.router.worker import RouterWorker
from services.sender import outgoing_message
from shared import routing
from shared.amqp.broker import Publication
from shared.amqp.payloads import WorkItem, read_payload
from shared.db.database import Connection, Database
from shared.routing import HeaderFacts
from shared.store import blobs
from tests.company import COMPANY, SALES, SUPPORT, apply, arrive, everyone
from tests.faults import hostile_mails
from tests.scripted_smtp import scripted_smtp
from tests.sender_harness import sending

HONEST = f"From: ann@x.example\r\nTo: Kim <{SALES}>\r\n\r\nHello\r\n".encode()


def ids(publications: Sequence[Publication], key: str) -> list[int]:
    return [
        row
        for publication in publications
        if publication.key.startswith(key)
        for row in read_payload(WorkItem, publication.body).ids
    ]


async def outcomes(database: Database, rows: Sequence[int]) -> dict[int, tuple[str, int, str]]:
    async with database.transaction() as connection:
        cursor = await connection.execute(
            "select id, state, rule, reason from inbound where id = any(%s)", (list(rows),)
        )
        return {row[0]: row[1:] for row in await cursor.fetchall()}


async def test_a_batch_of_hostile_mails_needs_little_memory(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given forty mails with 16,000 addresses each, and no limit but the one of memory
    await apply(database, COMPANY)
    externals, _ = await everyone(database)
    make = hostile_mails.kinds(SUPPORT)["short addresses"]
    rows = await arrive(database, externals[SUPPORT].id, [make(serial) for serial in range(40)])
    monkeypatch.setattr(header_reader, "BUDGET_SECONDS", float("inf"))
    # when they are routed in one transaction
    tracemalloc.start()
    try:
        publications = await RouterWorker(database, 5).handle(rows)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    # then the memory is a small part of that of all their addresses
    assert ids(publications, "routed.") == rows
    assert peak < 24 * 1024 * 1024


async def test_mail_of_every_hostile_kind_reaches_everyone(database: Database) -> None:
    await apply(database, COMPANY)
    externals, _ = await everyone(database)
    rows = await arrive(database, externals[SUPPORT].id, [make(0) for make in hostile_mails.kinds(SUPPORT).values()])
    waiting = rows
    while waiting:
        waiting = ids(await RouterWorker(database, 5).handle(waiting), "fetched.")
    found = await outcomes(database, rows)
    assert {(state, rule) for state, rule, _ in found.values()} == {("routed", 5)}


async def test_long_headers_beyond_the_budget_wait_behind_other_mail(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given long headers before an honest mail, and a budget for two of them
    await apply(database, COMPANY)
    externals, _ = await everyone(database)
    make = hostile_mails.kinds(SUPPORT)["short addresses"]
    hostile = await arrive(database, externals[SUPPORT].id, [make(serial) for serial in range(5)])
    honest = await arrive(database, externals[SALES].id, [HONEST])
    monkeypatch.setattr(header_reader, "BUDGET_OCTETS", 100_000)
    monkeypatch.setattr(header_reader, "BUDGET_SECONDS", float("inf"))
    # when the batch is handled
    publications = await RouterWorker(database, 5).handle([*hostile, *honest])
    # then the honest mail is routed with the oldest ones, and the others return to the queue
    assert sorted(ids(publications, "routed.")) == [*hostile[:2], *honest]
    assert ids(publications, "fetched.") == hostile[2:]
    assert publications[-1].key == f"fetched.{SUPPORT}"
    # and so on, until none is left
    publications = await RouterWorker(database, 5).handle(hostile[2:])
    assert (ids(publications, "routed."), ids(publications, "fetched.")) == (hostile[2:4], hostile[4:])
    publications = await RouterWorker(database, 5).handle(hostile[4:])
    assert (ids(publications, "routed."), ids(publications, "fetched.")) == (hostile[4:], [])


async def test_deferred_mails_are_not_read_from_while_others_have_their_turn(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given a router that has deferred forty mails
    await apply(database, COMPANY)
    externals, _ = await everyone(database)
    make = hostile_mails.kinds(SUPPORT)["short addresses"]
    hostile = await arrive(database, externals[SUPPORT].id, [make(serial) for serial in range(41)])
    monkeypatch.setattr(header_reader, "BUDGET_SECONDS", 0.0)
    router = RouterWorker(database, 5)
    assert ids(await router.handle(hostile), "routed.") == hostile[:1]
    loaded: list[int] = []
    prefixes = blobs.prefixes

    async def load(connection: Connection, blob_ids: Sequence[int], octets: int) -> dict[int, bytes]:
        loaded.extend(blob_ids)
        return await prefixes(connection, blob_ids, octets)

    monkeypatch.setattr(blobs, "prefixes", load)
    # when another mail follows
    honest = await arrive(database, externals[SALES].id, [HONEST])
    publications = await router.handle([*hostile[1:], *honest])
    # then that mail and one of them are routed, and few of the others are read from
    assert sorted(ids(publications, "routed.")) == [hostile[1], *honest]
    assert sorted(ids(publications, "fetched.")) == hostile[2:]
    assert len(set(loaded)) == deferred_mails.READ_AGAIN + 1


async def test_the_first_long_header_is_read_whatever_it_costs(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    await apply(database, COMPANY)
    externals, _ = await everyone(database)
    kinds = hostile_mails.kinds(SUPPORT)
    rows = await arrive(
        database,
        externals[SUPPORT].id,
        [kinds["bounce of fields"](0), kinds["many fields"](1), HONEST, kinds["short addresses"](2)],
    )
    monkeypatch.setattr(header_reader, "BUDGET_SECONDS", 0.0)
    assert ids(await RouterWorker(database, 5).handle(rows), "fetched.") == [rows[1], rows[3]]
    assert ids(await RouterWorker(database, 5).handle([rows[1], rows[3]]), "fetched.") == [rows[3]]
    assert ids(await RouterWorker(database, 5).handle([rows[3]]), "fetched.") == []


async def test_a_long_header_is_parsed_off_the_event_loop(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    # given
    await apply(database, COMPANY)
    externals, _ = await everyone(database)
    long = [hostile_mails.kinds(SUPPORT)[name](0) for name in ("short addresses", "many fields", "bounce of fields")]
    rows = await arrive(database, externals[SUPPORT].id, [HONEST, *long])
    on_loop: list[int] = []
    read_facts = routing.read_facts

    def read(head: bytes, *arguments: object) -> HeaderFacts:
        if threading.current_thread() is threading.main_thread():
            on_loop.append(len(head))
        return read_facts(head, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(routing, "read_facts", read)
    # when
    await RouterWorker(database, 5).handle(rows)
    # then
    assert len(HONEST) in on_loop
    assert max(on_loop) <= header_reader.PREFIX_OCTETS


async def test_a_submission_with_a_long_header_leaves_and_is_parsed_off_the_loop(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given a mail whose header of 300 KB repeats local addresses, and a short one
    header, _, _ = hostile_mails.submission(1, "ann@customer.org", 300_000).partition(b"\r\n\r\n")
    parsed: list[tuple[bool, int]] = []

    def watch(name: str, octets: Callable[..., int]) -> None:
        function = getattr(outgoing_message, name)

        def watched(*arguments: Any) -> Any:
            parsed.append((threading.current_thread() is threading.main_thread(), octets(*arguments)))
            return function(*arguments)

        monkeypatch.setattr(outgoing_message, name, watched)

    watch("parse_header", len)
    watch("rewrite_header", lambda header, *_: len(header.header))
    async with scripted_smtp() as provider, sending(database_url) as harness:
        await harness.accounts({SUPPORT: provider.port})
        # when
        long = await harness.submit("ann@customer.org", mail=header + b"\r\n\r\nbody\r\n")
        short = await harness.submit("ann@customer.org")
        for submission in (long, short):
            await harness.until(submission, state="done")
    # then both have left, without a local address, and the event loop parsed the short one alone
    [sent] = [taken.raw for taken in provider.taken if len(taken.raw) > 300_000]
    assert b"@local.com" not in sent.partition(b"To:")[2] and sent.endswith(b"\r\n\r\nbody\r\n")
    assert {on_loop for on_loop, octets in parsed if octets > 300_000} == {False}
    assert {on_loop for on_loop, octets in parsed if octets < 300_000} == {True}


async def test_the_reason_says_what_is_not_read(database: Database) -> None:
    await apply(database, COMPANY)
    externals, _ = await everyone(database)
    crowd = ", ".join(f"n{number}@x" for number in range(1000))
    [row] = await arrive(database, externals[SUPPORT].id, [f"To: Alex <{SUPPORT}>, {crowd}\r\n\r\nHi\r\n".encode()])
    await RouterWorker(database, 5).handle([row])
    assert await outcomes(database, [row]) == {
        row: ("routed", 5, "To has more than 1000 addresses, so everyone who shares it gets it")
    }
