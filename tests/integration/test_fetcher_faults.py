"""The fetcher against failing providers and against its own crashes, on a real PostgreSQL."""

from __future__ import annotations

import asyncio
import datetime
import sys
from collections.abc import AsyncIterator
from typing import Any

import pytest

from deploy.machine import ports
from shared.db.database import Database
from shared.model import PollOutcome
from shared.provider.vault import Vault, new_key
from shared.runtime.process import Service
from shared.settings import Settings
from shared.store import polls, uidl_ledger
from shared.store.polls import LeaseLost
from shared.store.uidl_ledger import SkippedNow
from tests.fetcher_harness import FetcherHarness, fails, fetching, has, mail, polls_well
from tests.polling import until
from tests.scripted_pop3 import ScriptedPop3, cut, hang, say
from tests.servers import make_read_only, opened


@pytest.fixture
async def harness(database_url: str) -> AsyncIterator[FetcherHarness]:
    async with fetching(database_url) as running:
        yield running


def mails(*names: str) -> dict[str, bytes]:
    return {name: mail(name) for name in names}


async def is_state(harness: FetcherHarness, account: int, **states: int) -> bool:
    return await harness.states(account) == states


async def test_a_mail_that_ends_every_session_is_reported_and_delays_no_other(harness: FetcherHarness) -> None:
    # given a provider whose connection ends within one mail, each time
    script = ScriptedPop3(
        mails("one", "killer", "two", "three"), answers={"RETR 2": cut(b"+OK\r\nSubject: killer\r\n\r\nhal")}
    )
    async with script.running():
        account = await harness.add("e@x.test", script.port)
        # then the others arrive once each, and nothing of the half mail
        await until(lambda: has(harness, account, 3))
        assert sorted(await harness.subjects(account)) == ["one", "three", "two"]
        # and the mail is tried again and again, as this may be the network's fault
        sessions = script.sessions
        await until(lambda: script.sessions > sessions + 3)
        [[tries]] = await harness.rows("select tries from uidl_ledger where state = 'skipped'")
        assert tries == 2 and not await is_noticed(harness, account)
        # and after ten minutes of this its recipients get a notice with fields of its header
        await harness.rows("update uidl_ledger set state_at = now() - interval '11 minutes' where state = 'skipped'")
        await until(lambda: is_noticed(harness, account))
        [[reason, tries]] = await harness.rows("select reason, tries from uidl_ledger where state = 'skipped'")
        assert "RETR of mail 2: the server ended the connection" in reason and tries == 3
        await until(lambda: polls_well(harness, account))
        assert script.mails.keys() == {"one", "killer", "two", "three"}
        [[notice]] = await harness.rows(
            "select m.head from inbound i join blobs m on m.id = i.blob_id where i.source = 'notice'"
        )
        assert b"Subject: Mail not fetched: killer" in bytes(notice)
        # when the provider is well again, the mail arrives at the next try
        script.answers = {}
        await harness.rows("update uidl_ledger set next_try_at = now() where state = 'skipped'")
        await harness.poll(account)
        assert sorted(await harness.subjects(account)) == ["killer", "one", "three", "two"]
        assert await harness.states(account) == {"fetched": 4}


async def test_a_mail_that_ends_every_session_keeps_no_suspect_from_its_turn(harness: FetcherHarness) -> None:
    # given two mails at which sessions end
    half = cut(b"+OK\r\nSubject: half\r\n\r\nhal")
    script = ScriptedPop3(mails("one", "killer", "suspect"), answers={"RETR 2": half, "RETR 3": half})
    async with script.running():
        account = await harness.add("e@x.test", script.port)
        await until(lambda: are_suspects(harness, account, 2))
        # when the fault of one is over, it arrives, although the other one ends every session
        script.answers = {"RETR 2": half}
        await until(lambda: has(harness, account, 2))
        assert sorted(await harness.subjects(account)) == ["one", "suspect"]


async def are_suspects(harness: FetcherHarness, account: int, count: int) -> bool:
    found = await harness.rows(
        "select 1 from uidl_ledger where state = 'skipped' and tries = 2 and external_id = %s", account
    )
    return len(found) == count


