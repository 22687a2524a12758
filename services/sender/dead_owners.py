"""What the sender does by the clock: due retries, claims, notices of delay, the five days, the gauges."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import structlog

from services.sender import outcomes, poison_check
from services.sender.delivery import Relaying
from shared.db import liveness
from shared.db.liveness import Absentees, stay
from shared.errors import Temporary
from shared.runtime.process import Service
from shared.store import account_changes, relay_queue, relay_status

LOOK_SECONDS = 1.0
HOLD_SECONDS = 5.0
TELL_SECONDS = 10.0
LIFT_SECONDS = 3600.0

log = structlog.get_logger()


class Upkeep:
    """The repeated work; each part is safe beside another sender's."""

    def __init__(self, service: Service, relaying: Relaying) -> None:
        self._service = service
        self._database = service.database
        self._relaying = relaying
        self._absentees = Absentees()

    async def look(self) -> None:
        """Wake the accounts that have something due."""
        async with self._database.statement() as connection:
            due = await relay_queue.due(connection)
        for external_id in due:
            self._relaying.wake(external_id)

    async def hold(self) -> None:
        """Renew the own claims, then take up those that ran out; give back what lies idle."""
        await self._relaying.claims.renew()
        async with self._database.transaction() as connection:
            mended = await relay_queue.mend_times(connection) + await relay_status.mend_times(connection)
            after = await outcomes.take_up(connection)
        if mended:
            log.warning("the clock was set back", mails=mended)
        self._relaying.tell(after)
        await self._relaying.tidy()

    async def inherit(self) -> None:
        """Take up what senders held that died."""
        async with self._database.statement() as connection:
            gone = self._absentees.gone(await relay_queue.absent_owners(connection, self._service.owner))
        if gone:
            log.warning("senders are gone", owners=gone)
            async with self._database.transaction() as connection:
                after = await outcomes.take_up(connection, gone)
            self._relaying.tell(after)
            await self.rehearse()

    async def rehearse(self) -> None:
        """Rehearse what dead senders held, one mail after the other; then it may be claimed."""
        rehearsed = False
        while not self._service.stopping.is_set():
            async with self._service.alone:
                if not await poison_check.rehearse_next(self._database, self._relaying.claims):
                    break
            rehearsed = True
        if rehearsed:
            await self.look()

    async def tell(self) -> None:
        """Give up what is older than five days; tell authors what is late, and what the operator ended."""
        for work in (outcomes.give_up, outcomes.tell_delays, outcomes.tell_cancelled):
            async with self._database.transaction() as connection:
                after = await work(connection)
            self._relaying.tell(after)

    async def lift(self) -> None:
        """Try all the connections of accounts that were limited, and sizes that were refused long ago."""
        async with self._database.transaction() as connection:
            await relay_status.lift_limits(connection)
            await account_changes.forget_refused(connection)


async def keep_up(service: Service, relaying: Relaying) -> None:
    """Do it all until the service is to stop, then let the mails in hand be finished."""
    upkeep = Upkeep(service, relaying)
    staying = asyncio.create_task(stay(service.database, service.owner), name="presence")
    writer = asyncio.create_task(relaying.claims.run(), name="claims")
    holder = asyncio.create_task(_every(service, HOLD_SECONDS, upkeep.hold, until_cancelled=True))
    try:
        await asyncio.gather(
            _every(service, LOOK_SECONDS, upkeep.look),
            _every(service, liveness.LOOK_SECONDS, upkeep.inherit),
            _every(service, LOOK_SECONDS, upkeep.rehearse),
            _every(service, TELL_SECONDS, upkeep.tell),
            _every(service, LIFT_SECONDS, upkeep.lift, first=LIFT_SECONDS),
        )
        await relaying.stop()
    finally:  # claims are renewed until the last mail is settled
        for task in (holder, writer, staying):
            task.cancel()
        await asyncio.gather(holder, writer, staying, return_exceptions=True)


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
        except Exception:  # the next time may go well, and nobody else does this work
            log.exception("upkeep failed", work=work.__name__)
