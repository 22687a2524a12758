"""STORE and APPEND of many sessions in one transaction, on a real PostgreSQL."""

from __future__ import annotations

import asyncio

from services.imap_out.folder_changes import FolderChanges
from shared.db.database import Database
from shared.errors import Permanent
from shared.model import Content, Local
from shared.store import blobs, folder_batches, folder_views, folders
from shared.store.blobs import UploadedBlob
from shared.store.folder_batches import Appended, AppendedMail, FlagChange, StoreResult
from shared.store.folder_views import ANSWERED, FLAGGED, SEEN, View
from shared.store.folders import Folder, FolderRefused
from tests.integration.test_folder_mails import add_mails, add_people
from tests.integration.test_router_and_mailbox import waits_for_a_lock
from tests.polling import until
from tests.servers import opened

BODIES = (b"1\r\n", b"22\r\n", b"333\r\n")


async def alex_and_jim(database: Database) -> tuple[Local, Local, Folder, Folder]:
    """Two people with the same mails, and their INBOXes."""
    alex, jim = (await add_people(database, "alex", "jim")).values()
    for local in (alex, jim):
        await add_mails(database, local, *BODIES)
    async with database.statement() as connection:
        one, other = [await folders.find_special(connection, local.id, "inbox") for local in (alex, jim)]
    return alex, jim, one, other


async def view(database: Database, folder: Folder) -> View:
    async with database.statement() as connection:
        return await folder_views.load_view(connection, folder.id)


def stored(outcome: StoreResult | Permanent | None) -> tuple[int, list[tuple[int, int]], list[int]]:
    """The version, the changed mails with their flags, and the refused ones."""
    assert isinstance(outcome, StoreResult)
    return outcome.folder.version, [(mail.uid, mail.flags) for mail in outcome.changed], list(outcome.refused)


def reason(outcome: object) -> str:
    assert isinstance(outcome, FolderRefused)
    return outcome.reason


async def test_changes_of_flags_in_one_transaction_are_made_in_their_order(database: Database) -> None:
    alex, jim, one, other = await alex_and_jim(database)
    before = (await view(database, one)).folder.version
    async with database.transaction() as connection:
        outcomes = await folder_batches.store_flags(
            connection,
            [
                FlagChange(alex.id, one.id, [1, 2], "add", SEEN),
                FlagChange(jim.id, other.id, [3], "replace", FLAGGED, ["x"]),
                FlagChange(alex.id, one.id, [2, 3], "add", ANSWERED),
                FlagChange(alex.id, one.id, [1, 2], "remove", SEEN, unchanged_since=before + 1),
                FlagChange(jim.id, one.id, [1], "add", FLAGGED),  # not his
                FlagChange(alex.id, one.id, [1], "add", 0, ["y" * 101]),
                FlagChange(alex.id, -1, [1], "add", SEEN),  # not there
            ],
        )
    assert stored(outcomes[0]) == (before + 1, [(1, SEEN), (2, SEEN)], [])
    assert stored(outcomes[1]) == (before + 1, [(3, FLAGGED)], [])
    assert stored(outcomes[2]) == (before + 2, [(2, SEEN | ANSWERED), (3, ANSWERED)], [])
    assert stored(outcomes[3]) == (before + 3, [(1, 0)], [2])
    assert [reason(outcome) for outcome in outcomes[4:]] == ["NONEXISTENT", "LIMIT", "NONEXISTENT"]
    found, theirs = await view(database, one), await view(database, other)
    assert (list(found.flags), list(found.versions)) == ([0, 3, 2], [before + 3, before + 2, before + 2])
    assert (list(theirs.flags), dict(theirs.keywords)) == ([0, 0, FLAGGED], {3: ("x",)})


async def test_mails_of_many_people_are_appended_together(database: Database) -> None:
    alex, jim, one, other = await alex_and_jim(database)
    async with database.transaction() as connection:
        large = await blobs.begin_upload(connection, 300_000, b"x" * blobs.HEAD_OCTETS)
        await blobs.add_upload_chunk(connection, large, 0, b"y" * (300_000 - blobs.HEAD_OCTETS))
    async with database.transaction() as connection:
        outcomes = await folder_batches.append_mails(
            connection,
            [
                AppendedMail(alex.id, one.id, Content.from_bytes(b"4444\r\n"), SEEN, ["Later"]),
                AppendedMail(jim.id, other.id, UploadedBlob(large, 300_000, b"d" * 32)),
                AppendedMail(alex.id, one.id, Content.from_bytes(b"55555\r\n")),
                AppendedMail(alex.id, other.id, Content.from_bytes(b"for nobody\r\n")),
            ],
        )
        digest = await (await connection.execute("select sha256 from blobs where id = %s", (large,))).fetchone()
    made = [outcome.uid for outcome in outcomes if isinstance(outcome, Appended)]
    assert (made, reason(outcomes[3]), digest) == ([4, 4, 5], "NONEXISTENT", (b"d" * 32,))
    found, theirs = await view(database, one), await view(database, other)
    assert (list(found.octets), list(found.flags)) == ([3, 4, 5, 6, 7], [0, 0, 0, SEEN, 0])
    assert (found.folder.uidnext, found.versions[3], found.versions[4]) == (
        6,
        found.folder.version,
        found.folder.version,
    )
    assert (list(theirs.octets), theirs.folder.uidnext) == ([3, 4, 5, 300_000], 5)
    async with database.statement() as connection:
        assert await blobs.heads(connection, found.blob_ids[3:]) == {
            found.blob_ids[3]: b"4444\r\n",
            found.blob_ids[4]: b"55555\r\n",
        }


