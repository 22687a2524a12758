"""What a sender may take over, and what it must record, while the database or its own connection fails."""

from __future__ import annotations

import asyncio
import datetime
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from deploy.machine import ports
from deploy.machine.postgres import Postgres
from services.sender import claims, outcomes
from services.sender.background import RENEW_SECONDS
from services.sender.dead_owners import UNRENEWED_SECONDS, ExpiredClaims
from shared.errors import Temporary
from shared.runtime.liveness import hold_process_lock
from shared.store import relay_queue
from tests.company import SUPPORT
from tests.faults.proxy import Proxy
from tests.polling import until
from tests.scripted_smtp import PIPELINING, ScriptedSmtp
from tests.sender_harness import SenderHarness, provider_fixture, sending

ANN = "ann@customer.org"


provider = provider_fixture(PIPELINING)


@asynccontextmanager
async def read_only(postgres: Postgres) -> AsyncIterator[None]:
    """Make the whole server read-only, as a full disk's guard or an old primary is."""
    async with await psycopg.AsyncConnection.connect(postgres.admin_url_of("postgres"), autocommit=True) as operator:

        async def current() -> object:
            async with await psycopg.AsyncConnection.connect(postgres.admin_url_of("postgres")) as fresh:
                return await (await fresh.execute("show default_transaction_read_only")).fetchone()

        async def switch(statement: str) -> None:
            await operator.execute(statement.encode())
            before = await current()
            await operator.execute("select pg_reload_conf()")

            async def is_read() -> bool:
                return await current() != before

            await until(is_read)  # every backend was told at the same time, and reads it before its next statement

        await switch("alter system set default_transaction_read_only = on")
        try:
            yield
        finally:
            await switch("alter system reset default_transaction_read_only")


async def states(harness: SenderHarness) -> dict[str, int]:
    return dict(await harness.rows("select state, count(*)::int from submissions group by 1"))


async def until_states(harness: SenderHarness, **wanted: int) -> None:
    async def so() -> bool:
        with suppress(Temporary):
            return await states(harness) == wanted
        return False

    try:
        await until(so)
    except TimeoutError as error:
        raise AssertionError(f"never so: {wanted}, but {await states(harness)}") from error


@asynccontextmanager
async def another(database_url: str, harness: SenderHarness) -> AsyncIterator[SenderHarness]:
    """Run a second sender, which would send what it takes over."""
    async with sending(database_url) as running:
        running.externals, running.people = harness.externals, harness.people
        yield running


# ---------------------------------------------------------------------------------------------- read-only


