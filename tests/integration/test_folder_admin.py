"""What the operator does with mailboxes that have folders: hand-over, giving and taking mails, restore."""

from __future__ import annotations

from shared.db.database import Connection, Database
from shared.model import Local
from shared.store import folder_admin, folder_edits, folder_mails, folder_views, folders
from shared.store.folder_views import SEEN
from tests.folder_changes import append_mail
from tests.integration.test_folder_mails import add_mails, add_people


async def store(connection: Connection, local: Local, name: str, text: str) -> None:
    """Append a mail to a folder, which is made if there is none of this name."""
    folder = await folders.find_folder(connection, local.id, name)
    folder = folder or await folders.create_folder(connection, local.id, name)
    await append_mail(connection, local.id, folder.id, f"{text}\r\n".encode(), SEEN, ["work"])


async def held(connection: Connection, local: Local) -> dict[str, list[int]]:
    """The sizes of a person's mails, by the name of the folder."""
    found: dict[str, list[int]] = {}
    for entry in await folder_admin.list_mails(connection, local.id):
        found.setdefault(entry.folder, []).append(entry.octets)
    return found


async def test_a_hand_over_copies_what_a_colleague_needs(database: Database) -> None:
    # given Alex with a mail in each folder, one of them in two, and one that Jim has moved away
    alex, jim = (await add_people(database, "alex", "jim")).values()
    [shared] = await add_mails(database, alex, b"for both\r\n")
    await add_mails(database, alex, b"22\r\n", b"333\r\n")
    async with database.transaction() as connection:
        await folder_mails.deliver_copies(
            connection, [folder_mails.Copy([jim.id], shared.inbound_id, shared.blob_id, shared.octets)]
        )
        theirs, own = [await folders.find_special(connection, each.id, "inbox") for each in (jim, alex)]
        trash = await folders.find_special(connection, jim.id, "trash")
        archive = await folders.find_special(connection, alex.id, "archive")
        await folder_edits.move_mails(connection, jim.id, theirs.id, trash.id, None)
        await folder_edits.copy_mails(connection, alex.id, own.id, archive.id, [2])
        for octets, name in enumerate(("Sent", "Drafts", "Junk", "Trash", "Archive", "Customers/Ann"), start=10):
            await store(connection, alex, name, "x" * octets)
        # when Jim gets Alex's mail, twice
        said = await folder_admin.count_handed_over(connection, alex.id, jim.id)
        given = await folder_admin.copy_all(connection, alex.id, jim.id)
        assert await folder_admin.copy_all(connection, alex.id, jim.id) == []
        # then he has everything once but drafts, junk and trash; what was sent is in Sent
        assert (said, len(given)) == ((6, 5), 5)
        assert await held(connection, jim) == {"INBOX": [4, 5, 16, 17], "Sent": [12], "Trash": [10]}
        view = await folder_views.load_view(connection, theirs.id)
        assert (list(view.flags), dict(view.keywords)) == ([0, 0, 0, 0], {})
        sent = await folder_views.load_view(connection, (await folders.find_special(connection, jim.id, "sent")).id)
        assert list(sent.flags) == [SEEN]
        # and Alex keeps all
        assert (await folder_admin.load_summary(connection, alex.id)).mails == 10


async def test_a_mail_that_is_given_is_new_wherever_its_owner_has_it(database: Database) -> None:
    [alex] = (await add_people(database, "alex")).values()
    [copy, _] = await add_mails(database, alex, b"1\r\n", b"22\r\n")
    async with database.transaction() as connection:
        inbox, archive = [await folders.find_special(connection, alex.id, use) for use in ("inbox", "archive")]

        async def give() -> list[int]:
            await folder_admin.deliver_as_new(connection, alex.id, copy.inbound_id, copy.blob_id, copy.octets)
            return list((await folder_views.load_view(connection, inbox.id)).uids)

        # it is there, then deleted, then in another folder
        assert await give() == [2, 3]
        await folder_mails.tombstone_mails(connection, alex.id, [3])
        assert await give() == [2, 4]
        await folder_edits.move_mails(connection, alex.id, inbox.id, archive.id, [4])
        assert await give() == [2, 5]
        # and no older copy is offered for undelete
        assert await folder_admin.list_latest_deleted(connection, alex.id) == []
        # when it is taken away, then from all folders
        assert await folder_admin.delete_everywhere(connection, alex.id, [copy.inbound_id]) == [copy.inbound_id]
        assert await held(connection, alex) == {"INBOX": [4]}
        assert len(await folder_admin.list_latest_deleted(connection, alex.id)) == 2


async def test_every_uidvalidity_is_another_one_after_a_restore(database: Database) -> None:
    [alex] = (await add_people(database, "alex")).values()
    async with database.transaction() as connection:
        made = await folders.create_folder(connection, alex.id, "new")
        before = {folder.id: folder.uidvalidity for folder in await folders.list_folders(connection, alex.id)}
        await folders.renew_uidvalidities(connection)
        after = {folder.id: folder.uidvalidity for folder in await folders.list_folders(connection, alex.id)}
        assert before.keys() == after.keys() and all(after[each] > before[each] for each in after)
        # and a folder that is made again has a later one
        await folder_edits.delete_folder(connection, alex.id, made.id)
        assert (await folders.create_folder(connection, alex.id, "new")).uidvalidity > max(after.values())
