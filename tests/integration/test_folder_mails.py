"""shared/store/folder_mails.py and the reading of bytes on a real PostgreSQL."""

from __future__ import annotations

import asyncio
import random
import weakref

import pytest

from services.pop3_out import mailbox_store
from services.pop3_out.mailbox_store import DatabaseStore
from shared.db.database import Database
from shared.errors import Permanent, Temporary
from shared.model import Content, External, Local, Relay, Server
from shared.store import account_changes, accounts, blobs, folder_admin, folder_mails, folders, inbound
from shared.store.blobs import CHUNK_OCTETS, HEAD_OCTETS
from shared.store.folder_mails import Copy
from shared.store.inbound import Arrival
from tests.integration.test_router_and_mailbox import end_account, waits_for_a_lock
from tests.polling import until
from tests.servers import opened

SERVER = Server("mail.company.com", 110, "none")


async def add_people(database: Database, *names: str, password_hash: str = "none") -> dict[str, Local]:
    """Local accounts NAME@local.com of support@company.com, with empty mailboxes."""
    async with database.transaction() as connection:
        address = "support@company.com"
        support = await account_changes.save_external(
            connection,
            External(0, address, True, address, b"", SERVER, (Relay(SERVER),), 60, "all", None, False, True, ()),
        )
        people = {}
        for name in names:
            local = Local(0, f"{name}@local.com", True, password_hash, name.title(), (), (), support, None)
            local_id = await account_changes.save_local(connection, local)
            await folders.create_standard_folders(connection, local_id)
            [people[name]] = await accounts.load_locals(connection, [local_id])
    return people


async def add_mails(database: Database, local: Local, *bodies: bytes, as_deleted: bool = False) -> list[Copy]:
    """Put mails into a mailbox."""
    async with database.transaction() as connection:
        ids = await blobs.store_blobs(connection, [Content.from_bytes(body) for body in bodies])
        mails = await inbound.add_inbound(
            connection, [Arrival("local", id_, recipients=((local.id, "test"),)) for id_ in ids]
        )
        copies = [
            Copy([local.id], mail, id_, len(body), as_deleted)
            for mail, id_, body in zip(mails, ids, bodies, strict=True)
        ]
        await folder_mails.deliver_copies(connection, copies)
    return copies


async def octets(store: DatabaseStore, local: Local) -> list[int]:
    return list((await store.load_snapshot(local.id)).octets)


async def test_a_snapshot_follows_the_mailbox(database: Database) -> None:
    # given
    people = await add_people(database, "alex", "jim")
    store, alex = DatabaseStore(database), people["alex"]
    assert await octets(store, alex) == []
    # when mails arrive, then they are listed in order
    await add_mails(database, alex, b"1\r\n", b"22\r\n")
    await add_mails(database, people["jim"], b"4444\r\n")
    assert await octets(store, alex) == [3, 4]
    await add_mails(database, alex, b"333\r\n")
    box = await store.load_snapshot(alex.id)
    assert list(box.octets) == [3, 4, 5]
    # when some are deleted, then later sessions do not see them and earlier ones do
    await store.delete_mails(alex, [box.uids[0], box.uids[2]])
    assert await octets(store, alex) == [4]
    assert list(box.octets) == [3, 4, 5]
    assert await store.read_mails([box.blob_ids[0]], 3) == {box.blob_ids[0]: b"1\r\n"}


async def test_an_unchanged_mailbox_is_the_same_snapshot(database: Database) -> None:
    people = await add_people(database, "alex")
    store = DatabaseStore(database)
    await add_mails(database, people["alex"], b"1\r\n")
    assert await store.load_snapshot(people["alex"].id) is await store.load_snapshot(people["alex"].id)


async def test_many_sessions_at_once_read_a_mailbox_once(database: Database) -> None:
    people = await add_people(database, "alex")
    store = DatabaseStore(database)
    await add_mails(database, people["alex"], b"1\r\n")
    boxes = await asyncio.gather(*(store.load_snapshot(people["alex"].id) for _ in range(20)))
    assert len({id(box) for box in boxes}) == 1


