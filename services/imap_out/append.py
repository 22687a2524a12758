"""APPEND (RFC 3501 section 6.3.11): the mail is stored while it arrives, in bounded memory."""

from __future__ import annotations

import datetime as dt
import hashlib
import time

import structlog

from services.imap_out.context import ImapContext, TaggedAnswer
from services.imap_out.grammar.command_input import ReceiveMail
from services.imap_out.grammar.commands import AppendArguments
from services.imap_out.grammar.errors import CommandError
from services.imap_out.responses import status
from services.imap_out.view import split_flags
from shared.errors import Temporary
from shared.mime import headers
from shared.model import Content
from shared.net.least_rate import LeastRate
from shared.runtime.served_connection import LEAST_OCTETS_A_SECOND
from shared.store import blobs
from shared.store.blobs import CHUNK_OCTETS, HEAD_OCTETS, UploadedBlob
from shared.store.folder_batches import AppendedMail
from shared.store.folders import Folder

READ_OCTETS = 64 * 1024
"""Octets that are taken from the connection at once."""
PAUSE_SECONDS = 300.0
"""Longest pause of a client that sends a mail: seconds."""
_FIRST_DATE = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
_LAST_DATE = dt.datetime(9999, 12, 30, tzinfo=dt.UTC)

log = structlog.get_logger()


class MailUpload:
    """A mail that a client appends. Close it in the end: an upload without ``finish`` is deleted."""

    def __init__(self, context: ImapContext, step: ReceiveMail, folder: Folder) -> None:
        """:param folder: where the mail goes."""
        arguments = step.command.arguments
        assert isinstance(arguments, AppendArguments)
        self._arguments = arguments
        self._context = context
        self._step = step
        self._folder = folder
        self._buffer = bytearray()  # counted by the memory budget
        self._beginning = b""
        self._digest = hashlib.sha256()
        self._blob_id: int | None = None
        self._chunks = 0
        self._received = 0

    async def receive(self) -> None:
        """Read the mail from the connection.

        :raises CommandError, Temporary: it is not stored; the octets that are left are read by ``skip``.
        :raises ConnectionError: the client has disconnected, or sends too slowly.
        """
        while self._received < self._step.octets:
            piece = await self._read()
            if b"\0" in piece and not self._step.literal8:
                raise CommandError("the mail has a NUL (RFC 3501 section 9, CHAR8)", "NO")
            self._digest.update(piece)
            self._buffer += piece
            self._context.transport.budget.add(len(piece))
            await self._store_full(self._step.octets)

    _rate: LeastRate | None = None

    async def _read(self) -> bytes:
        now = time.monotonic()
        if self._rate is None:
            self._rate = LeastRate(LEAST_OCTETS_A_SECOND, PAUSE_SECONDS, now)
        piece = await self._context.transport.read_octets(
            min(READ_OCTETS, self._step.octets - self._received), self._rate.seconds_left(now)
        )
        self._received += len(piece)
        self._rate.record(len(piece), time.monotonic())
        return piece

    async def skip(self) -> None:
        """Read and drop the rest of the mail. :raises ConnectionError: as ``receive``."""
        self.drop_buffer()
        while self._received < self._step.octets:
            await self._read()

    async def _store_full(self, octets: int) -> None:
        """Store what fills a head or a chunk, of a mail that is larger than a head."""
        if octets <= HEAD_OCTETS:
            return
        database = self._context.store.database
        if self._blob_id is None and len(self._buffer) >= HEAD_OCTETS:
            self._beginning = self._take(HEAD_OCTETS)
            async with database.transaction() as connection:
                self._blob_id = await blobs.begin_upload(connection, octets, self._beginning)
        while self._blob_id is not None and self._buffer:
            if len(self._buffer) < CHUNK_OCTETS and self._received < octets:
                break
            chunk = self._take(CHUNK_OCTETS)
            async with database.transaction() as connection:
                await blobs.add_upload_chunk(connection, self._blob_id, self._chunks, chunk)
            self._chunks += 1

    def _take(self, octets: int) -> bytes:
        taken = bytes(self._buffer[:octets])
        del self._buffer[:octets]
        self._context.transport.budget.release(len(taken))
        return taken

    def drop_buffer(self) -> None:
        """Release the memory."""
        self._context.transport.budget.release(len(self._buffer))
        self._buffer = bytearray()

    async def finish(self) -> TaggedAnswer:
        """Put the mail into its folder. :raises FolderRefused, Temporary, Permanent: it is not stored."""
        context, arguments = self._context, self._arguments
        content: Content | UploadedBlob
        if self._blob_id is None:
            content = Content(bytes(self._buffer), len(self._buffer), self._digest.digest())
        else:
            content = UploadedBlob(self._blob_id, self._step.octets, self._digest.digest())
        bits, keywords = split_flags(arguments.flags)
        moment = arguments.internal_date
        if moment is not None:
            moment = min(max(moment, _FIRST_DATE), _LAST_DATE)
        message_id = _message_id(self._beginning or bytes(self._buffer)) if self._folder.special_use == "sent" else None
        mail = AppendedMail(context.account.id, self._folder.id, content, bits, keywords, moment, message_id)
        with context.committed():
            appended = await context.changes.append_mail(mail)
        context.announce()
        self._blob_id = None
        context.stats.appended += 1
        return TaggedAnswer("stored", status.append_uid(appended.uidvalidity, appended.uid))

    async def close(self) -> None:
        """Release the memory, and delete a mail that is in no folder. It never fails."""
        self.drop_buffer()
        if self._blob_id is not None:
            try:
                async with self._context.store.database.transaction() as connection:
                    await blobs.purge_blobs(connection, [self._blob_id])
            except Temporary as failure:
                log.info("upload not deleted, left to the purge", error=str(failure))


def _message_id(beginning: bytes) -> str | None:
    """Return the Message-ID without its brackets; None without one."""
    for value in headers.values(beginning[: headers.header_end(beginning)], "message-id")[:1]:
        return next(iter(headers.message_ids(value, 1)), None)
    return None
