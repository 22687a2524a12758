"""What mail clients do with folders by IMAP, on a real PostgreSQL."""

from __future__ import annotations

import asyncio
import datetime
from collections.abc import Sequence

import pytest

from services.pop3_out.mailbox_store import DatabaseStore
from shared.db.database import Connection, Database
from shared.errors import Permanent
from shared.model import Local
from shared.store import blobs, folder_admin, folder_edits, folder_mails, folder_views, folders
from shared.store.folder_batches import Flagged
from shared.store.folder_views import ANSWERED, DELETED, FLAGGED, SEEN, FolderCounts, View
from shared.store.folders import Folder, FolderRefused
from tests.folder_changes import NEW, append_mail, store_flags
from tests.integration.test_folder_mails import add_mails, add_people
from tests.integration.test_router_and_mailbox import end_account, waits_for_a_lock
from tests.polling import until
from tests.servers import opened

BODIES = (b"1\r\n", b"22\r\n", b"333\r\n", b"4444\r\n")


async def alex_with_mail(database: Database, *bodies: bytes) -> tuple[Local, Folder, Folder]:
    """Alex with these mails in INBOX, that folder and Archive."""
    [alex] = (await add_people(database, "alex")).values()
    if bodies:
        await add_mails(database, alex, *bodies)
    async with database.transaction() as connection:
        inbox = await folders.find_special(connection, alex.id, "inbox")
        return alex, inbox, await folders.find_special(connection, alex.id, "archive")


async def view(database: Database, folder: Folder) -> View:
    async with database.statement() as connection:
        return await folder_views.load_view(connection, folder.id)


async def changes(connection: Connection, folder: Folder, since: int) -> list[tuple[int, int, bool]]:
    """UID, flags, and whether the mail is expunged, of what changed after a version."""
    found = await folder_views.load_view_changes(connection, folder.id, since, 100)
    assert found is not None
    return [(row.uid, row.flags, row.expunged) for row in found.rows]


async def stored_bytes(connection: Connection) -> int:
    cursor = await connection.execute("select count(*) from blobs")
    [row] = await cursor.fetchall()
    return int(row[0])


# ---------------------------------------------------------------------------------------------- folders


async def test_an_account_has_the_standard_folders_and_makes_others(database: Database) -> None:
    alex, inbox, _ = await alex_with_mail(database, *BODIES)
    async with database.transaction() as connection:
        made = await folders.create_folder(connection, alex.id, "Customers/Ann")
        known = {folder.name: folder for folder in await folders.list_folders(connection, alex.id)}
        assert sorted(known) == ["Archive", "Customers/Ann", "Drafts", "INBOX", "Junk", "Sent", "Trash"]
        assert {folder.special_use for folder in known.values()} == {*folders.STANDARD_NAMES, None}
        assert made == known["Customers/Ann"] == await folders.find_folder(connection, alex.id, "Customers/Ann")
        assert made.uidvalidity > inbox.uidvalidity
        assert (made.uidnext, made.version, made.subscribed) == (1, 1, True)
        assert await folder_views.count_mails(connection, [inbox.id, made.id]) == {
            inbox.id: FolderCounts(4, 4, 0, 18),
            made.id: FolderCounts(),
        }
        assert await folders.load_versions(connection, [inbox.id, made.id]) == {inbox.id: 2, made.id: 1}
        await folders.unsubscribe_name(connection, alex.id, made.name)
        assert not (await folders.load_folders(connection, [made.id]))[made.id].subscribed


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("Sent", "ALREADYEXISTS"),
        ("inbox", "ALREADYEXISTS"),
        ("a//b", "CANNOT"),
        ("/a", "CANNOT"),
        ("a/", "CANNOT"),
        ("", "CANNOT"),
        ("x" * 256, "LIMIT"),
    ],
)
async def test_a_name_that_no_folder_can_have_is_refused(database: Database, name: str, reason: str) -> None:
    alex, _, archive = await alex_with_mail(database)
    for change in (
        lambda connection: folders.create_folder(connection, alex.id, name),
        lambda connection: folders.rename_folder(connection, alex.id, archive.id, name),
    ):
        with pytest.raises(FolderRefused) as refused:
            async with database.transaction() as connection:
                await change(connection)
        assert refused.value.reason == reason


