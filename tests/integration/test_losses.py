"""Ways to lose, duplicate or block a mail: concurrent workers, a removal in between, rare failures."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import psycopg
import pytest
from pika.adapters.asyncio_connection import AsyncioConnection

import shared.amqp.broker
from services.mailbox.worker import MailboxWorker
from services.router.worker import RouterWorker
from services.sender import outcomes
from services.sender.account_relay import AccountRelay
from shared.amqp import publications, topology
from shared.amqp.broker import Broker, Publication
from shared.auth.passwords import HashingPool
from shared.db.database import Database
from shared.errors import MAX_FAILURES, Temporary
from shared.model import Content
from shared.runtime import queue_worker
from shared.runtime.process import Service
from shared.runtime.queue_worker import run_worker
from shared.settings import Settings
from shared.store import account_changes, blobs, inbound, inbound_admin
from shared.store.inbound import Arrival
from tests import company
from tests.company import COMPANY, SUPPORT, apply, arrive, everyone, external, local, mailbox_of
from tests.polling import until
from tests.scripted_smtp import ScriptedSmtp
from tests.sender_harness import SenderHarness, harness_fixture, provider_fixture

ANN = "ann@customer.org"


def mail(to: str, subject: str = "x") -> bytes:
    return f"From: anna@x.example\r\nTo: {to}\r\nSubject: {subject}\r\n\r\nHello\r\n".encode()


async def states(database: Database) -> list[str]:
    async with database.transaction() as connection:
        return [row[0] for row in await (await connection.execute("select state from inbound order by id")).fetchall()]


# ---------------------------------------------------------------------------------------------- two at once


async def test_a_mail_routed_while_its_stale_message_is_handled_is_delivered(
    database: Database,
) -> None:
    # given a message for the mailbox service of a mail that went back to the router
    await apply(database, COMPANY)
    externals, _ = await everyone(database)
    rows = await arrive(database, externals[SUPPORT].id, [mail(SUPPORT)])
    async with database.transaction() as connection:
        copies = await inbound.load_routed(connection, rows)
        assert copies == []
        # when the router decides between the two queries
        await RouterWorker(database, 5).handle(rows)
        await inbound.record_delivered(connection, [], [], rows)
    # then the mail does not count as delivered
    assert await states(database) == ["routed"]
    await MailboxWorker(database, 5).handle(rows)
    assert len(await mailbox_of(database, "alex@local.com")) == 1


async def test_a_mail_held_by_a_router_unaware_of_a_new_sharer_is_delivered(
    database: Database,
) -> None:
    # given a router that read the accounts before a person was enabled and writes after that
    await apply(database, {"external_accounts": [external()], "local_accounts": [local("Alex", enabled=False)]})
    externals, _ = await everyone(database)
    rows = await arrive(database, externals[SUPPORT].id, [mail(SUPPORT)])
    async with database.transaction() as connection:
        await inbound.load_fetched(connection, rows)
        await apply(database, {"external_accounts": [external()], "local_accounts": [local("Alex")]})
        await inbound.write_decisions(connection, [inbound.RoutingResult(rows[0], (), None, "held: nobody", False)])
    assert await states(database) == ["held"]
    # then the sweep finds it
    assert len(await RouterWorker(database, 5).sweep()) == 1
    await RouterWorker(database, 5).handle(rows)
    await MailboxWorker(database, 5).handle(rows)
    assert len(await mailbox_of(database, "alex@local.com")) == 1


async def test_mail_without_an_enabled_sharer_stays_held(database: Database) -> None:
    await apply(database, {"external_accounts": [external()], "local_accounts": [local("Alex", enabled=False)]})
    externals, _ = await everyone(database)
    await RouterWorker(database, 5).handle(await arrive(database, externals[SUPPORT].id, [mail(SUPPORT)]))
    assert await RouterWorker(database, 5).sweep() == []
    assert await states(database) == ["held"]


# ---------------------------------------------------------------------------------------------- removed people


async def test_a_requeued_mail_is_routed_again_for_those_without_a_copy(database: Database) -> None:
    # given a mail to Alex and Jim: Jim has it, Alex was removed before, and then the router failed five times
    await apply(database, COMPANY)
    externals, _ = await everyone(database)
    rows = await arrive(database, externals[SUPPORT].id, [mail(f'"Alex" <{SUPPORT}>, "Jim" <{SUPPORT}>')])
    await RouterWorker(database, 5).handle(rows)
    people = [person for person in COMPANY["local_accounts"] if person["user_name"] != "Alex"]
    await apply(database, COMPANY | {"local_accounts": [*people, local("Eve")]}, prune=True)
    await MailboxWorker(database, 5).handle(rows)
    for _ in range(5):
        await RouterWorker(database, 5).count_failure(rows[0], "router", "boom")
    assert await states(database) == ["parked"]
    async with database.transaction() as connection:
        await inbound_admin.requeue_inbound(connection, rows)
    # when it is requeued, then the router decides about it again, and Jim keeps his one copy
    assert await states(database) == ["fetched"]
    await RouterWorker(database, 5).handle(rows)
    await MailboxWorker(database, 5).handle(rows)
    assert await states(database) == ["delivered"]
    assert len(await mailbox_of(database, "jim@local.com")) == 1


async def test_a_mail_to_a_removed_person_s_local_address_is_held_until_a_return(
    database: Database,
) -> None:
    # given a mail to Jim's and Kim's local addresses, and Jim removed before its delivery
    await apply(database, COMPANY)
    _, people = await everyone(database)
    async with database.transaction() as connection:
        [blob_id] = await blobs.store_blobs(connection, [Content.from_bytes(mail("jim@local.com"))])
        rows = await inbound.add_inbound(
            connection,
            [
                Arrival(
                    "local",
                    blob_id,
                    recipients=((people["Jim"].id, "sent to Jim"), (people["Kim"].id, "sent to Kim")),
                )
            ],
        )
        await account_changes.remove_account(connection, "local", people["Jim"].id)
    hints = await MailboxWorker(database, 5).handle(rows)
    assert [(hint.key, hint.transient) for hint in hints] == [("changed.kim@local.com", True)]
    # then no other person sees it, and Kim has it
    assert await states(database) == ["held"]
    assert len(await mailbox_of(database, "kim@local.com")) == 1
    await RouterWorker(database, 5).sweep()
    assert await states(database) == ["held"]
    # when Jim is back, then he gets it, and Kim no second time
    async with database.transaction() as connection:
        await account_changes.restore_local(connection, "jim@local.com")
    await RouterWorker(database, 5).sweep()
    swept = await MailboxWorker(database, 5).sweep()
    assert [publication.key for publication in swept] == ["routed.jim@local.com"]
    await MailboxWorker(database, 5).handle(rows)
    assert len(await mailbox_of(database, "jim@local.com")) == len(await mailbox_of(database, "kim@local.com")) == 1
    assert await states(database) == ["delivered"]


async def test_a_discarded_own_copy_does_not_unbalance_the_books(database: Database) -> None:
    await apply(database, COMPANY)
    externals, _ = await everyone(database)
    rows = await arrive(database, externals[SUPPORT].id, [mail(SUPPORT)])
    async with database.transaction() as connection:
        await connection.execute("update inbound set state = 'parked', own_copy = true")
        await inbound_admin.discard_inbound(connection, rows, "test")
        found = (await inbound_admin.count_inbound(connection))[externals[SUPPORT].id]
    assert (found.delivered, found.total) == (1, 1)


async def test_hashing_passwords_delays_no_poll_and_no_relaying(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given a change of an external account and of a password in one transaction
    await apply(database, COMPANY)
    free: list[int] = []

    async def slow(self: HashingPool, password: str) -> str:
        async with database.transaction() as connection:
            for table in ("polls", "relays", "external_accounts"):
                rows = await (
                    await connection.execute(f"select 1 from {table} for update skip locked".encode())
                ).fetchall()
                free.append(len(rows))
        return company.HASH

    monkeypatch.setattr(HashingPool, "hash", slow)
    changed = local("Alex") | {"password": "another"}
    del changed["password_hash"]
    await apply(database, COMPANY | {"external_accounts": [external(poll_seconds=7)], "local_accounts": [changed]})
    # then nothing of the accounts was locked while it was hashed
    assert free == [2, 2, 2]


# ---------------------------------------------------------------------------------------------- faults


async def test_a_traceback_with_a_nul_or_half_a_character_counts_like_any_other(database: Database) -> None:
    await apply(database, COMPANY)
    externals, _ = await everyone(database)
    rows = await arrive(database, externals[SUPPORT].id, [mail(SUPPORT)])
    for _ in range(MAX_FAILURES):
        await RouterWorker(database, 5).count_failure(rows[0], "router", "bad header: \0 \ud800")
    assert await states(database) == ["parked"]


async def test_a_value_too_large_for_an_index_is_no_temporary_failure(database: Database) -> None:
    with pytest.raises(psycopg.errors.ProgramLimitExceeded):
        async with database.transaction() as connection:
            await connection.execute("create temporary table t (a text primary key)")
            await connection.execute("insert into t select string_agg(md5(n::text), '') from generate_series(1, 500) n")


class Scripted:
    """A stage that does what the test says. handled: the ids of each attempt."""

    name, queue, batch = "test", topology.ROUTER, 200

    def __init__(self) -> None:
        self.handled: list[list[int]] = []
        self.done: set[int] = set()
        self.swept = 0
        self.too_many = 1000
        self.failing: set[int] = set()

    async def handle(self, ids: Sequence[int]) -> list[Publication]:
        self.handled.append(list(ids))
        if len(ids) > self.too_many:
            raise Temporary("no answer within 60 s")
        if self.failing & set(ids):
            raise ValueError("boom")
        self.done.update(ids)
        return []

    async def count_failure(self, row: int, origin: str, trace: str, failures: int = 1) -> None:
        raise ValueError("the fault cannot be written down")

    async def sweep(self) -> Sequence[Publication]:
        self.swept += 1
        return []


@pytest.fixture
async def service(database_url: str, broker_url: str) -> AsyncIterator[Service]:
    made = Service("router", Settings(database_url=database_url, broker_url=broker_url, secret_key=company.KEY))
    yield made
    await made.broker.close()


async def running(service: Service, scripted: Scripted) -> asyncio.Task[None]:
    work = asyncio.create_task(run_worker(service, scripted))
    await asyncio.sleep(0)
    await service.broker.open()
    await until(lambda: service.broker.ready)
    return work


async def stopped(service: Service, work: asyncio.Task[None]) -> None:
    service.stopping.set()
    async with asyncio.timeout(20):
        await work


def envelopes(numbers: Sequence[int]) -> list[Publication]:
    return [each for number in numbers for each in publications.fetched([(number, SUPPORT)])]


async def test_a_stage_sweeps_also_while_mail_keeps_coming(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queue_worker, "BUSY_SECONDS", 2.0, raising=False)
    scripted = Scripted()
    work = await running(service, scripted)
    # given a mail every 0.2 seconds, so that the stage never rests for a second
    for number in range(25):
        await service.broker.publish(envelopes([number]))
        await asyncio.sleep(0.2)
    assert scripted.swept
    await stopped(service, work)


async def test_a_batch_too_large_for_one_transaction_is_handled_in_parts(service: Service) -> None:
    scripted = Scripted()
    scripted.too_many = 2
    work = await running(service, scripted)
    await service.broker.publish(envelopes(range(8)))
    await until(lambda: len(scripted.done) == 8)
    await stopped(service, work)


async def test_a_failure_that_cannot_be_recorded_does_not_end_the_worker(service: Service) -> None:
    scripted = Scripted()
    scripted.failing = {1}
    work = await running(service, scripted)
    await service.broker.publish(envelopes([1]))
    await until(lambda: scripted.handled)
    await service.broker.publish(envelopes([2]))
    await until(lambda: 2 in scripted.done)
    await stopped(service, work)


async def test_the_late_end_of_an_old_connection_does_not_affect_the_new_one(
    broker_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ends: list[Callable[[object, object], None]] = []

    connection = AsyncioConnection

    def connecting(*parameters: Any, **named: Any) -> AsyncioConnection:
        ends.append(named["on_close_callback"])
        return connection(*parameters, **named)

    monkeypatch.setattr(shared.amqp.broker, "AsyncioConnection", connecting)
    broker = Broker(broker_url, "test")
    await broker.open()
    try:
        await until(lambda: broker.ready)
        # given a connection that was given up, and the next one
        assert broker._lost is not None
        broker._lost.set_result("the broker does not answer")
        await until(lambda: len(ends) == 2 and broker.ready)
        # when the old one ends at last
        ends[0](None, "closed")
        # then the new one is used
        assert broker.ready
        await broker.publish(envelopes([1]))
    finally:
        await broker.close()


# ---------------------------------------------------------------------------------------------- relaying


provider = provider_fixture()
harness = harness_fixture()


async def test_a_sender_never_claims_again_what_it_is_still_sending(
    harness: SenderHarness, provider: ScriptedSmtp
) -> None:
    # given a mail being sent whose claim another sender released after a database outage
    provider.gates["DATA"] = asyncio.Event()
    id_ = await harness.submit(ANN)
    await harness.until(id_, state="claimed")
    await until(lambda: _said(provider, "DATA"))
    await harness.rows("update submissions set state = 'queued', claim_owner = null, claim_expires = null")
    # when this sender claims mail
    await asyncio.sleep(2.0)
    assert (await harness.listed(id_)).state == "queued"
    # then the first attempt ends without the final dot, and the mail is sent once
    provider.gates["DATA"].set()
    await harness.until(id_, state="done")
    assert len(provider.taken) == 1


async def _said(provider: ScriptedSmtp, verb: str) -> bool:
    return bool(provider.said(verb))


async def test_a_mail_whose_result_cannot_be_recorded_is_not_sent_again(
    harness: SenderHarness, provider: ScriptedSmtp, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> list[str]:
        raise ValueError("an answer that nobody thought of")

    monkeypatch.setattr(outcomes, "provider_message_ids", broken)
    id_ = await harness.submit(ANN)
    found = await harness.until(id_, state="parked")
    assert len(provider.taken) == 1
    assert found.error is not None and "an answer that nobody thought of" in found.error


async def test_a_lane_that_fails_releases_its_mail(harness: SenderHarness, monkeypatch: pytest.MonkeyPatch) -> None:
    begun = asyncio.Event()

    async def broken(*_: object) -> None:
        begun.set()
        raise ValueError("nobody thought of this")

    monkeypatch.setattr(AccountRelay, "_relay", broken)
    await harness.submit(ANN)
    await begun.wait()
    await until(lambda: not harness.relaying.claims.claimed_ids)  # so the claim runs out
