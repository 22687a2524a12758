"""Records what a sender learns of an account's relays: logins, failures, rejections, size limits.

In all functions the first relay of ``external`` is the one that is meant.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Sequence
from functools import partial

import structlog
from prometheus_client import Counter

from services.sender import retry_policy
from services.sender.claims import Claims
from services.sender.smtp_transaction import AccountRejection
from shared.db.database import Connection, Database
from shared.errors import Temporary
from shared.model import External
from shared.net import dial
from shared.provider.smtp_client import SERVER_FULL, SmtpClient
from shared.provider.smtp_login import AuthFailed, ServerUnavailable
from shared.store import relays
from shared.store.relay_queue import QueuedMail

AccountFailure = (dial.Unreachable, dial.TlsError, dial.AddressNotAllowed, ServerUnavailable, AuthFailed)
"""Errors that concern the relay as a whole, not one mail."""

ERRORS = Counter(
    "mailgroup_relay_errors_total",
    "Times that a relay of an account could not be used for sending.",
    ["external", "relay", "kind"],
)
KINDS = ("unreachable", "timeout", "tls", "certificate", "policy", "server", "credentials", "sender", "throttled")
"""Values of the label kind. relay: the host of the relay."""
MAX_SIZE_DIGITS = 18
"""Limits the SIZE that a server announces (RFC 1870): digits, so that it fits in a bigint."""

log = structlog.get_logger()


class AccountStatus:
    """Writes the state of relays and the learnt sizes. A failure releases claims in the same transaction."""

    def __init__(self, database: Database, claims: Claims) -> None:
        self._database = database
        self._claims = claims
        self._sizes: dict[tuple[int, str], int | None] = {}  # SIZE as announced, by account and relay; None: no limit

    async def record_login(self, external: External, client: SmtpClient) -> bool:
        """Record a successful login and the announced size. :return: whether it ended a backoff or pause.

        :raises Temporary: the database is unavailable.
        """
        async with self._database.transaction() as connection:
            recovered = await relays.record_success(connection, external.id, external.relay.position)
        await self._learn_size(external, client)
        return recovered

    async def _learn_size(self, external: External, client: SmtpClient) -> None:
        """Store the SIZE that the server announces (RFC 1870): smtp_in rejects larger submissions."""
        announced = client.extensions.get("size", "")
        octets = (int(announced) if announced.isdecimal() and len(announced) < MAX_SIZE_DIGITS else 0) or None
        relay = external.relay
        if self._sizes.get((external.id, relay.place), relay.size) != octets:
            self._sizes[external.id, relay.place] = octets
            await self._store_hint(
                partial(relays.learn_size, external_id=external.id, octets=octets, position=relay.position)
            )

    async def record_refused_size(self, external: External, octets: int) -> None:
        """Store that the relay refuses mail of this size."""
        await self._store_hint(
            partial(relays.learn_refused, external_id=external.id, octets=octets, position=external.relay.position)
        )

    async def _store_hint(self, write: Callable[[Connection], Awaitable[None]]) -> None:
        """Store a fact that is useful but not needed; if that fails, the next connection or mail gives it again."""
        try:
            async with self._database.transaction() as connection:
                await write(connection)
        except Temporary as error:
            log.warning("database unavailable, size limit not stored", error=str(error))

    async def record_rejection(
        self, external: External, rejection: AccountRejection, mails: Sequence[QueuedMail]
    ) -> None:
        """Back off the relay, and release these mails, none of which was sent."""
        _log_failure(external, rejection.kind, rejection.text, rejection.pause)
        await self._record(
            mails,
            partial(
                relays.record_failure,
                external_id=external.id,
                position=external.relay.position,
                kind=rejection.kind,
                error=rejection.text,
                delay=rejection.seconds,
                pause=rejection.pause,
            ),
        )

    async def record_failure(self, external: External, error: Exception, mails: Sequence[QueuedMail]) -> None:
        """Back off the relay after an AccountFailure, and release these mails, none of which was sent."""
        refused = isinstance(error, AuthFailed)
        kind = str(getattr(error, "kind", "server"))
        _log_failure(external, kind, str(error), refused)

        async def back_off(connection: Connection) -> None:
            states = (await relays.load_status(connection, [external.id])).get(external.id, [])
            delay, position = retry_policy.LOGIN_PAUSE, external.relay.position
            if not refused:
                failures = next((state.failures for state in states if state.position == position), 0) + 1
                unreachable = isinstance(error, dial.Unreachable)
                delay = retry_policy.reconnect_delay(failures, random.random(), unreachable=unreachable)
            await relays.record_failure(
                connection, external.id, kind, str(error), delay, pause=refused, position=position
            )

        await self._record(mails, back_off)

    async def record_recovery(self, external: External) -> None:
        """Record that the provider accepts mail again. :raises Temporary: the database is unavailable."""
        async with self._database.transaction() as connection:
            await relays.record_success(connection, external.id, external.relay.position)

    def note_failed_lane(self, external: External, error: Exception) -> None:
        """Count and log a login that failed while other connections of the account work."""
        _log_failure(external, str(getattr(error, "kind", "server")), str(error), False)

    async def record_connection_limit(self, external: External, error: Exception, limit: int, mail: QueuedMail) -> None:
        """Lower the number of connections: the server has refused one more (421). Release the mail."""
        _log_failure(external, str(getattr(error, "kind", "server")), str(error), False)
        await self._record(
            [mail],
            partial(relays.lower_connections, external_id=external.id, limit=limit, position=external.relay.position),
        )

    async def _record(self, mails: Sequence[QueuedMail], write: Callable[[Connection], Awaitable[None]]) -> None:
        try:
            async with self._database.transaction() as connection:
                # Locks the mails before the account, as every other transaction: no deadlock.
                await self._claims.release_within(connection, mails)
                await write(connection)
        except Temporary as error:
            log.warning("database unavailable, account failure not recorded", error=str(error))
            await self._claims.release(mails)
        except Exception:  # a fault of ours: the claims expire, and the mails are tried again after that
            self._claims.forget(mails)
            raise
        else:
            self._claims.forget(mails)


def is_connection_limit(error: Exception) -> bool:
    """Return whether the server refuses a further connection (421), and perhaps no other one."""
    return isinstance(error, ServerUnavailable) and error.reply_code == SERVER_FULL


def _log_failure(external: External, kind: str, error: str, paused: bool) -> None:
    """Count and log a failure before it is recorded, as the database may be unavailable."""
    ERRORS.labels(external.address, external.smtp.host, kind).inc()
    write = log.error if paused else log.warning
    event = "relaying paused" if paused else "relaying failed"
    write(event, external=external.address, relay=external.smtp.host, kind=kind, error=error)
