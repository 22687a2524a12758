"""The failover cases. Each step waits for a condition, and mail is offered all the time."""

from __future__ import annotations

import asyncio
import time
from abc import abstractmethod
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from tests.failover.books import Lag
from tests.failover.run import FailoverDrive
from tests.failover.stand import NODES, FailoverStand

LAG_SECONDS = 4.0
"""Time without replication before the primary is killed: seconds; some hundred commits."""
ALONE_SECONDS = 10.0
"""Time for which only one of three nodes runs: seconds; longer than the sweeps wait."""
DECISION_SECONDS = 2.0
"""Pause before a lagging standby is promoted: seconds. By then the driver has seen all effects of the old primary."""
SUBMITTED = 100
"""Submissions that are accepted before a failover, so that mail is in transit at every stage."""


class Failovers:
    """The events of a case."""

    submitted = SUBMITTED
    """Submissions that are accepted before a failover."""

    def __init__(self, stand: FailoverStand, run: FailoverDrive) -> None:
        self.happened: Counter[str] = Counter()
        self._stand, self._run = stand, run

    async def keep(self) -> None:
        """Do nothing: only the case restarts servers."""

    async def happen(self) -> None:
        """Run the case; no mail is offered afterwards."""
        replicas = await asyncio.to_thread(self._stand.nodes.replicas)
        assert replicas and set(replicas.values()) == {NODES}, replicas
        await self._run.until_taken(self.submitted)
        try:
            await self._act()
        finally:
            self._run.over = True

    @abstractmethod
    async def _act(self) -> None: ...

    async def heal(self) -> None:
        """Do nothing: all servers run at the end of a case."""

    async def _fail_postgres_over(self, lags_since: float | None = None) -> None:
        """Kill the primary and promote the standby.

        :param lags_since: time at which an asynchronous standby got its last commit: monotonic seconds.
        """
        run, stand = self._run, self._stand
        stand.kill_primary()
        killed = run.note("primary of PostgreSQL killed")
        if lags_since is not None:
            await asyncio.sleep(DECISION_SECONDS)
            run.lags.append(Lag(lags_since, time.monotonic()))
        await stand.promote()
        run.note("  the new primary serves")
        self.happened["failovers of PostgreSQL"] += 1
        await run.until_it_flows(killed)

    async def _lose_nodes(self, *numbers: int) -> float:
        lost = time.monotonic()
        await asyncio.gather(*(self._stand.kill_node(number) for number in numbers))
        self.happened["nodes of RabbitMQ killed"] += len(numbers)
        return lost

    async def _bring_back(self, number: int) -> None:
        self._stand.start_node(number)
        await self._stand.answering(self._stand.nodes.nodes[number - 1].answers, 180)


class Synchronous(Failovers):
    """Two failovers; between them the old primary comes back as the standby."""

    async def _act(self) -> None:
        await self._fail_postgres_over()
        await self._stand.replicate()
        self._run.note("the old primary is the standby")
        await self._run.until_taken(self.submitted)
        await self._fail_postgres_over()
        await self._run.until_taken(self.submitted)


class Asynchronous(Failovers):
    """Two failovers to a standby that lags."""

    async def _act(self) -> None:
        await self._fail_over_with_a_lag()
        await self._stand.replicate()
        self._run.note("the old primary is the standby")
        await self._run.until_taken(self.submitted)
        await self._fail_over_with_a_lag()
        await self._run.until_taken(self.submitted)

    async def _fail_over_with_a_lag(self) -> None:
        begin = time.monotonic()
        await self._stand.end_replication()
        await asyncio.sleep(LAG_SECONDS)
        await self._fail_postgres_over(begin)


class Nodes(Failovers):
    """One of three nodes is killed and restarted; then two are killed and restarted one after the other."""

    async def _act(self) -> None:
        run = self._run
        lost = await self._lose_nodes(1)
        run.note("node with all connections and leaders killed", lost)
        await run.until_it_flows(lost)
        back = run.note("  it is started")
        await self._bring_back(1)
        run.note("  it serves")
        await run.until_it_flows(back)

        lost = await self._lose_nodes(2, 3)
        run.note("two nodes killed, among them the one with all connections", lost)
        await run.until_taken(self.submitted)
        await asyncio.sleep(ALONE_SECONDS)
        alone = run.flow(lost)
        run.note(f"  meanwhile new mail in: {alone.inward is not None}, out: {alone.outward is not None}")
        back = run.note("  one of them is started")
        await self._bring_back(2)
        run.note("  it serves")
        await run.until_it_flows(back)
        back = run.note("  the other one is started")
        await self._bring_back(3)
        await run.until_it_flows(back)


class Short(Failovers):
    """One synchronous failover of PostgreSQL, and one RabbitMQ node killed."""

    submitted = 40

    async def _act(self) -> None:
        await self._fail_postgres_over()
        lost = await self._lose_nodes(1)
        self._run.note("node with all connections and leaders killed", lost)
        await self._run.until_it_flows(lost)


@dataclass(frozen=True, slots=True)
class Case:
    """A case of the command."""

    about: str  # description, to be printed
    synchronous: bool  # a commit waits for the standby
    troubles: Callable[[FailoverStand, FailoverDrive], Failovers]


CASES = {
    "synchronous": Case("PostgreSQL, a commit waits for the standby", True, Synchronous),
    "asynchronous": Case(f"PostgreSQL, the standby lags by {LAG_SECONDS:g} s", False, Asynchronous),
    "nodes": Case("RabbitMQ, three nodes", True, Nodes),
}
SHORT = Case("both, once", True, Short)
