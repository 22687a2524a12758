"""Wakes the sessions in IDLE when their folder has changed (RFC 2177).

A hint ``changed.<local>`` of the broker names the people whose mailboxes have changed. It may be lost, so a query for
the versions of all watched folders is repeated, more often without broker.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection
from dataclasses import dataclass

import structlog

from services.imap_out.current_folders import Look
from services.imap_out.folder_store import FolderStore
from shared.errors import Temporary

SWEEP_SECONDS = 30.0
"""Interval of the query for versions: seconds; it finds what a lost hint has left out."""
SWEEP_SECONDS_WITHOUT_BROKER = 2.0
FOLDERS_A_QUERY = 1_000

log = structlog.get_logger()


@dataclass(slots=True, eq=False)
class IdleFolder:
    """A folder that a session in IDLE watches. woken: it may have changed since ``version``."""

    local_id: int
    folder_id: int
    version: int
    wake: Callable[[], None]
    woken: bool = False

    def notify(self) -> None:
        """Let the session look."""
        self.woken = True
        self.wake()


class FolderWatch:
    """The watched folders of all sessions of the process."""

    def __init__(self, store: FolderStore, has_broker: Callable[[], bool]) -> None:
        """:param has_broker: whether hints arrive now."""
        self._store = store
        self._has_broker = has_broker
        self._watched: dict[int, set[IdleFolder]] = {}  # by local id

    def add(self, watched: IdleFolder) -> None:
        """Watch a folder until ``remove``."""
        self._watched.setdefault(watched.local_id, set()).add(watched)

    def remove(self, watched: IdleFolder) -> None:
        """Watch the folder no longer."""
        of_person = self._watched.get(watched.local_id, set())
        of_person.discard(watched)
        if not of_person:
            self._watched.pop(watched.local_id, None)

    def hint(self, local_ids: Collection[int]) -> None:
        """Forget what is known of the mailboxes of these people, and wake their sessions."""
        self._store.known.hint(local_ids)
        for local_id in local_ids:
            self._wake(local_id)

    def own_change(self, look: Look, folder_id: int | None) -> None:
        """As ``hint``, after a change by a session of this process (``CurrentFolders.hint_own``)."""
        self._store.known.hint_own(look, folder_id)
        self._wake(look.local_id)

    def _wake(self, local_id: int) -> None:
        for watched in self._watched.get(local_id, ()):
            watched.notify()

    async def sweep(self) -> None:
        """Compare the versions of all watched folders. :raises Temporary: the database is unavailable."""
        every = [watched for of_person in self._watched.values() for watched in of_person]
        ids = sorted({watched.folder_id for watched in every})
        versions: dict[int, int] = {}
        for start in range(0, len(ids), FOLDERS_A_QUERY):
            versions |= await self._store.versions(ids[start : start + FOLDERS_A_QUERY])
        for watched in every:
            if versions.get(watched.folder_id) != watched.version:
                watched.notify()

    async def run(self) -> None:
        """Sweep from time to time. Never returns."""
        passed = 0.0
        while True:
            await asyncio.sleep(SWEEP_SECONDS_WITHOUT_BROKER)
            passed += SWEEP_SECONDS_WITHOUT_BROKER
            if self._has_broker() and passed < SWEEP_SECONDS:
                continue
            passed = 0.0
            try:
                await self.sweep()
            except Temporary as failure:
                log.warning("folder versions not read, retrying", error=str(failure))
            except Exception:  # a defect must not end the sweeps: sessions would hear of no mail
                log.exception("folder versions not read, retrying")
