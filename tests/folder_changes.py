"""STORE and APPEND of one client, as tests of folders make them."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from typing import Literal

from shared.db.database import Connection
from shared.errors import Permanent
from shared.model import Content
from shared.store import folder_batches
from shared.store.folder_batches import Appended, AppendedMail, FlagChange, StoreResult

NEW = b"Subject: new\r\n\r\n"


async def store_flags(
    connection: Connection,
    local_id: int,
    folder_id: int,
    uids: Sequence[int],
    action: Literal["add", "remove", "replace"],
    flags: int,
    keywords: Sequence[str] = (),
    unchanged_since: int | None = None,
) -> StoreResult:
    """Change flags. :raises Permanent: it is refused."""
    change = FlagChange(local_id, folder_id, uids, action, flags, keywords, unchanged_since)
    [outcome] = await folder_batches.store_flags(connection, [change])
    if isinstance(outcome, Permanent):
        raise outcome
    assert outcome is not None
    return outcome


async def append_mail(
    connection: Connection,
    local_id: int,
    folder_id: int,
    body: bytes = NEW,
    flags: int = 0,
    keywords: Sequence[str] = (),
    internal_date: dt.datetime | None = None,
    message_id: str | None = None,
) -> Appended:
    """Store a mail. :raises Permanent: it is refused."""
    content = Content.from_bytes(body)
    mail = AppendedMail(local_id, folder_id, content, flags, keywords, internal_date, message_id)
    [outcome] = await folder_batches.append_mails(connection, [mail])
    if isinstance(outcome, Permanent):
        raise outcome
    assert outcome is not None
    return outcome