async def test_the_number_of_folders_is_limited(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folders, "MAX_FOLDERS", 7)
    alex, _, _ = await alex_with_mail(database)
    async with database.transaction() as connection:
        await folders.create_folder(connection, alex.id, "one")
        with pytest.raises(FolderRefused, match="7 folders at most"):
            await folders.create_folder(connection, alex.id, "two")


async def test_a_renamed_folder_takes_those_below_it_along(database: Database) -> None:
    alex, inbox, archive = await alex_with_mail(database)
    async with database.transaction() as connection:
        for name in ("a", "a/b", "ab"):
            await folders.create_folder(connection, alex.id, name)
        a = await folders.find_folder(connection, alex.id, "a")
        assert a is not None
        renamed = await folders.rename_folder(connection, alex.id, a.id, "c/d")
        assert sorted((folder.name, folder.uidvalidity) for folder in renamed)[0] == ("c/d", a.uidvalidity)
        names = {folder.name for folder in await folders.list_folders(connection, alex.id)}
        assert {"c/d", "c/d/b", "ab"} <= names and not {"a", "a/b"} & names
        # a standard folder keeps its use, and INBOX its name
        [old] = await folders.rename_folder(connection, alex.id, archive.id, "Old")
        assert (old.name, old.special_use) == ("Old", "archive")
        for folder_id, name in ((inbox.id, "x"), (a.id, "c/d/e")):
            with pytest.raises(FolderRefused) as refused:
                await folders.rename_folder(connection, alex.id, folder_id, name)
            assert refused.value.reason == "CANNOT"


async def test_a_subscription_outlives_its_folder_up_to_a_limit(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    alex, _, _ = await alex_with_mail(database)
    later = datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=1)

    async def make_and_delete(name: str) -> None:
        async with database.transaction() as connection:
            made = await folders.create_folder(connection, alex.id, name)
            await folder_edits.delete_folder(connection, alex.id, made.id)

    for name in ("a", "a", "b", "c"):
        await make_and_delete(name)
    async with database.transaction() as connection:
        assert await folders.list_lost_names(connection, alex.id) == ["a", "b", "c"]
        # the purge leaves one row for each name
        assert await folder_mails.purge_folders(connection, later, 10) == 1
        assert await folders.list_lost_names(connection, alex.id) == ["a", "b", "c"]
        await folders.unsubscribe_name(connection, alex.id, "b")
        assert await folder_mails.purge_folders(connection, later, 10) == 1
        # a folder that gets a subscribed name is subscribed
        made = await folders.create_folder(connection, alex.id, "d")
        await folders.unsubscribe_name(connection, alex.id, "d")
        [renamed] = await folders.rename_folder(connection, alex.id, made.id, "c")
        assert renamed.subscribed
        assert await folders.list_lost_names(connection, alex.id) == ["a"]
    monkeypatch.setattr(folders, "MAX_FOLDERS", 9)
    for number in range(10):
        await make_and_delete(f"n{number}")
    async with database.transaction() as connection:
        assert await folders.list_lost_names(connection, alex.id) == [f"n{number}" for number in range(1, 10)]


