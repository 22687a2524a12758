"""Commits STORE and APPEND of all sessions together (shared/db/group_commit.py)."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from shared.db.database import Connection, Database
from shared.db.group_commit import GroupCommit
from shared.errors import Permanent
from shared.store import folder_batches
from shared.store.folder_batches import Appended, AppendedMail, FlagChange, StoreResult

ROW_OCTETS = 200
"""About what a changed row costs in the database: octets."""

_Change = TypeVar("_Change")
_Result = TypeVar("_Result")
_Write = Callable[[Connection, Sequence[_Change]], Awaitable[Sequence[_Result | Permanent | None]]]


class FolderChanges:
    """The changes of all sessions. ``run`` has to be started."""

    def __init__(self, database: Database) -> None:
        """Create it without any change."""
        self._database = database
        self._stores: GroupCommit[FlagChange, StoreResult | Permanent | None] = GroupCommit(
            database,
            _store,
            lambda _: None,
            lambda change: ROW_OCTETS * len(change.uids),
            is_single_statement=_stores_at_once,
            gather=True,
        )
        self._appends: GroupCommit[AppendedMail, Appended | Permanent | None] = GroupCommit(
            database,
            _append,
            lambda _: None,
            lambda mail: mail.content.octets,
            is_single_statement=_appends_at_once,
            gather=True,
        )

    async def store_flags(self, change: FlagChange) -> StoreResult:
        """Change flags, and return after the commit. Cancelling the call does not cancel the change.

        :raises FolderRefused, Permanent: it is refused, as ``folder_batches.store_flags`` says.
        :raises Temporary: the database is unavailable; if only its reply was lost, the change is made.
        """
        return await self._settled(await self._stores.commit(change), folder_batches.store_flags, change)

    async def append_mail(self, mail: AppendedMail) -> Appended:
        """Store a mail, and return after the commit. Errors as ``store_flags``."""
        return await self._settled(await self._appends.commit(mail), folder_batches.append_mails, mail)

    async def _settled(
        self, outcome: _Result | Permanent | None, write: _Write[_Change, _Result], change: _Change
    ) -> _Result:
        """Return the result of a change; one whose folder others were changing is made alone, and waits for them."""
        if outcome is None:
            async with self._database.transaction() as connection:
                [outcome] = await write(connection, [change])
        assert outcome is not None
        if isinstance(outcome, Permanent):
            raise outcome
        return outcome

    async def run(self) -> None:
        """Commit until cancelled; cancel after ``drain`` has returned."""
        await asyncio.gather(self._stores.run(), self._appends.run())

    async def drain(self) -> None:
        """Wait until each change has its outcome."""
        await self._stores.drain()
        await self._appends.drain()


def _stores_at_once(changes: Sequence[FlagChange]) -> bool:
    return len({change.folder_id for change in changes}) == len(changes) and not any(each.keywords for each in changes)


async def _store(connection: Connection, changes: Sequence[FlagChange]) -> Sequence[StoreResult | Permanent | None]:
    if _stores_at_once(changes):
        return await folder_batches.store_at_once(connection, changes)
    return await folder_batches.store_flags(connection, changes, wait=False)


def _appends_at_once(mails: Sequence[AppendedMail]) -> bool:
    return not any(mail.keywords for mail in mails)


async def _append(connection: Connection, mails: Sequence[AppendedMail]) -> Sequence[Appended | Permanent | None]:
    if _appends_at_once(mails):
        return await folder_batches.append_at_once(connection, mails)
    return await folder_batches.append_mails(connection, mails, wait=False)
