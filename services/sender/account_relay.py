"""Relays the mails of one external account by one of its relays: claims what is due, runs the lanes, and records how
each mail ends.

While a relay is in trouble and another one comes after it, mail goes by that one. The first one is tried without mail,
so that none waits for it.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence

import structlog

from services.sender import outgoing_message, retry_policy
from services.sender.account_queue import AccountQueue, ClaimedMail
from services.sender.account_status import AccountFailure, AccountStatus, is_connection_limit
from services.sender.batches import run_in_halves
from services.sender.claims import AccountChanged, ClaimLost, Claims
from services.sender.connection_pool import ConnectionPool
from services.sender.lane import Lane
from services.sender.outgoing_message import MessageSource
from services.sender.smtp_transaction import DeliveryResult
from shared.db.database import Database
from shared.db.errors import DatabaseCorrupted
from shared.errors import Temporary
from shared.metrics import STAGE_SECONDS
from shared.model import External
from shared.provider.smtp_login import AuthFailed
from shared.store import accounts
from shared.store.relay_queue import Claimed, QueuedMail

UNAVAILABLE_PAUSE = 1.0
"""Pause of a lane whose mark could not be committed: seconds; the database is unavailable."""

log = structlog.get_logger()


class AccountRelay:
    """The queue and the lanes of one relay. ``run`` is its only task that claims mails and starts lanes."""

    def __init__(
        self,
        external_id: int,
        position: int,
        database: Database,
        claims: Claims,
        connections: ConnectionPool,
        status: AccountStatus,
        schedule: Callable[[int, int], None],
    ) -> None:
        """:param schedule: as ``OutboundDelivery.schedule``."""
        self.queue = AccountQueue(external_id, position)
        self.probes: set[asyncio.Task[None]] = set()  # tries without mail; one at most
        self.lanes: dict[asyncio.Task[None], Lane] = {}
        self.recording: set[asyncio.Task[None]] = set()  # results that are being written
        self._database = database
        self._claims = claims
        self._connections = connections
        self._status = status
        self._schedule = schedule

    async def run(self) -> None:
        """Claim mails and start lanes whenever the queue has changed, until it is stopping."""
        queue = self.queue
        while not queue.stopping:
            queue.changed.clear()
            try:
                if queue.claim_requested:
                    queue.claim_requested = False
                    await self._refill()
                self._start_lanes()
            except Exception:  # the next change may succeed
                log.exception("account relay failed", external_id=queue.external_id)
            await queue.changed.wait()

    # ------------------------------------------------------------------------------------------ claiming

    async def _refill(self) -> None:
        self.queue.claiming = True
        try:
            self.queue.prefetched += await self._claim()
        except Temporary as error:
            log.warning("database unavailable, nothing claimed", external_id=self.queue.external_id, error=str(error))
        finally:
            self.queue.claiming = False

    async def _claim(self) -> list[ClaimedMail]:
        """Claim due mails: one for each free lane, and some ahead. None while results wait to be recorded.

        :raises Temporary: the database is unavailable.
        """
        if self._claims.is_recording_blocked:
            return []
        queue = self.queue
        async with self._database.transaction() as connection:
            claimed = await self._claims.claim(
                connection,
                queue.external_id,
                queue.position,
                queue.lane_count,
                queue.prefetch_limit,
                queue.prefetch_octets,
            )
            # After the claim: the account is at least as new as the version that the marks compare.
            wanted = [queue.external_id] if claimed.mails or claimed.probe else []
            externals = await accounts.load_externals(connection, wanted) if wanted else []
        self._claims.claimed_ids.update(mail.id for mail in claimed.mails)
        queue.add_claimed(claimed)
        if claimed.lanes == 0:
            await self._claims.release(queue.take_all())
        if claimed.ask_next:
            self._schedule(queue.external_id, queue.position + 1)
        found = next((each for each in externals if queue.position < len(each.relays)), None)
        if found is None:  # the account or the relay was removed between the two statements
            await self._claims.release(claimed.mails)
            return []
        external = found.through(queue.position)
        if claimed.probe:
            self._start_probe(external)
        sources = await self._load_sources(claimed, external)
        return [
            ClaimedMail(mail, external, claimed.account_version, sources.get(mail.id))
            for mail in claimed.mails
            if mail.id in self._claims.claimed_ids  # it is not, if its source failed to load
        ]

    async def _load_sources(self, claimed: Claimed, external: External) -> dict[int, MessageSource]:
        """Load what the messages are built of; a mail whose source cannot be loaded counts a failure.

        :raises Temporary: the database is unavailable; the claims are released.
        """

        async def load(mails: Sequence[QueuedMail]) -> dict[int, MessageSource]:
            return await outgoing_message.load_sources(self._database, mails, external)

        try:
            parts = await run_in_halves(self._database, claimed.mails, load, self._claims.count_failure)
        except Temporary:
            await self._claims.release(claimed.mails)
            raise
        return {mail_id: source for part in parts for mail_id, source in part.items()}

    # ------------------------------------------------------------------------------------------ a relay in trouble

    def _start_probe(self, external: External) -> None:
        if not self.probes:
            task = asyncio.create_task(self._probe(external), name="probe of a relay")
            self.probes.add(task)
            task.add_done_callback(self.probes.discard)

    async def _probe(self, external: External) -> None:
        """Log in without mail; if that works, the relay gets new mail again."""
        try:
            client = await self._connections.connect(external)
            self._connections.keep(client, external)
            await self._status.record_login(external, client)
            self.queue.request_claim()
        except AccountFailure as error:
            await self._status.record_failure(external, error, [])
        except Temporary as error:
            log.warning("database unavailable, relay not tried", external=external.address, error=str(error))
        except Exception:  # tried again after the time that the claim has set
            log.exception("relay not tried", external=external.address)

    def _pass_on(self, external: External) -> None:
        """Let the other relays of the account have the mail that this one does not take."""
        if len(external.relays) > 1:
            self._schedule(external.id, 0)

    # ------------------------------------------------------------------------------------------ lanes

    def _start_lanes(self) -> None:
        """Start a lane for each prefetched mail, up to the allowed number; none while results wait to be recorded."""
        while not self._claims.is_recording_blocked and (claimed := self.queue.take_for_new_lane()) is not None:
            lane = Lane(self.queue, claimed, self._database, self._claims, self._connections, self._status)
            task = asyncio.create_task(self._run_lane(lane, claimed), name="lane")
            self.lanes[task] = lane
            self.queue.lane_count += 1
            task.add_done_callback(self._lane_ended)

    def _lane_ended(self, task: asyncio.Task[None]) -> None:
        del self.lanes[task]
        self.queue.lane_count -= 1
        self.queue.changed.set()

    async def _run_lane(self, lane: Lane, first: ClaimedMail) -> None:
        claimed: ClaimedMail | None = first
        try:
            while claimed is not None:
                claimed = self._next_mail(lane) if await self._relay(lane, claimed) else None
        except Exception:  # the account's other lanes continue
            log.exception("lane failed", external=lane.external.address)
            if claimed is not None:
                self._claims.claimed_ids.discard(claimed.mail.id)  # otherwise its claim would never expire
        finally:
            lane.end()

    def _next_mail(self, lane: Lane) -> ClaimedMail | None:
        """Return the lane's next mail: the pipelined one, or else a prefetched one."""
        if self._claims.is_recording_blocked:
            return None
        claimed = lane.take_pipelined() or self.queue.take_next()
        self.queue.request_refill()
        return claimed

    async def _relay(self, lane: Lane, claimed: ClaimedMail) -> bool:
        """Relay a mail; return whether the lane continues with another one."""
        try:
            with STAGE_SECONDS.labels("relay").time():
                result = await lane.send(claimed)
        except AccountFailure as error:
            await self._record_account_failure(lane, claimed, error)
            return False
        except ClaimLost:
            log.warning("claim lost, mail not sent", submission_id=claimed.mail.id)
            self._claims.claimed_ids.discard(claimed.mail.id)
        except AccountChanged:
            log.info("account changed, mail not sent", submission_id=claimed.mail.id)
            await self._claims.release([claimed.mail, *self._stop_lane(lane)])
            self.queue.request_claim()
            return False
        except DatabaseCorrupted as error:
            await self._claims.count_failure(claimed.mail, error)
        except Temporary as error:
            log.warning("database unavailable, mail not sent", submission_id=claimed.mail.id, error=str(error))
            await asyncio.sleep(UNAVAILABLE_PAUSE)
            await self._claims.release([claimed.mail, *self._stop_lane(lane)])
            return False
        except Exception as error:  # any error: this mail is the cause
            await self._claims.count_failure(claimed.mail, error)
        else:
            return await self._end_mail(lane, claimed, result)
        return True

    async def _end_mail(self, lane: Lane, claimed: ClaimedMail, result: DeliveryResult) -> bool:
        """Record a result, in the background unless it concerns the account; return whether the lane continues."""
        self.queue.relayed += result.relayed
        octets = claimed.message.octets if result.too_large and claimed.message is not None else None
        recording = self._record_result(claimed.mail, claimed.external, result, octets)
        if result.rejection is None:
            task = asyncio.create_task(recording, name="record result")
            self.recording.add(task)
            task.add_done_callback(self.recording.discard)
            return True
        await recording
        self.queue.allowed_lanes = 0
        lane.close_connection()  # only a new login shows whether the account works again
        await self._status.record_rejection(lane.external, result.rejection, self._stop_lane(lane))
        self._pass_on(lane.external)
        return False

    async def _end_failure(self, external: External) -> None:
        try:
            await self._status.record_recovery(external)
        except Temporary as error:
            log.warning("database unavailable, recovery not recorded", external=external.address, error=str(error))
        else:
            self.queue.careful = False
            self.queue.request_claim()

    async def _record_result(
        self, mail: QueuedMail, external: External, result: DeliveryResult, refused_octets: int | None
    ) -> None:
        """Record a result as soon as the database is available. It holds no part of the mail in memory."""
        await self._claims.record_result(external, mail, result)
        if result.retry_now or result.unanswered:
            self.queue.request_claim()
        self.queue.changed.set()  # lanes may have waited for it
        if result.relayed and self.queue.careful:  # a connection from before the failure, otherwise the login ended it
            await self._end_failure(external)
        if refused_octets is not None:
            await self._status.record_refused_size(external, refused_octets)

    async def _record_account_failure(self, lane: Lane, claimed: ClaimedMail, error: Exception) -> None:
        """Back off the relay, not the mail. If the server only limits connections, lower their number.

        While other lanes work, a login that fails for now concerns further lanes alone. Otherwise the account's next
        relay gets the mail.
        """
        connected = sum(1 for other in self.lanes.values() if other is not lane and other.is_connected)
        if is_connection_limit(error) and connected > 0:
            self.queue.allowed_lanes = min(self.queue.allowed_lanes, connected)
            lane.give_back_pipelined()
            await self._status.record_connection_limit(lane.external, error, connected, claimed.mail)
        elif connected > 0 and not isinstance(error, AuthFailed):
            self.queue.login_failures += 1
            pause = retry_policy.reconnect_delay(self.queue.login_failures, random.random())
            self.queue.limit_lanes(connected, pause)
            lane.give_back_pipelined()
            self.queue.give_back(claimed)
            self._status.note_failed_lane(lane.external, error)
        else:
            self.queue.allowed_lanes = 0
            await self._status.record_failure(lane.external, error, [claimed.mail, *self._stop_lane(lane)])
            self._pass_on(lane.external)

    def _stop_lane(self, lane: Lane) -> list[QueuedMail]:
        """Take the prefetched mails, also the lane's; the caller releases their claims."""
        lane.give_back_pipelined()
        return self.queue.take_all()
