"""Work on a batch, in halves when it fails, so that one mail never holds up the others for good."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

import structlog

from shared.db.database import Database
from shared.db.errors import DatabaseCorrupted
from shared.errors import Temporary

BATCH_SECONDS = 10.0
"""Limits the work on a batch: seconds; well below the limit of a transaction (shared/db/database.py), so that a batch
that takes too long is not taken for an unavailable database, and a batch of 100 is halved to one mail in a minute."""
MAIL_SECONDS = 30.0
"""Limits the work on a single mail: seconds. The worst header needs 3 s of processor time, on a busy machine longer."""

Item = TypeVar("Item")
Result = TypeVar("Result")

log = structlog.get_logger()


async def run_in_halves(
    database: Database,
    batch: Sequence[Item],
    work: Callable[[Sequence[Item]], Awaitable[Result]],
    on_fault: Callable[[Item, Exception], Awaitable[object]],
) -> list[Result]:
    """Do the work on the whole batch; if that fails or runs out of time, on each half, down to the item at fault.

    :param work: one transaction, which may be repeated. :param on_fault: called for an item that fails alone.
    :return: the result of each part that succeeded. :raises Temporary: the database is unavailable.
    """
    results: list[Result] = []
    parts = [batch] if batch else []
    while parts:
        part = parts.pop()
        limit = BATCH_SECONDS if len(part) > 1 else MAIL_SECONDS
        try:
            async with asyncio.timeout(limit):
                results.append(await work(part))
        except Exception as error:  # every kind: a part of the batch may be the cause
            if await _is_unavailable(database, error):
                raise Temporary(str(error) or f"database: no answer within {limit:g} s") from error
            if len(part) == 1:
                await on_fault(part[0], error)
                continue
            log.warning("batch failed, halved", mails=len(part), error=repr(error))
            middle = len(part) // 2
            parts += [part[middle:], part[:middle]]
    return results


async def _is_unavailable(database: Database, error: Exception) -> bool:
    """Return whether every item would fail now. Corrupted data concerns those that need it."""
    if isinstance(error, TimeoutError):
        return not await database.ready()
    return isinstance(error, Temporary) and not isinstance(error, DatabaseCorrupted)
