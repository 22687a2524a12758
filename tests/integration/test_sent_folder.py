"""What a person sends lies in Sent once: filed by us at the submission, or stored by the mail client."""

from __future__ import annotations

import asyncio

from shared.db.database import Database
from shared.model import Content, EnvelopeRecipient, Local
from shared.store import folder_admin, folder_views, folders, submissions, submissions_admin
from shared.store.folder_batches import Appended
from shared.store.folder_views import SEEN, View
from shared.store.submissions import Submission
from tests.folder_changes import append_mail
from tests.integration.test_folder_mails import add_people
from tests.integration.test_router_and_mailbox import waits_for_a_lock
from tests.polling import until
from tests.servers import opened

ANN = EnvelopeRecipient("ann@customer.example", "relay")


def mail(author: Local, message_id: str, envelope_from: str | None = None, body: str = "x") -> Submission:
    content = Content.from_bytes(f"Message-ID: <{message_id}>\r\n\r\n{body}\r\n".encode())
    sender = author.address if envelope_from is None else envelope_from
    return Submission(author.id, author.external_id, content, sender, message_id, False, False, (ANN,))


async def submit(database: Database, *mails: Submission) -> list[int | None]:
    async with database.transaction() as connection:
        return await submissions.record_submissions(connection, mails)


async def append(database: Database, author: Local, message_id: str) -> Appended:
    async with database.transaction() as connection:
        sent = await folders.find_special(connection, author.id, "sent")
        own = b"Bcc: boss@company.com\r\n\r\nx\r\n"
        return await append_mail(connection, author.id, sent.id, own, SEEN, message_id=message_id)


async def sent_of(database: Database, author: Local) -> View:
    async with database.statement() as connection:
        sent = await folders.find_special(connection, author.id, "sent")
        return await folder_views.load_view(connection, sent.id)


async def test_each_submission_is_filed_in_its_author_s_sent_folder(database: Database) -> None:
    alex, jim = (await add_people(database, "alex", "jim")).values()
    # when mails of two people are committed together, one of them without an envelope sender
    ids = await submit(
        database, mail(alex, "1@a"), mail(jim, "2@a"), mail(alex, "3@a"), mail(alex, "4@a", ""), mail(alex, "5@a")
    )
    await submit(database, mail(alex, "6@a", body="y" * 300_000))
    # then each has the own ones, read, in the order of the submissions, under their numbers
    found = await sent_of(database, alex)
    assert (list(found.uids), list(found.flags)) == ([1, 2, 3, 4], [SEEN] * 4)
    assert list((await sent_of(database, jim)).uids) == [1]
    async with database.statement() as connection:
        entries = await folder_admin.list_mails(connection, alex.id)
        assert [entry.mail_id for entry in entries[:3]] == [ids[0], ids[2], ids[4]]
        # and the bytes are those of the submissions
        content = await submissions_admin.content_of_submission(connection, entries[0].mail_id)
        assert content is not None and content[0] == entries[0].blob_id
    assert found.octets[3] > 300_000


async def test_the_client_s_own_copy_takes_the_place_of_the_filed_one(database: Database) -> None:
    [alex] = (await add_people(database, "alex")).values()
    await submit(database, mail(alex, "1@a"), mail(alex, "2@a"))
    # when the client stores its own copy, then the filed one vanishes in the same change
    stored = await append(database, alex, "1@a")
    assert (stored.uid, list(stored.replaced)) == (3, [1])
    sent = (await sent_of(database, alex)).folder
    async with database.statement() as connection:
        changed = await folder_views.load_view_changes(connection, sent.id, sent.version - 1, 10)
        assert changed is not None
        assert [(row.uid, row.expunged) for row in changed.rows] == [(1, True), (3, False)]
    # and another copy of the same client stays beside it
    assert list((await append(database, alex, "1@a")).replaced) == []
    assert list((await sent_of(database, alex)).uids) == [2, 3, 4]
    # and a filed copy that is older than an hour stays as well
    async with database.transaction() as connection:
        await connection.execute("update folder_mails set internal_date = internal_date - interval '61 minutes'")
    assert list((await append(database, alex, "2@a")).replaced) == []


async def test_nothing_is_filed_if_the_client_stored_its_copy_before(database: Database) -> None:
    [alex] = (await add_people(database, "alex")).values()
    await append(database, alex, "1@a")
    [first, _] = await submit(database, mail(alex, "1@a"), mail(alex, "2@a"))
    assert first is not None
    assert list((await sent_of(database, alex)).uids) == [1, 2]
    # nor when a client submits a mail again, in another transaction or the same
    await submit(database, mail(alex, "2@a"), mail(alex, "3@a"), mail(alex, "3@a"))
    assert list((await sent_of(database, alex)).uids) == [1, 2, 3]


async def test_a_mail_waits_alone_while_its_author_s_folder_is_locked(database: Database, database_url: str) -> None:
    alex, jim = (await add_people(database, "alex", "jim")).values()
    async with opened(database_url) as other, other.transaction() as changing:
        sent = await folders.find_special(changing, alex.id, "sent")
        await folders.lock_folders(changing, alex.id, [sent.id])
        # when mails of both are committed together, then the one of the other person is, and so is a notice
        found = await submit(database, mail(alex, "1@a"), mail(jim, "2@a"), mail(alex, "3@a", ""))
        assert [each is not None for each in found] == [False, True, True]
    assert [each is not None for each in await submit(database, mail(alex, "1@a"))] == [True]
    assert list((await sent_of(database, alex)).uids) == [1]


async def test_submissions_and_appends_at_once_leave_one_copy_of_each(database: Database, database_url: str) -> None:
    # given a submission that is not committed yet, and the client's own copy of it
    [alex] = (await add_people(database, "alex")).values()
    async with opened(database_url) as other:
        async with other.transaction() as connection:
            [done] = await submissions.record_submissions(connection, [mail(alex, "1@a")])
            appending = asyncio.create_task(append(database, alex, "1@a"))
            await until(lambda: waits_for_a_lock(other))
        # when it is committed, then the append sees the filed copy
        assert done is not None and list((await appending).replaced) == [1]
    assert list((await sent_of(database, alex)).uids) == [2]
