"""shared/db/group_commit.py on a database that only begins and ends transactions."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any, cast

import pytest

from shared.db.database import Connection, Database
from shared.db.group_commit import CommitOutcomeUnknown, GroupCommit
from shared.errors import Temporary


class Transactions:
    """Counts transactions.

    gate: commits wait for it. away: no transaction begins. torn: no commit is answered.
    """

    def __init__(self) -> None:
        self.count = self.statements = 0
        self.gate = asyncio.Event()
        self.gate.set()
        self.away = self.torn = False

    @asynccontextmanager
    async def transaction(self, seconds: float = 60.0) -> AsyncIterator[Connection]:
        """Begin and commit a transaction."""
        if self.away:
            raise Temporary("away")
        self.count += 1
        yield cast(Connection, None)
        await self.gate.wait()
        if self.torn:
            raise Temporary("the connection was lost during the commit")

    @asynccontextmanager
    async def statement(self, seconds: float = 60.0) -> AsyncIterator[Connection]:
        """A statement that is a transaction by itself."""
        self.statements += 1
        async with self.transaction():
            yield cast(Connection, None)

    async def ready(self) -> bool:
        """Whether a transaction could begin."""
        return not self.away


class Table:
    """Collects the written batches; the item "bad" cannot be written."""

    def __init__(self) -> None:
        self.batches: list[list[str]] = []
        self.committed: list[str] = []

    async def write(self, _: Connection, items: Sequence[str]) -> list[str]:
        """Write a batch."""
        self.batches.append(list(items))
        if "bad" in items:
            raise ValueError("bad item")
        return [item.upper() for item in items]

    def note(self, results: Sequence[str]) -> None:
        """Record a committed batch."""
        self.committed += results


@asynccontextmanager
async def group(transactions: Transactions, table: Table, **options: Any) -> AsyncIterator[GroupCommit[str, str]]:
    """Run a writer."""
    group: GroupCommit[str, str] = GroupCommit(cast(Database, transactions), table.write, table.note, len, **options)
    writer = asyncio.create_task(group.run())
    yield group
    writer.cancel()
    with suppress(asyncio.CancelledError):
        await writer


async def results(*commits: Any) -> list[Any]:
    """Return what each commit returned or raised."""
    return await asyncio.gather(*commits, return_exceptions=True)


async def test_items_that_arrive_during_a_commit_are_committed_together() -> None:
    transactions, table = Transactions(), Table()
    transactions.gate.clear()
    async with group(transactions, table) as writer:
        first = asyncio.create_task(writer.commit("a"))
        await asyncio.sleep(0.01)
        others = [asyncio.create_task(writer.commit(item)) for item in "bcd"]
        await asyncio.sleep(0.01)
        assert not first.done() and not table.committed

        transactions.gate.set()

        assert await results(first, *others) == ["A", "B", "C", "D"]
        assert table.batches == [["a"], ["b", "c", "d"]] and transactions.count == 2


async def test_a_bad_item_fails_alone() -> None:
    transactions, table = Transactions(), Table()
    async with group(transactions, table) as writer:
        one, bad, two = await results(writer.commit("a"), writer.commit("bad"), writer.commit("b"))

    assert (one, two) == ("A", "B") and isinstance(bad, ValueError)
    assert table.committed == ["A", "B"]


async def test_an_unavailable_database_fails_all_items_at_once() -> None:
    transactions, table = Transactions(), Table()
    transactions.away = True
    async with group(transactions, table) as writer:
        failures = await results(*(writer.commit(item) for item in "abc"))
        transactions.away = False

        assert all(type(failure) is Temporary for failure in failures) and not table.batches
        assert await writer.commit("d") == "D"


async def test_a_commit_with_an_unknown_outcome_is_not_repeated() -> None:
    transactions, table = Transactions(), Table()
    transactions.torn = True
    async with group(transactions, table) as writer:
        failures = await results(writer.commit("a"), writer.commit("b"))

    assert all(isinstance(failure, CommitOutcomeUnknown) for failure in failures)
    assert table.batches == [["a", "b"]] and not table.committed


async def test_a_single_statement_runs_without_a_transaction() -> None:
    transactions, table = Transactions(), Table()
    async with group(transactions, table, is_single_statement=lambda items: "long" not in items) as writer:
        await writer.commit("a")
        await writer.commit("long")

    assert (transactions.statements, transactions.count) == (1, 2)


async def test_a_statement_with_an_unknown_outcome_is_not_repeated() -> None:
    transactions = Transactions()
    batches: list[Sequence[str]] = []

    async def lost(_: Connection, items: Sequence[str]) -> list[str]:
        batches.append(items)
        raise Temporary("the connection was lost")

    table = Table()
    table.write = lost  # type: ignore[method-assign]  # as if the server went away
    async with group(transactions, table, is_single_statement=lambda _: True) as writer:
        failures = await results(writer.commit("a"), writer.commit("b"))

    assert all(isinstance(failure, CommitOutcomeUnknown) for failure in failures)
    assert batches == [["a", "b"]] and not table.committed


async def test_a_bad_item_in_one_statement_fails_alone() -> None:
    transactions, table = Transactions(), Table()
    async with group(transactions, table, is_single_statement=lambda _: True) as writer:
        one, bad, two = await results(writer.commit("a"), writer.commit("bad"), writer.commit("b"))

    assert (one, two) == ("A", "B") and isinstance(bad, ValueError)


async def test_an_item_is_committed_although_its_caller_is_cancelled() -> None:
    transactions, table = Transactions(), Table()
    transactions.gate.clear()
    async with group(transactions, table) as writer:
        waiting = asyncio.create_task(writer.commit("a"))
        await asyncio.sleep(0.01)
        waiting.cancel()
        transactions.gate.set()
        await writer.drain()

    assert table.committed == ["A"]


@pytest.mark.parametrize(
    ("limits", "batches"),
    [
        ({"max_items": 2}, [["a"], ["bb", "cc"], ["dd"]]),
        ({"max_octets": 3}, [["a"], ["bb"], ["cc"], ["dd"]]),
        ({"max_octets": 1}, [["a"], ["bb"], ["cc"], ["dd"]]),
    ],
)
async def test_batches_have_limits(limits: dict[str, int], batches: list[list[str]]) -> None:
    transactions, table = Transactions(), Table()
    transactions.gate.clear()
    async with group(transactions, table, **limits) as writer:
        commits = [asyncio.create_task(writer.commit("a"))]
        await asyncio.sleep(0.01)
        commits += [asyncio.create_task(writer.commit(item)) for item in ("bb", "cc", "dd")]
        await asyncio.sleep(0.01)
        transactions.gate.set()
        await results(*commits)

    assert table.batches == batches
