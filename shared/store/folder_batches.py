"""Changes of folders by mail clients that come in numbers: STORE and APPEND (tables folder_mails, folders).

One transaction has the changes of many sessions, so they wait for the disk once. ``store_flags`` and ``append_mails``
lock the folders first, and read what they change by a later statement, which sees them as they are under the lock
(shared/store/folders.py). ``store_at_once`` and ``append_at_once`` do the same by one statement, which commits itself:
at half the cost, but only for folders that nobody changes meanwhile.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal, TypeVar

from shared.db.arrays import array_literal
from shared.db.database import Connection, storable
from shared.errors import Permanent
from shared.model import Content
from shared.store import blobs, folders
from shared.store.blobs import UploadedBlob
from shared.store.folders import Folder, FolderRefused

MAX_KEYWORDS, MAX_KEYWORD = 50, 100
"""Limits of the keywords of a mail, and of the characters of one: octets in the database that a client can add."""
FILED_SECONDS = 3600.0
"""Age up to which a filed copy gives way to the client's own one: seconds. Clients store theirs right after the
submission, or when they are online again."""


@dataclass(frozen=True, slots=True)
class FlagChange:
    """A change of flags (RFC 9051 section 6.4.6). UIDs that name no mail are skipped.

    Keywords are compared in any case of letters, and stay as they were written first. A mail keeps MAX_KEYWORDS.
    """

    local_id: int
    folder_id: int
    uids: Sequence[int]  # each one once
    action: Literal["add", "remove", "replace"]
    flags: int  # bits, as folder_views.SEEN
    keywords: Sequence[str] = ()
    unchanged_since: int | None = None  # leave mails with a higher MODSEQ as they are (RFC 7162 section 3.1.3)


@dataclass(frozen=True, slots=True)
class Flagged:
    """A mail with its flags after a change."""

    uid: int
    flags: int
    keywords: Sequence[str]


@dataclass(frozen=True, slots=True)
class StoreResult:
    """The result of a change of flags."""

    folder: Folder  # as it is now; its version is the MODSEQ of the changed mails
    changed: Sequence[Flagged]  # mails that have other flags now, by UID
    refused: Sequence[int]  # UIDs of mails that others changed after ``unchanged_since``


@dataclass(frozen=True, slots=True)
class AppendedMail:
    """A mail that a client appends to a folder."""

    local_id: int
    folder_id: int
    content: Content | UploadedBlob  # an own content is stored whole: ``blobs.is_whole``
    flags: int = 0  # bits, as folder_views.SEEN
    keywords: Sequence[str] = ()
    internal_date: datetime | None = None  # None: now
    message_id: str | None = None  # Message-ID without its brackets


@dataclass(frozen=True, slots=True)
class Appended:
    """The result of an append."""

    uidvalidity: int
    uid: int
    replaced: Sequence[int]  # UIDs of filed copies of the same mail in Sent, which became tombstones


_OPEN = """lateral (
    select f.* from folders f join local_accounts l on l.id = f.local_id
    where f.id = g.folder_id and f.local_id = g.local_id and f.deleted_at is null and l.removed_at is null and l.enabled
    offset 0) f"""
"""SQL: the folder of ``g``, if a client may change it. A session of a disabled account may be an intruder's. This and
other looks for a row have an OFFSET, so that each is a look into an index: a join may read all folders or mails."""

_HELD = """
    held as materialized (
        select id, version from (select id, version from folders where id in (select folder_id from given) order by id
                                 for no key update skip locked) as h),
    people as materialized (
        select id from (select id from local_accounts where id in (select local_id from given) and enabled
                            and removed_at is null order by id for share skip locked) as p),
