"""Relays the due mails of all external accounts, over as many connections at once as each account allows.

Each connection belongs to a lane, and each lane to one relay of an account, so a slow or unreachable provider delays no
other one.
Due mails are claimed from the database, some of them ahead of the lanes (prefetched).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection, Sequence

from services.sender.account_relay import AccountRelay
from services.sender.account_status import AccountStatus
from services.sender.claims import RELEASE_SECONDS, Claims
from services.sender.connection_pool import ConnectionPool
from services.sender.outcomes import PostCommit
from shared.amqp.broker import Publication
from shared.db.database import Database
from shared.metrics import SUBMIT_TO_RELAYED
from shared.provider.credentials import Credentials
from shared.runtime.tasks import cancel_tasks
from shared.settings import PrivateHosts
from shared.store import maillog

FINISH_SECONDS = 8.0
"""Limits how long a stopping service continues the mails that its lanes send: seconds."""
REPLY_SECONDS = 30.0
"""Limits how long a stopping service waits for the reply to a final dot: seconds; content filters at providers are
slow, and a mail that is cut off at this point is sent twice."""
RECORD_SECONDS = 3.0
"""Limits how long a stopping service still tries to record results after that: seconds; they are lost with it."""


class OutboundDelivery:
    """Relays queued mails. claims: those that this process holds. connections: the pool of idle connections."""

    def __init__(
        self,
        database: Database,
        credentials: Credentials,
        owner: str,
        allow_private: PrivateHosts,
        publish: Callable[[Sequence[Publication]], None],
        ehlo_name: str | None = None,
    ) -> None:
        """:param owner: unique to this process. :param publish: as ``Broker.publish_behind``.

        :param ehlo_name: the setting of this name.
        """
        self.claims = Claims(database, owner, self.announce)
        self.credentials = credentials
        self.connections = ConnectionPool(credentials, allow_private, ehlo_name)
        self._database = database
        self._publish = publish
        self._status = AccountStatus(database, self.claims)
        # By external account and position of its relay.
        self._relays: dict[tuple[int, int], tuple[AccountRelay, asyncio.Task[None]]] = {}
        self._stopping = False

    def announce(self, after: PostCommit) -> None:
        """Log, count and publish committed results."""
        maillog.announce(after.events)
        for age in after.relayed_ages:
            SUBMIT_TO_RELAYED.observe(age)
        self._publish(after.publications)

    def schedule(self, external_id: int, position: int = 0) -> None:
        """Have what is due for this account claimed in the background, and lanes started for it.

        :param position: of the relay to begin with; it passes on what the next one may send.
        """
        if self._stopping:
            return
        if (external_id, position) not in self._relays:
            relay = AccountRelay(
                external_id, position, self._database, self.claims, self.connections, self._status, self.schedule
            )
            task = asyncio.create_task(relay.run(), name=f"relay {external_id} {position}")
            self._relays[external_id, position] = relay, task
        self._relays[external_id, position][0].queue.request_claim()

    async def release_idle(self) -> None:
        """Release prefetched mails that no lane has taken in time; close idle connections."""
        await self.claims.release([mail for relay, _ in self._relays.values() for mail in relay.queue.take_expired()])
        await self.connections.close_idle()

    async def stop(self, seconds: float = FINISH_SECONDS, reply_seconds: float = REPLY_SECONDS) -> None:
        """Finish the mails that are being sent within ``seconds``; release all others.

        :param reply_seconds: limit for lanes that only wait for the reply to a final dot, and for recording results.
        """
        self._stopping = True
        deadline = time.monotonic() + reply_seconds
        relays = [relay for relay, _ in self._relays.values()]
        for relay in relays:
            relay.queue.stopping = True
            relay.queue.changed.set()
        claiming = {task for _, task in self._relays.values() if not task.done()}
        if claiming:
            await asyncio.wait(claiming, timeout=RELEASE_SECONDS)
        await self.claims.release([mail for relay in relays for mail in relay.queue.take_all()])
        lanes = {task: lane for relay in relays for task, lane in relay.lanes.items()}
        if lanes or claiming:
            _, late = await asyncio.wait({*lanes, *claiming}, timeout=seconds)
            # Computed here: a reply may come while the others are cancelled.
            sent = {task for task in late if task in lanes and lanes[task].awaits_answer}
            await _wait_or_cancel(late - sent, 0.0)
            await _wait_or_cancel(sent, deadline - time.monotonic())
        await cancel_tasks([task for relay in relays for task in relay.probes])
        await _wait_or_cancel(
            {task for relay in relays for task in relay.recording},
            max(0.0, deadline - time.monotonic()) + RECORD_SECONDS,
        )
        await self.connections.close_idle(0.0)
        await self.claims.release_all()


async def _wait_or_cancel(tasks: Collection[asyncio.Task[None]], seconds: float) -> None:
    """Wait for these tasks; cancel those that take longer."""
    if tasks:
        _, late = await asyncio.wait(tasks, timeout=max(0.0, seconds))
        await cancel_tasks(late)
