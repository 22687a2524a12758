"""Relaying: an account's due groups, each over one of the account's connections, as many at once as the account allows.

Lanes of one account know nothing of another account's, so a provider that is slow or away holds back nobody else. What
is due stands in the database: a lane takes the next group in the transaction that settles the last one.
"""

from __future__ import annotations

import asyncio
import random
import time
import traceback
from collections.abc import Callable, Sequence

import structlog

from services.sender import letters, relay, schedule, settling
from services.sender.relay import Replies, Verdict
from services.sender.settling import Aftermath
from shared import accounts, maillog, relays, smtp_client, submissions, upstream
from shared.accounts import External
from shared.broker import Publication
from shared.database import Connection, Database
from shared.failures import Permanent, Temporary
from shared.relays import Group
from shared.smtp_client import SERVER_FULL, LoginRefused, Lost, SmtpClient, Unanswered, Unwilling
from shared.vault import Vault

CLAIM_SECONDS = 45.0
"""A claim lasts so long without being renewed: after a crash its mail waits no longer than that."""
IDLE_SECONDS = 30.0
"""A connection is kept so long for the next mail."""
SETTLE_SECONDS = 20.0
"""While stopping, the database gets so long to take what the provider said."""

AccountFailure = (upstream.Unreachable, upstream.Untrusted, upstream.Forbidden, Unwilling, LoginRefused)
"""It concerns the account as a whole, not the mail at hand."""

log = structlog.get_logger()


class ClaimLost(Exception):
    """Another sender has taken the group: it must not be sent here."""


class _Line:
    """A lane's connection, made when it is needed."""

    def __init__(self, external: External, client: SmtpClient | None) -> None:
        self.external = external
        self.client = client


