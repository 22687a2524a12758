"""The schema with tables that are partitioned by age, beside which the purge is measured (purge.py).

Ids ascend with the arrival, so a partition is a range of ids. A partition is dropped when no mail in it is kept.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from shared.store import sent_mail


@dataclass(frozen=True, slots=True)
class _Table:
    """A table, before it is partitioned."""

    name: str
    key: str  # the column of ids
    has_id: bool  # PostgreSQL 15 has no identity columns in partitioned tables
    primary: str  # columns; has to have the key
    indexes: Sequence[str] = ()  # all others


_BYTES = (
    _Table("blobs", "id", True, "id"),
    _Table("blob_chunks", "blob_id", False, "blob_id, position"),
)
_ROWS = (
    _Table(
        "inbound",
        "id",
        False,
        "id",
        (
            "(state, state_at) where state in ('fetched', 'routed', 'held', 'parked')",
            "(message_id)",
            "(blob_id)",
            "(submission_id) where submission_id is not null",
            "(external_id, state, own_copy) where source = 'fetched'",
            "(state_at) where state = 'discarded'",
            "using brin (created_at)",
        ),
    ),
    _Table("deliveries", "inbound_id", False, "inbound_id, local_id"),
    _Table("delivered", "inbound_id", False, "inbound_id, local_id"),
    _Table(
        "folder_mails",
        "blob_id",
        False,
        "blob_id, folder_id, uid",
        (
            "(folder_id, uid)",
            "(folder_id, version)",
            "(folder_id, message_id) where message_id is not null",
            "(expunged_at) where expunged_at is not null",
            "(expunged_at) where expunged_as = 'draft'",
        ),
    ),
)
_REFERENCES = (
    ("blob_chunks", "blob_id", "blobs", "on delete cascade"),
    ("mail_structures", "blob_id", "blobs", "on delete cascade"),
    ("inbound", "blob_id", "blobs", ""),
    ("submissions", "blob_id", "blobs", ""),
    ("deliveries", "inbound_id", "inbound", "on delete cascade"),
    ("folder_mails", "blob_id", "blobs", ""),
    ("uidl_ledger", "inbound_id", "inbound", "on delete set null"),
    ("shared_mails", "mail_id", "inbound", "on delete cascade"),
)


def partition(whole: bool, mails: int, each: int) -> Iterator[str]:
    """Yield the statements that partition the empty tables of bytes, or of whole mails.

    :param mails: in all. :param each: mails in a partition.
    """
    tables = (*_BYTES, *_ROWS) if whole else _BYTES
    names = {table.name for table in tables}
    for table in tables:
        yield f"alter table {table.name} rename to {table.name}_before"
        yield (
            f"create table {table.name} (like {table.name}_before including defaults including constraints including "
            f"storage, primary key ({table.primary})) partition by range ({table.key})"
        )
        if table.has_id:
            yield f"create sequence {table.name}_ids owned by {table.name}.id"
            yield f"alter table {table.name} alter column id set default nextval('{table.name}_ids')"
        for index in table.indexes:
            yield f"create index on {table.name} {index}"
        for number, first in enumerate(range(1, mails + 1, each)):
            last = "maxvalue" if first + each > mails else str(first + each)
            yield f"create table {table.name}_{number} partition of {table.name} for values from ({first}) to ({last})"
    for table in tables:
        yield f"drop table {table.name}_before cascade"
    for table_name, column, target, action in _REFERENCES:
        if table_name in names or target in names:
            yield f"alter table {table_name} drop constraint if exists {table_name}_{column}_fkey"
            yield f"alter table {table_name} add foreign key ({column}) references {target} {action}"


def drop_bytes(number: int) -> Iterator[str]:
    """Yield the statements that drop a partition of bytes; nothing refers to them any more."""
    for name in ("blob_chunks", "blobs"):
        yield f"alter table {name} detach partition {name}_{number}"
        yield f"drop table {name}_{number}"


def drop_whole(number: int, each: int) -> Iterator[str]:
    """Yield the statements that drop a partition of whole mails, and keep what outlives a mail, as a purge does."""
    inbound = f"inbound_{number}"
    yield f"""with purged as (
            select external_id, source, own_copy and state = 'delivered' as own_copy, message_id from {inbound}),
        ids_from_outside as ({sent_mail.FROM_PURGED})
        insert into purged_mails (external_id, delivered, own_copies)
        select external_id, count(*) filter (where not own_copy), count(*) filter (where own_copy) from purged
        where source = 'fetched' and external_id is not null group by external_id
        on conflict (external_id) do update set delivered = purged_mails.delivered + excluded.delivered,
            own_copies = purged_mails.own_copies + excluded.own_copies"""
    yield f"""update uidl_ledger set inbound_id = null
        where inbound_id > {number * each} and inbound_id <= {(number + 1) * each}"""
    for name in ("deliveries", "delivered", "folder_mails", "inbound"):
        yield f"alter table {name} detach partition {name}_{number}"
        yield f"drop table {name}_{number}"
    yield from drop_bytes(number)
