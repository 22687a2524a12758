"""Sender, recipients and subject of a mail, from its header, for lists. The body is never read."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from shared.db.database import Connection
from shared.mime import headers
from shared.mime.headers import Mailbox
from shared.store import blobs

_OCTETS = 32 * 1024
"""Octets of a header that are read; a longer header is cut."""
_MAX_MAILBOXES = 200


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


def read_summary(head: bytes) -> HeaderSummary:
    """Read the summary from the beginning of a mail. It never fails; unreadable parts are left out."""
    try:
        fields = headers.by_name(head)
        senders = [mailbox for value in fields.get("from", []) for mailbox in headers.mailboxes(value[:_OCTETS])]
        to = [m for name in ("to", "cc") for value in fields.get(name, []) for m in headers.mailboxes(value[:_OCTETS])]
        subject = headers.field_text(fields["subject"][0]) if fields.get("subject") else ""
    except Exception:  # a list of mails must not break on one of them
        return HeaderSummary(None, (), "")
    return HeaderSummary(senders[0] if senders else None, tuple(to[:_MAX_MAILBOXES]), subject[:500])


async def load_summaries(connection: Connection, blob_ids: Collection[int]) -> dict[int, HeaderSummary]:
    """Return the summaries of these blobs, by id; purged blobs are left out."""
    heads = await blobs.prefixes(connection, list(blob_ids), _OCTETS)
    return {blob_id: read_summary(head) for blob_id, head in heads.items()}
