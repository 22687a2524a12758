"""services/imap_out as a process: what mail clients are known to send, and what they are known to trip over.

The commands are those of logs that users of mail servers and clients have published.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from shared.db.database import Database
from tests.imap_clients import PASSWORD, ImapClient, ImapServerProcess, imap_server
from tests.imap_mails import MAILS
from tests.integration.test_folder_mails import add_mails

MANY = 3_000
FIELDS = (
    b"From To Cc Bcc Subject Date Message-ID Priority X-Priority References Newsgroups In-Reply-To Content-Type"
    b" Reply-To"
)


@pytest.fixture
async def server(database_url: str, database: Database, tmp_path: Path) -> AsyncIterator[ImapServerProcess]:
    """The service on a fresh database, with three mails in INBOX of alex; without a broker."""
    mails = [MAILS[name] for name in ("plain", "mixed", "forwarded")]
    async with imap_server(database_url, database, tmp_path, mails) as started:
        yield started


async def items_of(client: ImapClient, command: bytes) -> list[bytes]:
    """Run a FETCH of one mail, and return the names of the items in their order."""
    [response] = await client.ok(command)
    without_literals = re.sub(rb"\{(\d+)\}\r\n", lambda found: b"{", response)
    return re.findall(
        rb"(?:\(| )(UID|RFC822\.SIZE|FLAGS|BODY\[[^\]]*\](?:<\d+>)?|MODSEQ|BODYSTRUCTURE)(?= )", without_literals
    )


async def validity_and_modseq(client: ImapClient, command: bytes) -> tuple[int, int]:
    """Select a folder, and return its UIDVALIDITY and HIGHESTMODSEQ."""
    shown = b" ".join(await client.ok(command))
    found = re.search(rb"UIDVALIDITY (\d+).*HIGHESTMODSEQ (\d+)", shown)
    assert found is not None
    return int(found[1]), int(found[2])


# ---------------------------------------------------------------------------------------------- iPhone


async def test_an_iphone_sets_up_polls_and_reads(server: ImapServerProcess) -> None:
    client = await server.connect()
    await client.ok(b"CAPABILITY")
    await client.ok(b'LOGIN "alex@local.com" "%b"' % PASSWORD.encode())
    assert await client.ok(
        b'ID ("name" "iPhone Mail" "version" "22G100" "os" "iOS" "os-version" "18.6.2 (22G100)")'
    ) == [b'* ID ("name" "mailgroup")']
    await client.ok(b"NAMESPACE")
    # INBOX is an atom: iOS 18 is said to look for it without quotes
    assert b'* LIST (\\HasNoChildren) "/" INBOX' in await client.ok(b'LIST "" "*"')
    _, modseq = await validity_and_modseq(client, b"SELECT INBOX (CONDSTORE)")
    # an account that knew the server before it had CONDSTORE says 0, which RFC 7162 section 7 does not allow
    changed = await client.ok(b"UID FETCH 1:* (FLAGS UID) (CHANGEDSINCE 0)")
    assert changed == [b"* %d FETCH (UID %d FLAGS () MODSEQ (%d))" % (n, n, modseq) for n in (1, 2, 3)]
    # MODSEQ is in no answer to a search without it, though CONDSTORE is enabled
    assert await client.ok(b"UID SEARCH RETURN (COUNT) 1:* NOT DELETED") == [b'* ESEARCH (TAG "a8") UID COUNT 3']
    assert await client.ok(b"SEARCH SINCE 1-Jan-2020 ALL") == [b"* SEARCH 1 2 3"]
    assert await items_of(client, b"UID FETCH 2 (UID FLAGS RFC822.SIZE BODYSTRUCTURE BODY.PEEK[HEADER])") == [
        *(b"UID", b"FLAGS", b"RFC822.SIZE", b"BODYSTRUCTURE", b"BODY[HEADER]")
    ]
    # a part is asked for with far more octets than it has
    [response] = await client.ok(b"UID FETCH 1 (UID BODY.PEEK[1]<0.393216>)")
    assert response == b"* 1 FETCH (UID 1 BODY[1]<0> {14}\r\nHello\r\nWorld\r\n)"
    await client.ok(b"UID STORE 1 +FLAGS.SILENT (\\Seen)")
    _, answer = await client.run(b'UID MOVE 1 "Trash"')
    assert answer.startswith(b"OK")
    assert await client.ok(b'STATUS "Trash" (MESSAGES UIDNEXT UIDVALIDITY UNSEEN HIGHESTMODSEQ)') != []


async def test_an_iphone_pipelines_behind_done_and_appends_a_draft(server: ImapServerProcess) -> None:
    client = await server.login("INBOX")
    tag = await client.idle()
    draft = b"Subject: draft\r\n\r\nhalf\r\n"
    client.send(
        b"DONE\r\nb1 UID SEARCH 1:* UNSEEN\r\nb2 APPEND Drafts (\\Seen \\Draft) {%d+}\r\n%b\r\n" % (len(draft), draft)
    )
    client.send(b'b3 UID MOVE 3 "Trash"\r\nb4 SELECT Drafts\r\n')
    assert (await client.finish(tag))[1].startswith(b"OK")
    assert (await client.finish(b"b1"))[0] == [b"* SEARCH 1 2 3"]
    assert b"APPENDUID" in (await client.finish(b"b2"))[1]
    assert (await client.finish(b"b3"))[0][-1] == b"* 3 EXPUNGE"
    assert b"* 1 EXISTS" in (await client.finish(b"b4"))[0]


async def test_an_iphone_idles_in_several_folders_and_finds_what_it_sent(server: ImapServerProcess) -> None:
    """It keeps a connection for each folder with new mail, and others for what its user does."""
    folders = (b"INBOX", b"Sent", b"Archive", b"Trash")
    idling = {name: await server.login(name.decode()) for name in folders}
    tags = {name: await client.idle() for name, client in idling.items()}
    working = [await server.login("Sent") for _ in range(4)]
    sent = b"From: alex@local.com\r\nMessage-ID: <sent@iphone>\r\nSubject: sent\r\n\r\nfrom my phone\r\n"
    assert b"APPENDUID" in await working[0].append(sent, b"Sent (\\Seen)")
    assert await working[0].ok(b"UID SEARCH HEADER Message-ID <sent@iphone>") == [b"* SEARCH 1"]
    assert b"* 1 EXISTS" in await working[1].ok(b"NOOP")
    await working[2].ok(b"SELECT INBOX")
    await working[2].ok(b'UID MOVE 3 "Archive"')
    # each connection hears of its own folder alone
    assert await idling[b"Sent"].response() == b"* 1 EXISTS"
    assert await idling[b"Archive"].response() == b"* 1 EXISTS"
    assert await idling[b"INBOX"].response() == b"* 3 EXPUNGE"
    for name, client in idling.items():
        client.send(b"DONE\r\n")
        untagged, answer = await client.finish(tags[name])
        assert answer.startswith(b"OK") and set(untagged) <= {b"* 0 RECENT"}


# ---------------------------------------------------------------------------------------------- Outlook


async def test_outlook_finds_its_folders_and_reads_by_uid(server: ImapServerProcess) -> None:
    client = await server.connect()
    # it says who it is before the login, and asks for XLIST although nobody announces it
    await client.ok(b'ID ("name" "Microsoft Outlook" "version" "16.0" "vendor" "Microsoft" "os" NIL)')
    await client.ok(b'LOGIN "alex@local.com" "%b"' % PASSWORD.encode())
    await client.refused(b'XLIST "" "*"', b"BAD")
    assert len(await client.ok(b'LIST "" "%"')) == 6
    assert await client.ok(b'LIST "" "%/%"') == []
    assert len(await client.ok(b'LSUB "" "*"')) == 6
    assert await client.ok(b'LIST "" ""') == [b'* LIST (\\Noselect) "/" ""']
    await client.ok(b'SELECT "INBOX"')
    assert await client.ok(b"UID FETCH 1:* (UID FLAGS)") == [
        b"* %d FETCH (UID %d FLAGS ())" % (n, n) for n in (1, 2, 3)
    ]
    # only new mails: the last UID and what comes after it names one mail at least (RFC 3501 section 6.4.8)
    assert await client.ok(b"UID FETCH 4:* (UID FLAGS)") == [b"* 3 FETCH (UID 3 FLAGS ())"]
    [response] = await client.ok(b"UID FETCH 2 (BODY.PEEK[] UID FLAGS INTERNALDATE RFC822.SIZE)")
    assert response.startswith(b"* 2 FETCH (UID 2 BODY[] {")
    # it deletes by a flag, and shows such mails until EXPUNGE
    await client.ok(b"UID STORE 2 +FLAGS (\\Deleted \\Seen)")
    assert await client.ok(b"UID SEARCH DELETED") == [b"* SEARCH 2"]
    assert await client.ok(b"EXPUNGE") == [b"* 2 EXPUNGE"]
    # the copy of what it has sent, with its own date
    answer = await client.append(MAILS["plain"], b'"Sent" (\\Seen) "02-Dec-2026 10:00:00 +0100"')
    assert b"APPENDUID" in answer


async def test_outlook_for_phones_syncs_slowly_and_breaks_off_in_idle(server: ImapServerProcess) -> None:
    client = await server.login(None)
    uses = await client.ok(b'LIST "" "*" RETURN (SPECIAL-USE SUBSCRIBED CHILDREN)')
    assert b'* LIST (\\Subscribed \\HasNoChildren \\Sent) "/" Sent' in uses
    await client.ok(b"SELECT INBOX")
    # one mail after the other, the latest first, while the mailbox changes
    other = await server.login("INBOX")
    await other.ok(b"UID STORE 2 +FLAGS.SILENT (\\Deleted)")
    await other.ok(b"EXPUNGE")
    fields = b"BODY.PEEK[HEADER.FIELDS (DATE FROM TO CC SUBJECT MESSAGE-ID REFERENCES IN-REPLY-TO CONTENT-TYPE)]"
    [response] = [line for line in await client.ok(b"UID FETCH 3 (UID FLAGS %b)" % fields) if b"HEADER.FIELDS" in line]
    assert response.startswith(b"* 3 FETCH (UID 3 FLAGS () BODY[HEADER.FIELDS (DATE FROM ")
    assert await client.ok(b"UID FETCH 2 (UID FLAGS %b)" % fields) == []
    [response] = await client.ok(b"UID FETCH 1 (UID FLAGS %b)" % fields)
    assert response.startswith(b"* 1 FETCH (UID 1 ")
    # it leaves in IDLE without DONE, and comes back at once
    for _ in range(5):
        leaving = await server.login("INBOX")
        await leaving.idle()
        await leaving.close()
    again = await server.login("INBOX", "QRESYNC")
    assert len(await again.ok(b"UID FETCH 1:* (UID FLAGS)")) == 2
    await other.ok(b"UID STORE 3 +FLAGS.SILENT (\\Seen)")  # nobody who has left is in its way


# ---------------------------------------------------------------------------------------------- K-9 and FairEmail


async def test_k9_and_fairemail_ask_for_what_they_show(server: ImapServerProcess) -> None:
    client = await server.connect()
    await client.ok(b'LOGIN "alex@local.com" "%b"' % PASSWORD.encode())
    await client.ok(b"NAMESPACE")
    await client.ok(b'LIST "" "*" RETURN (SPECIAL-USE)')
    assert len(await client.ok(b'LSUB "" "*"')) == 6
    await client.ok(b'SELECT "INBOX"')
    assert await client.ok(b"UID SEARCH 1:3 NOT DELETED") == [b"* SEARCH 1 2 3"]
    fields = (
        b"UID FLAGS INTERNALDATE RFC822.SIZE BODY.PEEK[HEADER.FIELDS (date subject from content-type to cc reply-to"
        b" message-id references in-reply-to list-unsubscribe sender X-K9mail-Identity X-Chat-Version)]"
    )
    assert (await items_of(client, b"UID FETCH 3 (%b)" % fields))[:3] == [b"UID", b"FLAGS", b"RFC822.SIZE"]
    assert len(await client.ok(b"UID FETCH 3,2,1 (UID BODYSTRUCTURE)")) == 3
    [response] = await client.ok(b"UID FETCH 2 (UID BODY.PEEK[1.MIME] BODY.PEEK[1]<0.32768>)")
    assert b"BODY[1.MIME]" in response and b"BODY[1]<0>" in response
    # push: IDLE is left for a poll and begun again, without a pause
    for _ in range(3):
        tag = await client.idle()
        client.send(b"DONE\r\nx UID SEARCH UNSEEN\r\ny NOOP\r\n")
        assert (await client.finish(tag))[1].startswith(b"OK")
        assert (await client.finish(b"x"))[0] == [b"* SEARCH 1 2 3"]
        await client.finish(b"y")
    # FairEmail counts, and looks for what it has to delete
    assert await client.ok(b'STATUS "Sent" (UIDNEXT UIDVALIDITY MESSAGES UNSEEN)') != []
    assert await client.ok(b"UID SEARCH SINCE 1-Jan-2020 UNDELETED UNFLAGGED") == [b"* SEARCH 1 2 3"]
    await client.ok(b"UID STORE 3 +FLAGS ($MDNSent \\Seen)")
    await client.ok(b"UID STORE 1,2 FLAGS.SILENT (\\Seen)")
    await client.ok(b"CHECK")
    assert await client.ok(b"UID SEARCH KEYWORD $MDNSent") == [b"* SEARCH 3"]


# ---------------------------------------------------------------------------------------------- Thunderbird


async def test_thunderbird_gets_uids_first_and_its_header_fields(server: ImapServerProcess) -> None:
    client = await server.login(None)
    # compression is not announced, and a client that asks all the same goes on without it
    assert not any(b"COMPRESS" in line for line in await client.ok(b"CAPABILITY"))
    await client.refused(b"COMPRESS DEFLATE", b"BAD")
    await client.ok(b"enable UTF8=ACCEPT")
    await client.ok(b'list (subscribed) "" "*" return (special-use)')
    await client.ok(b'select "INBOX" (CONDSTORE)')
    # its parser takes the first UID of a response for that of the mail, wherever the others stand
    for command in (b"uid fetch 2 (UID RFC822.SIZE BODY[])", b"uid fetch 3 (RFC822.SIZE BODY.PEEK[] UID)"):
        assert (await items_of(client, command))[0] == b"UID"
    names = await items_of(client, b"uid fetch 1 (UID RFC822.SIZE FLAGS BODY.PEEK[HEADER.FIELDS (%b)])" % FIELDS)
    assert names[:3] == [b"UID", b"RFC822.SIZE", b"FLAGS"]
    # Junk and forwarded marks are keywords; their letters' case stays as it was written first
    assert (await client.ok(b"uid store 1 +Flags ($Forwarded NonJunk)"))[-1].startswith(
        b"* 1 FETCH (UID 1 FLAGS ($Forwarded NonJunk)"
    )
    await client.ok(b"uid store 1 -Flags (nonjunk)")
    assert b"FLAGS ($Forwarded)" in (await client.ok(b"uid fetch 1 (FLAGS)"))[0]
    # pieces of a long part, as it reads large attachments
    whole = MAILS["mixed"]
    pieces = [
        await client.ok(b"UID fetch 2 (UID RFC822.SIZE BODY.PEEK[]<%d.100>)" % at) for at in range(0, len(whole), 100)
    ]
    assert b"".join(re.split(rb"\{\d+\}\r\n", piece[0], maxsplit=1)[1][:-1] for piece in pieces) == whole


async def test_a_draft_is_replaced_while_another_session_reads_it(server: ImapServerProcess) -> None:
    """Thunderbird stores a draft again and again: APPEND, then the deletion of the one before by its UID."""
    writer, reader = await server.login("Drafts"), await server.login("Drafts", "QRESYNC")
    await writer.append(b"Subject: draft\r\nMessage-ID: <d@x>\r\n\r\n1\r\n", b"Drafts (\\Draft)")
    assert b"* 1 EXISTS" in await reader.ok(b"NOOP")
    for number in (2, 3):
        await writer.append(b"Subject: draft\r\nMessage-ID: <d@x>\r\n\r\n%d\r\n" % number, b"Drafts (\\Draft)")
        await writer.ok(b"UID STORE %d +FLAGS.SILENT (\\Deleted)" % (number - 1))
        await writer.ok(b"UID EXPUNGE %d" % (number - 1))
    assert await reader.ok(b"UID FETCH 1 (UID BODY.PEEK[TEXT])") == [
        b"* 1 FETCH (UID 1 BODY[TEXT] {3}\r\n1\r\n)",
        b"* VANISHED 1",  # the second one came and went unseen
        b"* 1 EXISTS",
        b"* 0 RECENT",
    ]
    [response] = await reader.ok(b"UID FETCH 3 (BODY.PEEK[TEXT])")
    assert response == b"* 1 FETCH (UID 3 BODY[TEXT] {3}\r\n3\r\n)"


# ---------------------------------------------------------------------------------------------- many mails


async def test_flags_of_many_mails_come_in_one_answer(server: ImapServerProcess) -> None:
    await add_mails(server.database, server.alex, *(b"Subject: %d\r\n\r\n" % number for number in range(MANY)))
    client = await server.login()
    flags = await client.ok(b"FETCH 1:* (FLAGS)")
    assert len(flags) == MANY + 3 and flags[-1] == b"* %d FETCH (FLAGS ())" % (MANY + 3)
    assert len(await client.ok(b"UID FETCH 1:* (UID RFC822.SIZE BODY.PEEK[HEADER.FIELDS (SUBJECT)])")) == MANY + 3
    # K-9 names each mail of a poll by itself
    named = b",".join(b"%d" % number for number in range(1, MANY + 1, 2))
    assert len(await client.ok(b"UID FETCH %b (UID FLAGS)" % named)) == MANY // 2
    await client.ok(b"STORE 1:* +FLAGS.SILENT (\\Seen)")
    [found] = await client.ok(b"UID SEARCH 1:* SEEN UNDELETED")
    assert len(found.split()) == MANY + 3 + 2


async def test_an_empty_trash_is_searched_and_emptied(server: ImapServerProcess) -> None:
    client = await server.login("Trash")
    for command in (b"SEARCH NOT DELETED", b"UID SEARCH 1:* DELETED", b"UID SEARCH UID 1:* NOT DELETED", b"SEARCH ALL"):
        assert await client.ok(command) == [b"* SEARCH"]
    assert await client.ok(b"UID STORE 1:* +FLAGS.SILENT (\\Deleted)") == []
    assert await client.ok(b"UID FETCH 1:* (UID FLAGS) (CHANGEDSINCE 1)") == []
    assert await client.ok(b"UID EXPUNGE 1:*") == []
    assert (await client.run(b"UID MOVE 1:* INBOX"))[1].startswith(b"OK")
    await client.ok(b"CLOSE")
