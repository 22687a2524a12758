"""Commits submissions, those of all sessions together, lets them be answered, and then announces them."""

from __future__ import annotations

import asyncio
import uuid
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace

from services.smtp_in.data_reader import DataReader
from services.smtp_in.directory_cache import DirectoryCache
from services.smtp_in.recipient_policy import Directory
from services.smtp_in.sender_policy import message_id
from shared.amqp.broker import Broker
from shared.amqp.publications import submitted
from shared.db.database import Connection, Database
from shared.db.group_commit import GroupCommit
from shared.mime.addresses import ascii_address
from shared.model import EnvelopeRecipient, External, Local
from shared.store import maillog, submissions
from shared.store.submissions import Submission

MEMORY_OCTETS = 384 * 1024 * 1024
"""Of all mails that are being received or committed; at least one of the largest size is always let in. The process
takes a fifth more for them (``shared/runtime/process.py`` keeps them apart)."""
SMALL_OCTETS = 1024 * 1024
SMALL_RESERVE_OCTETS = 32 * 1024 * 1024
"""Of those, for mails up to ``SMALL_OCTETS``: they find room while large ones come in slowly."""

BATCH_OCTETS = 8 * 1024 * 1024
"""In one commit; its statement is in memory several times, here and in the server."""

ANNOUNCE_INTERVAL_SECONDS = 0.01
"""Between two announcements; the first mail after a pause is announced at once."""


@dataclass(frozen=True, slots=True)
class PendingSubmission:
    """A submission, what its trace will say, and the address of the external account that it is for."""

    submission: Submission
    event: maillog.MailEvent
    external: str


@dataclass(frozen=True, slots=True)
class CommittedSubmission:
    """What became of it. id: of the submission; None: the author's account was disabled or changed meanwhile."""

    id: int | None
    event: maillog.MailEvent | None
    external: str


def build_submission(
    author: Local,
    external: External,
    sender: str,  # an envelope has so many parts
    recipients: Sequence[EnvelopeRecipient],
    mail: DataReader,
    *,
    smtputf8: bool,
    dsn_params: str | None,
) -> PendingSubmission:
    """Join envelope and bytes. A mail without a good Message-ID gets one. SMTPUTF8 is kept only where it is needed: the
    provider may not have it.

    :param smtputf8: the client asked for it. :param dsn_params: what MAIL asked to be told about the delivery.
    """
    addresses = [sender, *(recipient.address for recipient in recipients)]
    needed = not (mail.header.isascii() and all(address.isascii() for address in addresses))
    found = message_id(mail.values) or f"{uuid.uuid4()}@{ascii_address(external.address).rpartition('@')[2]}"
    event = maillog.MailEvent("submitted", external=external.address, who=author.address, reply=f"<{found}>")
    return PendingSubmission(
        Submission(
            author.id,
            external.id,
            mail.content(),
            sender,
            found,
            not mail.ascii,
            smtputf8 and needed,
            tuple(recipients),
            author.password_hash,
            event,
            dsn_params,
        ),
        event,
        external.address,
    )


class CommitQueue:
    """What sessions read from and hand mail to."""

    def __init__(self, database: Database, broker: Broker, largest: int) -> None:
        """:param largest: octets that a mail may have."""
        self._database = database
        self._broker = broker
        self._group = GroupCommit(
            database,
            self._write,
            self._committed,
            lambda handed: handed.submission.content.octets,
            max_octets=BATCH_OCTETS,
            is_single_statement=lambda batch: all(
                submissions.fits_one_statement(handed.submission) for handed in batch
            ),
        )
        self._directory = DirectoryCache(database)
        self._running: list[asyncio.Task[None]] = []
        self._unannounced: list[CommittedSubmission] = []
        self._committed_event = asyncio.Event()
        self._budget = max(MEMORY_OCTETS, largest + SMALL_RESERVE_OCTETS)
        self._in_use = 0
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    def start(self) -> None:
        """Start what writes and what reads."""
        self._running = [
            asyncio.create_task(self._group.run(), name="intake"),
            asyncio.create_task(self._directory.run(), name="register"),
            asyncio.create_task(self._announce_loop(), name="announcements"),
        ]

    async def stop(self) -> None:
        """Commit what was handed in, then end."""
        await self._group.drain()
        for task in self._running:
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)
        self._announce()

    @property
    def cached_directory(self) -> Directory:
        """The accounts as they were when they were last asked for."""
        return self._directory.cached

    def refresh_directory(self) -> asyncio.Future[Directory]:
        """The accounts as they are now, as ``Register.ask``."""
        return self._directory.refresh()

    def try_reserve(self, octets: int) -> bool:
        """Whether so many more octets may be kept in memory; they are counted then, until ``free``."""
        if self._in_use + octets > self._budget - (SMALL_RESERVE_OCTETS if octets > SMALL_OCTETS else 0):
            return False
        self._in_use += octets
        return True

    async def reserve_memory(self, octets: int, seconds: float) -> bool:
        """``reserve``, waiting for it: whoever came before goes first. False: there was no room within ``seconds``."""
        if self.try_reserve(octets):
            return True
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((octets, turn))
        try:
            async with asyncio.timeout(seconds):
                await turn
        except BaseException as error:
            if turn.done() and not turn.cancelled():  # its turn came while it was being cancelled
                self.release_memory(octets)
            if isinstance(error, TimeoutError):
                return False
            raise
        return True

    def release_memory(self, octets: int) -> None:
        """These octets are no longer kept."""
        self._in_use -= octets
        while self._waiting:
            wanted, turn = self._waiting[0]
            if not turn.done():
                if not self.try_reserve(wanted):
                    return
                turn.set_result(None)
            self._waiting.popleft()

    async def commit(self, handed: PendingSubmission) -> CommittedSubmission:
        """Hand in a mail; returns after its commit. Being cancelled does not take it back.

        Its author may have been disabled, or got a new password, since MAIL: then nothing of it is stored.

        :raises Unsettled: nobody knows whether it is committed. :raises Temporary: it is not.
        """
        return await self._group.commit(handed)

    async def _write(self, connection: Connection, batch: Sequence[PendingSubmission]) -> list[CommittedSubmission]:
        ids = await submissions.record_submissions(connection, [handed.submission for handed in batch])
        return [
            CommittedSubmission(
                id_,
                replace(handed.event, submission_id=id_) if id_ is not None else None,
                handed.external,
            )
            for id_, handed in zip(ids, batch, strict=True)
        ]

    def _committed(self, batch: Sequence[CommittedSubmission]) -> None:
        self._unannounced.extend(batch)
        self._committed_event.set()

    async def _announce_loop(self) -> None:
        """Log, count and publish what is committed, for ever. A client waits for its answer, so that goes first; where
        mails follow each other closely, some are told of together."""
        while True:
            await self._committed_event.wait()
            await asyncio.sleep(0)  # those who wait for the commit answer now
            self._announce()
            await asyncio.sleep(ANNOUNCE_INTERVAL_SECONDS)

    def _announce(self) -> None:
        batch, self._unannounced = self._unannounced, []
        self._committed_event.clear()
        maillog.announce([each.event for each in batch if each.event])
        self._broker.publish_behind(submitted((each.id, each.external) for each in batch if each.id is not None))
