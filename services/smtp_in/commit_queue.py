"""Commits the submissions of all sessions together, then lets the sessions reply, then publishes the submissions."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, replace

from services.smtp_in.calendar_parts import SEARCHED_OCTETS, local_organizers
from services.smtp_in.data_reader import DataReader
from services.smtp_in.directory_cache import DirectoryCache
from services.smtp_in.envelope_policy import Envelope
from services.smtp_in.receive_memory import ReceiveMemory
from services.smtp_in.recipient_policy import Directory
from services.smtp_in.sender_policy import valid_message_id
from shared.amqp.broker import Broker
from shared.amqp.publications import changed, submitted
from shared.db.database import Connection, Database
from shared.db.group_commit import GroupCommit
from shared.mime.addresses import ascii_address
from shared.runtime.tasks import cancel_tasks
from shared.store import inbound, maillog, submissions
from shared.store.submissions import RefusedRecipient, Submission

BATCH_OCTETS = 8 * 1024 * 1024
"""Mails in one commit: octets; the process and the database hold its statement in memory several times."""

RECIPIENT_OCTETS = 8 * 1024
"""Weight of a recipient in a batch: octets; a batch has at most a thousand recipients (and those of one mail more), so
that building its statement holds up the other sessions for milliseconds."""

ANNOUNCE_INTERVAL_SECONDS = 0.01
"""Pause between two publishings; the first mail after a pause is published at once."""


@dataclass(frozen=True, slots=True)
class PendingSubmission:
    """A submission before its commit."""

    submission: Submission
    event: maillog.MailEvent
    external: str  # address of the external account that sends it
    organizer: maillog.MailEvent | None = None  # a calendar part names a local address as the organizer


@dataclass(frozen=True, slots=True)
class CommittedSubmission:
    """The result of a commit."""

    id: int | None  # of the submission; None: not stored, accounts of the envelope have changed or are being changed
    events: Sequence[maillog.MailEvent]
    external: str  # address of the external account that sends it
    author: tuple[int, str]  # id and address of the local account


def build_submission(
    envelope: Envelope, sender: str, mail: DataReader, *, smtputf8: bool, dsn_params: str | None
) -> PendingSubmission:
    """Join envelope and content. A mail without a valid Message-ID gets one.

    SMTPUTF8 is stored only if the mail needs it, because the provider may not support it.

    :param smtputf8: the client gave SMTPUTF8 with MAIL. :param dsn_params: RET and ENVID of MAIL (RFC 3461).
    """
    author, external = envelope.author, envelope.external
    addresses = [sender, *(recipient.address for recipient in envelope.recipients)]
    needed = not (mail.header.isascii() and all(address.isascii() for address in addresses))
    message_id = valid_message_id(mail.values) or f"{uuid.uuid4()}@{ascii_address(external.address).rpartition('@')[2]}"
    leaves = any(recipient.kind == "relay" for recipient in envelope.recipients)
    organizers = local_organizers(mail.beginning(SEARCHED_OCTETS), envelope.directory.locals) if leaves else []
    reply = f"<{message_id}>"
    if organizers:
        reply += (
            f"; its invitation names the local address {', '.join(organizers)} as organizer, which customers cannot "
            f"answer: set the identity of the mail program's calendar to {external.address}"
        )
    event = maillog.MailEvent("submitted", external=external.address, who=author.address, reply=reply)
    return PendingSubmission(
        Submission(
            author.id,
            external.id,
            mail.content(),
            sender,
            message_id,
            not mail.ascii,
            smtputf8 and needed,
            envelope.recipients,
            author.password_hash,
            event,
            dsn_params,
            envelope.directory.version,
            tuple(RefusedRecipient(r.address, str(refusal), r.dsn_params) for r, refusal in envelope.refused),
        ),
        event,
        external.address,
        replace(event, event="local_organizer", reply=", ".join(organizers)) if organizers else None,
    )


class CommitQueue:
    """The accounts that sessions read, and the queue that they put mails into.

    :ivar memory: memory for mails that are being received or committed.
    """

    def __init__(self, database: Database, broker: Broker, max_message_octets: int) -> None:
        """:param max_message_octets: largest mail: octets."""
        self.memory = ReceiveMemory(max_message_octets)
        self._database = database
        self._broker = broker
        self._group = GroupCommit(
            database,
            self._write,
            self._committed,
            lambda pending: pending.submission.content.octets + RECIPIENT_OCTETS * len(pending.submission.recipients),
            max_octets=BATCH_OCTETS,
            is_single_statement=lambda batch: all(
                submissions.fits_one_statement(pending.submission) and pending.organizer is None for pending in batch
            ),
        )
        self._directory = DirectoryCache(database)
        self._tasks: list[asyncio.Task[None]] = []
        self._unannounced: list[CommittedSubmission] = []
        self._announce_due = asyncio.Event()

    def start(self) -> None:
        """Start the background tasks."""
        self._tasks = [
            asyncio.create_task(self._group.run(), name="commits"),
            asyncio.create_task(self._directory.run(), name="directory"),
            asyncio.create_task(self._announce_loop(), name="announcements"),
        ]

    async def stop(self) -> None:
        """Commit the queued mails, then end."""
        await self._group.drain()
        await cancel_tasks(self._tasks)
        self._announce()

    @property
    def cached_directory(self) -> Directory:
        """The accounts as of the latest query."""
        return self._directory.cached

    def refresh_in_background(self) -> None:
        """Keep ``cached_directory`` current; see ``DirectoryCache.refresh_in_background``."""
        self._directory.refresh_in_background()

    def refresh_directory(self) -> asyncio.Future[Directory]:
        """The accounts as they are now; see ``DirectoryCache.refresh``."""
        return self._directory.refresh()

    async def may_redirect(self, envelope: Envelope) -> bool:
        """Return whether the mail is none that is redirected, or one that was delivered to its author.

        :raises Temporary: the database is unavailable.
        """
        if envelope.redirected is None:
            return True
        async with self._database.statement() as connection:
            return await inbound.was_delivered(connection, envelope.redirected, envelope.author.id)

    async def commit(self, pending: PendingSubmission) -> CommittedSubmission:
        """Queue a mail, and return after its commit. Cancelling the call does not remove the mail from the queue.

        Nothing is stored if the accounts are others than those by which the envelope was checked.

        :raises CommitOutcomeUnknown: the mail may be committed or not. :raises Temporary: the mail is not committed.
        """
        return await self._group.commit(pending)

    async def _write(self, connection: Connection, batch: Sequence[PendingSubmission]) -> list[CommittedSubmission]:
        ids = await submissions.record_submissions(connection, [pending.submission for pending in batch])
        organizers = {
            submission_id: replace(pending.organizer, submission_id=submission_id)
            for submission_id, pending in zip(ids, batch, strict=True)
            if submission_id is not None and pending.organizer is not None
        }
        if organizers:
            await maillog.record_events(connection, list(organizers.values()))
        return [
            CommittedSubmission(
                submission_id,
                ()
                if submission_id is None
                else (
                    replace(pending.event, submission_id=submission_id),
                    *((organizers[submission_id],) if submission_id in organizers else ()),
                    *submissions.refusal_events(pending.submission, submission_id),
                ),
                pending.external,
                (pending.submission.author_id, pending.event.who or ""),
            )
            for submission_id, pending in zip(ids, batch, strict=True)
        ]

    def _committed(self, batch: Sequence[CommittedSubmission]) -> None:
        self._unannounced.extend(batch)
        self._announce_due.set()

    async def _announce_loop(self) -> None:
        """Log, count and publish committed mails, after the replies to the clients. Never returns.

        Mails that follow each other within ANNOUNCE_INTERVAL_SECONDS are published together.
        """
        while True:
            await self._announce_due.wait()
            await asyncio.sleep(0)  # the sessions that wait for the commit reply now
            self._announce()
            await asyncio.sleep(ANNOUNCE_INTERVAL_SECONDS)

    def _announce(self) -> None:
        batch, self._unannounced = self._unannounced, []
        self._announce_due.clear()
        maillog.announce([event for each in batch for event in each.events])
        stored = [each for each in batch if each.id is not None]
        self._broker.publish_behind(
            submitted((each.id, each.external) for each in stored if each.id is not None)
            + changed(each.author for each in stored)
        )
