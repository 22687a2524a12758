"""services/admin/accounts/applied_passwords.py: one hash for each new password of a file, and few others."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from argon2 import PasswordHasher

from services.admin.accounts import applied_passwords
from services.admin.accounts.apply import apply
from services.admin.accounts.file_format import check
from shared.auth import passwords
from shared.auth.passwords import HashingPool
from shared.db.database import Database
from shared.provider.vault import Vault
from tests.company import KEY, everyone, external, local

PEOPLE = 100


@pytest.fixture(autouse=True)
def fast_hashes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hashes of a millisecond: these tests count them."""
    monkeypatch.setattr(passwords, "_HASHER", PasswordHasher(time_cost=1, memory_cost=64, parallelism=1))


class CountingPool(HashingPool):
    """Counts what is compared and hashed, and how much of it at the same time."""

    def __init__(self, threads: int = 3) -> None:
        super().__init__(threads)
        self.compared: list[str] = []
        self.hashed: list[str] = []
        self.now = self.most = 0

    async def matches(self, stored: str | None, password: str, priority: passwords.Priority = (0,)) -> bool:
        self.compared.append(password)
        return await super().matches(stored, password, priority)

    async def hash(self, password: str) -> str:
        self.hashed.append(password)
        self.now += 1
        self.most = max(self.most, self.now)
        try:
            return await super().hash(password)
        finally:
            self.now -= 1

    @property
    def single_hashes(self) -> list[str]:
        """The hashed texts that are passwords, not groups."""
        return [text for text in self.hashed if not text.startswith("[")]


def company(count: int = PEOPLE, **changed: str) -> dict[str, Any]:
    people = []
    for number in range(count):
        person = local(f"P{number}", password=changed.get(f"p{number}", f"secret {number}"))
        del person["password_hash"]
        people.append(person)
    return {"external_accounts": [external()], "local_accounts": people}


async def applied(database: Database, document: dict[str, Any], seen: list[tuple[int, int]] | None = None) -> Any:
    """The lines of a change, and the pool that counted."""
    pool = CountingPool()
    steps = seen if seen is not None else []
    async with database.transaction() as connection:
        outcome = await apply(
            connection, check(document, "test"), Vault(KEY), pool, progress=lambda *step: steps.append(step)
        )
    return outcome.lines, pool


async def test_an_unchanged_file_is_compared_by_groups(database: Database) -> None:
    # given a file whose passwords are hashed once, some at the same time
    seen: list[tuple[int, int]] = []
    _, first = await applied(database, company(), seen)
    assert len(first.single_hashes) == PEOPLE and not first.compared
    assert 1 < first.most <= first.threads
    assert seen == [(done + 1, PEOPLE) for done in range(PEOPLE)]
    # when it is applied again
    lines, again = await applied(database, company())
    # then a few comparisons show that nothing has changed
    assert lines == [] and again.hashed == []
    assert len(again.compared) == applied_passwords.GROUPS


async def test_one_new_password_costs_one_hash_and_its_group(database: Database) -> None:
    await applied(database, company())
    lines, pool = await applied(database, company(p7="another one"))
    assert lines == ["local account p7@local.com: changed password"]
    assert pool.single_hashes == ["another one"]
    assert len(pool.compared) < applied_passwords.GROUPS + PEOPLE / 4
    # and the file with it is the known one from then on
    lines, pool = await applied(database, company(p7="another one"))
    assert lines == [] and len(pool.compared) == applied_passwords.GROUPS


async def test_a_password_that_was_changed_here_is_that_of_the_file_again(database: Database) -> None:
    # given a person whose password was changed in the console meanwhile
    await applied(database, company())
    only = company(p7="changed in the console")["local_accounts"][7]
    await applied(database, {"local_accounts": [only]})
    # when the same file is applied
    lines, pool = await applied(database, company())
    # then its password is back, and matches
    assert lines == ["local account p7@local.com: changed password"] and pool.single_hashes == ["secret 7"]
    _, people = await everyone(database)
    assert passwords.matches(people["P7"].password_hash, "secret 7")


async def test_no_group_of_a_single_password_is_stored(database: Database) -> None:
    # a hash of a group is no shorter way to guess than the hash of the password, but it would be a second one
    _, pool = await applied(database, company(count=1))
    assert pool.hashed == ["secret 0"]
    async with database.transaction() as connection:
        cursor = await connection.execute("select count(*) from applied_passwords")
        assert await cursor.fetchone() == (0,)


async def test_a_file_that_is_refused_leaves_no_trace_of_its_passwords(database: Database) -> None:
    await applied(database, company())
    twice = company(p1="new one")
    twice["local_accounts"][2]["user_name"] = "P1"  # a name of somebody else
    with pytest.raises(Exception, match="has this name"):
        await applied(database, twice)
    lines, pool = await applied(database, company())
    assert lines == [] and len(pool.compared) == applied_passwords.GROUPS


async def test_hashing_for_longer_than_postgresql_waits_ends_no_transaction(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given a server that ends a transaction that is idle for two seconds, and hashes that take longer together
    monkeypatch.setattr(applied_passwords, "ASK_SECONDS", 0.05)

    class SlowPool(CountingPool):
        async def hash(self, password: str) -> str:
            await asyncio.sleep(0.4)
            return await super().hash(password)

    async with database.transaction() as connection:
        await connection.execute("set local idle_in_transaction_session_timeout = 2000")
        outcome = await apply(connection, check(company(12), "test"), Vault(KEY), SlowPool(threads=1))
    assert len(outcome.lines) == 13