async def test_a_deleted_folder_s_mails_come_back_into_the_inbox(database: Database) -> None:
    # given a folder with two mails
    alex, inbox, archive = await alex_with_mail(database, *BODIES)
    async with database.transaction() as connection:
        made = await folders.create_folder(connection, alex.id, "work")
        await folder_edits.move_mails(connection, alex.id, inbox.id, made.id, [2, 3])
        # when it is deleted, then it is gone, and another one of this name has another UIDVALIDITY
        assert (await folder_edits.delete_folder(connection, alex.id, made.id)).uids == [1, 2]
        assert await folders.find_folder(connection, alex.id, "work") is None
        with pytest.raises(FolderRefused):
            await folder_views.load_view(connection, made.id)
        with pytest.raises(FolderRefused):
            await append_mail(connection, alex.id, made.id)
        again = await folders.create_folder(connection, alex.id, "work")
        assert again.uidvalidity > made.uidvalidity and again.id != made.id
        # and undelete puts the mails into INBOX
        deleted = [
            entry for entry in await folder_admin.list_mails(connection, alex.id, deleted=True) if entry.deleted_at
        ]
        assert [entry.folder for entry in deleted] == ["work", "work"]
        assert len(await folder_admin.undelete_mails(connection, alex.id, [entry.key for entry in deleted])) == 2
    assert list((await view(database, inbox)).uids) == [1, 4, 5, 6]
    async with database.transaction() as connection:
        with pytest.raises(FolderRefused, match="Archive cannot be deleted"):
            await folder_edits.delete_folder(connection, alex.id, archive.id)


async def test_renaming_the_inbox_moves_its_mails(database: Database) -> None:
    alex, inbox, _ = await alex_with_mail(database, *BODIES)
    async with database.transaction() as connection:
        moved = await folder_edits.rename_inbox(connection, alex.id, "2026")
    assert moved.uids == [(1, 1), (2, 2), (3, 3), (4, 4)]
    assert list((await view(database, moved.target)).octets) == [3, 4, 5, 6]
    assert list((await view(database, inbox)).uids) == []
    assert (await view(database, inbox)).folder.name == "INBOX"


# ---------------------------------------------------------------------------------------------- mails


async def test_an_appended_mail_keeps_flags_keywords_and_date(database: Database) -> None:
    alex, _, archive = await alex_with_mail(database)
    at = datetime.datetime(2026, 11, 5, 12, 0, 0, 250_000, datetime.UTC)
    body = b"Subject: x\r\n\r\n" + b"x" * 30_000
    words = ("$Forwarded", 'ti"cket,')
    async with database.transaction() as connection:
        first = await append_mail(connection, alex.id, archive.id, body, SEEN | FLAGGED, words, at)
        second = await append_mail(connection, alex.id, archive.id)
    found = await view(database, archive)
    assert (first.uid, second.uid, second.uidvalidity) == (1, 2, found.folder.uidvalidity)
    assert (found.folder.uidnext, found.folder.version) == (3, 3)
    assert list(found.octets) == [len(body), 16]
    assert list(found.flags) == [SEEN | FLAGGED, 0]
    assert dict(found.keywords) == {1: words}
    assert found.dates[0] == round(at.timestamp() * 1e6)
    assert list(found.versions) == [2, 3]
    async with database.transaction() as connection:
        stored = await blobs.heads(connection, found.blob_ids)
        assert [stored[blob_id] for blob_id in found.blob_ids] == [body, NEW]
        with pytest.raises(FolderRefused, match="keywords"):
            await append_mail(connection, alex.id, archive.id, keywords=["x" * 101])


