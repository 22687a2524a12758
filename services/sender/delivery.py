"""Relays the due mails of each external account, over as many connections at once as the account allows.

Each connection belongs to a lane, and each lane to one account, so a slow or unreachable provider delays no other one.
Due mails are claimed from the database, some of them ahead of the lanes (prefetched). Where the server supports
PIPELINING (RFC 2920), the envelope of the next mail goes out behind the final dot: a mail then takes one round trip.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Collection, Sequence
from functools import partial
from typing import Any

import structlog
from prometheus_client import Counter

from services.sender import outgoing_message, retry_policy, smtp_transaction
from services.sender.account_lanes import AccountQueue, ClaimedMail, LaneConnection
from services.sender.claims import RELEASE_SECONDS, AccountChanged, ClaimLost, Claims
from services.sender.connection_pool import ConnectionPool, same_server
from services.sender.outcomes import PostCommit
from services.sender.smtp_transaction import AccountRejection, DeliveryResult, OutgoingMessage, Replies, SmtpEnvelope
from shared.amqp.broker import Publication
from shared.db.database import Connection, Database
from shared.errors import Temporary
from shared.metrics import STAGE_SECONDS
from shared.model import External
from shared.net import dial
from shared.provider.credentials import Credentials
from shared.provider.smtp_client import SERVER_FULL, Commands, OutcomeUnknown, SmtpClient, SmtpConnectionLost
from shared.provider.smtp_connect import AuthFailed, ServerUnavailable
from shared.settings import PrivateHosts
from shared.store import account_changes, accounts, maillog, relay_queue, relay_status
from shared.store.relay_queue import Claimed, QueuedMail

PIPELINED_SECONDS = 2.0
"""Limits how long a pipelined mail waits for the reply to the mail before: seconds; then another lane sends it."""

PROMPT_SECONDS = 0.5
"""A mail is pipelined if the last reply came within this time: seconds; behind a slow one it would wait."""

FINISH_SECONDS = 8.0
"""Limits how long a stopping service continues the mails that its lanes send: seconds."""
REPLY_SECONDS = 30.0
"""Limits how long a stopping service waits for the reply to a final dot: seconds; content filters at providers are
slow, and a mail that is cut off at this point is sent twice."""

RECORD_SECONDS = 3.0
"""Limits how long a stopping service still tries to record results after that: seconds; they are lost with it."""

AccountFailure = (dial.Unreachable, dial.TlsError, dial.AddressNotAllowed, ServerUnavailable, AuthFailed)
"""Errors that concern the account as a whole, not one mail."""

ERRORS = Counter(
    "mailgroup_relay_errors_total",
    "Times that an account's provider could not be used for sending.",
    ["external", "kind"],
)  # unreachable, timeout, tls, policy, server, credentials, sender, throttled
MAX_SIZE_DIGITS = 18
"""Limits the SIZE that a server announces (RFC 1870): digits, so that it fits in a bigint."""

log = structlog.get_logger()


class OutboundDelivery:
    """Relays queued mails. claims: those that this process holds. connections: the pool of idle connections."""

    def __init__(
        self,
        database: Database,
        credentials: Credentials,
        owner: str,
        allow_private: PrivateHosts,
        publish: Callable[[Sequence[Publication]], None],
    ) -> None:
        """:param owner: unique to this process. :param publish: as ``Broker.publish_behind``."""
        self.claims = Claims(database, owner, self.announce)
        self.connections = ConnectionPool(credentials, allow_private)
        self._database = database
        self._owner = owner
        self._publish = publish
        self._queues: dict[int, AccountQueue] = {}  # by external account
        self._starting: dict[int, asyncio.Task[None]] = {}  # claims in progress, by external account
        self._schedule_again: set[int] = set()  # accounts that were scheduled during their claim
        self._recording: set[asyncio.Task[None]] = set()  # results that are being written
        self._awaiting_reply: set[asyncio.Task[Any]] = set()  # lanes that wait for the reply to a final dot
        self._sizes: dict[int, int | None] = {}  # SIZE as announced, by external account; None: no limit
        self._stopping = False

    def announce(self, after: PostCommit) -> None:
        """Log, count and publish committed results."""
        maillog.announce(after.events)
        self._publish(after.publications)

    # ------------------------------------------------------------------------------------------ claiming

    def schedule(self, external_id: int) -> None:
        """Claim what is due for this account in the background, and start the lanes for it."""
        if self._stopping:
            return
        if external_id in self._starting:
            self._schedule_again.add(external_id)
            return
        self._starting[external_id] = asyncio.create_task(self._refill(external_id), name=f"claim {external_id}")

    async def _refill(self, external_id: int) -> None:
        queue = self._queues.setdefault(external_id, AccountQueue(external_id))
        try:
            queue.prefetched += await self._claim(queue)
            self._start_lanes(queue)
        except Temporary as error:
            log.warning("database unavailable, nothing claimed", external_id=external_id, error=str(error))
        except Exception:  # the next call may succeed, and other accounts continue
            log.exception("claiming failed", external_id=external_id)
        finally:
            del self._starting[external_id]
            if external_id in self._schedule_again:
                self._schedule_again.discard(external_id)
                self.schedule(external_id)

    async def _claim(self, queue: AccountQueue) -> list[ClaimedMail]:
        """Claim due mails: one for each free lane, and some ahead.

        :raises Temporary: the database is unavailable.
        """
        if self.claims.is_recording_blocked:
            return []
        async with self._database.transaction() as connection:
            claimed = await self.claims.claim(
                connection, queue.external_id, len(queue.lanes), queue.prefetch_limit, queue.prefetch_octets
            )
            # After the claim: the account is at least as new as the version that the marks compare.
            externals = await accounts.load_externals(connection, [queue.external_id]) if claimed.mails else []
        self.claims.claimed_ids.update(mail.id for mail in claimed.mails)
        queue.allowed_lanes, queue.more_due = claimed.lanes, claimed.more
        if queue.allowed_lanes == 0:
            await self.claims.release(queue.take_all())
        if not externals:  # the account was removed between the two statements
            await self.claims.release(claimed.mails)
            return []
        [external] = externals
        try:
            sources = await outgoing_message.load_sources(self._database, claimed.mails, external)
        except Temporary:
            await self.claims.release(claimed.mails)
            raise
        except Exception as error:  # one mail is the cause: find it
            log.warning("batch failed, loading mail by mail", mails=len(claimed.mails), error=repr(error))
            return await self._claim_one_by_one(claimed, external)
        return [ClaimedMail(mail, external, claimed.account_version, sources.get(mail.id)) for mail in claimed.mails]

    async def _claim_one_by_one(self, claimed: Claimed, external: External) -> list[ClaimedMail]:
        loaded = []
        for mail in claimed.mails:
            try:
                sources = await outgoing_message.load_sources(self._database, [mail], external)
            except Temporary:
                await self.claims.release([mail])
            except Exception as error:  # any error: this mail is the cause
                await self.claims.count_failure(mail, error)
            else:
                loaded.append(ClaimedMail(mail, external, claimed.account_version, sources.get(mail.id)))
        return loaded

    # ------------------------------------------------------------------------------------------ lanes

    def _start_lanes(self, queue: AccountQueue) -> None:
        """Start a lane for each prefetched mail, up to the allowed number; none while results wait to be recorded."""
        while (
            queue.prefetched
            and len(queue.lanes) < queue.allowed_lanes
            and not self._stopping
            and not self.claims.is_recording_blocked
        ):
            task = asyncio.create_task(self._run_lane(queue, queue.prefetched.popleft()), name="lane")
            queue.lanes.add(task)
            task.add_done_callback(lambda task: self._lane_ended(queue, task))

    def _lane_ended(self, queue: AccountQueue, task: asyncio.Task[None]) -> None:
        queue.lanes.discard(task)
        self._start_lanes(queue)

    async def _run_lane(self, queue: AccountQueue, first: ClaimedMail) -> None:
        lane = LaneConnection(first.external, self.connections.take_idle(first.external))
        queue.connections.add(lane)
        claimed: ClaimedMail | None = first
        try:
            while claimed is not None:
                claimed = self._next_mail(queue, lane) if await self._relay(queue, lane, claimed) else None
        except Exception:  # the account's other lanes go on
            log.exception("lane failed", external=lane.external.address)
            if claimed is not None:
                self.claims.claimed_ids.discard(claimed.mail.id)  # otherwise its claim would be renewed for ever
        finally:
            queue.connections.discard(lane)
            self._requeue_pipelined(queue, lane)
            if lane.client is not None:
                if lane.must_close:
                    lane.client.close()
                self.connections.keep(lane.client, lane.external)

    def _next_mail(self, queue: AccountQueue, lane: LaneConnection) -> ClaimedMail | None:
        """Return the lane's next mail: the pipelined one, or else a prefetched one."""
        if self.claims.is_recording_blocked:
            return None
        claimed, lane.pipelined = lane.pipelined, None
        if claimed is None and queue.prefetched and not self._stopping and len(queue.lanes) <= queue.allowed_lanes:
            claimed = queue.prefetched.popleft()
        if queue.needs_refill and queue.external_id not in self._starting:
            self.schedule(queue.external_id)
        return claimed

    async def _relay(self, queue: AccountQueue, lane: LaneConnection, claimed: ClaimedMail) -> bool:
        """Relay a mail; return whether the lane continues with another one."""
        try:
            with STAGE_SECONDS.labels("relay").time():
                result = await self._attempt(queue, lane, claimed)
        except AccountFailure as error:
            await self._record_account_failure(queue, lane, claimed, error)
            return False
        except ClaimLost:
            log.warning("claim lost, mail not sent", submission_id=claimed.mail.id)
            self.claims.claimed_ids.discard(claimed.mail.id)
        except AccountChanged:
            log.info("account changed, mail not sent", submission_id=claimed.mail.id)
            self._requeue_pipelined(queue, lane)
            await self.claims.release([claimed.mail, *queue.take_all()])
            self.schedule(queue.external_id)
            return False
        except Temporary as error:  # the database: the claims are released, or expire
            log.warning("database unavailable, mail not sent", submission_id=claimed.mail.id, error=str(error))
            await asyncio.sleep(1.0)
            self._requeue_pipelined(queue, lane)
            await self.claims.release([claimed.mail, *queue.take_all()])
            return False
        except Exception as error:  # any error: this mail is the cause
            await self.claims.count_failure(claimed.mail, error)
        else:
            queue.relayed += any(outcome.state == "relayed" for outcome in result.outcomes)
            if result.rejection is not None:
                await self.claims.record_result(claimed.external, claimed.mail, result)
                await self._record_rejection(queue, lane, result.rejection)
                return False
            octets = claimed.message.octets if result.too_large and claimed.message is not None else None
            recording = self._record_result(claimed.mail, claimed.external, result, octets)
            task = asyncio.create_task(recording, name="record result")
            self._recording.add(task)
            task.add_done_callback(self._recording.discard)
        return True

    async def _record_result(
        self, mail: QueuedMail, external: External, result: DeliveryResult, refused_octets: int | None
    ) -> None:
        """Record a result as soon as the database is available. It holds no part of the mail in memory."""
        await self.claims.record_result(external, mail, result)
        if result.retry_now or result.unanswered:
            self.schedule(external.id)
        if refused_octets is not None:
            await self._store_hint(
                partial(account_changes.learn_refused, external_id=external.id, octets=refused_octets)
            )

    async def _attempt(self, queue: AccountQueue, lane: LaneConnection, claimed: ClaimedMail) -> DeliveryResult:
        """Send a mail over the lane's connection, once more over a new one if the server had ended the old one.

        :raises AccountFailure: nothing can be sent through the account now. :raises ClaimLost: another sender has the
        mail. :raises AccountChanged: the account was changed since the claim. :raises Temporary: the database is
        unavailable.
        """
        message = self._build_message(claimed)
        if lane.client is not None and not same_server(claimed.external, lane.external):
            lane.client.close()
        lane.external = claimed.external
        loop = asyncio.get_running_loop()
        timer: asyncio.TimerHandle | None = None
        next_envelope: SmtpEnvelope | None = None
        dot_sent_at = float("-inf")
        task = asyncio.current_task()
        assert task is not None

        async def before_final_dot() -> None:
            nonlocal next_envelope
            next_envelope = self._pipeline_next(queue, lane)
            await self.claims.mark_sending(claimed.mail, claimed.account_version)

        def send_next_envelope() -> Commands | None:
            nonlocal timer, dot_sent_at
            dot_sent_at = loop.time()
            self._awaiting_reply.add(task)
            if next_envelope is None or lane.pipelined is None:
                return None
            lane.pipelined_envelope = next_envelope
            timer = loop.call_later(PIPELINED_SECONDS, self._requeue_pipelined, queue, lane)
            return next_envelope.commands

        while True:
            envelope, lane.pipelined_envelope = lane.pipelined_envelope, None
            client, fresh = lane.client, False
            if client is None or not client.alive:
                client, fresh, envelope = await self._connect(queue, lane), True, None
            replies = Replies()
            try:
                envelope = envelope or SmtpEnvelope(client, message)
                replies = envelope.replies
                await smtp_transaction.send_message(client, envelope, before_final_dot, send_next_envelope)
            except SmtpConnectionLost as error:
                if fresh:
                    return smtp_transaction.classify_interrupted(
                        claimed.mail.recipients, replies, str(error), unanswered=False
                    )
                client.close()  # servers end idle connections: the mail is not the cause
                lane.client = None
            except OutcomeUnknown as error:
                return smtp_transaction.classify_interrupted(
                    claimed.mail.recipients, replies, str(error), unanswered=True
                )
            else:
                return smtp_transaction.classify(claimed.mail.recipients, replies)
            finally:
                self._awaiting_reply.discard(task)
                if timer is not None:
                    timer.cancel()
                lane.answers_quickly = loop.time() - dot_sent_at < PROMPT_SECONDS
                if lane.must_close:
                    client.close()
                    lane.must_close = False

    def _build_message(self, claimed: ClaimedMail) -> OutgoingMessage:
        if claimed.message is None:
            claimed.message = outgoing_message.build_message(
                self._database, claimed.mail, claimed.external, claimed.source
            )
        return claimed.message

    def _pipeline_next(self, queue: AccountQueue, lane: LaneConnection) -> SmtpEnvelope | None:
        """Choose the mail to pipeline behind the current one, and build its envelope.

        None while a lane is free, which would send the mail sooner, and None where the last reply came late: a
        pipelined mail waits for the reply to the mail before.
        """
        client = lane.client
        if (
            client is None
            or not client.pipelining
            or not lane.answers_quickly
            or lane.pipelined is not None
            or self._stopping
            or self.claims.is_recording_blocked
        ):
            return None
        if len(queue.lanes) != queue.allowed_lanes or not queue.prefetched:
            return None
        claimed = queue.prefetched[0]
        if not same_server(claimed.external, lane.external):
            return None
        lane.pipelined = queue.prefetched.popleft()
        try:
            envelope = SmtpEnvelope(client, self._build_message(claimed))
        except Exception as error:  # the lane builds it again when its turn comes, and counts the failure
            log.warning("mail not pipelined", submission_id=claimed.mail.id, error=repr(error))
            return None
        return envelope if envelope.commands else None

    def _requeue_pipelined(self, queue: AccountQueue, lane: LaneConnection) -> None:
        """Let another lane send the pipelined mail; this server has its envelope at most, not its content."""
        if lane.pipelined is not None:
            queue.prefetched.appendleft(lane.pipelined)
            lane.pipelined = None
        if lane.pipelined_envelope is not None:
            lane.pipelined_envelope, lane.must_close = None, True
        self._start_lanes(queue)

    async def _connect(self, queue: AccountQueue, lane: LaneConnection) -> SmtpClient:
        lane.client = await self.connections.connect(lane.external)
        async with self._database.transaction() as connection:
            if await relay_status.record_success(connection, lane.external.id):
                self.schedule(queue.external_id)  # after failures one lane tried alone; now more may start
        await self._learn_size(lane.external, lane.client)
        return lane.client

    async def _learn_size(self, external: External, client: SmtpClient) -> None:
        """Store the SIZE that the server announces (RFC 1870): smtp_in rejects larger submissions."""
        announced = client.extensions.get("size", "")
        octets = (int(announced) if announced.isdecimal() and len(announced) < MAX_SIZE_DIGITS else 0) or None
        if self._sizes.get(external.id, external.smtp_size) != octets:
            self._sizes[external.id] = octets
            await self._store_hint(partial(account_changes.learn_size, external_id=external.id, octets=octets))

    async def _store_hint(self, write: Callable[[Connection], Awaitable[None]]) -> None:
        """Store a fact that is useful but not needed; if that fails, the next connection or mail gives it again."""
        try:
            async with self._database.transaction() as connection:
                await write(connection)
        except Temporary as error:
            log.warning("database unavailable, size limit not stored", error=str(error))

    async def _record_rejection(self, queue: AccountQueue, lane: LaneConnection, rejection: AccountRejection) -> None:
        """Back off the account; its queued mails wait. The result of the current mail is recorded already."""
        external = lane.external
        self._log_failure(external, rejection.kind, rejection.text, rejection.pause)
        queue.allowed_lanes = 0
        self._requeue_pipelined(queue, lane)
        if lane.client is not None:
            lane.client.close()  # only a new login shows whether the account loaded again
        dropped = queue.take_all()
        try:
            async with self._database.transaction() as connection:
                await relay_queue.release_claims(connection, [mail.id for mail in dropped], self._owner, unsent=True)
                await relay_status.record_failure(
                    connection, external.id, rejection.kind, rejection.text, rejection.seconds, pause=rejection.pause
                )
        except Temporary as error:
            log.warning("database unavailable, rejection not recorded", external=external.address, error=str(error))
            await self.claims.release(dropped)
        self.claims.claimed_ids.difference_update(mail.id for mail in dropped)

    def _log_failure(self, external: External, kind: str, error: str, paused: bool) -> None:
        """Count and log a failure before it is recorded, as the database may be unavailable."""
        ERRORS.labels(external.address, kind).inc()
        write = log.error if paused else log.warning
        write("relaying paused" if paused else "relaying failed", external=external.address, kind=kind, error=error)

    async def _record_account_failure(
        self, queue: AccountQueue, lane: LaneConnection, claimed: ClaimedMail, error: Exception
    ) -> None:
        """Back off the account, not the mail. If the server only limits connections (421), lower their number."""
        external = lane.external
        alive = sum(
            1 for other in queue.connections if other is not lane and other.client is not None and other.client.alive
        )
        too_many = isinstance(error, ServerUnavailable) and error.reply_code == SERVER_FULL and alive > 0
        refused = isinstance(error, AuthFailed)
        kind = str(getattr(error, "kind", "server"))
        self._log_failure(external, kind, str(error), refused)
        queue.allowed_lanes = min(queue.allowed_lanes, alive) if too_many else 0
        self._requeue_pipelined(queue, lane)
        mails = [claimed.mail] if too_many else [claimed.mail, *queue.take_all()]
        try:
            async with self._database.transaction() as connection:
                # locks the mails before the account, as every other transaction: no deadlock
                await relay_queue.release_claims(connection, [mail.id for mail in mails], self._owner, unsent=True)
                if too_many:
                    await relay_status.lower_connections(connection, external.id, alive)
                else:
                    state = (await relay_status.load_status(connection, [external.id])).get(external.id)
                    delay = (
                        retry_policy.LOGIN_PAUSE
                        if refused
                        else retry_policy.reconnect_delay(
                            state.failures + 1 if state else 1,
                            random.random(),
                            unreachable=isinstance(error, dial.Unreachable),
                        )
                    )
                    await relay_status.record_failure(connection, external.id, kind, str(error), delay, pause=refused)
        except Temporary as unavailable:
            log.warning("database unavailable, failure not recorded", external=external.address, error=str(unavailable))
            await self.claims.release(mails)
            return
        self.claims.claimed_ids.difference_update(mail.id for mail in mails)

    # ------------------------------------------------------------------------------------------ periodic work, stop

    async def release_idle(self) -> None:
        """Release prefetched mails that no lane has taken in time; close idle connections."""
        await self.claims.release([mail for queue in self._queues.values() for mail in queue.take_expired()])
        await self.connections.close_idle()

    async def stop(self, seconds: float = FINISH_SECONDS, reply_seconds: float = REPLY_SECONDS) -> None:
        """Finish the mails that are being sent within ``seconds``; release all alive.

        :param reply_seconds: limit for lanes that only wait for the reply to a final dot, and for recording results.
        """
        self._stopping = True
        deadline = time.monotonic() + reply_seconds
        starting = set(self._starting.values())
        if starting:
            await asyncio.wait(starting, timeout=RELEASE_SECONDS)
        await self.claims.release([mail for queue in self._queues.values() for mail in queue.take_all()])
        lanes = {task for queue in self._queues.values() for task in queue.lanes} | starting
        if lanes:
            _, late = await asyncio.wait(lanes, timeout=seconds)
            sent = late & self._awaiting_reply  # computed here: a reply may come while the alive are cancelled
            await _wait_or_cancel(late - sent, 0.0)
            await _wait_or_cancel(sent, reply_seconds - seconds)
        await _wait_or_cancel(self._recording, max(0.0, deadline - time.monotonic()) + RECORD_SECONDS)
        await self.connections.close_idle(0.0)
        await self.claims.release_all()


async def _wait_or_cancel(tasks: Collection[asyncio.Task[None]], seconds: float) -> None:
    """Wait for these tasks; cancel those that take longer."""
    if tasks:
        _, late = await asyncio.wait(tasks, timeout=seconds)
        for task in late:
            task.cancel()
        await asyncio.gather(*late, return_exceptions=True)
