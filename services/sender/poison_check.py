"""Checks the mails of a dead sender for a poison message: builds each one alone, and sends none.

A sender parses and rewrites many mails in one process. A mail that crashes this process would crash each sender that
takes over its claim. After a crash each mail of the dead sender is therefore built alone, with a bounce for its author,
before it may be claimed again.
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
    """Check the next suspect that is due, while this process does nothing else; return whether there was one.

    :raises Temporary: the database is unavailable.
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
        log.warning("suspect checked alone", submission_id=suspect.id, crashes=suspect.crashes)
    try:
        async with database.statement() as connection:
            mail = await relay_queue.load_queued_mail(connection, suspect.id)
            external = await accounts.load_externals(connection, [mail.external_id]) if mail else []
        if mail is None or not external:
            return  # the mail was sent or ended, or its account was removed
        try:
            sources = await outgoing_message.load_sources(database, [mail], external[0])
            outgoing_message.build_message(database, mail, external[0], sources.get(mail.id))
            if mail.recipients:
                async with database.statement() as connection:
                    await outcomes.compose_dry_run(connection, mail)
        except Temporary:
            raise
        except Exception as error:  # any error: this mail is the cause
            await claims.count_failure_of_unclaimed(mail.id, error)
    except Temporary:
        async with database.statement() as connection:
            await poison.restore_count(connection, relay_queue.STAGE, suspect)
        raise