async def test_refusals_that_are_called_temporary_count_as_suspicions_only(harness: FetcherHarness) -> None:
    script = ScriptedPop3(mails("one", "two"), answers={"RETR 2": say(b"-ERR [SYS/TEMP] storage is slow\r\n")})
    async with script.running():
        account = await harness.add("e@x.test", script.port)
        for _ in range(4):
            await harness.poll(account)
        [[tries]] = await harness.rows("select tries from uidl_ledger where state = 'skipped'")
        assert tries == 2
        script.answers = {}
        await until(lambda: has(harness, account, 2))


async def is_noticed(harness: FetcherHarness, account: int) -> bool:
    return bool(await harness.rows("select 1 from inbound where source = 'notice' and external_id = %s", account))


async def test_a_mail_that_the_provider_refuses_is_skipped_and_ends_no_poll(harness: FetcherHarness) -> None:
    script = ScriptedPop3(mails("one", "bad", "two"), answers={"RETR 2": say(b"-ERR corrupt\r\n")})
    async with script.running():
        account = await harness.add("e@x.test", script.port, delete_after_days=0, delete_history=True)
        await until(lambda: polls_well(harness, account))
        assert sorted(await harness.subjects(account)) == ["one", "two"]
        assert script.mails.keys() == {"bad"}
        assert await harness.rows("select reason from uidl_ledger where state = 'skipped'") == [
            ("the provider refuses to hand it out: corrupt",)
        ]


async def test_an_incomplete_list_neither_loses_nor_repeats_a_mail(harness: FetcherHarness) -> None:
    script = ScriptedPop3(mails("one", "two"))
    async with script.running():
        account = await harness.add("e@x.test", script.port)
        await until(lambda: polls_well(harness, account))
        script.answers = {"UIDL": say(b"+OK\r\n2 two\r\n.\r\n")}
        await harness.poll(account)
        assert await harness.states(account) == {"fetched": 2}
        script.answers = {}
        await harness.poll(account)
        assert len(await harness.bodies(account)) == 2


async def test_from_now_begins_with_what_is_listed_where_stat_counts_more(harness: FetcherHarness) -> None:
    # given a provider that counts a mail which it never lists
    script = ScriptedPop3(mails("hidden", "old"), answers={"UIDL": say(b"+OK\r\n2 old\r\n.\r\n")})
    async with script.running():
        account = await harness.add("e@x.test", script.port, history="from_now")
        # then some polls wait for a complete list, and the next one begins without it
        await until(lambda: fails(harness, account))
        assert await harness.states(account) == {}
        await until(lambda: is_state(harness, account, history=1))
        assert script.sessions == 4
        # and new mail arrives
        script.mails["new"] = mail("new")
        script.answers = {"UIDL": say(b"+OK\r\n2 old\r\n3 new\r\n.\r\n")}
        await harness.poll(account)
        assert await harness.subjects(account) == ["new"]
        assert await harness.states(account) == {"history": 1, "fetched": 1}


async def test_a_dele_without_effect_is_repeated_and_delivers_nothing_twice(harness: FetcherHarness) -> None:
    # given a provider whose connection ends at QUIT, so that it deletes nothing
    script = ScriptedPop3({})
    async with script.running():
        account = await harness.add("e@x.test", script.port, delete_after_days=0)
        await until(lambda: polls_well(harness, account))
        script.answers = {"QUIT": cut()}
        script.mails["one"] = mail("one")
        await until(lambda: is_state(harness, account, deleting=1))
        await until(lambda: fails(harness, account))
        assert script.mails.keys() == {"one"}
        # when QUIT works, the mail is deleted, and not fetched again
        script.answers = {}
        await harness.poll(account)
        await harness.poll(account)
        assert not script.mails
        assert await harness.states(account) == {"closed": 1}
        assert await harness.subjects(account) == ["one"]
        # and the same UIDL later is the same mail if its bytes are the same: it is deleted again
        script.mails["one"] = mail("one")
        await until(lambda: not script.mails)
        await until(lambda: is_state(harness, account, closed=1))
        assert await harness.subjects(account) == ["one"]
        # but a new one if they differ
        script.mails["one"] = mail("one", "another text")
        await until(lambda: not script.mails)
        assert await harness.subjects(account) == ["one", "one"]
        # and also when the account is set up again, which makes its mails history
        await harness.rows("update external_accounts set delete_after_days = null")
        async with harness.database.transaction() as connection:
            await polls.forget_maildrop(connection, account)
        script.mails |= {"one": mail("one"), "two": mail("two")}
        await until(lambda: has(harness, account, 3))
        await harness.poll(account)
        assert await harness.subjects(account) == ["one", "one", "two"]


