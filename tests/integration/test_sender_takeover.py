"""What a sender may take over, and what it must record, while the database or its own connection fails."""

from __future__ import annotations

import asyncio
import datetime
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import pytest
from psycopg.conninfo import conninfo_to_dict

from deploy.machine import ports
from services.sender.background import RENEW_SECONDS
from services.sender.dead_owners import UNRENEWED_SECONDS, ExpiredClaims
from shared.errors import Temporary
from tests.company import SUPPORT
from tests.faults.proxy import Proxy
from tests.polling import until
from tests.scripted_smtp import PIPELINING, ScriptedSmtp, scripted_smtp
from tests.sender_harness import SenderHarness, sending

ANN = "ann@customer.org"


@pytest.fixture
async def provider() -> AsyncIterator[ScriptedSmtp]:
    async with scripted_smtp() as script:
        script.always("EHLO", PIPELINING)
        yield script


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
        (folder / "sender@gone").touch()
        provider.gates["DATA"].set()
        began = asyncio.get_running_loop().time()
        await harness.until(id_, state="done", uncertain=False)
        assert asyncio.get_running_loop().time() - began < 10
        assert not (folder / "sender@gone").exists()


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
