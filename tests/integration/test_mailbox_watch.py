"""Waiting for news of IMAP mailboxes: new mail comes at once, at a real Dovecot and a scripted server."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, cast

import pytest

from deploy.machine.dovecot_postfix import DemoProvider
from services.fetcher import mailbox_watch
from shared.db.database import Database
from shared.provider.vault import Vault, new_key
from shared.store import polls
from shared.store.account_changes import NO_POP3
from tests.fetcher_harness import FetcherHarness, fetching, has, mail, polls_well
from tests.polling import until
from tests.scripted_imap import CAPABILITIES, ScriptedImap
from tests.scripted_pop3 import cut, hang

HOUR = 3600


@pytest.fixture
async def harness(database_url: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[FetcherHarness]:
    monkeypatch.setattr(mailbox_watch, "LOOK_SECONDS", 0.1)
    monkeypatch.setattr(mailbox_watch, "RETRY_SECONDS", 0.05)
    async with fetching(database_url) as running:
        yield running


async def add(harness: FetcherHarness, address: str, port: int, **changes: object) -> int:
    """Add an account that is fetched by IMAP and polled once an hour; wait for its first poll."""
    server = {"pop3_host": NO_POP3.host, "imap_host": "127.0.0.1", "imap_port": port, "imap_tls": "none"}
    folders: dict[str, object] = {"imap_folders": ["INBOX"], "poll_seconds": HOUR}
    account = await harness.add(address, 995, **server | folders | changes)
    await until(lambda: polls_well(harness, account))
    return account


async def waits(script: ScriptedImap, sessions: int = 1) -> None:
    """Wait until so many sessions are in IDLE, and the poll that each begins with has ended."""
    await until(lambda: len(script.idlers) == sessions)


@pytest.mark.parametrize("tls", ["none", "starttls", "implicit"])
async def test_mail_comes_at_once_although_the_next_poll_is_far(
    harness: FetcherHarness, provider: DemoProvider, tls: str
) -> None:
    address = f"watch-{tls}@watch.test"
    provider.add_mailbox(address, "secret")
    port = provider.imaps_port if tls == "implicit" else provider.imap_port
    pinned = None if tls == "none" else provider.fingerprint
    account = await add(harness, address, port, imap_tls=tls, imap_tls_fingerprint=pinned)
    await until(lambda: mailbox_watch.WATCHED._value.get() == 1)
    for number in range(1, 4):
        provider.put(address, mail(f"mail {number}"))
        await until(lambda number=number: has(harness, account, number))
    assert await harness.subjects(account) == ["mail 1", "mail 2", "mail 3"]


async def test_a_watch_that_ends_is_begun_again_and_misses_nothing(harness: FetcherHarness) -> None:
    # given a server that ends each session in IDLE
    script = ScriptedImap({1: mail("one")}, answers={"IDLE": cut(b"+ idling\r\n* BYE too long\r\n")})
    async with script.running():
        account = await add(harness, "e@watch.test", script.port)
        await until(lambda: script.commands.count("IDLE") >= 3)
        # when a mail comes while nobody waits for it, and then one while somebody does
        script.mails[2] = mail("two")
        script.answers = {}
        await waits(script)
        script.arrive(3, mail("three"))
        # then all are fetched
        await until(lambda: has(harness, account, 3))
        assert await harness.subjects(account) == ["one", "two", "three"]
        [[error]] = await harness.rows("select last_error from polls")
        assert error is None


async def test_a_server_without_idle_is_polled_and_not_watched(harness: FetcherHarness) -> None:
    offers = tuple(name for name in CAPABILITIES if name != "IDLE")
    script = ScriptedImap({1: mail("one")}, capabilities=offers)
    async with script.running():
        account = await add(harness, "e@watch.test", script.port, poll_seconds=1)
        script.mails[2] = mail("two")
        await until(lambda: has(harness, account, 2))
        assert "IDLE" not in script.commands


async def test_a_silent_server_holds_up_no_watch_of_another(
    harness: FetcherHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given a server that is silent since its polls have worked, with more accounts than there are places
    monkeypatch.setattr(mailbox_watch, "LOGINS", 2)
    monkeypatch.setattr(mailbox_watch, "LOGINS_OF_SERVER", 1)
    silent, other = ScriptedImap(answers={"IDLE": cut(b"+ idling\r\n")}), ScriptedImap()
    async with silent.running(), other.running():
        for number in range(3):
            await add(harness, f"e{number}@watch.test", silent.port, imap_host="localhost")
        before, silent.answers = silent.sessions, {"greeting": hang()}
        await until(lambda: silent.sessions > before)
        # then the mailbox of another one is watched
        await add(harness, "e@watch.test", other.port)
        await waits(other)


async def test_a_watch_follows_the_account(harness: FetcherHarness) -> None:
    first, second = ScriptedImap(), ScriptedImap()
    async with first.running(), second.running():
        account = await add(harness, "e@watch.test", first.port)
        await waits(first)
        # when the account moves, then the mailbox there is watched
        await harness.rows("update external_accounts set imap_port = %s", second.port)
        await waits(second)
        await waits(first, 0)
        # when it is disabled, then none
        await harness.rows("update external_accounts set enabled = false")
        await waits(second, 0)
        # and when it is enabled again, and polled, then it is watched again
        await harness.rows("update external_accounts set enabled = true")
        await waits(second)
        second.arrive(1, mail("one"))
        await until(lambda: has(harness, account, 1))


async def test_an_account_whose_polls_fail_is_not_watched(harness: FetcherHarness) -> None:
    script = ScriptedImap()
    async with script.running():
        await add(harness, "e@watch.test", script.port)
        await waits(script)
        await harness.rows("update polls set failures = 1, next_poll_at = now() + interval '1 hour'")
        await waits(script, 0)
        await harness.rows("update polls set failures = 0")
        await waits(script)


async def test_a_fetcher_that_stops_leaves_its_watches_to_others(database_url: str, database: Database) -> None:
    script = ScriptedImap()
    async with script.running():
        async with fetching(database_url) as running:
            await add(running, "e@watch.test", script.port)
            await waits(script)
            async with database.transaction() as connection:
                assert await polls.claim_watches(connection, "another", 10) == []
        async with database.transaction() as connection:
            assert len(await polls.claim_watches(connection, "another", 10)) == 1


async def test_one_process_at_a_time_watches_a_mailbox(database: Database) -> None:
    # given five accounts, and no fetcher
    harness = FetcherHarness(cast(Any, None), database, Vault(new_key()))
    server = {"pop3_host": NO_POP3.host, "imap_host": "127.0.0.1", "imap_port": 1, "imap_tls": "none"}
    ids = [await harness.add(f"e{n}@watch.test", 1, imap_folders=["INBOX"], **server) for n in range(5)]
    pop3 = await harness.add("pop3@watch.test", 1)
    await harness.rows("update polls set failures = 0, last_success_at = now()")

    async def claim(owner: str, most: int) -> set[int]:
        async with database.transaction() as connection:
            return set(await polls.claim_watches(connection, owner, most))

    # when one claims some, then another gets the others only
    mine = await claim("one", 3)
    theirs = await claim("two", 10)
    assert len(mine) == 3 and mine | theirs == set(ids) and pop3 not in mine | theirs
    # when they claim again, then they keep theirs
    assert (await claim("one", 3), await claim("two", 10)) == (mine, theirs)
    # when a lease has expired, or is that of a clock that was ahead, then another takes it over
    for moved in ("now() - interval '1 second'", "now() + interval '1 day'"):
        await harness.rows(f"update polls set watch_expires = {moved} where watcher = 'one'")
        assert await claim("two", 10) == set(ids)
        await harness.rows("update polls set watcher = 'one' where external_id = any(%s)", list(mine))
