"""Junk: from the provider's junk folder or by a rule on the header into the folder Junk of the people who want that."""

from __future__ import annotations

import asyncio
import imaplib
import itertools
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest

from deploy.machine.dovecot_postfix import DemoProvider
from services.admin.accounts.apply import apply as apply_accounts
from services.admin.accounts.errors import AccountsError
from services.admin.accounts.file_format import check
from services.mailbox import worker as mailbox_worker
from services.mailbox.worker import MailboxWorker
from services.router.worker import RouterWorker
from shared.amqp.broker import Publication
from shared.amqp.payloads import WorkItem, read_payload
from shared.auth.passwords import HashingPool
from shared.db.database import Database
from shared.store import folder_edits, folder_mails, folders, inbound, last_logins
from tests.company import SUPPORT, apply, arrive, by_imap, everyone, external, local, mailbox_of
from tests.fetcher_harness import FetcherHarness, fetching, has
from tests.polling import until

ALEX, JIM = "alex@local.com", "jim@local.com"
RULES = {"x-spam-flag": ("YES",)}
_names = itertools.count()


def mail(to: str, subject: str, *fields: str) -> bytes:
    lines = ["From: ann@customer.test", f"To: {to}", f"Subject: {subject}", *fields, "", "hello", ""]
    return "\r\n".join(lines).encode()


async def folder_of(database: Database, address: str, use: str) -> list[str]:
    """The subjects of the mails in a folder, in its order."""
    async with database.transaction() as connection:
        cursor = await connection.execute(
            """select substring(convert_from(b.head, 'utf8') from 'Subject: ([^\r]*)') from folder_mails r
               join blobs b on b.id = r.blob_id join folders f on f.id = r.folder_id
               join local_accounts l on l.id = f.local_id
               where l.address = %s and f.special_use = %s and r.expunged_at is null order by r.uid""",
            (address, use),
        )
        return [str(row[0]) for row in await cursor.fetchall()]


def work(publications: Sequence[Publication], key: str) -> list[int]:
    """The ids of the messages for a stage."""
    return [
        row
        for publication in publications
        if publication.key.startswith(key)
        for row in read_payload(WorkItem, publication.body).ids
    ]


async def deliver(database: Database, rows: Sequence[int]) -> list[Publication]:
    """Route and deliver these mails. :return: the hints about changed mailboxes."""
    routed = await RouterWorker(database, 5, RULES).handle(rows)
    return await MailboxWorker(database, 5).handle(work(routed, "routed."))


def changed(publications: Sequence[Publication]) -> set[str]:
    return {key for each in publications if each.transient for key in (each.key, *each.copies)}


def people(address: str = SUPPORT) -> list[dict[str, Any]]:
    """Alex, who wants junk in a folder, and Jim."""
    return [local("Alex", address, junk=True), local("Jim", address)]


# ------------------------------------------------------------------------------------------------ by header


async def test_a_rule_on_the_header_puts_mail_into_junk_of_those_who_want_it(database: Database) -> None:
    await apply(database, {"external_accounts": [external()], "local_accounts": people()})
    externals, _ = await everyone(database)
    mails = [mail(SUPPORT, "junk", "X-Spam-Flag: YES"), mail(SUPPORT, "no junk", "X-Spam-Flag: NO")]
    hints = await deliver(database, await arrive(database, externals[SUPPORT].id, mails))
    assert changed(hints) == {f"changed.{ALEX}", f"changed.{JIM}"}
    assert await folder_of(database, ALEX, "junk") == ["junk"]
    assert await folder_of(database, ALEX, "inbox") == ["no junk"]
    assert await folder_of(database, JIM, "inbox") == ["junk", "no junk"]
    assert await folder_of(database, JIM, "junk") == []
    async with database.transaction() as connection:
        events = await (
            await connection.execute("select who, reply from maillog where event = 'delivered' order by who, id")
        ).fetchall()
    assert [who for who, reply in events if reply.endswith("; into Junk")] == [ALEX]


