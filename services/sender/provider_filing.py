"""Files what was sent at the provider, by IMAP: copies in its folder for sent mail, and the mark of answered mail.

This follows the relay and never delays it: the work is rows in the database, which are tried until they are done.
Before a copy is appended, its Message-ID is searched: after a try whose outcome is unknown, and where the provider
files sent mail itself, no second copy appears.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from functools import partial

import structlog
from prometheus_client import Counter

from services.sender import outgoing_message, retry_policy
from shared import routing
from shared.db.database import Database
from shared.errors import Permanent, Temporary
from shared.model import External
from shared.provider.credentials import Credentials
from shared.provider.imap_client import ImapClient, open_session
from shared.settings import PrivateHosts
from shared.store import accounts, blobs, provider_filings, relay_queue, uidl_ledger
from shared.store.provider_filings import Filing

FILINGS = Counter(
    "mailgroup_provider_filings_total", "Copies of sent mail and marks of answered mail, by IMAP.", ["kind", "result"]
)
for _kind in ("sent", "answered"):
    for _result in ("done", "failed", "given_up"):
        FILINGS.labels(_kind, _result)

BATCH = 50
"""Limits the work of one session: rows; it bounds the rows that a lost session leaves until their lease ends."""
SESSIONS = 4
"""Limits the sessions of one process at the same time."""
SESSION_SECONDS = 600.0
"""Time limit of a session: seconds; below the lease of its rows."""

log = structlog.get_logger()


class ProviderFiling:
    """Does the work that is due, account by account; safe beside the same of another sender."""

    def __init__(self, database: Database, credentials: Credentials, allow_private: PrivateHosts) -> None:
        self._database = database
        self._credentials = credentials
        self._allow_private = allow_private

    async def file_due(self) -> None:
        """Do what is due for all accounts; one session each. :raises Temporary: the database is unavailable."""
        async with self._database.statement() as connection:
            due = await provider_filings.list_due(connection)
            externals = await accounts.load_externals(connection, due) if due else []
        places = asyncio.Semaphore(SESSIONS)

        async def work(external: External) -> None:
            async with places:
                await self._file_account(external)

        await asyncio.gather(*(work(external) for external in externals))

    async def _file_account(self, external: External) -> None:
        async with self._database.transaction() as connection:
            filings = await provider_filings.claim(connection, external.id, BATCH)
        wanted = [filing for filing in filings if is_wanted(external, filing)]
        if len(wanted) < len(filings):  # the account was changed since
            await self._remove([filing for filing in filings if filing not in wanted])
        left = list(wanted)
        try:
            if left:
                await self._in_session(external, left)
        except (Temporary, Permanent, OSError, ValueError) as error:
            await self._record_failure(external, left, str(error))
        except Exception as error:  # a fault of ours: the others go on, and this work is tried again
            log.exception("filing at the provider crashed", external=external.address, error=repr(error))
            await self._record_failure(external, left, repr(error))

    async def _in_session(self, external: External, left: list[Filing]) -> None:
        """Do this work in one session; what is done is removed from ``left``."""
        assert external.imap is not None, "is_wanted has checked that"
        credential = await self._credentials.credential_for(external)
        async with open_session(
            external.imap,
            self._allow_private,
            folders=external.imap.folders,
            session_seconds=SESSION_SECONDS,
        ) as client:
            await client.login(credential)
            for filing in list(left):
                work = self._append if filing.kind == "sent" else self._mark
                await work(external, client, filing)
                await self._remove([filing])
                left.remove(filing)
                FILINGS.labels(filing.kind, "done").inc()
            await client.quit()

    async def _append(self, external: External, client: ImapClient, filing: Filing) -> None:
        assert external.imap is not None and external.imap.sent is not None, "is_wanted has checked that"
        folder = await client.find_sent_folder(external.imap.sent)
        if await client.has_mail(folder, filing.message_id):
            return
        async with self._database.statement() as connection:
            mails = await relay_queue.load_queued_mails(connection, [filing.submission_id])
        sources = await outgoing_message.load_sources(self._database, mails, external) if mails else {}
        if filing.submission_id not in sources:
            return  # it is purged
        message = outgoing_message.build_message(self._database, mails[0], external, sources[filing.submission_id])
        await client.append_sent(folder, message.pieces(), message.octets, utf8=message.header_8bit)

    async def _mark(self, external: External, client: ImapClient, filing: Filing) -> None:
        async with self._database.statement() as connection:
            head = (await blobs.heads(connection, [filing.blob_id])).get(filing.blob_id, b"")
            answered = await asyncio.to_thread(partial(routing.answered_ids, head))
            keys = await uidl_ledger.find_present(connection, external.id, answered) if answered else []
        if keys:
            await client.mark_answered(keys)

    async def _remove(self, filings: Sequence[Filing]) -> None:
        async with self._database.transaction() as connection:
            await provider_filings.remove(connection, filings)

    async def _record_failure(self, external: External, filings: Sequence[Filing], error: str) -> None:
        log.warning("filing at the provider failed", external=external.address, mails=len(filings), error=error)
        if not filings:  # the session ended badly when all was done
            return
        delay = retry_policy.retry_delay(1 + min(filing.tries for filing in filings), random.random())
        async with self._database.transaction() as connection:
            given_up = await provider_filings.record_failure(connection, filings, error, delay)
        for filing in filings:
            FILINGS.labels(filing.kind, "failed").inc()
        if given_up:
            FILINGS.labels(filings[0].kind, "given_up").inc(given_up)
            log.error("filing at the provider given up", external=external.address, mails=given_up, error=error)


def is_wanted(external: External, filing: Filing) -> bool:
    """Return whether an account as it is now wants this work. Pure."""
    if external.imap is None:
        return False
    return external.imap.sent is not None if filing.kind == "sent" else external.imap.answered
