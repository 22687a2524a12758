"""Reads sender, recipients and subject from the header of a mail, for lists. The body is never read.

The size of each part is limited, because outsiders write it: any header takes a few milliseconds.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from shared.db.database import Connection
from shared.mime import headers
from shared.mime.headers import Mailbox
from shared.store import blobs

HEAD_OCTETS = 32 * 1024
"""Octets of a mail that are read; a longer header is cut."""
ADDRESS_OCTETS = 8 * 1024
"""Octets of To and Cc together that are read: some 150 mailboxes of a mail from a person."""
SENDER_OCTETS, SUBJECT_OCTETS = 2 * 1024, 4 * 1024
"""Octets of From and of Subject that are read."""
_MAX_MAILBOXES, _SUBJECT_CHARACTERS, _NAME_CHARACTERS = 200, 500, 200


@dataclass(frozen=True, slots=True)
class HeaderSummary:
    """The header of a mail, in short."""

    sender: Mailbox | None  # the first one of From
    to: tuple[Mailbox, ...]  # of To and Cc
    subject: str

    @property
    def author(self) -> str:
        """Name of the sender, or else the address."""
        return (self.sender.name or self.sender.address) if self.sender else "nobody"


NOTHING = HeaderSummary(None, (), "")
"""The summary of a mail without a readable header."""


def read_summary(head: bytes) -> HeaderSummary:
    """Read the summary from the beginning of a mail. It never fails; unreadable parts are left out."""
    try:
        fields = headers.by_name(head[:HEAD_OCTETS])
        senders = read_mailboxes(fields.get("from", []), SENDER_OCTETS)
        to = read_mailboxes([*fields.get("to", []), *fields.get("cc", [])], ADDRESS_OCTETS)
        subject = headers.field_text(fields["subject"][0][:SUBJECT_OCTETS]) if fields.get("subject") else ""
    except Exception:  # a list of mails must not break on one of them
        return NOTHING
    return HeaderSummary(senders[0] if senders else None, tuple(to[:_MAX_MAILBOXES]), subject[:_SUBJECT_CHARACTERS])


def read_mailboxes(values: Sequence[bytes], octets: int) -> list[Mailbox]:
    """Return the mailboxes of these fields, of the first ``octets`` of all together, with names of limited length."""
    found: list[Mailbox] = []
    for value in values:
        if octets <= 0:
            break
        part = value if len(value) <= octets else value[:octets].rpartition(b",")[0]
        octets -= len(value)
        found += headers.mailboxes(part)
    return [box._replace(name=box.name[:_NAME_CHARACTERS]) if box.name else box for box in found]


async def load_summary(connection: Connection, blob_id: int) -> HeaderSummary:
    """Return the summary of a mail; an empty one if its bytes are purged."""
    beginnings = await blobs.prefixes(connection, [blob_id], HEAD_OCTETS)
    return await asyncio.to_thread(read_summary, beginnings.get(blob_id, b""))