async def test_junk_without_anybody_who_wants_it_costs_no_statement_more(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    await apply(database, {"external_accounts": [external()], "local_accounts": [local("Alex"), local("Jim")]})
    externals, _ = await everyone(database)
    counts = []
    for fields in ((), ("X-Spam-Flag: YES",)):
        rows = await arrive(database, externals[SUPPORT].id, [mail(SUPPORT, f"{fields}", *fields)])
        routed = await RouterWorker(database, 5, RULES).handle(rows)
        async with database.transaction() as connection:
            before = connection.__class__.execute
            calls = 0

            async def execute(self: Any, *arguments: Any, **options: Any) -> Any:
                nonlocal calls
                calls += 1
                return await before(self, *arguments, **options)  # noqa: B023

        with monkeypatch.context() as patched:
            patched.setattr(type(connection), "execute", execute)
            await MailboxWorker(database, 5).handle(work(routed, "routed."))
        counts.append(calls)
    assert counts[0] == counts[1] > 0


async def test_someone_who_reads_by_pop3_alone_gets_junk_into_inbox(database: Database) -> None:
    # given Alex, who wants junk in a folder and reads by POP3 alone since then
    await apply(database, {"external_accounts": [external()], "local_accounts": people()})
    externals, known = await everyone(database)
    async with database.transaction() as connection:
        await last_logins.record_logins(connection, "pop3", [(known["Alex"].id, 0.0, "192.0.2.1")])
    await deliver(database, await arrive(database, externals[SUPPORT].id, [mail(SUPPORT, "one", "X-Spam-Flag: YES")]))
    assert await folder_of(database, ALEX, "inbox") == ["one"]
    # when Alex reads by IMAP, too
    async with database.transaction() as connection:
        await last_logins.record_logins(connection, "imap", [(known["Alex"].id, 3600.0, "192.0.2.1")])
    await deliver(database, await arrive(database, externals[SUPPORT].id, [mail(SUPPORT, "two", "X-Spam-Flag: YES")]))
    # then the folder is used
    assert await folder_of(database, ALEX, "junk") == ["two"]


@pytest.mark.parametrize(
    ("logins", "is_refused"),
    [
        ({}, False),
        ({"pop3": 0}, True),
        ({"pop3": 0, "smtp": 0}, True),
        ({"imap": 0}, False),
        ({"pop3": 0, "imap": 29 * 86_400}, False),
        ({"pop3": 0, "imap": 31 * 86_400}, True),
        ({"pop3": 40 * 86_400, "imap": 31 * 86_400}, False),
    ],
)
async def test_switching_on_is_refused_for_whom_would_not_see_the_folder(
    database: Database, logins: dict[last_logins.Protocol, float], is_refused: bool
) -> None:
    company = {"external_accounts": [external()], "local_accounts": [local("Alex"), local("Jim")]}
    await apply(database, company)
    _, known = await everyone(database)
    async with database.transaction() as connection:
        for protocol, ago in logins.items():
            await last_logins.record_logins(connection, protocol, [(known["Alex"].id, float(ago), "192.0.2.1")])
    company["local_accounts"] = people()
    if is_refused:
        with pytest.raises(AccountsError, match="junk: cannot be switched on: this person logs in by POP3 alone"):
            await apply(database, company)
        assert not (await everyone(database))[1]["Alex"].junk
    else:
        assert await apply(database, company) == ["local account alex@local.com: changed junk false -> true"]
        # and what is switched on stays, whatever Alex reads by later
        async with database.transaction() as connection:
            await last_logins.record_logins(connection, "pop3", [(known["Alex"].id, 0.0, "192.0.2.1")])
            await connection.execute("delete from last_logins where protocol = 'imap'")
        assert await apply(database, company) == []


async def test_an_own_copy_and_mail_of_colleagues_are_no_junk(database: Database) -> None:
    # given mail that was submitted here to the shared address, with the field of a filter
    await apply(database, {"external_accounts": [external()], "local_accounts": people()})
    externals, known = await everyone(database)
    rows = await arrive(database, externals[SUPPORT].id, [mail(SUPPORT, "colleague", "X-Spam-Flag: YES")])
    async with database.transaction() as connection:
        await connection.execute(
            "update inbound set source = 'submitted', author_id = %s where id = any(%s)", (known["Jim"].id, rows)
        )
    await deliver(database, rows)
    assert await folder_of(database, ALEX, "inbox") == ["colleague"]


# ------------------------------------------------------------------------------------------------ from the provider


class Provided:
    """An account at a real Dovecot whose folder Junk is watched, and its people."""

    def __init__(self, harness: FetcherHarness, provider: DemoProvider, address: str) -> None:
        self.harness, self.database = harness, harness.database
        self.address = address
        self._client = imaplib.IMAP4("127.0.0.1", provider.imap_port)
        self._client.login(address, "secret")
        self._client.create("Junk")
        self._port = provider.imap_port
        self.id = 0

    async def start(self, **fields: Any) -> None:
        server = {"host": "127.0.0.1", "port": self._port, "tls": "none", "folders": ["INBOX", "Junk"]}
        document = {
            "external_accounts": [by_imap(server, address=self.address, poll_seconds=1, **fields)],
            "local_accounts": people(self.address),
        }
        async with self.database.transaction() as connection:
            await apply_accounts(connection, check(document), self.harness.vault, HashingPool(), False)
        self.id = (await everyone(self.database))[0][self.address].id

    def append(self, folder: str, *subjects: str) -> None:
        for subject in subjects:
            self._client.append(folder, "", "", mail(self.address, subject))

    def move(self, subject: str, source: str, target: str) -> None:
        self._client.select(source)
        [found] = self._client.search(None, "SUBJECT", f'"{subject}"')[1]
        self._client.copy(found.decode(), target)
        self._client.store(found.decode(), "+FLAGS", r"\Deleted")
        self._client.expunge()
        self._client.unselect()

    async def arrived(self, count: int) -> list[int]:
        """Wait for so many mails. :return: the ids of those that are not routed yet."""
        await until(lambda: has(self.harness, self.id, count))
        found = await self.harness.rows("select id from inbound where state = 'fetched' order by id")
        return [row for (row,) in found]

    async def left_junk(self) -> list[int]:
        """Wait until a mail has left the provider's junk folder. :return: the ids for the mailbox service."""

        async def left() -> bool:
            return bool(work(self.harness.published, "routed."))

        await until(left)
        return work(self.harness.published, "routed.")


@pytest.fixture
async def harness(database_url: str) -> AsyncIterator[FetcherHarness]:
    async with fetching(database_url) as running:
        yield running


@pytest.fixture
async def provided(harness: FetcherHarness, provider: DemoProvider) -> Provided:
    address = f"junk{next(_names)}@provider.test"
    provider.add_mailbox(address, "secret")
    return await asyncio.to_thread(Provided, harness, provider, address)


async def test_mail_of_the_junk_folder_goes_into_junk_and_leaves_it_again(provided: Provided) -> None:
    # given mail in both folders
    provided.append("Junk", "wrongly junk", "junk")
    provided.append("INBOX", "order")
    await provided.start()
    await deliver(provided.database, await provided.arrived(3))
    assert sorted(await folder_of(provided.database, ALEX, "junk")) == ["junk", "wrongly junk"]
    assert await folder_of(provided.database, ALEX, "inbox") == ["order"]
    assert len(await folder_of(provided.database, JIM, "inbox")) == 3
    # when somebody moves a mail out of Junk at the provider
    provided.move("wrongly junk", "Junk", "INBOX")
    hints = await MailboxWorker(provided.database, 5).handle(await provided.left_junk())
    # then Alex has it in INBOX, once, and Jim's mailbox is as it was
    assert changed(hints) == {f"changed.{ALEX}"}
    assert await folder_of(provided.database, ALEX, "junk") == ["junk"]
    assert await folder_of(provided.database, ALEX, "inbox") == ["order", "wrongly junk"]
    assert len(await folder_of(provided.database, JIM, "inbox")) == 3
    assert await folder_of(provided.database, JIM, "junk") == []
    [[row, who]] = await provided.harness.rows("select inbound_id, who from maillog where event = 'not_junk'")
    assert who == ALEX
    # and a repeated message changes nothing
    assert changed(await MailboxWorker(provided.database, 5).handle([row])) == set()
    assert len(await mailbox_of(provided.database, ALEX)) == 2


async def test_what_the_owner_did_with_the_mail_stays(provided: Provided) -> None:
    provided.append("Junk", "archived", "deleted", "restored", "flagged")
    await provided.start()
    await deliver(provided.database, await provided.arrived(4))
    _, known = await everyone(provided.database)
    alex = known["Alex"].id
    async with provided.database.transaction() as connection:
        junk, archive = [await folders.find_special(connection, alex, use) for use in ("junk", "archive")]
        found = await (
            await connection.execute(
                """select substring(convert_from(b.head, 'utf8') from 'Subject: ([^\r]*)'), r.uid
                   from folder_mails r join blobs b on b.id = r.blob_id where r.folder_id = %s""",
                (junk.id,),
            )
        ).fetchall()
        uids = dict(found)
        # given Alex, who has moved one, marked one as deleted, has moved one away and back, and flagged one
        await folder_edits.move_mails(connection, alex, junk.id, archive.id, [uids["archived"]])
        await connection.execute(
            "update folder_mails set flags = 8 where folder_id = %s and uid = %s", (junk.id, uids["deleted"])
        )
        moved = await folder_edits.move_mails(connection, alex, junk.id, archive.id, [uids["restored"]])
        await folder_edits.move_mails(connection, alex, archive.id, junk.id, [moved.uids[0][1]])
        await connection.execute(
            "update folder_mails set flags = 5 where folder_id = %s and uid = %s", (junk.id, uids["flagged"])
        )
    for subject in uids:
        provided.move(subject, "Junk", "INBOX")

    async def all_left() -> bool:
        return len(set(work(provided.harness.published, "routed."))) == 4

    await until(all_left)
    await MailboxWorker(provided.database, 5).handle(work(provided.harness.published, "routed."))
    # then only the last one is moved, with its flags
    assert await folder_of(provided.database, ALEX, "inbox") == ["flagged"]
    assert sorted(await folder_of(provided.database, ALEX, "junk")) == ["deleted", "restored"]
    assert await folder_of(provided.database, ALEX, "archive") == ["archived"]
    flags = await provided.harness.rows(
        """select r.flags from folder_mails r join folders f on f.id = r.folder_id
           where f.local_id = %s and f.special_use = 'inbox'""",
        alex,
    )
    assert flags == [(5,)]


async def test_a_mail_that_left_junk_before_its_delivery_goes_into_inbox(provided: Provided) -> None:
    provided.append("Junk", "early")
    await provided.start()
    rows = await provided.arrived(1)
    provided.move("early", "Junk", "INBOX")

    async def left() -> bool:
        return await provided.harness.rows("select junk from inbound") == [("left",)]

    await until(left)
    await deliver(provided.database, rows)
    assert await folder_of(provided.database, ALEX, "inbox") == ["early"]
    # and the sweep finds that nothing is to be moved
    await MailboxWorker(provided.database, 0).handle(rows)
    assert await provided.harness.rows("select junk from inbound") == [(None,)]


async def test_a_lost_message_and_a_locked_mailbox_are_left_to_the_sweep(
    provided: Provided, monkeypatch: pytest.MonkeyPatch
) -> None:
    provided.append("Junk", "late")
    await provided.start()
    await deliver(provided.database, await provided.arrived(1))
    provided.move("late", "Junk", "INBOX")
    rows = await provided.left_junk()
    # given a mailbox that is locked while the message comes
    monkeypatch.setattr(mailbox_worker, "LOCK_SECONDS", 0.1)
    _, known = await everyone(provided.database)
    async with provided.database.transaction() as connection:
        await folders.lock_all_folders(connection, known["Alex"].id)
        assert await MailboxWorker(provided.database, 5).handle(rows) == []
    assert await folder_of(provided.database, ALEX, "junk") == ["late"]
    # then the sweep repeats it, once it is due
    worker = MailboxWorker(provided.database, 5)
    assert await worker.sweep() == []
    await provided.harness.rows("update inbound set swept_at = now() - interval '1 minute'")
    swept = await worker.sweep()
    assert work(swept, "routed.") == rows and await worker.sweep() == []
    monkeypatch.undo()
    await worker.handle(work(swept, "routed."))
    assert await folder_of(provided.database, ALEX, "inbox") == ["late"]


async def test_a_renumbered_junk_folder_moves_nothing(provided: Provided) -> None:
    # given a folder Junk that is made again, with the same mail
    provided.append("Junk", "junk")
    await provided.start()
    await deliver(provided.database, await provided.arrived(1))
    [[before]] = await provided.harness.rows("select uidl from uidl_ledger")
    provided._client.rename("Junk", "Old")
    provided._client.create("Junk")
    provided.move("junk", "Old", "Junk")

    async def renumbered() -> bool:
        return await provided.harness.rows("select uidl from uidl_ledger where state = 'fetched'") not in (
            [],
            [(before,)],
        )

    await until(renumbered)
    assert await provided.harness.rows("select junk from inbound") == [("folder",)]
    assert work(provided.harness.published, "routed.") == []


async def test_copies_are_delivered_once_whatever_the_folder(database: Database) -> None:
    # given junk that was delivered when nobody wanted it in a folder
    await apply(database, {"external_accounts": [external()], "local_accounts": [local("Alex")]})
    externals, known = await everyone(database)
    rows = await arrive(database, externals[SUPPORT].id, [mail(SUPPORT, "junk", "X-Spam-Flag: YES")])
    await deliver(database, rows)
    # when Alex wants it there, and the mail is delivered again
    await apply(database, {"external_accounts": [], "local_accounts": [local("Alex", junk=True)]})
    async with database.transaction() as connection:
        await connection.execute("update inbound set state = 'routed'")
        [copy] = await inbound.load_routed(connection, rows)
        assert copy.junk
        await folder_mails.deliver_copies(
            connection, [folder_mails.Copy([known["Alex"].id], copy.inbound_id, copy.blob_id, copy.octets, junk=True)]
        )
    assert await folder_of(database, ALEX, "inbox") == ["junk"]
    assert await folder_of(database, ALEX, "junk") == []