async def test_mail_that_moved_to_another_maildrop_is_not_delivered_again(
    harness: FetcherHarness,
) -> None:
    first, second = ScriptedPop3({}), ScriptedPop3(mails("moved", "unknown"))
    async with first.running(), second.running():
        account = await harness.add("e@x.test", first.port, delete_after_days=0)
        await until(lambda: polls_well(harness, account))
        await harness.rows("update external_accounts set delete_after_days = null")
        first.mails |= {"old-id": mail("moved"), "other": mail("stays")}
        await until(lambda: has(harness, account, 2))
        # when the account points at another server, and deletes at once
        async with harness.database.transaction() as connection:
            await connection.execute(
                "update external_accounts set pop3_port = %s, delete_after_days = 0", (second.port,)
            )
            await polls.forget_maildrop(connection, account)
        await harness.poll(account)
        await until(lambda: has(harness, account, 3))
        await harness.poll(account)
        # then the mails there are history: fetched once, never deleted
        assert sorted(await harness.subjects(account)) == ["moved", "stays", "unknown"]
        assert second.mails.keys() == {"moved", "unknown"}
        second.mails["new"] = mail("new")
        await until(lambda: has(harness, account, 4))
        await harness.poll(account)
        assert second.mails.keys() == {"moved", "unknown"}
        # when it is the same maildrop under another name, an unknown mail is new
        second.mails["newer"] = mail("newer")
        async with harness.database.transaction() as connection:
            await polls.forget_maildrop(connection, account)
        await until(lambda: has(harness, account, 5))
        await harness.poll(account)
        assert second.mails.keys() == {"moved", "unknown"}


async def test_a_uidl_of_another_maildrop_counts_as_neither_fetched_nor_deleted(
    harness: FetcherHarness,
) -> None:
    # given servers that count their mails, and an account of which two are fetched, to be deleted at once
    first = ScriptedPop3({"1": mail("first 1"), "2": mail("moved"), "3": mail("first 3")})
    second = ScriptedPop3({"1": mail("second 1"), "2": mail("second 2"), "3": mail("second 3"), "4": mail("moved")})
    async with first.running(), second.running():
        account = await harness.add("e@x.test", first.port)
        await until(lambda: has(harness, account, 3))
        await until(lambda: polls_well(harness, account))
        # when it is pointed at another maildrop
        await harness.rows(
            "update external_accounts set pop3_port = %s, delete_after_days = 0, delete_history = true where id = %s",
            second.port,
            account,
        )
        async with harness.database.transaction() as connection:
            await polls.forget_maildrop(connection, account)
        await harness.poll(account)
        await harness.poll(account)
        # then the mails there are fetched before they are deleted, and moved mails are not fetched twice
        assert sorted(await harness.subjects(account)) == [
            "first 1",
            "first 3",
            "moved",
            "second 1",
            "second 2",
            "second 3",
        ]
        assert second.mails.keys() <= {"4"}


async def test_repeated_uidls_are_fetched_once_each_and_stay(harness: FetcherHarness) -> None:
    script = ScriptedPop3({})
    async with script.running():
        account = await harness.add("e@x.test", script.port, delete_after_days=0)
        await until(lambda: polls_well(harness, account))
        script.mails |= mails("a", "b")
        script.answers = {"UIDL": say(b"+OK\r\n1 same\r\n2 same\r\n.\r\n")}
        await until(lambda: has(harness, account, 2))
        await harness.poll(account)
        assert sorted(await harness.subjects(account)) == ["a", "b"]
        assert script.mails.keys() == {"a", "b"}