async def test_copy_and_move_cost_rows_and_no_bytes(database: Database) -> None:
    alex, inbox, archive = await alex_with_mail(database, *BODIES)
    async with database.transaction() as connection:
        before = await stored_bytes(connection)
        await store_flags(connection, alex.id, inbox.id, [2], "add", SEEN, ["x"])
        version = (await folders.load_versions(connection, [inbox.id]))[inbox.id]
        # when mails are copied and moved, some of which are not there
        copied = await folder_edits.copy_mails(connection, alex.id, inbox.id, archive.id, [2, 1, 99])
        moved = await folder_edits.move_mails(connection, alex.id, inbox.id, archive.id, [4, 2, 98])
        nothing = await folder_edits.move_mails(connection, alex.id, inbox.id, archive.id, [2])
        # then the answer names old and new UIDs
        assert copied.uids == [(1, 1), (2, 2)]
        assert (moved.uids, nothing.uids) == ([(2, 3), (4, 4)], [])
        assert (moved.source.version, moved.target.uidnext) == (version + 1, 5)
        assert nothing.source == moved.source
        # and other sessions hear of the move as of an expunge
        assert await changes(connection, inbox, version) == [(2, SEEN, True), (4, 0, True)]
        assert await stored_bytes(connection) == before
        # but undelete does not offer what has only moved
        assert not any(entry.deleted_at for entry in await folder_admin.list_mails(connection, alex.id, deleted=True))
    there, here = await view(database, archive), await view(database, inbox)
    assert (list(there.octets), list(there.flags), dict(there.keywords)) == (
        [3, 4, 4, 6],
        [0, SEEN, SEEN, 0],
        {2: ("x",), 3: ("x",)},
    )
    assert (list(here.uids), there.dates[0]) == ([1, 3], here.dates[0])


async def test_a_mail_that_moves_within_its_folder_gets_a_new_uid(database: Database) -> None:
    alex, inbox, _ = await alex_with_mail(database, *BODIES)
    async with database.transaction() as connection:
        moved = await folder_edits.move_mails(connection, alex.id, inbox.id, inbox.id, [1])
    assert (moved.uids, moved.source) == ([(1, 5)], moved.target)
    assert list((await view(database, inbox)).uids) == [2, 3, 4, 5]
    # POP3 sees it as a new mail
    box = await DatabaseStore(database).load_snapshot(alex.id)
    assert list(box.octets) == [4, 5, 6, 3] and box.uidls[3] == max(box.uidls)


async def test_a_mail_that_was_moved_away_is_not_delivered_again(database: Database) -> None:
    alex, inbox, archive = await alex_with_mail(database)
    copies = await add_mails(database, alex, *BODIES[:2])
    async with database.transaction() as connection:
        await folder_edits.move_mails(connection, alex.id, inbox.id, archive.id, [1])
        await store_flags(connection, alex.id, archive.id, [1], "add", DELETED)
        await folder_edits.expunge_mails(connection, alex.id, archive.id)
        await folder_mails.deliver_copies(connection, copies)
    assert list((await view(database, inbox)).uids) == [2]
    assert list((await view(database, archive)).uids) == []


@pytest.mark.parametrize(
    ("action", "flags", "keywords", "result"),
    [
        ("add", ANSWERED, ["Later"], (SEEN | ANSWERED, ["work", "Later"])),
        ("add", SEEN, ["WORK"], None),
        ("remove", SEEN, ["WORK"], (0, [])),
        ("remove", ANSWERED, ["other"], None),
        ("replace", FLAGGED, ["b", "a", "A"], (FLAGGED, ["b", "a"])),
        ("replace", 0, [], (0, [])),
        ("replace", SEEN, ["work"], None),
    ],
)
async def test_flags_are_added_removed_and_replaced(
    database: Database, action: str, flags: int, keywords: list[str], result: tuple[int, list[str]] | None
) -> None:
    alex, inbox, _ = await alex_with_mail(database, *BODIES)
    async with database.transaction() as connection:
        await store_flags(connection, alex.id, inbox.id, [1], "replace", SEEN, ["work"])
        before = (await folders.load_versions(connection, [inbox.id]))[inbox.id]
        done = await store_flags(connection, alex.id, inbox.id, [1, 99], action, flags, keywords)  # type: ignore[arg-type]
        # only what has changed gets a new version
        assert done.changed == ([] if result is None else [Flagged(1, *result)])
        assert done.folder.version == before + (result is not None)
        assert [row[0] for row in await changes(connection, inbox, before)] == ([] if result is None else [1])
    found = await view(database, inbox)
    if result is not None:
        assert (found.flags[0], list(found.keywords.get(1, ()))) == result


