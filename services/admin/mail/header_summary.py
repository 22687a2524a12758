"""What a mail says of itself in its header: for lists that people look at. Never a body."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from shared.db.database import Connection
from shared.mime import headers
from shared.mime.headers import Mailbox
from shared.store import blobs

_OCTETS = 32 * 1024
"""Of a mail that are read: a header that is longer is cut."""
_MOST = 200


@dataclass(frozen=True, slots=True)
class HeaderSummary:
    """sender: as the mail says. to: the mailboxes in To and Cc."""

    sender: Mailbox | None
    to: tuple[Mailbox, ...]
    subject: str

    @property
    def author(self) -> str:
        """Who it says it is from, shortly."""
        return (self.sender.name or self.sender.address) if self.sender else "nobody"


def read_summary(head: bytes) -> HeaderSummary:
    """From the beginning of a mail. Whatever it is, this does not fail; what cannot be read is left out."""
    try:
        found = headers.by_name(head)
        senders = [mailbox for value in found.get("from", []) for mailbox in headers.mailboxes(value[:_OCTETS])]
        to = [m for name in ("to", "cc") for value in found.get(name, []) for m in headers.mailboxes(value[:_OCTETS])]
        subject = headers.field_text(found["subject"][0]) if found.get("subject") else ""
    except Exception:  # a list of mails must not break on one of them
        return HeaderSummary(None, (), "")
    return HeaderSummary(senders[0] if senders else None, tuple(to[:_MOST]), subject[:500])


async def load_summaries(connection: Connection, blob_ids: Collection[int]) -> dict[int, HeaderSummary]:
    """The letters of these mails, by the id of their bytes; ids that are gone are left out."""
    found = await blobs.prefixes(connection, list(blob_ids), _OCTETS)
    return {id_: read_summary(head) for id_, head in found.items()}
