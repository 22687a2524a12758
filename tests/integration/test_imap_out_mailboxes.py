"""services/imap_out as a process: mailboxes, resynchronization, searches, failures, and Dovecot's answers."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from deploy.machine.dovecot import installed_version
from deploy.machine.dovecot_postfix import DemoProvider
from shared.amqp import publications
from shared.amqp.broker import Broker
from shared.db.database import Database
from tests.imap_clients import ImapClient, ImapServerProcess, imap_server
from tests.imap_mails import MAILS
from tests.integration.test_folder_mails import add_mails
from tests.polling import until


@pytest.fixture
async def server(database_url: str, database: Database, tmp_path: Path) -> AsyncIterator[ImapServerProcess]:
    """The service on a fresh database, with four mails in INBOX of alex; without a broker."""
    letters = [
        b"From: p%d@x.example\r\nSubject: %b\r\nMessage-ID: <%d@x>\r\n%b\r\ntext %d\r\n"
        % (number, subject, number, more, number)
        for number, (subject, more) in enumerate(
            [(b"Offer", b""), (b"other", b""), (b"Re: Offer", b"References: <1@x>\r\n"), (b"bill", b"")], 1
        )
    ]
    async with imap_server(database_url, database, tmp_path, letters) as started:
        yield started


# ---------------------------------------------------------------------------------------------- mailboxes


async def test_mailboxes_are_made_renamed_listed_and_deleted(server: ImapServerProcess) -> None:
    client = await server.login(None)
    assert await client.ok(b'LIST "" ""') == [b'* LIST (\\Noselect) "/" ""']
    assert await client.ok(b'LIST "" *') == [
        b'* LIST (\\HasNoChildren) "/" INBOX',
        b'* LIST (\\HasNoChildren \\Archive) "/" Archive',
        b'* LIST (\\HasNoChildren \\Drafts) "/" Drafts',
        b'* LIST (\\HasNoChildren \\Junk) "/" Junk',
        b'* LIST (\\HasNoChildren \\Sent) "/" Sent',
        b'* LIST (\\HasNoChildren \\Trash) "/" Trash',
    ]
    assert await client.ok(b"NAMESPACE") == [b'* NAMESPACE (("" "/")) NIL NIL']
    await client.ok(b'CREATE "K&APY-ln/"')
    assert b"[ALREADYEXISTS]" in await client.refused(b'CREATE "K&APY-ln"')
    assert b"[CANNOT]" in await client.refused(b'CREATE "a//b"')
    assert b"[USEATTR]" in await client.refused(b"CREATE Mine (USE (\\Sent))")
    assert b"[ALREADYEXISTS]" in await client.refused(b'RENAME "K&APY-ln" "K&APY-ln"')
    await client.ok(b'RENAME "K&APY-ln" Trips/2026')
    await client.ok(b"UNSUBSCRIBE Trips/2026")
    assert await client.ok(b'LIST "" Trips%') == [b'* LIST (\\Noselect \\HasChildren) "/" Trips']
    assert await client.ok(b'LSUB "" Tr*') == [b'* LSUB () "/" Trash']
    assert await client.ok(b'LIST (SPECIAL-USE) "" * RETURN (STATUS (MESSAGES UIDNEXT))') != []
    assert await client.ok(b'LIST "" INBOX RETURN (STATUS (MESSAGES UNSEEN SIZE))') == [
        b'* LIST (\\HasNoChildren) "/" INBOX',
        b"* STATUS INBOX (MESSAGES 4 UNSEEN 4 SIZE %d)" % await _size(client),
    ]
    await client.ok(b"DELETE Trips/2026")
    assert b"[NONEXISTENT]" in await client.refused(b"DELETE Trips/2026")
    assert b"[CANNOT]" in await client.refused(b"DELETE Sent")
    assert b"[NONEXISTENT]" in await client.refused(b"SUBSCRIBE nothing")
    await client.ok(b"SELECT Trash")
    assert b"[INUSE]" in await client.refused(b"DELETE Trash")


async def _size(client: ImapClient) -> int:
    [status] = await client.ok(b"STATUS INBOX (SIZE)")
    return int(status.removeprefix(b"* STATUS INBOX (SIZE ").rstrip(b")"))


async def test_a_deleted_mailbox_stays_subscribed(server: ImapServerProcess) -> None:
    """RFC 3501 section 6.3.9: the server must not end a subscription."""
    client = await server.login(None)
    for name in (b"Trips", b"Trips/2026", b"Old"):
        await client.ok(b"CREATE " + name)
    await client.ok(b"UNSUBSCRIBE Trips")
    for name in (b"Trips", b"Trips/2026", b"Old"):
        await client.ok(b"DELETE " + name)
    assert await client.ok(b'LSUB "" Tr*') == [b'* LSUB () "/" Trash', b'* LSUB (\\Noselect) "/" Trips/2026']
    assert await client.ok(b'LSUB "" Tri%') == [b'* LSUB (\\Noselect) "/" Trips']
    assert await client.ok(b'LIST "" Tri*') == []
    assert await client.ok(b'LIST (SUBSCRIBED) "" (Tri* Old) RETURN (STATUS (MESSAGES))') == [
        b'* LIST (\\NonExistent \\Subscribed \\HasNoChildren) "/" Old',
        b'* LIST (\\NonExistent \\Subscribed \\HasNoChildren) "/" Trips/2026',
    ]
    # made again, it is there, and subscribed
    await client.ok(b"CREATE Trips/2026")
    assert await client.ok(b'LSUB "" Trips/*') == [b'* LSUB () "/" Trips/2026']
    # Thunderbird ends the subscription of the old name after RENAME, and that of a mailbox that it has deleted
    await client.ok(b"RENAME Trips/2026 Travels")
    await client.ok(b"SUBSCRIBE Travels")
    for name in (b"Trips/2026", b"Old", b"Never"):
        await client.ok(b"UNSUBSCRIBE " + name)
    assert await client.ok(b'LSUB "" *') == [
        *(b'* LSUB () "/" ' + name for name in (b"INBOX", b"Archive", b"Drafts", b"Junk", b"Sent", b"Trash")),
        b'* LSUB () "/" Travels',
    ]


async def test_renaming_inbox_moves_its_mails(server: ImapServerProcess) -> None:
    client = await server.login()
    await client.ok(b"RENAME INBOX Old")
    assert await client.ok(b"STATUS INBOX (MESSAGES)") == [b"* STATUS INBOX (MESSAGES 0)"]
    assert (await client.ok(b"SELECT Old"))[3] == b"* 4 EXISTS"


async def test_names_are_utf_8_after_enable(server: ImapServerProcess) -> None:
    client = await server.login(None)
    assert await client.ok(b"ENABLE UTF8=ACCEPT X-NONE") == [b"* ENABLED UTF8=ACCEPT"]
    await client.ok('CREATE "Käse"'.encode())
    assert await client.ok(b'LIST "" K%') == ['* LIST (\\HasNoChildren) "/" "Käse"'.encode()]
    other = await server.login(None)
    assert await other.ok(b'LIST "" K%') == [b'* LIST (\\HasNoChildren) "/" K&AOQ-se']


async def test_a_client_enables_imap4rev2(server: ImapServerProcess) -> None:
    client, other = await server.login(None), await server.login()
    assert any(b" IMAP4rev2 " in line for line in await client.ok(b"CAPABILITY"))
    assert await client.ok(b"ENABLE imap4rev2") == [b"* ENABLED IMAP4rev2"]
    # names are UTF-8
    await client.ok('CREATE "Käse"'.encode())
    await client.ok('CREATE "Käse/Gouda"'.encode())
    # SELECT sends LIST, and neither RECENT nor UNSEEN (RFC 9051 section 6.3.2)
    shown = await client.ok(b"SELECT Sent")
    assert b'* LIST (\\Sent) "/" Sent' in shown
    shown = await client.ok(b"SELECT INBOX")
    assert shown[0].startswith(b"* OK [CLOSED]") and b'* LIST () "/" INBOX' in shown and b"* 4 EXISTS" in shown
    assert not any(b"RECENT" in line or b"UNSEEN" in line for line in shown)
    # every SEARCH is answered by ESEARCH (section 6.4.4)
    assert await client.ok(b"SEARCH SUBJECT offer") == [b'* ESEARCH (TAG "a8") ALL 1,3']
    assert await client.ok(b"UID SEARCH SUBJECT nothing") == [b'* ESEARCH (TAG "a9") UID']
    assert await client.ok(b"FETCH 1 BODY.PEEK[TEXT]<0.4294967296>") == [b"* 1 FETCH (BODY[TEXT]<0> {8}\r\ntext 1\r\n)"]
    # what others change comes with UIDs and without RECENT (section 7.5.2)
    await other.ok(b"STORE 2 +FLAGS.SILENT (\\Flagged)")
    await add_mails(server.database, server.alex, b"Subject: new\r\n\r\n")
    assert await client.ok(b"NOOP") == [b"* 5 EXISTS", b"* 2 FETCH (UID 2 FLAGS (\\Flagged))"]
    # RENAME names the mailboxes and what they were called (section 7.3.1)
    assert await client.ok('RENAME "Käse" Cheese'.encode()) == [
        '* LIST () "/" Cheese ("OLDNAME" ("Käse"))'.encode(),
        '* LIST () "/" Cheese/Gouda ("OLDNAME" ("Käse/Gouda"))'.encode(),
    ]


async def test_the_number_of_mailboxes_is_the_quota(server: ImapServerProcess) -> None:
    client = await server.login(None)
    assert any(line.endswith(b" QUOTA QUOTA=RES-MAILBOX") for line in await client.ok(b"CAPABILITY"))
    quota = b'* QUOTA "" (MAILBOX %d 1000)'
    assert await client.ok(b"GETQUOTAROOT INBOX") == [b'* QUOTAROOT INBOX ""', quota % 6]
    await client.ok(b"CREATE Trips")
    assert await client.ok(b'GETQUOTA ""') == [quota % 7]
    assert b"[NONEXISTENT]" in await client.refused(b"GETQUOTA other")
    assert b"[NONEXISTENT]" in await client.refused(b"GETQUOTAROOT nothing")
    assert b"[NOPERM]" in await client.refused(b'SETQUOTA "" (MAILBOX 9)')
    async with server.database.transaction() as connection:
        await connection.execute(
            "insert into folders (local_id, name, uidvalidity) select %s, n::text, n from generate_series(1, 993) n",
            (server.alex.id,),
        )
    assert b"[OVERQUOTA]" in await client.refused(b"CREATE More")


async def test_a_session_ends_when_its_mailbox_is_deleted(server: ImapServerProcess) -> None:
    one, two = await server.login(None), await server.login(None)
    await one.ok(b"CREATE Short")
    await two.ok(b"SELECT Short")
    await one.ok(b"DELETE Short")
    two.start(b"NOOP")
    assert (await two.response()).startswith(b"* BYE [NONEXISTENT]")


# ---------------------------------------------------------------------------------------------- resynchronization


async def test_a_client_resynchronizes_with_what_has_changed(server: ImapServerProcess) -> None:
    one, two = await server.login("INBOX", "QRESYNC"), await server.login()
    shown = await one.ok(b"SELECT INBOX")
    validity = int(re.search(rb"UIDVALIDITY (\d+)", b" ".join(shown))[1])  # type: ignore[index]
    modseq = int(re.search(rb"HIGHESTMODSEQ (\d+)", b" ".join(shown))[1])  # type: ignore[index]
    await two.ok(b"STORE 2 +FLAGS.SILENT (\\Deleted)")
    await two.ok(b"EXPUNGE")
    await two.ok(b"UID STORE 3 +FLAGS.SILENT (\\Seen)")
    # VANISHED instead of EXPUNGE, and UID and MODSEQ with each change
    assert await one.ok(b"NOOP") == [
        b"* VANISHED 2",
        b"* 2 FETCH (UID 3 FLAGS (\\Seen) MODSEQ (%d))" % (modseq + 3),
    ]
    three = await server.login(None, "QRESYNC")
    shown = await three.ok(b"SELECT INBOX (QRESYNC (%d %d))" % (validity, modseq))
    assert shown[-2:] == [
        b"* VANISHED (EARLIER) 2",
        b"* 2 FETCH (UID 3 FLAGS (\\Seen) MODSEQ (%d))" % (modseq + 3),
    ]
    shown = await three.ok(b"SELECT INBOX (QRESYNC (%d %d 3:4))" % (validity, modseq + 3))
    assert b"VANISHED" not in b" ".join(shown) and b"FETCH" not in b" ".join(shown)
    shown = await three.ok(b"SELECT INBOX (QRESYNC (%d %d))" % (validity + 1, modseq))
    assert b"VANISHED" not in b" ".join(shown)
    assert await three.ok(b"UID FETCH 1:* (FLAGS) (CHANGEDSINCE %d VANISHED)" % modseq) == [
        b"* VANISHED (EARLIER) 2",
        b"* 2 FETCH (UID 3 FLAGS (\\Seen) MODSEQ (%d))" % (modseq + 3),
    ]
    await two.refused(b"SELECT INBOX (QRESYNC (1 1))", b"BAD")
    # the client's own expunge names the mod-sequence
    await one.ok(b"UID STORE 1 +FLAGS.SILENT (\\Deleted)")
    untagged, answer = await one.run(b"EXPUNGE")
    assert untagged == [b"* VANISHED 1"]
    assert answer.startswith(b"OK [HIGHESTMODSEQ %d]" % (modseq + 5))


async def test_vanished_mails_whose_tombstones_are_purged_are_named(server: ImapServerProcess) -> None:
    client = await server.login("INBOX", "QRESYNC")
    validity = int(re.search(rb"UIDVALIDITY (\d+)", b" ".join(await client.ok(b"SELECT INBOX")))[1])  # type: ignore[index]
    await client.ok(b"STORE 1:2 +FLAGS.SILENT (\\Deleted)")
    await client.ok(b"EXPUNGE")
    async with server.database.transaction() as connection:
        await connection.execute("delete from folder_mails where expunged_at is not null")
        await connection.execute("update folders set purged_version = version where special_use = 'inbox'")
    shown = await client.ok(b"SELECT INBOX (QRESYNC (%d 2))" % validity)
    assert shown[-1] == b"* VANISHED (EARLIER) 1:2"


async def test_a_purged_tombstone_of_the_last_mail_is_named(server: ImapServerProcess) -> None:
    client = await server.login("INBOX", "QRESYNC")
    await client.ok(b"STORE 4 +FLAGS.SILENT (\\Deleted)")
    await client.ok(b"EXPUNGE")
    async with server.database.transaction() as connection:
        await connection.execute("delete from folder_mails where expunged_at is not null")
        await connection.execute("update folders set purged_version = version where special_use = 'inbox'")
    # * is the UID of the last mail that is there, but the client means all that it knows
    assert (await client.ok(b"UID FETCH 1:* (FLAGS) (CHANGEDSINCE 2 VANISHED)"))[0] == b"* VANISHED (EARLIER) 4"
    assert (await client.ok(b"UID FETCH * (FLAGS) (CHANGEDSINCE 2 VANISHED)"))[0] == b"* VANISHED (EARLIER) 4"


async def test_a_conditional_store_leaves_what_others_have_changed(server: ImapServerProcess) -> None:
    one, two = await server.login(), await server.login()
    await two.ok(b"STORE 2 +FLAGS.SILENT (\\Flagged)")
    untagged, answer = await one.run(b"STORE 1:2 (UNCHANGEDSINCE 2) +FLAGS.SILENT (\\Seen)")
    assert answer.startswith(b"OK [MODIFIED 2]")
    assert untagged[0] == b"* 1 FETCH (MODSEQ (4))"
    assert (await one.ok(b"FETCH 1:2 (FLAGS) (CHANGEDSINCE 3)")) == [b"* 1 FETCH (FLAGS (\\Seen) MODSEQ (4))"]
    assert await one.ok(b"SEARCH MODSEQ 4") == [b"* SEARCH 1 (MODSEQ 4)"]
    # a text that is read changes the flags, too
    assert await one.ok(b"FETCH 3 BODY[TEXT]<0.4>") == [
        b"* 3 FETCH (BODY[TEXT]<0> {4}\r\ntext FLAGS (\\Seen) MODSEQ (5))"
    ]


# ---------------------------------------------------------------------------------------------- searches


async def test_searches_read_headers_and_bodies(server: ImapServerProcess) -> None:
    client = await server.login()
    assert await client.ok(b"SEARCH SUBJECT offer") == [b"* SEARCH 1 3"]
    assert await client.ok(b'UID SEARCH NOT BODY "text 2" 1:3') == [b"* SEARCH 1 3"]
    assert await client.ok(b"SEARCH TEXT p4@x") == [b"* SEARCH 4"]
    assert await client.ok(b"SEARCH RETURN (MIN MAX COUNT) ALL") == [b'* ESEARCH (TAG "a6") MIN 1 MAX 4 COUNT 4']
    assert await client.ok(b"UID SEARCH RETURN (SAVE) SUBJECT offer") == []
    assert await client.ok(b"FETCH $ UID") == [b"* 1 FETCH (UID 1)", b"* 3 FETCH (UID 3)"]
    assert await client.ok(b"UID SEARCH UID $ NOT 1") == [b"* SEARCH 3"]
    assert await client.ok(b"SORT (SUBJECT REVERSE FROM) UTF-8 ALL") == [b"* SORT 4 3 1 2"]
    assert await client.ok(b"UID SORT (REVERSE SIZE) UTF-8 1:2") == [b"* SORT 1 2"]
    assert await client.ok(b"THREAD REFERENCES UTF-8 ALL") == [b"* THREAD (1 3)(2)(4)"]
    assert await client.ok(b"THREAD ORDEREDSUBJECT UTF-8 1:3") == [b"* THREAD (1 3)(2)"]
    assert b"[BADCHARSET" in await client.refused(b"SEARCH CHARSET KLINGON ALL")
    await client.refused(b"SEARCH WHATEVER", b"BAD")


# ---------------------------------------------------------------------------------------------- others


async def test_a_hint_of_the_broker_wakes_idle(
    database_url: str, database: Database, tmp_path: Path, broker_url: str
) -> None:
    broker = Broker(broker_url, "test")
    await broker.open()
    try:
        async with imap_server(database_url, database, tmp_path, broker_url=broker_url) as server:
            await until(lambda: "broker connected" in server.log.read_text(encoding="utf-8"))
            await broker.wait_until_ready(60)
            client = await server.login()
            await client.idle()
            await add_mails(database, server.alex, b"Subject: new\r\n\r\n")
            # the sweep is half a minute away
            await broker.publish(publications.changed([(server.alex.id, server.alex.address)]))
            assert await client.response() == b"* 1 EXISTS"
    finally:
        await broker.close()


async def test_a_disabled_account_ends_its_sessions(server: ImapServerProcess) -> None:
    client = await server.login()
    await client.idle()
    async with server.database.transaction() as connection:
        await connection.execute("update local_accounts set enabled = false where id = %s", (server.alex.id,))
    assert await client.reader.read() == b"* BYE the account was changed, log in again\r\n"


async def test_the_answers_are_those_of_dovecot(
    database_url: str, database: Database, tmp_path: Path, provider: DemoProvider
) -> None:
    """The same mails and the same commands: the same data in the answers."""
    provider.add_mailbox("script@imap.test", "secret")
    theirs = ImapClient(*await asyncio.open_connection("127.0.0.1", provider.imap_port, limit=1 << 26))
    await theirs.response()
    await theirs.ok(b"LOGIN script@imap.test secret")
    async with imap_server(database_url, database, tmp_path) as server:
        ours = await server.login(None)
        odd = (*ODD, "RFC 2231") if installed_version() >= (2, 4) else ODD  # Dovecot 2.4 decodes its parameters
        for mail in (mail for name, mail in MAILS.items() if name not in odd):
            date = b'INBOX () "11-Nov-2026 10:00:00 +0000"'
            assert (await ours.append(mail, date)).startswith(b"OK")
            assert (await theirs.append(mail, date)).startswith(b"OK")
        for client in (ours, theirs):
            await client.ok(b"SELECT INBOX")
        differences = []
        for command in SCRIPT:
            one, other = _comparable(await ours.run(command)), _comparable(await theirs.run(command))
            if one != other:
                differences.append((command, one, other))
        assert differences == []
    theirs.writer.close()


ODD = (
    "encoded words",
    "addresses",
    "boundaries with a common beginning",
    "empty parts",
    "header ends at the boundary",
    "malformed type",
    "type without a value",
    "unknown type",
    "quotes",
)
"""Mails of which Dovecot sends the same text as a literal, or has another opinion (test_imap_structure.py)."""
SCRIPT = [
    *(b"FETCH 1:* (RFC822.SIZE INTERNALDATE)", b"FETCH 1:* ENVELOPE", b"FETCH 1:* BODYSTRUCTURE", b"FETCH 1:* BODY"),
    *(b"FETCH 1:* BODY.PEEK[HEADER]", b"FETCH 1:* BODY.PEEK[1]", b"FETCH 1:* BODY.PEEK[1.MIME]"),
    *(b"FETCH 1:* BODY.PEEK[2.HEADER]", b"FETCH 1:* BODY.PEEK[TEXT]<3.20>", b"FETCH 1:* BODY.PEEK[]"),
    *(b"STORE 1:3 +FLAGS (\\Seen)", b"STORE 2 -FLAGS.SILENT (\\Seen)", b"FETCH 1:3 FLAGS", b"SEARCH UNSEEN"),
    *(b"STORE 4:5 FLAGS (\\Deleted $Own)", b"SEARCH KEYWORD $own", b"SEARCH NOT DELETED 1:6", b"EXPUNGE"),
    *(b"UID FETCH 4:7 UID", b"UID SEARCH 4:*", b"FETCH 4 (UID BODY[HEADER.FIELDS (SUBJECT)])", b"FETCH 4 FLAGS"),
    *(b"UID STORE 1:3 +FLAGS.SILENT (\\Deleted)", b"UID EXPUNGE 2", b"UID FETCH 1:* FLAGS", b"NOOP"),
    *(b"SEARCH RETURN (MIN MAX COUNT) ALL", b"SEARCH SUBJECT x", b"FETCH 999 FLAGS", b"UID FETCH 999 FLAGS"),
    *(b"SORT (SIZE) UTF-8 ALL", b"THREAD REFERENCES UTF-8 ALL", b"STATUS INBOX (MESSAGES UIDNEXT UNSEEN)"),
    *(b"UNSELECT", b"FETCH 1 FLAGS", b"EXAMINE nowhere"),
]


def _comparable(answered: tuple[list[bytes], bytes]) -> tuple[list[object], bytes]:
    """The data of the answers without their order of items, RECENT, and texts for people."""
    untagged, answer = answered
    kept: list[object] = []
    for response in untagged:
        if b"RECENT" in response and b"FETCH" not in response:
            continue
        if response.startswith((b"* OK", b"* FLAGS")):
            continue
        words = re.findall(rb"[^ ()]+|[()]", response.replace(b"\\Recent", b""))
        kept.append(sorted(words) if b"FLAGS (" in response else response.lower())
    return kept, answer.split()[0]