async def test_a_mail_that_others_changed_since_keeps_its_flags(database: Database) -> None:
    alex, inbox, _ = await alex_with_mail(database, *BODIES)
    async with database.transaction() as connection:
        known = (await folders.load_versions(connection, [inbox.id]))[inbox.id]
        await store_flags(connection, alex.id, inbox.id, [2], "add", FLAGGED)
        done = await store_flags(connection, alex.id, inbox.id, [1, 2, 3], "add", SEEN, unchanged_since=known)
    assert ([mail.uid for mail in done.changed], done.refused) == ([1, 3], [2])
    assert list((await view(database, inbox)).flags) == [SEEN, FLAGGED, SEEN, 0]


async def test_flags_change_nothing_that_pop3_shows(database: Database) -> None:
    alex, inbox, _ = await alex_with_mail(database, *BODIES)
    store = DatabaseStore(database)
    before = await store.load_snapshot(alex.id)
    async with database.transaction() as connection:
        await store_flags(connection, alex.id, inbox.id, [1, 3], "add", SEEN | DELETED)
    after = await store.load_snapshot(alex.id)
    assert (after.uids, after.uidls, after.octets) == (before.uids, before.uidls, before.octets)


async def test_expunge_takes_the_mails_that_are_marked_alone(database: Database) -> None:
    alex, inbox, _ = await alex_with_mail(database, *BODIES)
    async with database.transaction() as connection:
        await store_flags(connection, alex.id, inbox.id, [1, 2, 4], "add", DELETED)
        assert (await folder_edits.expunge_mails(connection, alex.id, inbox.id, [2, 3])).uids == [2]
        gone = await folder_edits.expunge_mails(connection, alex.id, inbox.id)
        assert gone.uids == [1, 4] and len(gone.mail_ids) == 2
        again = await folder_edits.expunge_mails(connection, alex.id, inbox.id)
        assert (again.uids, again.folder) == ([], gone.folder)
        assert await folder_views.find_expunged(connection, inbox.id, [4, 1, 3, 77]) == [1, 4, 77]
        # undelete adds a new mail, without the mark, and the tombstone stays
        deleted = [
            entry for entry in await folder_admin.list_mails(connection, alex.id, deleted=True) if entry.deleted_at
        ]
        assert [entry.uid for entry in deleted] == [1, 2, 4]
        await folder_admin.undelete_mails(connection, alex.id, [deleted[1].key])
        assert await changes(connection, inbox, gone.folder.version) == [(5, 0, False)]
        latest = await folder_admin.list_latest_deleted(connection, alex.id)
        assert sorted(entry.uid for entry in latest) == [1, 4]
    assert list((await view(database, inbox)).uids) == [3, 5]


async def test_a_reader_of_too_many_changes_or_after_a_failover_reads_all(database: Database) -> None:
    _, inbox, _ = await alex_with_mail(database, *BODIES)
    async with database.transaction() as connection:
        assert await folder_views.load_view_changes(connection, inbox.id, 1, 3) is None
        assert await folder_views.load_view_changes(connection, inbox.id, 1, 4) is not None
        await connection.execute(
            "update folders set version = version + %s where id = %s", (folder_mails.VERSION_GAP, inbox.id)
        )
        assert await folder_views.load_view_changes(connection, inbox.id, 1, 100) is None


async def test_nobody_changes_another_person_s_folder(database: Database) -> None:
    people = await add_people(database, "alex", "jim")
    alex, jim = people.values()
    await add_mails(database, alex, *BODIES)
    async with database.transaction() as connection:
        theirs = await folders.find_special(connection, alex.id, "inbox")
        own = await folders.find_special(connection, jim.id, "inbox")
        for change in (
            append_mail(connection, jim.id, theirs.id),
            folder_edits.copy_mails(connection, jim.id, theirs.id, own.id, [1]),
            folder_edits.move_mails(connection, jim.id, own.id, theirs.id, None),
            store_flags(connection, jim.id, theirs.id, [1], "add", SEEN),
            folder_edits.expunge_mails(connection, jim.id, theirs.id),
            folder_edits.delete_folder(connection, jim.id, theirs.id),
            folders.rename_folder(connection, jim.id, theirs.id, "x"),
            folders.subscribe_folder(connection, jim.id, theirs.id),
        ):
            with pytest.raises(FolderRefused) as refused:
                await change
            assert refused.value.reason == "NONEXISTENT"