async def test_a_folder_that_others_change_delays_nobody_else(database: Database, database_url: str) -> None:
    # given Alex's folder, which another process is changing
    alex, jim, one, other = await alex_and_jim(database)
    changes = FolderChanges(database)
    running = asyncio.create_task(changes.run())
    async with opened(database_url) as console:
        async with console.transaction() as changing:
            await folders.lock_folders(changing, alex.id, [one.id])
            # when both store flags and append mails
            waiting = [
                asyncio.create_task(changes.store_flags(FlagChange(alex.id, one.id, [1], "add", SEEN))),
                asyncio.create_task(changes.append_mail(AppendedMail(alex.id, one.id, Content.from_bytes(b"x\r\n")))),
            ]
            # then the other person does not wait
            result = await changes.store_flags(FlagChange(jim.id, other.id, [1], "add", SEEN))
            await changes.append_mail(AppendedMail(jim.id, other.id, Content.from_bytes(b"x\r\n")))
            assert [mail.uid for mail in result.changed] == [1]
            await until(lambda: waits_for_a_lock(console))
            assert not any(task.done() for task in waiting)
        # and Alex's changes follow
        await asyncio.gather(*waiting)
    await changes.drain()
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert (list((await view(database, one)).flags), len((await view(database, other)).uids)) == ([SEEN, 0, 0, 0], 4)


async def test_changes_at_once_are_those_of_free_folders_of_their_people(database: Database, database_url: str) -> None:
    alex, jim, one, other = await alex_and_jim(database)
    before = (await view(database, one)).folder.version
    async with database.statement() as connection:
        outcomes = await folder_batches.store_at_once(
            connection,
            [
                FlagChange(alex.id, one.id, [1, 3, 99], "add", SEEN),
                FlagChange(alex.id, other.id, [1], "add", SEEN),  # not his
                FlagChange(alex.id, -1, [1], "add", SEEN),  # not there
            ],
        )
        assert stored(outcomes[0]) == (before + 1, [(1, SEEN), (3, SEEN)], []) and outcomes[1:] == [None, None]
        mails = [
            AppendedMail(local.id, folder.id, Content.from_bytes(body), SEEN)
            for local, folder, body in (
                (alex, one, b"4\r\n"),
                (jim, other, b"5\r\n"),
                (jim, one, b"6\r\n"),
                (alex, one, b"7\r\n"),
            )
        ]
        appended = await folder_batches.append_at_once(connection, mails)
    assert [each and each.uid for each in appended] == [4, 4, None, 5]
    found, theirs = await view(database, one), await view(database, other)
    assert (list(found.uids), list(found.flags)) == ([1, 2, 3, 4, 5], [SEEN, 0, SEEN, SEEN, SEEN])
    assert (found.folder.version, list(theirs.uids)) == (before + 2, [1, 2, 3, 4])
    # when a folder is locked, and an account is disabled
    async with opened(database_url) as another, another.transaction() as holding, database.statement() as connection:
        await folders.lock_folders(holding, alex.id, [one.id])
        await connection.execute("update local_accounts set enabled = false where id = %s", (jim.id,))
        changes = [FlagChange(alex.id, one.id, [2], "add", SEEN), FlagChange(jim.id, other.id, [2], "add", SEEN)]
        assert await folder_batches.store_at_once(connection, changes) == [None, None]
        assert await folder_batches.append_at_once(connection, mails[:2]) == [None, None]
    assert list((await view(database, one)).flags) == list(found.flags)


async def test_changes_at_once_of_one_folder_lose_nothing(database: Database) -> None:
    alex, _, one, _ = await alex_and_jim(database)
    before = (await view(database, one)).folder.version

    async def change(number: int) -> int:
        """Add or remove a flag, and append a mail. :return: the number of mails that have other flags."""
        flags = FlagChange(alex.id, one.id, [1 + number % 3], "add" if number % 2 else "remove", 1 << number % 5)
        mail = AppendedMail(alex.id, one.id, Content.from_bytes(b"mail %d\r\n" % number))
        async with database.statement() as connection:
            [stored_at_once] = await folder_batches.store_at_once(connection, [flags])
            [appended_at_once] = await folder_batches.append_at_once(connection, [mail])
        result: object = stored_at_once
        appended: object = appended_at_once
        async with database.transaction() as connection:
            if result is None:
                [result] = await folder_batches.store_flags(connection, [flags])
            if appended is None:
                [appended] = await folder_batches.append_mails(connection, [mail])
        assert isinstance(result, StoreResult) and isinstance(appended, Appended)
        return len(result.changed)

    changed = sum([1 for count in await asyncio.gather(*map(change, range(40))) if count])
    found = await view(database, one)
    assert found.folder.version == before + changed + 40
    assert list(found.uids) == list(range(1, 44)) and found.folder.uidnext == 44
