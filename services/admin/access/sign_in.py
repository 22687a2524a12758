"""Sign-in to the console: as a user of the console, or as a local account with the password of the mailbox.

Failed logins are throttled as those of the mail services (``shared.auth.throttle``); an unknown name takes as long.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import structlog

from services.admin.access import users
from services.admin.access.users import Identity
from shared.auth.authenticator import LOGINS, PASSWORD_OCTETS, Authenticator, Throttled
from shared.auth.passwords import HashingPool
from shared.auth.throttle import Throttle, network_of
from shared.db.database import Database
from shared.settings import Settings

WAIT_SECONDS = 10.0
"""Seconds that a throttled login waits before it is refused."""

log = structlog.get_logger()


class ConsoleAuthenticator:
    """Checks names and passwords for one process."""

    def __init__(
        self,
        database: Database,
        settings: Settings,
        passwords: HashingPool,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """:param clock: monotonic seconds."""
        self._database = database
        self._passwords = passwords
        self._logins = Authenticator(database, settings, "admin", clock)
        self._throttle = Throttle(clock)

    async def verify(self, name: str, password: str, peer: str) -> Identity | None:
        """Check a name and a password; a name with an @ is a local account's address.

        :param peer: the browser's IP address. :return: the identity; None: wrong.
        :raises Temporary: the database is unavailable.
        :raises Throttled: too many wrong passwords from this address or for this name.
        """
        if "@" in name:
            person = await self._logins.verify(name, password, peer)
            return None if person is None else Identity(None, person.id, person.address, person.password_hash)
        account, network = name.casefold()[:100], network_of(peer)
        try:
            await self._throttle.acquire(network, account, WAIT_SECONDS)
        except TimeoutError:
            LOGINS.labels("admin", "throttled").inc()
            raise Throttled("too many wrong passwords; wait a minute and try again") from None
        sane = len(password.encode("utf-8", "surrogatepass")) <= PASSWORD_OCTETS
        async with self._database.statement() as connection:
            found = await users.identity(connection, name)
        if not await self._passwords.matches(found.password_hash if found and sane else None, password):
            self._throttle.record_failure(network, account)
            LOGINS.labels("admin", "refused").inc()
            log.warning("sign-in refused", peer=peer)  # without the name: it may be a password in the wrong field
            return None
        self._throttle.record_success(network, account)
        LOGINS.labels("admin", "ok").inc()
        return found

    def close(self) -> None:
        """Stop the threads."""
        self._logins.close()