async def test_mails_accepted_while_the_database_is_read_only_leave_once(
    postgres: Postgres, database_url: str, provider: ScriptedSmtp, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given two mails without an answer and some that wait, leases that expire soon, and two senders
    monkeypatch.setattr(claims, "CLAIM_SECONDS", 10.0)
    async with sending(database_url) as harness, another(database_url, harness) as other:
        await harness.accounts({SUPPORT: provider.port}, connections=2)
        other.externals, other.people = harness.externals, harness.people
        provider.gates["END"] = asyncio.Event()
        for _ in range(10):
            await harness.submit(ANN)
        await until_states(harness, sent_unanswered=2, queued=8)
        # when the database is read-only for longer than these leases, and the provider accepts both mails
        async with read_only(postgres):
            provider.gates["END"].set()
            await asyncio.sleep(21.0)
            # then no other mail is sent meanwhile
            assert len(provider.taken) == 2
        await until_states(harness, done=10)
        # then each was sent once, and none is uncertain
        assert len(provider.taken) == 10
        assert await harness.rows("select count(*)::int from submissions where uncertain or failures > 0") == [(0,)]
        assert not (harness.relaying.claims.is_recording_blocked or other.relaying.claims.is_recording_blocked)


async def test_a_stop_while_the_database_fails_records_what_was_answered(
    postgres: Postgres, database_url: str, provider: ScriptedSmtp
) -> None:
    async with sending(database_url) as harness:
        await harness.accounts({SUPPORT: provider.port}, connections=1)
        provider.gates["END"] = asyncio.Event()
        id_ = await harness.submit(ANN)
        await harness.until(id_, state="sent_unanswered")
        async with read_only(postgres):
            provider.gates["END"].set()
            await until(lambda: harness.relaying.claims.is_recording_blocked)
            stopping = asyncio.create_task(harness.relaying.stop(1.0, 600.0))
            await asyncio.sleep(4.0)
            assert not stopping.done()
        await stopping
        assert ((await harness.listed(id_)).state, (await harness.listed(id_)).uncertain) == ("done", False)


async def test_one_result_that_cannot_be_recorded_holds_up_no_other_mail(
    database_url: str, provider: ScriptedSmtp, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given a mail whose result the database never takes in time
    record = outcomes.record_results

    async def fails(connection: Any, batch: Any, *rest: Any) -> Any:
        if any(each.mail.message_id == "4@many" for each in batch):
            raise Temporary("no answer")
        return await record(connection, batch, *rest)

    monkeypatch.setattr(outcomes, "record_results", fails)
    async with sending(database_url) as harness:
        await harness.accounts({SUPPORT: provider.port}, connections=1)
        for number in range(10):
            await harness.submit(ANN, message_id=f"{number}@many")
        # then all others leave, and it is not sent again
        await until_states(harness, done=9, sent_unanswered=1)
        assert len(provider.taken) == 10
        monkeypatch.setattr(outcomes, "record_results", record)
        await until_states(harness, done=10)
        assert len(provider.taken) == 10


async def test_a_locked_row_holds_up_no_other_mail_and_no_other_lease(
    database_url: str, provider: ScriptedSmtp, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claims, "WRITE_SECONDS", 1.0)
    async with sending(database_url) as harness:
        await harness.accounts({SUPPORT: provider.port}, connections=2)
        # given a mail without an answer, whose row another transaction has locked
        provider.gates["END"] = asyncio.Event()
        locked = await harness.submit(ANN)
        await harness.until(locked, state="sent_unanswered")
        async with await psycopg.AsyncConnection.connect(database_url) as operator:
            await operator.execute("select from submissions where id = %s for update", (locked,))
            # when its answer comes, and others are sent
            provider.gates["END"].set()
            await until(lambda: provider.taken)
            ids = [await harness.submit(ANN) for _ in range(10)]
            for id_ in ids:
                await harness.until(id_, state="done", uncertain=False)
            # then a lease is renewed in spite of it
            await asyncio.wait_for(harness.relaying.claims.renew_leases(), 60.0)
            assert (await harness.listed(locked)).state == "sent_unanswered"
        await harness.until(locked, state="done", uncertain=False)
        assert len(provider.taken) == 11


# ---------------------------------------------------------------------------------------------- cut off


async def test_a_sender_cut_off_from_the_database_keeps_its_claims(database_url: str, provider: ScriptedSmtp) -> None:
    # given a sender behind a stretch of network, with mails without an answer, and another sender
    server = conninfo_to_dict(database_url)
    [port] = ports.choose(1, str(server["dbname"]))
    network = Proxy(port, int(str(server["port"])))
    distant = f"postgresql://{server['user']}:{server['password']}@127.0.0.1:{port}/{server['dbname']}"
    async with network.running(), sending(distant) as harness:
        await harness.accounts({SUPPORT: provider.port}, connections=3)
        provider.gates["END"] = asyncio.Event()
        for _ in range(3):
            await harness.submit(ANN)
        await until_states(harness, sent_unanswered=3)
        async with another(database_url, harness) as other:
            # when it is cut off for six seconds, and the provider accepts the mails
            await network.leave()
            await asyncio.sleep(3.0)
            provider.gates["END"].set()
            await asyncio.sleep(3.0)
            assert await states(other) == {"sent_unanswered": 3}
            await network.resume()
            # then each is sent once
            await until_states(other, done=3)
            assert len(provider.taken) == 3
            assert await other.rows("select count(*)::int from submissions where uncertain") == [(0,)]


async def test_a_mark_of_unknown_outcome_makes_no_mail_uncertain(
    database_url: str, provider: ScriptedSmtp, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with sending(database_url) as harness:
        await harness.accounts({SUPPORT: provider.port}, connections=1)
        # given a mark that is committed, but whose confirmation is lost, so that no final dot follows
        mark = harness.relaying.claims.mark_sending
        lost = asyncio.Event()

        async def loses(*arguments: Any) -> None:
            await mark(*arguments)
            if not lost.is_set():
                lost.set()
                raise Temporary("the connection was lost")

        monkeypatch.setattr(harness.relaying.claims, "mark_sending", loses)
        found = await harness.until(await harness.submit(ANN), state="done")
        # then the mail is sent once, and soon
        assert (found.uncertain, found.tries, len(provider.taken), lost.is_set()) == (False, 0, 1, True)


async def test_claims_that_cannot_be_released_are_released_later(
    postgres: Postgres, database_url: str, provider: ScriptedSmtp, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claims, "CLAIM_SECONDS", 3600.0)
    async with sending(database_url) as harness:
        await harness.accounts({SUPPORT: provider.port}, connections=1)
        provider.gates["DATA"] = asyncio.Event()
        id_ = await harness.submit(ANN)
        await harness.until(id_, state="claimed")
        # when the database is read-only as the mark is due
        async with read_only(postgres):
            provider.gates["DATA"].set()
            await asyncio.sleep(3.0)
            assert provider.taken == []
        # then the mail leaves without waiting for its lease of an hour
        await harness.until(id_, state="done", uncertain=False)
        assert len(provider.taken) == 1


# ---------------------------------------------------------------------------------------------- dead or alive


async def test_claims_of_a_killed_sender_are_taken_over_at_once(database_url: str, provider: ScriptedSmtp) -> None:
    async with sending(database_url) as harness:
        await harness.accounts({SUPPORT: provider.port}, connections=2)
        provider.gates["DATA"] = asyncio.Event()
        id_ = await harness.submit(ANN)
        await harness.until(id_, state="claimed")
        # given that the sender is gone: its lock is free, its lease is not over
        await harness.rows(
            "update submissions set claim_owner = 'sender@gone', claim_expires = now() + interval '1 hour'"
        )
        folder = harness.service.settings.data / "processes"
        with hold_process_lock(folder, "sender@gone"):
            pass
        provider.gates["DATA"].set()
        await harness.until(id_, state="done", uncertain=False)
        assert not (folder / "sender@gone").exists()


async def test_a_failure_at_a_lost_claim_does_not_end_the_claim_of_another(
    database_url: str, provider: ScriptedSmtp
) -> None:
    async with sending(database_url) as harness:
        await harness.accounts({SUPPORT: provider.port}, connections=1)
        provider.gates["DATA"] = asyncio.Event()
        id_ = await harness.submit(ANN)
        await harness.until(id_, state="claimed")
        # given a mail whose claim another sender has by now
        await harness.rows("update submissions set claim_owner = 'another', claim_expires = now() + interval '1 hour'")
        async with harness.database.transaction() as connection:
            mail = await relay_queue.load_queued_mails(connection, [id_])
        # when this sender fails at it
        await harness.relaying.claims.count_failure(mail[0], ValueError("a fault of ours"))
        # then the other one keeps it
        assert await harness.rows("select state, claim_owner, failures from submissions") == [("claimed", "another", 0)]


END = datetime.datetime(2026, 10, 1, tzinfo=datetime.UTC)


def test_an_expired_claim_is_orphaned_once_nobody_renews_it() -> None:
    expired = ExpiredClaims()
    assert expired.find_unrenewed({1: END, 2: END}, 100.0) == []
    assert expired.find_unrenewed({1: END, 2: END}, 100.0 + UNRENEWED_SECONDS / 2) == []
    # when the owner of one renews it, and it expires once more
    later = {1: END, 2: END + datetime.timedelta(seconds=5)}
    assert expired.find_unrenewed(later, 100.0 + UNRENEWED_SECONDS) == [1]
    assert expired.find_unrenewed(later, 100.0 + 2 * UNRENEWED_SECONDS) == [1, 2]


def test_an_expired_claim_is_watched_again_after_a_failure_of_the_database() -> None:
    expired = ExpiredClaims()
    expired.find_unrenewed({1: END}, 100.0)
    expired.forget()
    assert expired.find_unrenewed({1: END}, 100.0 + UNRENEWED_SECONDS) == []
    assert expired.find_unrenewed({}, 100.0 + UNRENEWED_SECONDS) == []
    assert expired.find_unrenewed({1: END}, 100.0 + 2 * UNRENEWED_SECONDS) == []


def test_two_renewals_fit_into_the_time_that_a_claim_is_watched() -> None:
    assert UNRENEWED_SECONDS > 2 * RENEW_SECONDS
