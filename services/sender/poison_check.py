"""What a dead sender held is rehearsed before it is claimed again: its letter and a notice are written, none is sent.

A mail is read, parsed and rewritten in one process with many others, so that one which ends the process would end each
that takes its claims up. It is tried alone instead, up to the point where a provider would hear of it.
"""

from __future__ import annotations

import structlog

from services.sender import outcomes, outgoing_message
from services.sender.claims import Claims
from shared.db.database import Database
from shared.errors import Temporary
from shared.store import accounts, poison, relay_queue
from shared.store.poison import Suspect

log = structlog.get_logger()


async def check_next(database: Database, claims: Claims) -> bool:
    """Rehearse the next suspect that is due, with nothing else in hand; whether there was one.

    :raises Temporary: the database is away.
    """
    async with database.statement() as connection:
        suspect = await poison.claim_suspect(connection, relay_queue.STAGE)
    if suspect is None:
        return False
    if suspect.exhausted:
        await claims.park(suspect.id, suspect.reason)
    else:
        await _dry_run(database, claims, suspect)
    async with database.statement() as connection:
        await poison.clear_suspects(connection, relay_queue.STAGE, [suspect.id])
    return True


async def _dry_run(database: Database, claims: Claims, suspect: Suspect) -> None:
    if suspect.crashes:
        log.warning("tried alone", stage=relay_queue.STAGE, id=suspect.id, crashes=suspect.crashes)
    try:
        async with database.statement() as connection:
            group = await relay_queue.load_queued_mail(connection, suspect.id)
            external = await accounts.load_externals(connection, [group.external_id]) if group else []
        if group is None or not external:
            return  # nobody writes it now
        try:
            sources = await outgoing_message.load_sources(database, [group], external[0])
            outgoing_message.build_message(database, group, external[0], sources.get(group.id))
            if group.recipients:
                async with database.statement() as connection:
                    await outcomes.compose_dry_run(connection, group)
        except Temporary:
            raise
        except Exception as error:  # whatever it is, this mail is at fault
            await claims.count_failure(group, error)
    except Temporary:
        async with database.statement() as connection:
            await poison.restore_count(connection, relay_queue.STAGE, suspect)
        raise