async def test_the_number_of_cached_snapshots_is_limited(database: Database) -> None:
    people = await add_people(database, "alex", "jim", "kim")
    store = DatabaseStore(database, max_cached_mails=8)
    boxes = []
    for local in people.values():
        await add_mails(database, local, b"1\r\n", b"2\r\n", b"3\r\n")
        boxes.append(weakref.ref(await store.load_snapshot(local.id)))
    assert [box() is not None for box in boxes] == [False, True, True]
    assert await store.load_snapshot(people["kim"].id) is boxes[2]()
    assert await store.load_snapshot(people["jim"].id) is boxes[1]()
    # but the snapshot of an open session is shared with others
    held = await store.load_snapshot(people["alex"].id)
    for name in ("jim", "kim"):
        await store.load_snapshot(people[name].id)
    assert await store.load_snapshot(people["alex"].id) is held


async def test_a_mailbox_with_many_changes_is_read_again(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    # given a store that brings snapshots up to date by two rows at most
    monkeypatch.setattr(mailbox_store, "MAX_CHANGES", 2)
    people = await add_people(database, "alex")
    store, alex = DatabaseStore(database), people["alex"]
    await add_mails(database, alex, b"1\r\n")
    first = await store.load_snapshot(alex.id)
    for bodies in ([b"22\r\n", b"333\r\n"], [b"4444\r\n"] * 3):
        # when as many change, or more
        await add_mails(database, alex, *bodies)
        found = await store.load_snapshot(alex.id)
        # then it is the current state
        fresh = await DatabaseStore(database).load_snapshot(alex.id)
        assert (found.version, list(found.uids), list(found.octets)) == (
            fresh.version,
            list(fresh.uids),
            list(fresh.octets),
        )
    assert list(found.octets) == [3, 4, 5, 6, 6, 6]
    await store.delete_mails(alex, list(found.uids)[1:])
    assert await octets(store, alex) == list(first.octets)


async def test_sessions_beyond_the_limit_of_listed_mails_are_deferred(database: Database) -> None:
    # given room for five mails, and two people with three each
    people = await add_people(database, "alex", "jim", "kim")
    store = DatabaseStore(database, max_open_mails=5)
    for local in people.values():
        await add_mails(database, local, b"1\r\n", b"2\r\n", b"3\r\n")
    # when the first is only cached, the second is loaded
    await store.load_snapshot(people["alex"].id)
    held = await store.load_snapshot(people["jim"].id)
    # and while a session uses one, another does not fit
    with pytest.raises(Temporary):
        await store.load_snapshot(people["kim"].id)
    assert await store.load_snapshot(people["jim"].id) is not None
    # until it ends
    del held
    assert len(await store.load_snapshot(people["kim"].id)) == 3


async def test_a_repeated_delivery_restores_no_deleted_mail(database: Database) -> None:
    people = await add_people(database, "alex")
    store, alex = DatabaseStore(database), people["alex"]
    copies = await add_mails(database, alex, b"1\r\n", b"22\r\n")
    box = await store.load_snapshot(alex.id)
    await store.delete_mails(alex, [box.uids[0]])
    async with database.transaction() as connection:
        await folder_mails.deliver_copies(connection, copies)
    assert await octets(store, alex) == [4]


async def test_deleting_a_deleted_mail_is_no_error(database: Database) -> None:
    people = await add_people(database, "alex")
    alex = people["alex"]
    await add_mails(database, alex, b"1\r\n", b"22\r\n")
    async with database.transaction() as connection:
        rows = [entry.uid for entry in await folder_admin.list_mails(connection, alex.id)]
        assert len(await folder_mails.tombstone_mails(connection, alex.id, rows[:1])) == 1
        assert len(await folder_mails.tombstone_mails(connection, alex.id, rows)) == 1
        assert await folder_mails.tombstone_mails(connection, alex.id, [*rows, 999_999]) == []


async def test_no_session_deletes_another_account_s_mail(database: Database) -> None:
    people = await add_people(database, "alex", "jim")
    await add_mails(database, people["alex"], b"1\r\n")
    store = DatabaseStore(database)
    box = await store.load_snapshot(people["alex"].id)
    await store.delete_mails(people["jim"], list(box.uids))
    assert await octets(store, people["alex"]) == [3]


async def test_an_own_copy_is_stored_as_deleted_and_undelete_brings_it_back(database: Database) -> None:
    people = await add_people(database, "alex")
    store, alex = DatabaseStore(database), people["alex"]
    await add_mails(database, alex, b"1\r\n", as_deleted=True)
    await add_mails(database, alex, b"22\r\n")
    assert await octets(store, alex) == [4]
    async with database.transaction() as connection:
        [own, _] = await folder_admin.list_mails(connection, alex.id, deleted=True)
        assert own.deleted_at is not None
        assert await folder_admin.undelete_mails(connection, alex.id, [own.key]) == [own.mail_id]
        assert await folder_admin.undelete_mails(connection, alex.id, [own.key]) == []
    assert await octets(store, alex) == [4, 3]


async def test_undeleted_mail_has_another_uidl(database: Database) -> None:
    people = await add_people(database, "alex")
    store, alex = DatabaseStore(database), people["alex"]
    await add_mails(database, alex, b"1\r\n")
    before = await store.load_snapshot(alex.id)
    await store.delete_mails(alex, list(before.uids))
    async with database.transaction() as connection:
        [entry] = await folder_admin.list_mails(connection, alex.id, deleted=True)
        await folder_admin.undelete_mails(connection, alex.id, [entry.key])
    after = await store.load_snapshot(alex.id)
    assert len(after) == 1
    assert after.uidl(1) != before.uidl(1)
    assert all(0 < len(box.uidl(1)) <= 70 and box.uidl(1).isalnum() for box in (before, after))


async def test_a_deletion_that_fails_deletes_nothing(database: Database) -> None:
    people = await add_people(database, "alex")
    alex = people["alex"]
    await add_mails(database, alex, b"1\r\n", b"22\r\n")
    with pytest.raises(RuntimeError):
        async with database.transaction() as connection:
            rows = [entry.uid for entry in await folder_admin.list_mails(connection, alex.id)]
            await folder_mails.tombstone_mails(connection, alex.id, rows)
            raise RuntimeError("the transaction does not commit")
    assert await octets(DatabaseStore(database), alex) == [3, 4]


async def test_the_trace_records_deletions(database: Database) -> None:
    people = await add_people(database, "alex")
    store, alex = DatabaseStore(database), people["alex"]
    [copy] = await add_mails(database, alex, b"1\r\n")
    box = await store.load_snapshot(alex.id)
    await store.delete_mails(alex, list(box.uids))
    await store.delete_mails(alex, list(box.uids))
    async with database.transaction() as connection:
        cursor = await connection.execute(
            "select who from maillog where event = 'deleted' and inbound_id = %s", (copy.inbound_id,)
        )
        assert await cursor.fetchall() == [("alex@local.com",)]


async def test_writers_that_name_mailboxes_in_any_order_do_not_deadlock(database: Database) -> None:
    # given mails to four people, each with another order of the recipients
    people = list((await add_people(database, "alex", "jim", "kim", "tom")).values())

    async def deliver(number: int) -> None:
        async with database.transaction() as connection:
            [message] = await blobs.store_blobs(connection, [Content.from_bytes(b"%d\r\n" % number)])
            order = random.Random(number).sample(people, 4)
            [mail] = await inbound.add_inbound(
                connection, [Arrival("local", message, recipients=((people[0].id, "test"),))]
            )
            await folder_mails.deliver_copies(connection, [Copy([local.id for local in order], mail, message, 3)])

    # when many are delivered at once, while sessions load snapshots
    store = DatabaseStore(database)
    seen: list[int] = []

    async def look() -> None:
        for _ in range(20):
            seen.append(len(await store.load_snapshot(people[0].id)))

    await asyncio.gather(look(), *(deliver(number) for number in range(60)))
    # then everyone has all of them, and updated snapshots equal new ones
    for local in people:
        kept = await store.load_snapshot(local.id)
        fresh = await DatabaseStore(database).load_snapshot(local.id)
        assert len(kept) == 60
        assert (kept.uids, kept.uidls) == (fresh.uids, fresh.uidls)
    assert seen == sorted(seen)


@pytest.mark.parametrize(
    ("writer", "change"),
    [("session", "removed"), ("session", "disabled"), ("undelete", "removed"), ("hand-over", "removed")],
)
async def test_no_writer_relies_on_an_account_that_ends_before_its_commit(
    database: Database, database_url: str, writer: str, change: str
) -> None:
    # given mail of Alex, a deleted one too, and another process that is about to remove or disable the account
    people = await add_people(database, "alex", "jim")
    await add_mails(database, people["alex"], b"1\r\n")
    await add_mails(database, people["alex"], b"2\r\n", as_deleted=True)
    await add_mails(database, people["jim"], b"3\r\n")
    async with database.statement() as connection:
        entries = await folder_admin.list_mails(connection, people["alex"].id, deleted=True)
    uids, keys = [entry.uid for entry in entries], [entry.key for entry in entries]

    async def write() -> None:
        if writer == "session":
            await DatabaseStore(database).delete_mails(people["alex"], uids)
            return
        async with database.transaction() as connection:
            if writer == "undelete":
                await folder_admin.undelete_mails(connection, people["alex"].id, keys)
            else:
                await folder_admin.copy_all(connection, people["jim"].id, people["alex"].id)

    locked, go_on = asyncio.Event(), asyncio.Event()
    async with opened(database_url) as console:
        changing = asyncio.create_task(end_account(console, people["alex"].id, change, locked, go_on))
        await locked.wait()
        # when a session, or the operator, changes the mailbox meanwhile
        writing = asyncio.create_task(write())
        await until(lambda: waits_for_a_lock(console))
        go_on.set()
        await changing
        # then nothing happens, and that is said
        with pytest.raises(Permanent, match="no mailbox"):
            await writing
    async with database.statement() as connection:
        assert await folder_admin.list_mails(connection, people["alex"].id, deleted=True) == entries


async def test_an_account_without_a_mailbox_is_a_clear_error(database: Database) -> None:
    people = await add_people(database, "alex")
    await add_mails(database, people["alex"], b"1\r\n")
    store = DatabaseStore(database)
    with pytest.raises(Permanent, match="no mailbox for local account 999"):
        await store.load_snapshot(999)
    with pytest.raises(Permanent, match="no mailbox for local account 999"):
        async with database.transaction() as connection:
            await folder_mails.deliver_copies(connection, [Copy([999], 1, 1, 1)])


@pytest.mark.parametrize(
    "size", [0, 1, HEAD_OCTETS, HEAD_OCTETS + 1, HEAD_OCTETS + CHUNK_OCTETS, HEAD_OCTETS + 2 * CHUNK_OCTETS + 7]
)
async def test_spans_of_any_length_make_up_the_mail(database: Database, size: int) -> None:
    # given
    people = await add_people(database, "alex")
    body = random.Random(size).randbytes(size)
    [copy] = await add_mails(database, people["alex"], body)
    store = DatabaseStore(database)
    # when it is read in pieces that fit to nothing
    got = b""
    while piece := await store.read_span(copy.blob_id, len(got), 100_003):
        got += piece
    # then
    assert got == body
    with pytest.raises(Permanent):
        await store.read_span(copy.blob_id + 1_000, 0, 10)


async def test_bytes_that_are_missing_are_an_error_and_not_an_end(database: Database) -> None:
    people = await add_people(database, "alex")
    [copy] = await add_mails(database, people["alex"], bytes(HEAD_OCTETS + 10))
    async with database.transaction() as connection:
        await connection.execute("delete from blob_chunks where blob_id = %s", (copy.blob_id,))
    with pytest.raises(Permanent):
        await DatabaseStore(database).read_span(copy.blob_id, HEAD_OCTETS, 10)
