"""Waits for new mail in IMAP mailboxes (IDLE, RFC 2177), and makes their accounts due at once when some arrives.

One process watches a mailbox, in a session of its own beside the polls. Only accounts whose polls work are watched: the
poll is what judges credentials and servers. A watch that fails is only tried again later; meanwhile mail waits for the
next poll.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections import defaultdict

import structlog
from prometheus_client import Gauge

from shared.db.database import Connection
from shared.errors import Permanent, Temporary
from shared.model import External, compared_host
from shared.provider import imap_client
from shared.provider.credentials import Credentials
from shared.provider.session_errors import LoginRefused
from shared.runtime.periodic import run_periodically
from shared.runtime.process import Service
from shared.runtime.tasks import cancel_tasks
from shared.store import accounts, polls

WATCHED = Gauge("mailgroup_idle_sessions", "IMAP sessions that wait for new mail (IDLE).")

LOOK_SECONDS = 5.0
"""Interval of the look at which mailboxes are to be watched: seconds. It finds changed accounts, too."""
MAX_WATCHES = 1000
"""Limit of mailboxes that one process watches; the others wait for their polls, or for another process."""
LOGINS = 16
"""Limit of watches that are connecting at the same time: after a start of the process hundreds would."""
LOGINS_OF_SERVER = 4
"""Limit of those among them at one server: while it is silent, each takes its place until its time-out."""
LEAST_SECONDS = 1.0
"""Least time between two times at which news make an account due: seconds. Each poll logs in, and providers count."""
WAIT_SECONDS = 3600.0
"""Longest wait in one call; the session lasts on."""
RETRY_SECONDS = 5.0
"""Pause after the first failure of a watch; it doubles up to MAX_RETRY_SECONDS."""
MAX_RETRY_SECONDS = 600.0
"""Longest such pause, and the pause after a refused login."""
NO_IDLE_SECONDS = 3600.0
"""Pause before a server that offers no IDLE is asked again: it may offer it one day."""

log = structlog.get_logger()


class _LoginTurn:
    """A place among those that connect at the same time, at a server and in all; left by ``end``, or with the block."""

    __slots__ = ("_entered", "_places")

    def __init__(self, *places: asyncio.Semaphore) -> None:
        self._places = places
        self._entered = 0

    async def __aenter__(self) -> None:
        try:
            for place in self._places:
                await place.acquire()
                self._entered += 1
        except asyncio.CancelledError:
            self.end()
            raise

    async def __aexit__(self, *error: object) -> None:
        self.end()

    def end(self) -> None:
        """Leave the place."""
        for place in self._places[: self._entered]:
            place.release()
        self._entered = 0


class MailboxWatch:
    """The watches of this process."""

    def __init__(self, service: Service, credentials: Credentials, news: asyncio.Event) -> None:
        """:param news: set when an account is due because mail has arrived."""
        self._service = service
        self._credentials = credentials
        self._news = news
        self._logins = asyncio.Semaphore(LOGINS)
        self._logins_of_server: defaultdict[str, asyncio.Semaphore] = defaultdict(  # by host
            lambda: asyncio.Semaphore(LOGINS_OF_SERVER)
        )
        self._version = ""  # of the accounts that are known
        self._known: dict[int, External] = {}
        self._running: dict[int, tuple[External, asyncio.Task[None]]] = {}

    async def run(self) -> None:
        """Watch until cancelled."""
        try:
            await run_periodically(LOOK_SECONDS, self._look, "look for mailboxes to watch failed")
        finally:
            await cancel_tasks([task for _, task in self._running.values()])

    async def release(self) -> None:
        """Leave the mailboxes to other processes, after ``run``."""
        if not self._known:
            return
        try:
            async with self._service.database.statement() as connection:
                await polls.release_watches(connection, self._service.owner)
        except Temporary as error:
            log.warning("watches not released, they expire", error=str(error))

    async def _look(self) -> None:
        """Begin and end watches, so that each wanted mailbox is watched with its present settings."""
        async with self._service.database.transaction() as connection:
            wanted = await polls.claim_watches(connection, self._service.owner, MAX_WATCHES)
            await self._learn(connection, wanted)
        ended = [
            task for id_, (account, task) in self._running.items() if task.done() or self._known.get(id_) != account
        ]
        await cancel_tasks(ended)
        self._running = {id_: (account, task) for id_, (account, task) in self._running.items() if task not in ended}
        for id_ in self._known.keys() - self._running.keys():
            account = self._known[id_]
            task = asyncio.create_task(self._watch(account), name=f"watch {account.address}")
            self._running[id_] = account, task

    async def _learn(self, connection: Connection, wanted: list[int]) -> None:
        """Load the accounts if they have changed, or others are wanted."""
        version = await accounts.load_version(connection)
        if version != self._version or self._known.keys() != set(wanted):
            # An unchanged account stays the same object: its watch has it, and hundreds would be in memory twice.
            loaded = await accounts.load_externals(connection, wanted, self._known) if wanted else []
            self._known = {account.id: account for account in loaded if account.imap is not None}
            self._version = version

    async def _watch(self, account: External) -> None:
        """Watch one mailbox. Raises nothing but CancelledError."""
        failures = 0
        while True:
            began = asyncio.get_running_loop().time()
            try:
                await self._wait_for_news(account)
                pause = NO_IDLE_SECONDS
            except LoginRefused as error:
                log.info("login of a watch refused", external=account.address, error=str(error))
                self._credentials.discard_token(account)
                pause = MAX_RETRY_SECONDS
            except (Temporary, Permanent) as error:
                failures = 0 if asyncio.get_running_loop().time() - began > MAX_RETRY_SECONDS else failures + 1
                pause = min(RETRY_SECONDS * 2.0 ** min(failures, 10), MAX_RETRY_SECONDS)
                log.info("watch ended", external=account.address, error=str(error), retry_seconds=pause)
            except Exception as error:  # a fault of ours: other watches are not affected, and polls go on
                log.exception("watch crashed", external=account.address, error=repr(error))
                pause = MAX_RETRY_SECONDS
            await asyncio.sleep(pause * random.uniform(0.75, 1.0))

    async def _wait_for_news(self, account: External) -> None:
        """Make the account due whenever mail arrives. Returns if the server has no IDLE.

        :raises Temporary, Permanent: the session ended.
        """
        assert account.imap is not None
        session = imap_client.open_session(
            account.imap,
            self._service.settings.allow_private_upstream,
            folders=account.imap.folders,
            session_seconds=math.inf,
        )
        turn = _LoginTurn(self._logins_of_server[compared_host(account.imap.host)], self._logins)
        async with turn, session as client:
            await client.login(await self._credentials.credential_for(account))
            if not client.idles:
                return
            await client.wait_for_news(0)  # from now on, what arrives is news
            turn.end()
            with WATCHED.track_inprogress():
                await self._hurry(account)  # mail may have arrived before
                while True:
                    if await client.wait_for_news(WAIT_SECONDS):
                        await self._hurry(account)

    async def _hurry(self, account: External) -> None:
        """Make the account due, and let more news gather for a moment: the next wait finds it."""
        async with self._service.database.statement() as connection:
            await polls.hurry(connection, account.id)
        self._news.set()
        await asyncio.sleep(LEAST_SECONDS)
