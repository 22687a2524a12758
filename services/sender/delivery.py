"""Relaying: an account's due groups, each over one of the account's connections, as many at once as the account allows.

Lanes of one account know nothing of another account's, so a provider that is slow or away holds back nobody else. What
is due stands in the database. Some of it is claimed ahead of the lanes, so that a lane has its next mail at hand, and
announces it behind the final dot of the last one where the provider allows it (RFC 2920): then a mail takes one round
trip.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Collection, Sequence
from functools import partial
from typing import Any

import structlog
from prometheus_client import Counter

from services.sender import outgoing_message, retry_policy, smtp_transaction
from services.sender.account_lanes import AccountQueue, ClaimedMail, LaneConnection
from services.sender.claims import RECORD_SECONDS, RELEASE_SECONDS, ClaimLost, Claims
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
"""A mail that was announced behind another one is sent by another lane if the answer to that one takes longer."""

PROMPT_SECONDS = 0.5
"""A mail is announced behind another one where the last answer came within this time."""

FINISH_SECONDS = 8.0
"""For the mails in hand, when the service is to stop."""
REPLY_SECONDS = 30.0
"""… and for those whose final dot has gone out: a provider that looks into mails takes its time, and what is cut off
then is sent twice."""

AccountFailure = (dial.Unreachable, dial.TlsError, dial.AddressNotAllowed, ServerUnavailable, AuthFailed)
"""It concerns the account as a whole, not the mail at hand."""

ERRORS = Counter(
    "mailgroup_relay_errors_total",
    "Times that an account's provider could not be used for sending.",
    ["external", "kind"],
)  # unreachable, timeout, tls, policy, server, credentials, sender, throttled
MAX_SIZE_DIGITS = 18

log = structlog.get_logger()


class OutboundDelivery:
    """Relays what is queued. claims: what this process holds. connections: those that are idle."""

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
        self._queues: dict[int, AccountQueue] = {}
        self._starting: dict[int, asyncio.Task[None]] = {}
        self._schedule_again: set[int] = set()
        self._recording: set[asyncio.Task[None]] = set()
        self._awaiting_reply: set[asyncio.Task[Any]] = set()  # lanes that wait for the answer to a final dot
        self._sizes: dict[int, int | None] = {}
        self._stopping = False

    def announce(self, after: PostCommit) -> None:
        """Log, count and publish what is committed."""
        maillog.announce(after.events)
        self._publish(after.publications)

    # ------------------------------------------------------------------------------------------ claiming

    def schedule(self, external_id: int) -> None:
        """This account may have something due: claim it and start as many lanes as are missing."""
        if self._stopping:
            return
        if external_id in self._starting:
            self._schedule_again.add(external_id)
            return
        self._starting[external_id] = asyncio.create_task(self._refill(external_id), name=f"wake {external_id}")

    async def _refill(self, external_id: int) -> None:
        outlet = self._queues.setdefault(external_id, AccountQueue(external_id))
        try:
            outlet.prefetched += await self._claim(outlet)
            self._start_lanes(outlet)
        except Temporary as error:
            log.warning("waiting", stage="relay", reason=str(error))
        except Exception:  # the next wake may go well, and other accounts are to go on
            log.exception("relaying not started", external_id=external_id)
        finally:
            del self._starting[external_id]
            if external_id in self._schedule_again:
                self._schedule_again.discard(external_id)
                self.schedule(external_id)

    async def _claim(self, outlet: AccountQueue) -> list[ClaimedMail]:
        """Claim what is due: for each free lane, and some ahead.

        :raises Temporary: the database is away.
        """
        async with self._database.transaction() as connection:
            external = await _load_account(connection, outlet.external_id)
            if external is None:
                claimed = Claimed([], 0, False)
            else:
                claimed = await self.claims.claim(
                    connection, external, len(outlet.lanes), outlet.prefetch_limit, outlet.prefetch_octets
                )
        self.claims.claimed.update(group.id for group in claimed.mails)
        outlet.allowed_lanes, outlet.more_due = claimed.lanes, claimed.more
        if outlet.allowed_lanes == 0:
            await self.claims.release(outlet.take_all())
        if external is None or not claimed.mails:
            return []
        try:
            sources = await outgoing_message.load_sources(self._database, claimed.mails, external)
        except Temporary:
            await self.claims.release(claimed.mails)
            raise
        except Exception as error:  # one mail is at fault, and is to be found
            log.warning("batch failed, mail by mail", stage="relay", mails=len(claimed.mails), reason=repr(error))
            return await self._claim_one_by_one(claimed.mails, external)
        return [ClaimedMail(group, external, sources.get(group.id)) for group in claimed.mails]

    async def _claim_one_by_one(self, groups: Sequence[QueuedMail], external: External) -> list[ClaimedMail]:
        works = []
        for group in groups:
            try:
                sources = await outgoing_message.load_sources(self._database, [group], external)
            except Temporary:
                await self.claims.release([group])
            except Exception as error:  # whatever it is, this mail is at fault
                await self.claims.count_failure(group, error)
            else:
                works.append(ClaimedMail(group, external, sources.get(group.id)))
        return works

    # ------------------------------------------------------------------------------------------ lanes

    def _start_lanes(self, outlet: AccountQueue) -> None:
        """Start lanes for what is at hand."""
        while outlet.prefetched and len(outlet.lanes) < outlet.allowed_lanes and not self._stopping:
            lane = asyncio.create_task(self._run_lane(outlet, outlet.prefetched.popleft()), name="relay")
            outlet.lanes.add(lane)
            lane.add_done_callback(lambda lane: self._lane_ended(outlet, lane))

    def _lane_ended(self, outlet: AccountQueue, lane: asyncio.Task[None]) -> None:
        outlet.lanes.discard(lane)
        self._start_lanes(outlet)

    async def _run_lane(self, outlet: AccountQueue, first: ClaimedMail) -> None:
        line = LaneConnection(first.external, self.connections.take_idle(first.external))
        outlet.connections.add(line)
        work: ClaimedMail | None = first
        try:
            while work is not None:
                work = self._next_mail(outlet, line) if await self._relay(outlet, line, work) else None
        except Exception:  # the account's other lanes go on
            log.exception("lane failed", external=line.external.address)
            if work is not None:
                self.claims.claimed.discard(work.mail.id)  # or its claim would be renewed for ever
        finally:
            outlet.connections.discard(line)
            self._requeue_pipelined(outlet, line)
            if line.client is not None:
                if line.must_close:
                    line.client.close()
                self.connections.keep(line.client, line.external)

    def _next_mail(self, outlet: AccountQueue, line: LaneConnection) -> ClaimedMail | None:
        """The lane's next mail: the one that was announced already, or else one that is at hand."""
        work, line.pipelined = line.pipelined, None
        if work is None and outlet.prefetched and not self._stopping and len(outlet.lanes) <= outlet.allowed_lanes:
            work = outlet.prefetched.popleft()
        if outlet.needs_refill and outlet.external_id not in self._starting:
            self.schedule(outlet.external_id)
        return work

    async def _relay(self, outlet: AccountQueue, line: LaneConnection, work: ClaimedMail) -> bool:
        """Relay a mail; whether the lane goes on with another one."""
        try:
            with STAGE_SECONDS.labels("relay").time():
                verdict = await self._attempt(outlet, line, work)
        except AccountFailure as error:
            await self._record_account_failure(outlet, line, work, error)
            return False
        except ClaimLost:
            log.warning("claim lost", submission_id=work.mail.id)
            self.claims.claimed.discard(work.mail.id)
        except Temporary as error:  # the database: what is claimed is given back, or its claim runs out
            log.warning("waiting", stage="relay", submission_id=work.mail.id, reason=str(error))
            await asyncio.sleep(1.0)
            self._requeue_pipelined(outlet, line)
            await self.claims.release([work.mail, *outlet.take_all()])
            return False
        except Exception as error:  # whatever it is, this mail is at fault
            await self.claims.count_failure(work.mail, error)
        else:
            outlet.relayed += any(outcome.state == "relayed" for outcome in verdict.outcomes)
            if verdict.rejection is not None:
                await self.claims.record_result(work.external, work.mail, verdict)
                await self._record_rejection(outlet, line, verdict.rejection)
                return False
            task = asyncio.create_task(self._record_result(outlet, work, verdict), name="settle")
            self._recording.add(task)
            task.add_done_callback(self._recording.discard)
        return True

    async def _record_result(self, outlet: AccountQueue, work: ClaimedMail, verdict: DeliveryResult) -> None:
        await self.claims.record_result(work.external, work.mail, verdict)
        if verdict.retry_now or verdict.unanswered:
            self.schedule(outlet.external_id)
        if verdict.too_large and work.message is not None:
            await self._store_hint(
                partial(account_changes.learn_refused, external_id=outlet.external_id, octets=work.message.octets)
            )

    async def _attempt(self, outlet: AccountQueue, line: LaneConnection, work: ClaimedMail) -> DeliveryResult:
        """Send the mail; what that came to.

        :raises AccountFailure: nothing can be sent through the account now. :raises ClaimLost: it is another one's.
        :raises Temporary: the database is away.
        """
        letter = self._build_message(work)
        if line.client is not None and not same_server(work.external, line.external):
            line.client.close()
        line.external = work.external
        loop = asyncio.get_running_loop()
        timer: asyncio.TimerHandle | None = None
        following: SmtpEnvelope | None = None
        dotted = float("-inf")
        lane = asyncio.current_task()
        assert lane is not None

        async def before_dot() -> None:
            nonlocal following
            following = self._pipeline_next(outlet, line)
            await self.claims.mark_sending(work.mail)

        def behind() -> Commands | None:
            nonlocal timer, dotted
            dotted = loop.time()
            self._awaiting_reply.add(lane)
            if following is None or line.pipelined is None:
                return None
            line.pipelined_envelope = following
            timer = loop.call_later(PIPELINED_SECONDS, self._requeue_pipelined, outlet, line)
            return following.commands

        while True:
            envelope, line.pipelined_envelope = line.pipelined_envelope, None
            client, fresh = line.client, False
            if client is None or not client.alive:
                client, fresh, envelope = await self._connect(outlet, line), True, None
            replies = Replies()
            try:
                envelope = envelope or SmtpEnvelope(client, letter)
                replies = envelope.replies
                await smtp_transaction.send_message(client, envelope, before_dot, behind)
            except SmtpConnectionLost as error:
                if fresh:
                    return smtp_transaction.classify_interrupted(
                        work.mail.recipients, replies, str(error), unanswered=False
                    )
                client.close()  # servers end idle connections: the mail has nothing to do with it
                line.client = None
            except OutcomeUnknown as error:
                return smtp_transaction.classify_interrupted(work.mail.recipients, replies, str(error), unanswered=True)
            else:
                return smtp_transaction.classify(work.mail.recipients, replies)
            finally:
                self._awaiting_reply.discard(lane)
                if timer is not None:
                    timer.cancel()
                line.answers_quickly = loop.time() - dotted < PROMPT_SECONDS
                if line.must_close:
                    client.close()
                    line.must_close = False

    def _build_message(self, work: ClaimedMail) -> OutgoingMessage:
        if work.message is None:
            work.message = outgoing_message.build_message(self._database, work.mail, work.external, work.source)
        return work.message

    def _pipeline_next(self, outlet: AccountQueue, line: LaneConnection) -> SmtpEnvelope | None:
        """Choose the mail that is to follow, and what announces it.

        While lanes are free they do better: what is announced waits for the answer to the mail before. So it is done
        only where the last answer came promptly.
        """
        client = line.client
        if (
            client is None
            or not client.pipelining
            or not line.answers_quickly
            or line.pipelined is not None
            or self._stopping
        ):
            return None
        if len(outlet.lanes) != outlet.allowed_lanes or not outlet.prefetched:
            return None
        work = outlet.prefetched[0]
        if not same_server(work.external, line.external):
            return None
        line.pipelined = outlet.prefetched.popleft()
        try:
            envelope = SmtpEnvelope(client, self._build_message(work))
        except Exception as error:  # it is written again, and blamed, when it is that mail's turn
            log.warning("not announced", submission_id=work.mail.id, reason=repr(error))
            return None
        return envelope if envelope.commands else None

    def _requeue_pipelined(self, outlet: AccountQueue, line: LaneConnection) -> None:
        """Let another lane send what was to follow on this line. A mail whose body has not begun is nowhere."""
        if line.pipelined is not None:
            outlet.prefetched.appendleft(line.pipelined)
            line.pipelined = None
        if line.pipelined_envelope is not None:
            line.pipelined_envelope, line.must_close = None, True
        self._start_lanes(outlet)

    async def _connect(self, outlet: AccountQueue, line: LaneConnection) -> SmtpClient:
        line.client = await self.connections.connect(line.external)
        async with self._database.transaction() as connection:
            if await relay_status.record_success(connection, line.external.id):
                self.schedule(outlet.external_id)  # after failures one lane tries alone
        await self._learn_size(line.external, line.client)
        return line.client

    async def _learn_size(self, external: External, client: SmtpClient) -> None:
        """Keep what the server announces as the most that it takes (RFC 1870): submissions are judged by it."""
        told = client.extensions.get("size", "")
        octets = (int(told) if told.isdecimal() and len(told) < MAX_SIZE_DIGITS else 0) or None
        if self._sizes.get(external.id, external.smtp_size) != octets:
            self._sizes[external.id] = octets
            await self._store_hint(partial(account_changes.learn_size, external_id=external.id, octets=octets))

    async def _store_hint(self, write: Callable[[Connection], Awaitable[None]]) -> None:
        """Write something down that helps, and is learnt again if it cannot be."""
        try:
            async with self._database.transaction() as connection:
                await write(connection)
        except Temporary as error:
            log.warning("not learnt", reason=str(error))

    async def _record_rejection(self, outlet: AccountQueue, line: LaneConnection, objection: AccountRejection) -> None:
        """Leave the account alone for a while; what it has queued waits. The mail in hand is settled already."""
        external = line.external
        self._log_failure(external, objection.kind, objection.text, objection.pause)
        outlet.allowed_lanes = 0
        self._requeue_pipelined(outlet, line)
        if line.client is not None:
            line.client.close()  # whether it works again is told by a new login
        dropped = outlet.take_all()
        try:
            async with self._database.transaction() as connection:
                await relay_queue.release_claims(connection, [group.id for group in dropped], self._owner)
                await relay_status.record_failure(
                    connection, external.id, objection.kind, objection.text, objection.seconds, pause=objection.pause
                )
        except Temporary as error:
            log.warning("waiting", stage="relay", reason=str(error))
            await self.claims.release(dropped)
        self.claims.claimed.difference_update(group.id for group in dropped)

    def _log_failure(self, external: External, kind: str, reason: str, paused: bool) -> None:
        """In the metric and the log: before it is written down, which the database may not take now."""
        ERRORS.labels(external.address, kind).inc()
        tell = log.error if paused else log.warning
        tell("relaying paused" if paused else "relaying failed", external=external.address, kind=kind, reason=reason)

    async def _record_account_failure(
        self, outlet: AccountQueue, line: LaneConnection, work: ClaimedMail, error: Exception
    ) -> None:
        """Back off the account, not the mail; a server that only takes fewer connections gets fewer."""
        external = line.external
        others = sum(
            1 for other in outlet.connections if other is not line and other.client is not None and other.client.alive
        )
        crowded = isinstance(error, ServerUnavailable) and error.reply_code == SERVER_FULL and others > 0
        refused = isinstance(error, AuthFailed)
        kind = str(getattr(error, "kind", "server"))
        self._log_failure(external, kind, str(error), refused)
        outlet.allowed_lanes = min(outlet.allowed_lanes, others) if crowded else 0
        self._requeue_pipelined(outlet, line)
        groups = [work.mail] if crowded else [work.mail, *outlet.take_all()]
        try:
            async with self._database.transaction() as connection:
                # mail first, then account: no deadlock
                await relay_queue.release_claims(connection, [group.id for group in groups], self._owner)
                if crowded:
                    await relay_status.lower_connections(connection, external.id, others)
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
            log.warning("waiting", stage="relay", reason=str(unavailable))
            await self.claims.release(groups)
            return
        self.claims.claimed.difference_update(group.id for group in groups)

    # ------------------------------------------------------------------------------------------ by the clock

    async def release_idle(self) -> None:
        """Give back what is claimed ahead of lanes that do not come to it; close idle connections."""
        await self.claims.release([group for outlet in self._queues.values() for group in outlet.take_expired()])
        await self.connections.close_idle()

    async def stop(self, seconds: float = FINISH_SECONDS, owed_seconds: float = REPLY_SECONDS) -> None:
        """Finish the mails in hand within ``seconds``; give back what has not been sent by then.

        :param owed_seconds: for those that only want the provider's answer.
        """
        self._stopping = self.claims.stopping = True
        starting = set(self._starting.values())
        if starting:
            await asyncio.wait(starting, timeout=RELEASE_SECONDS)
        await self.claims.release([group for outlet in self._queues.values() for group in outlet.take_all()])
        lanes = {lane for outlet in self._queues.values() for lane in outlet.lanes} | starting
        if lanes:
            _, late = await asyncio.wait(lanes, timeout=seconds)
            owed = (
                late & self._awaiting_reply
            )  # of now: one whose answer comes while the others end is to be waited for too
            await _wait_or_cancel(late - owed, 0.0)
            await _wait_or_cancel(owed, owed_seconds - seconds)
        await _wait_or_cancel(self._recording, RECORD_SECONDS)
        await self.connections.close_idle(0.0)
        await self.claims.release_all()


async def _wait_or_cancel(tasks: Collection[asyncio.Task[None]], seconds: float) -> None:
    """Wait for these; end those that take longer."""
    if tasks:
        _, late = await asyncio.wait(tasks, timeout=seconds)
        for task in late:
            task.cancel()
        await asyncio.gather(*late, return_exceptions=True)


async def _load_account(connection: Connection, external_id: int) -> External | None:
    """The account as it is now, if it may be used. What is queued for another one waits."""
    found = [external for external in await accounts.load_externals(connection, [external_id]) if external.enabled]
    return found[0] if found else None