class Relaying:
    """Relays what is queued. in_hand: ids of the groups that this process holds."""

    def __init__(
        self,
        database: Database,
        vault: Vault,
        owner: str,
        allow_private: bool,
        publish: Callable[[Sequence[Publication]], None],
    ) -> None:
        """:param owner: unique to this process. :param publish: as ``Broker.publish_behind``."""
        self.in_hand: set[int] = set()
        self._database = database
        self._vault = vault
        self._owner = owner
        self._allow_private = allow_private
        self._publish = publish
        self._lanes: dict[int, set[asyncio.Task[None]]] = {}
        self._lines: dict[int, set[_Line]] = {}
        self._idle: dict[int, list[tuple[SmtpClient, External, float]]] = {}
        self._starting: dict[int, asyncio.Task[None]] = {}
        self._again: set[int] = set()
        self._stopping = False

    # ------------------------------------------------------------------------------------------ lanes

    def wake(self, external_id: int) -> None:
        """This account may have something due: start as many lanes as are missing."""
        if self._stopping:
            return
        if external_id in self._starting:
            self._again.add(external_id)
            return
        self._starting[external_id] = asyncio.create_task(self._start(external_id), name=f"wake {external_id}")

    async def _start(self, external_id: int) -> None:
        lanes = self._lanes.setdefault(external_id, set())
        try:
            async with self._database.transaction() as connection:
                external = await self._account(connection, external_id)
                if external is None:
                    return
                groups = await self._claim(connection, external, external.smtp_connections - len(lanes), self.in_hand)
            for group in groups:
                self.in_hand.add(group.id)
                lane = asyncio.create_task(self._run_lane(external, group), name=f"relay {external.address}")
                lanes.add(lane)
                lane.add_done_callback(lanes.discard)
        except Temporary as error:
            log.warning("waiting", stage="relay", reason=str(error))
        except Exception:
            log.exception("relaying not started", external_id=external_id)
        finally:
            del self._starting[external_id]
            if external_id in self._again:
                self._again.discard(external_id)
                self.wake(external_id)

    async def _account(self, connection: Connection, external_id: int) -> External | None:
        """The account as it is now, if it may be used. What is queued for another one waits."""
        found = [external for external in await accounts.externals(connection, [external_id]) if external.enabled]
        return found[0] if found else None

    async def _claim(
        self, connection: Connection, external: External | None, wanted: int, in_hand: set[int]
    ) -> list[Group]:
        if external is None or wanted <= 0 or self._stopping:
            return []
        return await relays.claim(
            connection, external.id, self._owner, wanted, external.smtp_connections, CLAIM_SECONDS, in_hand
        )

    async def _run_lane(self, external: External, first: Group) -> None:
        line = _Line(external, self._take_idle(external))
        lines = self._lines.setdefault(external.id, set())
        lines.add(line)
        group: Group | None = first
        try:
            while group is not None:
                group = await self._relay(line, group)
        except Exception:
            log.exception("lane failed", external=external.address)
            if group is not None:
                self.in_hand.discard(group.id)  # or its claim would be renewed for ever
        finally:
            lines.discard(line)
            if line.client is not None and line.client.alive:
                self._idle.setdefault(external.id, []).append((line.client, line.external, time.monotonic()))

    async def _relay(self, line: _Line, group: Group) -> Group | None:
        """Relay a group, settle it and take the next one, if there is any."""
        try:
            verdict = await self._attempt(line, group)
        except AccountFailure as error:
            await self._account_fails(line, group, error)
        except ClaimLost:
            log.warning("claim lost", submission_id=group.id)
            self.in_hand.discard(group.id)
        except Temporary as error:  # the database: what is claimed is given back, or its claim runs out
            log.warning("waiting", stage="relay", submission_id=group.id, reason=str(error))
            await asyncio.sleep(1.0)
            await self._give_back(group)
        except Exception as error:
            await self._blame(group, error)
        else:
            return await self._settle(line, group, verdict)
        return None

    async def _attempt(self, line: _Line, group: Group) -> Verdict:
        """Send the group; what that came to.

        :raises AccountFailure: nothing can be sent through the account now. :raises ClaimLost: it is another one's.
        :raises Temporary: the database is away.
        """
        letter = await letters.write(self._database, group, line.external)

        async def before_dot() -> None:
            async with self._database.transaction() as connection:
                if not await relays.mark_unanswered(connection, group.id, self._owner, CLAIM_SECONDS):
                    raise ClaimLost

        while True:
            fresh = line.client is None or not line.client.alive
            client = await self._connect(line) if fresh or line.client is None else line.client
            replies = Replies()
            try:
                await relay.send(client, letter, before_dot, replies)
            except Lost as error:
                if fresh:
                    return relay.interrupted(group.recipients, replies, str(error), unanswered=False)
                line.client = None  # servers end idle connections: the mail has nothing to do with it
            except Unanswered as error:
                return relay.interrupted(group.recipients, replies, str(error), unanswered=True)
            else:
                return relay.judge(group.recipients, replies)

    async def _connect(self, line: _Line) -> SmtpClient:
        external = line.external
        try:
            password = self._vault.open(external.password) if external.smtp_auth else ""
        except Permanent as error:
            raise LoginRefused(str(error)) from error
        line.client = await smtp_client.connect(external, password, self._allow_private)
        async with self._database.transaction() as connection:
            await relays.works(connection, external.id)
        self.wake(external.id)  # after failures one lane tries alone
        return line.client

    # ------------------------------------------------------------------------------------------ afterwards

    async def _settle(self, line: _Line, group: Group, verdict: Verdict) -> Group | None:
        """Write down what the provider said, whatever it takes, and take the next group of the account."""
        deadline: float | None = None
        while True:
            try:
                async with self._database.transaction() as connection:
                    after = await settling.settle(
                        connection, line.external, group, self._owner, verdict, random.random()
                    )
                    external = await self._account(connection, line.external.id)
                    following = await self._claim(connection, external, 1, self.in_hand - {group.id})
                break
            except Temporary as error:
                log.warning("waiting to settle", submission_id=group.id, reason=str(error))
                if self._stopping and deadline is None:
                    deadline = time.monotonic() + SETTLE_SECONDS
                if deadline is not None and time.monotonic() > deadline:
                    return None
                await asyncio.sleep(0.5)
            except Exception as error:  # sending again does not help, but repeats what the provider has taken
                await self._blame(group, error, submissions.FAULTS)
                return None
        self.in_hand.discard(group.id)
        if after is None:
            log.warning("claim lost", submission_id=group.id)
        else:
            self.tell(after)
        if external is None or not following:
            return None
        self.in_hand.add(following[0].id)
        if line.client is not None and not _same_server(external, line.external):
            line.client.close()
        line.external = external
        return following[0]

    def tell(self, after: Aftermath) -> None:
        """Log, count and publish what is committed."""
        maillog.announce(after.events)
        self._publish(after.publications)

    async def _account_fails(self, line: _Line, group: Group, error: Exception) -> None:
        """Back off the account, not the mail; a server that only takes fewer connections gets fewer."""
        external = line.external
        others = sum(
            1
            for other in self._lines.get(external.id, ())
            if other is not line and other.client is not None and other.client.alive
        )
        crowded = isinstance(error, Unwilling) and error.reply_code == SERVER_FULL and others > 0
        refused = isinstance(error, LoginRefused)
        kind = str(getattr(error, "kind", "server"))
        try:
            async with self._database.transaction() as connection:
                await relays.release(connection, [group.id], self._owner)  # mail first, then account: no deadlock
                if crowded:
                    await relays.lower_connections(connection, external.id, others)
                else:
                    state = (await relays.states(connection, [external.id])).get(external.id)
                    delay = (
                        schedule.PAUSE
                        if refused
                        else schedule.reconnect_delay(state.failures + 1 if state else 1, random.random())
                    )
                    await relays.fails(connection, external.id, kind, str(error), delay, pause=refused)
        except Temporary as unavailable:
            log.warning("waiting", stage="relay", reason=str(unavailable))
            await self._give_back(group)
            return
        self.in_hand.discard(group.id)
        tell = log.error if refused else log.warning
        tell(
            "relaying paused" if refused else "relaying failed", external=external.address, kind=kind, reason=str(error)
        )

    async def _give_back(self, group: Group) -> None:
        """Release a claim if that is possible now; else it runs out."""
        self.in_hand.discard(group.id)
        try:
            async with self._database.transaction(5.0) as connection:
                await relays.release(connection, [group.id], self._owner)
        except Temporary as error:
            log.warning("claim left to run out", submission_id=group.id, reason=str(error))

    async def _blame(self, group: Group, error: Exception, faults: int = 1) -> None:
        trace = "".join(traceback.format_exception(error))
        log.error("mail failed", stage="relay", id=group.id, reason=repr(error), traceback=trace)
        self.in_hand.discard(group.id)
        try:
            async with self._database.transaction() as connection:
                parked = await submissions.blame(connection, group.id, "sender: relay", trace, faults)
                events = [maillog.Event("parked", submission_id=group.id, reply="sender: relay")] if parked else []
                await maillog.record(connection, events)
        except Temporary as unavailable:
            log.warning("fault not counted", submission_id=group.id, reason=str(unavailable))
        else:
            maillog.announce(events)

    # ------------------------------------------------------------------------------------------ connections

    def _take_idle(self, external: External) -> SmtpClient | None:
        waiting = self._idle.get(external.id, [])
        while waiting:
            client, known, _ = waiting.pop()
            if client.alive and _same_server(external, known):
                return client
            client.close()
        return None

    async def close_idle(self, seconds: float = IDLE_SECONDS) -> None:
        """Say goodbye on connections that nobody has used for so long."""
        now = time.monotonic()
        old = []
        for external_id, waiting in list(self._idle.items()):
            old += [client for client, _, since in waiting if now - since >= seconds or not client.alive]
            self._idle[external_id] = [entry for entry in waiting if entry[0] not in old]
            if not self._idle[external_id]:
                del self._idle[external_id]
        await asyncio.gather(*(client.quit() for client in old))

    async def stop(self, seconds: float) -> None:
        """Finish the mails in hand within ``seconds``; give back what has not been sent by then."""
        self._stopping = True
        if self._starting:
            await asyncio.wait(self._starting.values())
        lanes = {lane for some in self._lanes.values() for lane in some}
        if lanes:
            _, late = await asyncio.wait(lanes, timeout=seconds)
            for lane in late:
                lane.cancel()
            await asyncio.gather(*late, return_exceptions=True)
        await self.close_idle(0.0)
        if self.in_hand:
            try:
                async with self._database.transaction(5.0) as connection:
                    await relays.release(connection, sorted(self.in_hand), self._owner)
            except Temporary as error:
                log.warning("claims left to run out", mails=len(self.in_hand), reason=str(error))


def _same_server(one: External, other: External) -> bool:
    """Whether a connection made for one may be used for the other."""
    return (one.smtp, one.smtp_auth, one.login, one.password, one.address) == (
        other.smtp,
        other.smtp_auth,
        other.login,
        other.password,
        other.address,
    )