async def test_writers_that_move_mail_both_ways_do_not_deadlock(database: Database) -> None:
    alex, inbox, archive = await alex_with_mail(database, *BODIES)

    async def move(there: Folder, back: Folder) -> None:
        for _ in range(15):
            async with database.transaction() as connection:
                await folder_edits.move_mails(connection, alex.id, there.id, back.id, None)

    await asyncio.gather(move(inbox, archive), move(archive, inbox), add_mails(database, alex, *BODIES))
    one, other = await view(database, inbox), await view(database, archive)
    assert len(one.uids) + len(other.uids) == 8
    assert (one.folder.uidnext > max(one.uids, default=0), list(one.uids) == sorted(one.uids)) == (True, True)


@pytest.mark.parametrize("change", ["removed", "disabled"])
async def test_no_client_changes_folders_of_an_account_that_ends(
    database: Database, database_url: str, change: str
) -> None:
    alex, _, archive = await alex_with_mail(database)

    async def append() -> None:
        async with database.transaction() as connection:
            await append_mail(connection, alex.id, archive.id)

    locked, go_on = asyncio.Event(), asyncio.Event()
    async with opened(database_url) as console:
        changing = asyncio.create_task(end_account(console, alex.id, change, locked, go_on))
        await locked.wait()
        appending = asyncio.create_task(append())
        await until(lambda: waits_for_a_lock(console))
        go_on.set()
        await changing
        with pytest.raises(Permanent, match="no mailbox"):
            await appending
    assert list((await view(database, archive)).uids) == []


# ---------------------------------------------------------------------------------------------- purge


async def purge(database: Database, before: datetime.datetime, drafts: bool) -> Sequence[int]:
    async with database.transaction() as connection:
        await folder_mails.mark_purgeable(connection, 0, before, 100, drafts=drafts)
    async with database.transaction() as connection:
        return await folder_mails.purge_tombstones(connection, before, 100, drafts=drafts)


async def test_a_purge_of_tombstones_is_known_to_clients_that_come_back(database: Database) -> None:
    alex, inbox, archive = await alex_with_mail(database, *BODIES)
    async with database.transaction() as connection:
        drafts = await folders.find_special(connection, alex.id, "drafts")
        await append_mail(connection, alex.id, drafts.id)
        await store_flags(connection, alex.id, drafts.id, [1], "add", DELETED)
        await folder_edits.expunge_mails(connection, alex.id, drafts.id)
        await store_flags(connection, alex.id, inbox.id, [1], "add", DELETED)
        gone = (await folder_edits.expunge_mails(connection, alex.id, inbox.id)).folder
        await folder_edits.move_mails(connection, alex.id, inbox.id, archive.id, [2])
        # an expunged draft is not offered for undelete
        deleted = [
            entry for entry in await folder_admin.list_mails(connection, alex.id, deleted=True) if entry.deleted_at
        ]
        assert [(entry.folder, entry.uid) for entry in deleted] == [("INBOX", 1)]
    later = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=60)
    # when drafts are purged, then they alone
    assert len(await purge(database, later, True)) == 1
    async with database.transaction() as connection:
        known = await folders.load_folders(connection, [inbox.id, drafts.id])
        assert (known[inbox.id].purged_version, known[drafts.id].purged_version) == (0, known[drafts.id].version)
    # and when the others are purged, each folder tells up to which version
    assert len(await purge(database, later, False)) == 2
    async with database.transaction() as connection:
        now = (await folders.load_folders(connection, [inbox.id]))[inbox.id]
        assert now.purged_version == now.version == gone.version + 1
        assert await changes(connection, inbox, gone.version - 1) == []
    assert await purge(database, later, False) == []
