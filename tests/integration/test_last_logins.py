"""shared/store/last_logins.py: logins are remembered, written in one statement, and the latest time wins."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any

import pytest

from shared.auth import passwords
from shared.auth.authenticator import Authenticator
from shared.db.database import Database
from shared.errors import Temporary
from shared.store import last_logins
from shared.store.last_logins import LastLogin, LastLogins, Protocol
from tests.company import COMPANY, apply, everyone
from tests.submission_harness import make_settings

HERE, THERE = "192.0.2.1", "2001:db8::7"


class Clock:
    """A monotonic clock that the test sets."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


async def shown(database: Database, name: str) -> list[LastLogin]:
    person = (await everyone(database))[1][name]
    async with database.transaction() as connection:
        return await last_logins.load_last_logins(connection, person.id)


async def age(database: Database, login: LastLogin) -> float:
    async with database.transaction() as connection:
        row = await (await connection.execute("select extract(epoch from now() - %s)", (login.at,))).fetchone()
    assert row is not None
    return float(row[0])


@pytest.mark.parametrize("protocol", ["imap", "pop3", "smtp"])
async def test_successful_logins_are_written_later_and_refused_ones_never(
    database: Database, tmp_path: Path, protocol: Protocol
) -> None:
    await apply(database, COMPANY)
    clock = Clock()
    last = LastLogins(database, protocol, clock)
    logins = Authenticator(database, make_settings(tmp_path), "test", last=last)
    assert await logins.verify("alex@local.com", "secret", HERE)
    clock.now += 40
    assert await logins.verify("alex@local.com", "secret", THERE)  # from memory of passwords, and it counts as well
    assert await logins.verify("jim@local.com", "wrong", HERE) is None
    assert await shown(database, "Alex") == []  # no login waits for the table

    clock.now += 60
    await last.write()

    [login] = await shown(database, "Alex")
    assert (login.protocol, login.peer) == (protocol, THERE)
    assert 59 < await age(database, login) < 80
    assert await shown(database, "Jim") == []
    logins.close()


async def test_the_later_login_of_two_replicas_stays_in_any_order(database: Database) -> None:
    await apply(database, COMPANY)
    alex = (await everyone(database))[1]["Alex"].id
    clock = Clock()
    early, late, smtp = (LastLogins(database, p, clock) for p in ("pop3", "pop3", "smtp"))
    early.remember(alex, HERE)
    smtp.remember(alex, HERE)
    clock.now += 100
    late.remember(alex, THERE)
    await late.write()
    await early.write()
    await smtp.write()
    assert [(login.protocol, login.peer) for login in await shown(database, "Alex")] == [
        ("pop3", THERE),
        ("smtp", HERE),
    ]


async def test_replicas_that_write_thousands_at_once_do_not_lock_each_other_out(database: Database) -> None:
    await apply(database, COMPANY)
    async with database.transaction() as connection:
        await connection.execute(
            """insert into local_accounts (address, password_hash, user_name, external_id)
               select 'many' || n || '@local.com', 'x', 'Many ' || n, (select min(id) from external_accounts)
               from generate_series(1, 3000) n"""
        )
        ids = [row[0] for row in await (await connection.execute("select id from local_accounts")).fetchall()]
    replicas = [LastLogins(database, "pop3") for _ in range(4)]
    for number, replica in enumerate(replicas):
        for id_ in ids if number % 2 else reversed(ids):
            replica.remember(id_, f"192.0.2.{number}")
    await asyncio.gather(*(replica.write() for replica in replicas))
    async with database.transaction() as connection:
        row = await (await connection.execute("select count(*) from last_logins")).fetchone()
    assert row == (len(ids),)


async def test_a_removed_account_does_not_prevent_writing_the_others(database: Database) -> None:
    await apply(database, COMPANY)
    alex = (await everyone(database))[1]["Alex"].id
    last = LastLogins(database, "pop3")
    last.remember(2**40, HERE)
    last.remember(alex, HERE)
    await last.write()
    assert [login.peer for login in await shown(database, "Alex")] == [HERE]


async def test_logins_are_written_later_after_a_failure_and_never_when_quiet(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    await apply(database, COMPANY)
    people = (await everyone(database))[1]
    last = LastLogins(database, "pop3")
    real, tries = last_logins.record_logins, []

    async def record(*arguments: Any) -> None:
        tries.append(arguments)
        if len(tries) == 1:
            last.remember(people["Jim"].id, THERE)  # arrives during the query
            raise Temporary("the database is away")
        await real(*arguments)

    monkeypatch.setattr(last_logins, "record_logins", record)
    last.remember(people["Alex"].id, HERE)
    last.remember(people["Jim"].id, HERE)
    await last.write()
    assert await shown(database, "Alex") == []
    await last.write()
    await last.write()
    assert len(tries) == 2
    assert [login.peer for login in await shown(database, "Alex")] == [HERE]
    assert [login.peer for login in await shown(database, "Jim")] == [THERE]


@pytest.mark.parametrize(("peer", "first"), [("2001:db8::8", True), (HERE, False)])
async def test_a_new_process_checks_clients_with_an_earlier_login_first(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, peer: str, first: bool
) -> None:
    # given a person with an earlier login, and a busy process with nothing in memory
    await apply(database, COMPANY)
    last = LastLogins(database, "pop3")
    last.remember((await everyone(database))[1]["Alex"].id, THERE)
    await last.write()
    free, checked = threading.Event(), list[str]()

    def check(_: str, password: str) -> bool:
        checked.append(password)
        return free.wait(60)

    monkeypatch.setattr(passwords, "matches", check)
    logins = Authenticator(database, make_settings(tmp_path), "test")
    # when that person logs in, from the same network or another, and then a crowd guesses
    busy = [asyncio.create_task(logins.verify(f"busy{n}@local.com", "busy", f"198.51.100.{n}")) for n in range(2)]
    await until_waiting(logins, 0, busy=2, checked=checked)
    tasks = [asyncio.create_task(logins.verify("alex@local.com", "secret", peer))]
    await until_waiting(logins, 1, busy=2, checked=checked)
    tasks += [asyncio.create_task(logins.verify(f"{n}@local.com", "guess", f"203.0.113.{n}")) for n in range(20)]
    await until_waiting(logins, 21, busy=2, checked=checked)
    free.set()
    await asyncio.gather(*busy, *tasks)
    # then the known client is next (either of two threads may start first)
    assert (checked.index("secret") < 4) is first
    assert len(checked) == 23
    logins.close()


async def until_waiting(logins: Authenticator, waiting: int, busy: int, checked: list[str]) -> None:
    """Wait until so many logins wait for their check, while so many are checked."""
    async with asyncio.timeout(60):
        while (len(logins._pool._waiting), len(checked)) != (waiting, busy):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
