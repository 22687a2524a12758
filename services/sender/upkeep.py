"""What the sender does by the clock: due retries, claims, notices of delay, the five days, the gauges."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import structlog
from prometheus_client import Gauge

from services.sender import settling
from services.sender.relaying import Relaying
from shared import relays
from shared.database import Database
from shared.failures import Temporary
from shared.service import Service

QUEUED = Gauge("mailgroup_relay_queue_messages", "Submissions that wait to be relayed or are being relayed.")
OLDEST = Gauge("mailgroup_relay_oldest_seconds", "Age of the oldest submission that waits to be relayed.")

LOOK_SECONDS = 1.0
HOLD_SECONDS = 5.0
TELL_SECONDS = 10.0
LIFT_SECONDS = 3600.0
FINISH_SECONDS = 30.0
"""For the mails in hand, when the service is to stop."""

log = structlog.get_logger()


class Upkeep:
    """The repeated work; each part is safe beside another sender's."""

    def __init__(self, database: Database, relaying: Relaying) -> None:
        self._database = database
        self._relaying = relaying

    async def look(self) -> None:
        """Wake the accounts that have something due."""
        async with self._database.statement() as connection:
            due = await relays.due(connection)
        for external_id in due:
            self._relaying.wake(external_id)

    async def hold(self) -> None:
        """Renew the own claims, then take up those of senders that are gone; count; give back what lies idle."""
        await self._relaying.claims.renew()
        async with self._database.transaction() as connection:
            after = await settling.expire(connection)
            waiting, oldest = await relays.backlog(connection)
        self._relaying.tell(after)
        QUEUED.set(waiting)
        OLDEST.set(oldest)
        await self._relaying.tidy()

    async def tell(self) -> None:
        """Give up what is older than five days; tell authors what is late, and what the operator ended. Whatever state
        their account is in."""
        for work in (settling.give_up, settling.tell_delays, settling.tell_cancelled):
            async with self._database.transaction() as connection:
                after = await work(connection)
            self._relaying.tell(after)

    async def lift(self) -> None:
        """Try all the connections of accounts that were limited."""
        async with self._database.transaction() as connection:
            await relays.lift_limits(connection)


async def keep_up(service: Service, relaying: Relaying) -> None:
    """Do it all until the service is to stop, then let the mails in hand be finished."""
    upkeep = Upkeep(service.database, relaying)
    writer = asyncio.create_task(relaying.claims.run(), name="claims")
    holder = asyncio.create_task(_every(service, HOLD_SECONDS, upkeep.hold, until_cancelled=True))
    try:
        await asyncio.gather(
            _every(service, LOOK_SECONDS, upkeep.look),
            _every(service, TELL_SECONDS, upkeep.tell),
            _every(service, LIFT_SECONDS, upkeep.lift, first=LIFT_SECONDS),
        )
        await relaying.stop(FINISH_SECONDS)
    finally:  # claims are renewed until the last mail is settled
        holder.cancel()
        writer.cancel()
        await asyncio.gather(holder, writer, return_exceptions=True)


async def _every(
    service: Service,
    seconds: float,
    work: Callable[[], Awaitable[None]],
    first: float = 0.0,
    until_cancelled: bool = False,
) -> None:
    pause = first
    while True:
        if until_cancelled:
            await asyncio.sleep(pause)
        elif await service.stop_within(pause):
            return
        pause = seconds
        try:
            await work()
        except Temporary as error:
            log.warning("waiting", stage="upkeep", work=work.__name__, reason=str(error))
        except Exception:
            log.exception("upkeep failed", work=work.__name__)