"""
"""SQL: locks of folders and of their people, as the first parts of a statement that changes these folders."""
_OPEN_HELD = """lateral (
    select f.* from folders f join held h on h.id = f.id and h.version = f.version join people l on l.id = f.local_id
    where f.id = g.folder_id and f.local_id = g.local_id and f.deleted_at is null offset 0) f"""
"""SQL: as _OPEN, in a statement with _HELD: only folders whose lock was free. A lock returns the version of now, and
the statement sees the folder as at its beginning: with the same version nothing was changed between."""

_STORE = f"""
    with given as materialized (
        select * from unnest(%s::bigint[], %s::bigint[], %s::text[], %s::text[], %s::smallint[], %s::text[],
                %s::bigint[])
            as g (folder_id, local_id, uids, action, flags, keywords, since)),
    chosen as materialized (
        select f.id as folder_id, f.version + 1 as new_version, r.uid, r.version <= g.since as allowed,
            r.flags as old_flags, r.keywords as old_keywords,
            case g.action when 'add' then r.flags | g.flags when 'remove' then r.flags & ~g.flags else g.flags end
                ::smallint as flags,
            case when g.keywords = '{{}}' and g.action <> 'replace' then r.keywords else (
                select array_agg(k order by position) from (
                    select distinct on (lower(k)) k, position from unnest(case g.action
                        when 'add' then r.keywords || g.keywords::text[]
                        when 'remove' then array(
                            select k from unnest(r.keywords) k where lower(k) <> all(lower_all(g.keywords::text[])))
                        else g.keywords::text[] end) with ordinality as each (k, position)
                    order by lower(k), position limit {MAX_KEYWORDS}) kept) end as keywords
        from given g cross join {_OPEN}
            cross join unnest(g.uids::bigint[]) as u (uid)
            cross join lateral (
                select uid, flags, keywords, version from folder_mails
                where folder_id = f.id and uid = u.uid and expunged_at is null offset 0) r),
    changed as (
        update folder_mails r set flags = c.flags, keywords = c.keywords, version = c.new_version
        from chosen c
        where r.folder_id = c.folder_id and r.uid = c.uid and c.allowed
            and (c.flags, c.keywords) is distinct from (c.old_flags, c.old_keywords)
        returning r.folder_id, r.uid, r.flags, r.keywords),
    advanced as (
        update folders set version = version + 1 where id in (select folder_id from changed) returning id)
    select f.id, f.local_id, f.name, f.special_use, f.uidvalidity, f.uidnext,
        f.version + (select count(*) from advanced a where a.id = f.id), f.purged_version, f.subscribed,
        array(select c.uid from changed c where c.folder_id = f.id order by c.uid),
        array(select c.flags from changed c where c.folder_id = f.id order by c.uid),
        (select jsonb_agg(c.keywords order by c.uid) from changed c where c.folder_id = f.id),
        array(select c.uid from chosen c where c.folder_id = f.id and not c.allowed order by c.uid)
    from given g cross join {_OPEN}"""
"""SQL: changes flags in folders of which each is given once."""

_STORE_AT_ONCE = _STORE.replace("chosen as materialized (", _HELD.strip() + " chosen as materialized (", 1).replace(
    _OPEN, _OPEN_HELD
)
"""SQL: the same, with the locks."""


async def store_flags(
    connection: Connection, changes: Sequence[FlagChange], *, wait: bool = True
) -> list[StoreResult | Permanent | None]:
    """Change flags in a transaction, in this order.

    :param wait: wait for folders that others change now.
    :return: the outcome of each. FolderRefused: NONEXISTENT; LIMIT: too many or long keywords. Permanent: the account
        ended. None: others change the folder now.
    """
    outcomes: dict[int, StoreResult | Permanent] = {}
    _refuse_keywords(outcomes, [change.keywords for change in changes])
    locked = await _lock(connection, {change.folder_id for change in changes}, wait)
    waiting = [place for place, each in enumerate(changes) if place not in outcomes and each.folder_id in locked]
    while waiting:  # each folder once a statement, which so changes no mail twice
        first = {changes[place].folder_id: place for place in reversed(waiting)}
        found = await _store_once(connection, {folder_id: changes[place] for folder_id, place in first.items()})
        outcomes |= {place: found[folder_id] for folder_id, place in first.items() if folder_id in found}
        for place in first.values():
            waiting.remove(place)
    await _explain(connection, outcomes, changes, locked)
    return [outcomes.get(place) for place in range(len(changes))]


async def store_at_once(connection: Connection, changes: Sequence[FlagChange]) -> list[StoreResult | None]:
    """Change flags by one statement, which commits itself. :param changes: of different folders, without keywords.

    :return: the outcome of each. None: it is not made; ``store_flags`` makes it, or says why not.
    """
    found = await _store_once(connection, {change.folder_id: change for change in changes}, _STORE_AT_ONCE)
    return [found.get(change.folder_id) for change in changes]


async def _store_once(
    connection: Connection, changes: Mapping[int, FlagChange], statement: str = _STORE
) -> dict[int, StoreResult]:
    """Change flags in each of these folders, by its id. Folders that may not be changed are left out."""
    given = changes.values()
    cursor = await connection.execute(
        statement,
        (
            array_literal(change.folder_id for change in given),
            array_literal(change.local_id for change in given),
            array_literal(array_literal(change.uids) for change in given),
            array_literal(change.action for change in given),
            array_literal(change.flags for change in given),
            array_literal(array_literal(change.keywords) for change in given),
            array_literal(2**62 if change.unchanged_since is None else change.unchanged_since for change in given),
        ),
    )
    found = {}
    for *folder, uids, flags, keywords, refused in await cursor.fetchall():
        changed = [
            Flagged(uid, bits, words or []) for uid, bits, words in zip(uids, flags, keywords or (), strict=True)
        ]
        found[folder[0]] = StoreResult(Folder(*folder), changed, refused)
    return found


_APPEND = f"""
    with given as materialized (
        select * from unnest(%s::bigint[], %s::bigint[], %s::bigint[], %s::bigint[], %s::timestamptz[], %s::smallint[],
                %s::text[], %s::text[], %b::bytea[], %b::bytea[])
            with ordinality as g (folder_id, local_id, uploaded, octets, internal_date, flags, keywords, message_id,
                sha256, head, place)),
    chosen as materialized (
        select g.*, coalesce(g.uploaded, nextval(pg_get_serial_sequence('blobs', 'id'))) as blob_id,
            f.uidnext + row_number() over (partition by f.id order by g.place) - 1 as uid, f.version + 1 as version,
            f.uidvalidity, case when f.special_use = 'sent' then g.message_id end as sent_id
        from given g cross join {_OPEN}),
    new as (select * from chosen where uploaded is null),
    new_blobs as ({blobs.FROM_NEW}),
    uploads as (select * from chosen where uploaded is not null),
    finished as ({blobs.FINISH_UPLOADS}),
    replaced as (
        update folder_mails r set expunged_at = now(), expunged_as = 'deleted', version = n.version
        from (select distinct folder_id, version, sent_id from chosen where sent_id is not null) n
        where r.folder_id = n.folder_id and r.message_id = n.sent_id and r.expunged_at is null
            and r.internal_date > now() - make_interval(secs => {FILED_SECONDS})
            and exists (select from submissions s where s.id = r.mail_id)
        returning r.folder_id, r.uid, r.message_id),
    added as (
        insert into folder_mails
            (folder_id, uid, blob_id, mail_id, octets, version, internal_date, flags, keywords, message_id)
        select folder_id, uid, blob_id, nextval('mail_ids'), octets, version, coalesce(internal_date, now()), flags,
            nullif(keywords::text[], '{{}}'), sent_id
        from chosen order by place),
    advanced as (
        update folders f set version = f.version + 1, uidnext = f.uidnext + n.mails
        from (select folder_id, count(*) as mails from chosen group by folder_id) n where f.id = n.folder_id)
    select place, uidvalidity, uid, array(
        select r.uid from replaced r where r.folder_id = c.folder_id and r.message_id = c.sent_id order by r.uid)
    from chosen c"""
"""SQL: stores mails in folders, and makes tombstones of the copies of the same submissions that were filed before."""

_APPEND_AT_ONCE = _APPEND.replace("chosen as materialized (", _HELD.strip() + " chosen as materialized (", 1).replace(
    _OPEN, _OPEN_HELD
)
"""SQL: the same, with the locks."""


async def append_mails(
    connection: Connection, mails: Sequence[AppendedMail], *, wait: bool = True
) -> list[Appended | Permanent | None]:
    """Store mails in a transaction, in this order.

    In Sent, a copy of the same submission that was filed less than FILED_SECONDS ago becomes a tombstone.

    :param wait: wait for folders that others change now.
    :return: the outcome of each, as ``store_flags``.
    """
    outcomes: dict[int, Appended | Permanent] = {}
    _refuse_keywords(outcomes, [mail.keywords for mail in mails])
    locked = await _lock(connection, {mail.folder_id for mail in mails}, wait)
    chosen = [place for place, each in enumerate(mails) if place not in outcomes and each.folder_id in locked]
    if chosen:
        found = await _append_all(connection, [mails[place] for place in chosen])
        outcomes |= {chosen[place]: appended for place, appended in found.items()}
    await _explain(connection, outcomes, mails, locked)
    return [outcomes.get(place) for place in range(len(mails))]


async def append_at_once(connection: Connection, mails: Sequence[AppendedMail]) -> list[Appended | None]:
    """Store mails by one statement, which commits itself. :param mails: without keywords.

    :return: the outcome of each. None: it is not stored; ``append_mails`` stores it, or says why not.
    """
    found = await _append_all(connection, mails, _APPEND_AT_ONCE)
    return [found.get(place) for place in range(len(mails))]


async def _append_all(
    connection: Connection, given: Sequence[AppendedMail], statement: str = _APPEND
) -> dict[int, Appended]:
    """Store mails, by their places. Those of folders that may not be changed are left out."""
    cursor = await connection.execute(
        statement,
        (
            array_literal(mail.folder_id for mail in given),
            array_literal(mail.local_id for mail in given),
            array_literal(mail.content.id if isinstance(mail.content, UploadedBlob) else None for mail in given),
            array_literal(mail.content.octets for mail in given),
            [mail.internal_date for mail in given],
            array_literal(mail.flags for mail in given),
            array_literal(array_literal(mail.keywords) for mail in given),
            [None if mail.message_id is None else storable(mail.message_id) for mail in given],
            [mail.content.sha256 for mail in given],
            [blobs.head(mail.content) if isinstance(mail.content, Content) else b"" for mail in given],
        ),
    )
    return {
        place - 1: Appended(uidvalidity, uid, replaced) for place, uidvalidity, uid, replaced in await cursor.fetchall()
    }


# ---------------------------------------------------------------------------------------------- both

_Result = TypeVar("_Result")


def _refuse_keywords(outcomes: dict[int, _Result | Permanent], given: Iterable[Sequence[str]]) -> None:
    """Refuse changes with too many or long keywords, by their places."""
    for place, keywords in enumerate(given):
        if len(keywords) > MAX_KEYWORDS or any(len(keyword) > MAX_KEYWORD for keyword in keywords):
            outcomes[place] = FolderRefused(
                "LIMIT", f"a mail has {MAX_KEYWORDS} keywords of {MAX_KEYWORD} characters at most"
            )


async def _lock(connection: Connection, folder_ids: Collection[int], wait: bool) -> set[int]:
    """Lock folders in the order of their ids, until the transaction ends. :return: those that are locked now."""
    cursor = await connection.execute(
        f"""select id from folders where id = any(%s::bigint[]) order by id for no key update
            {"" if wait else "skip locked"}""",
        (array_literal(folder_ids),),
    )
    return {int(row[0]) for row in await cursor.fetchall()} | (set(folder_ids) if wait else set())


async def _explain(
    connection: Connection,
    outcomes: dict[int, _Result | Permanent],
    given: Sequence[FlagChange | AppendedMail],
    locked: Collection[int],
) -> None:
    """Find the reasons of the changes that were not made, though their folders are locked."""
    for place, change in enumerate(given):
        if place not in outcomes and change.folder_id in locked:
            try:
                await folders.lock_folders(connection, change.local_id, [change.folder_id], only_enabled=True)
            except Permanent as refusal:
                outcomes[place] = refusal