async def test_three_plain_refusals_pause_and_a_test_resumes(harness: FetcherHarness) -> None:
    script = ScriptedPop3(mails("one"), password="other")
    async with script.running():
        account = await harness.add("e@x.test", script.port)
        await until(lambda: is_paused(harness, account))
        tried = script.sessions
        assert tried == 3
        [[error]] = await harness.rows("select last_error from polls")
        assert "check login name and password: wrong; paused" in error
        await asyncio.sleep(1.5)
        assert script.sessions == tried
        script.password = "secret"
        polled = await harness.poll(account)
        assert polled.paused_at is None and await harness.subjects(account) == ["one"]


async def is_paused(harness: FetcherHarness, account: int) -> bool:
    return bool(await harness.rows("select 1 from polls where external_id = %s and paused_at is not null", account))


async def test_login_delay_is_kept_even_with_mail_left(
    harness: FetcherHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.fetcher.fetch_session.SESSION_MAILS", 2)
    monkeypatch.setattr("services.fetcher.fetch_session.SESSION_SECONDS", 0.0)
    monkeypatch.setattr("shared.provider.pop3_transfer.WINDOW_COMMANDS", 1)
    script = ScriptedPop3(mails("a", "b", "c"), capabilities=("PIPELINING", "LOGIN-DELAY 3600"))
    async with script.running():
        account = await harness.add("e@x.test", script.port)
        await until(lambda: has(harness, account, 2))
        await until(lambda: polls_well(harness, account))
        [[wait, backlog]] = await harness.rows(
            "select extract(epoch from next_poll_at - last_success_at)::float8, backlog from polls"
        )
        assert 3000 < wait < 3700 and backlog == 1  # the delay counts from the end of the session
        # and afterwards the next session fetches the rest
        await harness.poll(account)
        assert await has(harness, account, 3)
        assert script.sessions == 2


@pytest.mark.parametrize(
    ("days", "seconds", "sessions"),
    [(None, 60.0, 1), (None, 0.0, 3), (0, 60.0, 3)],
    ids=["nothing is deleted", "it takes long", "all is deleted"],
)
async def test_a_quick_session_exceeds_its_share_if_nothing_waits_for_quit(
    harness: FetcherHarness, monkeypatch: pytest.MonkeyPatch, days: int | None, seconds: float, sessions: int
) -> None:
    monkeypatch.setattr("services.fetcher.fetch_session.SESSION_MAILS", 2)
    monkeypatch.setattr("services.fetcher.fetch_session.SESSION_SECONDS", seconds)
    monkeypatch.setattr("shared.provider.pop3_transfer.WINDOW_COMMANDS", 1)
    script = ScriptedPop3(mails("a", "b", "c", "d", "e"))
    async with script.running():
        account = await harness.add("e@x.test", script.port, delete_after_days=days, poll_seconds=60)
        await until(lambda: polls_well(harness, account))
        assert sorted(await harness.subjects(account)) == ["a", "b", "c", "d", "e"]
        assert script.sessions == sessions


async def test_a_database_that_becomes_read_only_ends_no_fetcher(harness: FetcherHarness, database_url: str) -> None:
    # given an account with mail
    script = ScriptedPop3(mails("one"))
    async with script.running(), opened(database_url) as keeper:
        account = await harness.add("e@x.test", script.port, delete_after_days=0, delete_history=True)
        await until(lambda: polls_well(harness, account))
        # when the database accepts no changes for some polls, while mail arrives
        await make_read_only(keeper, True)
        script.mails["two"] = mail("two")
        await asyncio.sleep(3)
        assert script.mails.keys() == {"two"}
        await make_read_only(keeper, False)
        # then the fetcher is still there: the mail arrives once, and is deleted at the provider
        await until(lambda: not script.mails)
        async with keeper.statement() as connection:
            cursor = await connection.execute("select count(*)::int from inbound where external_id = %s", (account,))
            assert await cursor.fetchall() == [(2,)]


async def test_a_fault_of_ours_in_a_claim_or_a_record_ends_no_fetcher(
    harness: FetcherHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given faults of our own beside the polls: where accounts are claimed, and where a result is recorded
    faults = {"claim_due": 2, "record_outcome": 1}

    def failing(name: str) -> None:
        function = getattr(polls, name)

        async def fail(*arguments: Any, **named: Any) -> Any:
            if faults[name]:
                faults[name] -= 1
                raise ValueError("of our own")
            return await function(*arguments, **named)

        monkeypatch.setattr(polls, name, fail)

    monkeypatch.setattr(polls, "LEASE_SECONDS", 2.0)
    for name in faults:
        failing(name)
    script = ScriptedPop3(mails("one"))
    async with script.running():
        account = await harness.add("e@x.test", script.port)
        # then the account is polled nevertheless, and again after the lease has expired
        await until(lambda: polls_well(harness, account))
        assert faults == {"claim_due": 0, "record_outcome": 0}
        assert await harness.subjects(account) == ["one"]


class FailsWithPipelining(ScriptedPop3):
    """Sends junk between replies to commands that were sent ahead."""

    def _answer(self, verb: str, argument: str, listed: list[tuple[str, bytes]], deleted: set[str]) -> bytes:
        reply = super()._answer(verb, argument, listed, deleted)
        return reply + b"junk\r\n" if verb == "RETR" and self.sessions in self.pipelined else reply


async def test_a_server_that_fails_with_pipelining_gets_single_commands(harness: FetcherHarness) -> None:
    script = FailsWithPipelining(mails("a", "b", "c"))
    async with script.running():
        account = await harness.add("e@x.test", script.port, poll_seconds=60)
        await until(lambda: polls_well(harness, account))
        assert script.sessions == 2 and script.pipelined == {1}
        assert await harness.subjects(account) == ["a", "b", "c"]
        assert await harness.states(account) == {"fetched": 3}


async def test_a_stop_finishes_running_polls_and_aborts_those_that_hang(database_url: str) -> None:
    hanging, well = ScriptedPop3(answers={"PASS": hang()}), ScriptedPop3(mails("a"))
    async with hanging.running(), well.running():
        async with fetching(database_url) as harness:
            await harness.add("h@x.test", hanging.port)
            account = await harness.add("e@x.test", well.port)
            await until(lambda: has(harness, account, 1))
            started = asyncio.get_running_loop().time()
        assert asyncio.get_running_loop().time() - started < 3
    async with fetching(database_url) as again:
        # and the accounts were given back
        assert (
            await again.rows(
                "select count(*) from polls where owner is not null and owner not like %s", f"{again.service.owner}%"
            )
        ) == [(0,)]


async def test_an_account_is_polled_by_one_owner_a_lost_lease_commits_nothing(
    harness: FetcherHarness, database: Database
) -> None:
    # given an account that is due, and that another process polls already
    account = await harness.add("e@x.test", 1, enabled=False)
    await harness.rows(
        "update polls set owner = 'before', lease_expires = now() + interval '10 seconds' where external_id = %s",
        account,
    )
    await harness.rows("update external_accounts set enabled = true")
    async with database.transaction() as connection:
        assert (await polls.claim_due(connection, "other", 10))[0] == []
        # when that one is silent for too long
        await connection.execute("update polls set lease_expires = now() - interval '1 second'")
        [poll], _ = await polls.claim_due(connection, "first", 10)
        await polls.renew_lease(connection, poll)
    # and so is the next one
    async with database.transaction() as connection:
        await connection.execute("update polls set lease_expires = now() - interval '1 second'")
        [second], _ = await polls.claim_due(connection, "second", 10)
    # then the first one can commit nothing, not even how its poll ended
    with pytest.raises(LeaseLost):
        async with database.transaction() as connection:
            await polls.renew_lease(connection, poll)
    async with database.transaction() as connection:
        await polls.release_lease(connection, poll)
        await polls.renew_lease(connection, second)
        await polls.release_lease(connection, second)


async def test_a_running_poll_marks_no_list_unchanged_when_a_retry_is_ordered(
    harness: FetcherHarness, database: Database
) -> None:
    account = await harness.add("e@x.test", 1, enabled=False)
    async with database.transaction() as connection:  # no other transaction sees it
        await connection.execute("update external_accounts set enabled = true")
        await uidl_ledger.record_skipped(connection, account, SkippedNow(None, "uidl", 10, "no", 3, None))

        async def quiet_after(meanwhile: int) -> bool:
            await connection.execute("update polls set next_poll_at = now()")
            [poll], _ = await polls.claim_due(connection, "fetcher/1", 10)
            for _ in range(meanwhile):
                assert len(await uidl_ledger.retry_skipped(connection, account)) == 1
            hour = poll.now + datetime.timedelta(hours=1)
            outcome = PollOutcome(hour, 0, (), None, None, 0, quiet_list=b"digest", quiet_until=hour)
            await polls.record_outcome(connection, poll, outcome)
            cursor = await connection.execute(
                "select quiet_list, next_poll_at < now() + interval '1 minute' from polls"
            )
            [(digest, soon)] = await cursor.fetchall()
            assert soon == (meanwhile > 0)
            return bool(digest == b"digest")

        assert await quiet_after(0) and not await quiet_after(1)


async def test_a_claim_returns_due_accounts_and_the_time_of_the_next_one(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(polls, "LEASE_SECONDS", 36_000.0)  # no lease ends while the test runs, however slowly
    async with fetching(database_url, polls=False) as harness:
        # given accounts that are due for longer and for shorter, one that is due later, and two that are not polled
        [first, second, later, disabled, removed] = [
            await harness.add(f"e{n}@x.test", 1, enabled=False) for n in range(5)
        ]
        await harness.rows("update external_accounts set enabled = true")
        await harness.rows("update external_accounts set enabled = false where id = %s", disabled)
        await harness.rows("update external_accounts set removed_at = now() where id = %s", removed)
        await harness.rows("update polls set next_poll_at = now() - interval '1 hour'")
        await harness.rows("update polls set next_poll_at = now() - interval '2 hours' where external_id = %s", second)
        await harness.rows("update polls set next_poll_at = now() + interval '1 hour' where external_id = %s", later)

        async def look(most: int) -> tuple[list[int], float | None]:
            async with harness.database.statement() as connection:
                claimed, seconds = await polls.claim_due(connection, "owner", most)
            return [poll.external_id for poll in claimed], seconds

        # when it claims one, then the one that is due for longest, and more is due at once
        taken, seconds = await look(1)
        assert taken == [second] and seconds is not None and seconds < 0
        # when it claims many, then the rest, and the next is due at its time
        taken, seconds = await look(10)
        assert taken == [first] and seconds is not None and 0 < seconds <= 3600
        # when all are claimed, then the next one is due when the first lease ends
        await harness.rows("update polls set next_poll_at = now() where external_id = %s", later)
        taken, seconds = await look(10)
        assert taken == [later] and seconds is not None and 3600 < seconds <= 36_000
        # and an account that is enabled again is due as it was
        await harness.rows("update external_accounts set enabled = true where id = %s", disabled)
        assert (await look(10))[0] == [disabled]


async def test_a_fetcher_killed_again_and_again_fetches_each_mail_once(database_url: str, database: Database) -> None:
    script = ScriptedPop3(mails(*(f"m{number}" for number in range(1500))))
    key = new_key()
    environment = {
        "PATH": "/usr/bin:/bin",
        "MAILGROUP_DATABASE_URL": database_url,
        "MAILGROUP_BROKER_URL": "amqp://127.0.0.1:1/",
        "MAILGROUP_SECRET_KEY": key,
        "MAILGROUP_ALLOW_PRIVATE_UPSTREAM": "yes",
        "MAILGROUP_METRICS_PORT": str(ports.choose(1, "killed fetcher")[0]),
    }
    harness = FetcherHarness(
        Service("test", Settings(database_url=database_url, broker_url="amqp://x/")), database, Vault(key)
    )
    async with script.running():
        account = await harness.add("e@x.test", script.port)
        for least in (1, 300, 600, 1500):
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "services.fetcher", env=environment, stdout=asyncio.subprocess.DEVNULL
            )
            # when it is killed after a batch, and another one takes over long before the lease ends
            await until(lambda least=least: has(harness, account, least))
            process.kill()
            await process.wait()
            await harness.rows("update polls set lease_expires = now() + interval '1 hour' where owner is not null")
        assert sorted(await harness.subjects(account)) == sorted(script.mails)
        assert await harness.states(account) == {"fetched": 1500}
