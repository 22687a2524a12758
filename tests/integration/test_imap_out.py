"""services/imap_out as a process on a real PostgreSQL: login, folders' views, and changes by several sessions."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import imaplib
import re
import signal
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from shared.db.database import Database
from shared.store import folders
from tests.imap_clients import PASSWORD, ImapServerProcess, imap_server
from tests.integration.test_folder_mails import add_mails
from tests.polling import until

ONE = b"From: a@x.example\r\nTo: alex@local.com\r\nSubject: one\r\nMessage-ID: <1@x>\r\n\r\nHello\r\n"
TWO = b"From: b@x.example\r\nSubject: two\r\nDate: Thu, 26 Nov 2026 10:00:00 +0000\r\n\r\nGood-bye\r\n"
THREE = b"Subject: three\r\n\r\nlast\r\n"
LARGE = b"From: c@x.example\r\nSubject: large\r\n\r\n" + b"x" * 70 + b"\r\n"
LARGE += b"0123456789abcdef" * 100_000 + b"\r\nend\r\n"


@pytest.fixture
async def server(database_url: str, database: Database, tmp_path: Path) -> AsyncIterator[ImapServerProcess]:
    """The service on a fresh database, with three mails in INBOX of alex; without a broker."""
    async with imap_server(database_url, database, tmp_path, (ONE, TWO, THREE)) as started:
        yield started


async def folder_id(server: ImapServerProcess, name: str) -> int:
    async with server.database.statement() as connection:
        found = await folders.find_folder(connection, server.alex.id, name)
    assert found is not None
    return found.id


# ---------------------------------------------------------------------------------------------- login


async def test_a_session_logs_in_selects_reads_and_logs_out(server: ImapServerProcess) -> None:
    def work() -> None:
        client = imaplib.IMAP4("127.0.0.1", server.clear, timeout=60)
        assert "AUTH=PLAIN" in client.capabilities
        client.login("alex@local.com", PASSWORD)
        assert client.select("INBOX") == ("OK", [b"3"])
        assert client.response("UIDNEXT")[1] == [b"4"]
        assert client.search(None, "ALL") == ("OK", [b"1 2 3"])
        fetched: Any = client.fetch("1", "(UID RFC822)")[1]
        head, body = fetched[0]
        assert (head, body) == (b"1 (UID 1 RFC822 {%d}" % len(ONE), ONE)
        assert client.logout()[0] == "BYE"

    await asyncio.to_thread(work)


@pytest.mark.parametrize("tls", ["starttls", "implicit"])
async def test_passwords_go_under_tls(server: ImapServerProcess, tls: str) -> None:
    def work() -> None:
        context = ssl.create_default_context()
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        if tls == "implicit":
            client: imaplib.IMAP4 = imaplib.IMAP4_SSL("127.0.0.1", server.implicit, ssl_context=context, timeout=60)
        else:
            client = imaplib.IMAP4("127.0.0.1", server.clear, timeout=60)
            assert "STARTTLS" in client.capabilities
            client.starttls(context)
        assert "STARTTLS" not in client.capabilities
        client.authenticate("PLAIN", lambda _: f"\0alex@local.com\0{PASSWORD}".encode())
        assert client.select("INBOX", readonly=True) == ("OK", [b"3"])
        client.logout()

    await asyncio.to_thread(work)


async def test_without_tls_passwords_are_refused_where_the_policy_says_so(
    database_url: str, database: Database, tmp_path: Path
) -> None:
    async with imap_server(database_url, database, tmp_path, ALLOW_PLAINTEXT_AUTH="no") as server:
        client = await server.connect()
        assert b"LOGINDISABLED" in client.greeting and b"AUTH=" not in client.greeting
        assert await client.refused(b"LOGIN alex@local.com x") == (
            b"NO [PRIVACYREQUIRED] LOGIN: passwords are taken under TLS only: use STARTTLS first, or the port for TLS"
        )
        assert b"PRIVACYREQUIRED" in await client.refused(b"AUTHENTICATE PLAIN")


async def test_a_wrong_password_is_refused_and_a_few_end_the_connection(server: ImapServerProcess) -> None:
    client = await server.connect()
    assert await client.refused(b"SELECT INBOX", b"BAD") == b"BAD SELECT: log in first"
    for _ in range(3):
        assert b"[AUTHENTICATIONFAILED]" in await client.refused(b"LOGIN alex@local.com wrong")
    assert await client.reader.read() == b"* BYE too many failed logins\r\n"


async def test_authenticate_takes_an_initial_response_or_asks(server: ImapServerProcess) -> None:
    response = base64.b64encode(f"\0alex@local.com\0{PASSWORD}".encode())
    client = await server.connect()
    _, answer = await client.run(b"AUTHENTICATE PLAIN " + response)
    assert answer.startswith(b"OK [CAPABILITY IMAP4rev1")
    assert b"you are logged in already" in await client.refused(b"LOGIN a b", b"BAD")
    other = await server.connect()
    tag = other.start(b"AUTHENTICATE PLAIN")
    assert await other.response() == b"+ "
    other.send(b"*\r\n")
    assert (await other.finish(tag))[1] == b"BAD AUTHENTICATE: authentication cancelled"
    assert b"NO" in await other.refused(b"AUTHENTICATE CRAM-MD5")
    assert b"AUTHORIZATIONFAILED" in await other.refused(
        b"AUTHENTICATE PLAIN " + base64.b64encode(b"jim@local.com\0alex@local.com\0x")
    )


async def test_commands_in_one_packet_with_literals_are_run_in_order(server: ImapServerProcess) -> None:
    client = await server.connect()
    client.send(b"1 LOGIN {14+}\r\nalex@local.com {7+}\r\nse cret\r\n2 SELECT INBOX\r\n3 FETCH 1 FLAGS\r\n4 NOOP\r\n")
    assert (await client.finish(b"1"))[1].startswith(b"OK")
    assert (await client.finish(b"2"))[1].startswith(b"OK [READ-WRITE]")
    assert await client.finish(b"3") == ([b"* 1 FETCH (FLAGS ())"], b"OK FETCH: fetched")
    assert (await client.finish(b"4"))[1] == b"OK NOOP: done"
    # a literal that waits gets its continuation
    tag = client.start(b"STATUS {5}")
    assert (await client.response()).startswith(b"+ ")
    client.send(b"INBOX (MESSAGES)\r\n")
    assert await client.finish(tag) == ([b"* STATUS INBOX (MESSAGES 3)"], b"OK STATUS: counted")


async def test_what_is_no_command_is_bad_and_a_long_line_ends_the_session(server: ImapServerProcess) -> None:
    client = await server.login(None)
    for command in (b"XYZZY", b"FETCH 1 FLAGS", b"LOGIN a b", b"SELECT", b"COMPRESS DEFLATE"):
        await client.refused(command, b"BAD")
    client.send(b"\r\n")
    assert (await client.response()).startswith(b"* BAD")
    client.send(b"x" * 70_000)
    assert (await client.response()).startswith(b"* BYE")


# ---------------------------------------------------------------------------------------------- views


async def test_select_shows_the_folder_and_examine_changes_nothing(server: ImapServerProcess) -> None:
    client = await server.login(None)
    shown = await client.ok(b"SELECT inbox")
    assert shown[:2] == [
        b"* FLAGS (\\Answered \\Flagged \\Deleted \\Seen \\Draft)",
        b"* OK [PERMANENTFLAGS (\\Answered \\Flagged \\Deleted \\Seen \\Draft \\*)] flags that are kept",
    ]
    assert shown[2:5] == [b"* 3 EXISTS", b"* 0 RECENT", b"* OK [UNSEEN 1] first unseen mail"]
    assert re.fullmatch(rb"\* OK \[UIDVALIDITY \d+\] valid", shown[5])
    assert shown[6:] == [b"* OK [UIDNEXT 4] next", b"* OK [HIGHESTMODSEQ 2] highest"]
    shown, answer = await client.run(b"EXAMINE INBOX")
    assert shown[0] == b"* OK [CLOSED] the mailbox before is closed" and answer.startswith(b"OK [READ-ONLY]")
    assert b"[READ-ONLY]" in await client.refused(b"STORE 1 +FLAGS (\\Seen)")
    assert b"[READ-ONLY]" in await client.refused(b"EXPUNGE")
    await client.ok(b"FETCH 1 BODY[]")
    assert await client.ok(b"FETCH 1 FLAGS") == [b"* 1 FETCH (FLAGS ())"]
    assert b"[NONEXISTENT]" in await client.refused(b"SELECT nowhere")
    await client.refused(b"FETCH 1 FLAGS", b"BAD")  # a SELECT that fails leaves no mailbox selected


async def test_an_empty_folder_answers_every_search(server: ImapServerProcess) -> None:
    client = await server.login("Archive")
    assert await client.ok(b"SEARCH NOT DELETED") == [b"* SEARCH"]
    assert await client.ok(b"UID SEARCH 1:* NOT DELETED") == [b"* SEARCH"]
    assert await client.ok(b"UID FETCH 1:* FLAGS") == []
    assert await client.ok(b"SORT (DATE) UTF-8 ALL") == [b"* SORT"]
    assert await client.ok(b"THREAD REFERENCES UTF-8 ALL") == [b"* THREAD"]
    assert await client.ok(b"SEARCH RETURN (COUNT) ALL") == [b'* ESEARCH (TAG "a8") COUNT 0']
    await client.refused(b"FETCH 1:* FLAGS", b"BAD")
    assert await client.ok(b"EXPUNGE") == []


async def test_fetch_returns_sections_and_marks_what_is_read(server: ImapServerProcess) -> None:
    client = await server.login()
    assert await client.ok(b"FETCH 1 BODY.PEEK[HEADER.FIELDS (SUBJECT X-None)]") == [
        b"* 1 FETCH (BODY[HEADER.FIELDS (SUBJECT X-NONE)] {18}\r\nSubject: one\r\n\r\n)".replace(b"{18}", b"{16}")
    ]
    assert await client.ok(b"FETCH 1 BODY.PEEK[TEXT]<1.3>") == [b"* 1 FETCH (BODY[TEXT]<1> {3}\r\nell)"]
    assert await client.ok(b"FETCH 1 (BODY[1])") == [b"* 1 FETCH (BODY[1] {7}\r\nHello\r\n FLAGS (\\Seen))"]
    assert await client.ok(b"FETCH 1 BODY[9]") == [b"* 1 FETCH (BODY[9] {0}\r\n)"]
    assert await client.ok(b"FETCH 2 (RFC822.SIZE ENVELOPE BODYSTRUCTURE)") == [
        b'* 2 FETCH (RFC822.SIZE %d ENVELOPE ("Thu, 26 Nov 2026 10:00:00 +0000" "two" ((NIL NIL "b" "x.example")) '
        b'((NIL NIL "b" "x.example")) ((NIL NIL "b" "x.example")) NIL NIL NIL NIL NIL) '
        b'BODYSTRUCTURE ("text" "plain" ("charset" "us-ascii") NIL NIL "7bit" 10 1 NIL NIL NIL NIL))' % len(TWO)
    ]
    assert await client.ok(b"UID FETCH 3:9 (BINARY.SIZE[1] BINARY[1])") == [
        b"* 3 FETCH (UID 3 BINARY.SIZE[1] 6 BINARY[1] {6}\r\nlast\r\n FLAGS (\\Seen))"
    ]
    assert await client.ok(b"UID FETCH 7 FLAGS") == []
    for wrong in (b"FETCH 4 FLAGS", b"FETCH 1 NOTHING", b"FETCH 0 FLAGS", b"FETCH 1 BODY[HEADER.FIELDS ()]"):
        await client.refused(wrong, b"BAD")


async def test_two_sessions_see_each_others_flags_and_arrivals(server: ImapServerProcess) -> None:
    one, two = await server.login(), await server.login()
    assert await one.ok(b"STORE 1:2 +FLAGS (\\Seen $Work)") == [
        b"* FLAGS (\\Answered \\Flagged \\Deleted \\Seen \\Draft $Work)",
        b"* OK [PERMANENTFLAGS (\\Answered \\Flagged \\Deleted \\Seen \\Draft $Work \\*)] flags that are kept",
        b"* 1 FETCH (FLAGS (\\Seen $Work))",
        b"* 2 FETCH (FLAGS (\\Seen $Work))",
    ]
    assert (await two.ok(b"NOOP"))[2:] == [b"* 1 FETCH (FLAGS (\\Seen $Work))", b"* 2 FETCH (FLAGS (\\Seen $Work))"]
    assert await one.ok(b"UID STORE 2 FLAGS.SILENT (\\Flagged)") == []
    await add_mails(server.database, server.alex, b"Subject: four\r\n\r\n")
    assert await two.ok(b"CHECK") == [b"* 4 EXISTS", b"* 0 RECENT", b"* 2 FETCH (FLAGS (\\Flagged))"]
    assert await two.ok(b"SEARCH FLAGGED") == [b"* SEARCH 2"]
    assert await two.ok(b"SEARCH KEYWORD $work") == [b"* SEARCH 1"]


async def test_expunge_is_held_back_while_numbers_are_in_use(server: ImapServerProcess) -> None:
    one, two = await server.login(), await server.login()
    await one.ok(b"STORE 1 +FLAGS.SILENT (\\Deleted)")
    assert await one.ok(b"EXPUNGE") == [b"* 1 EXPUNGE"]
    # the other session knows the mail until a command lets it go
    assert await two.ok(b"FETCH 1:3 UID") == [b"* %d FETCH (UID %d)" % (n, n) for n in (1, 2, 3)]
    assert await two.ok(b"FETCH 1 BODY.PEEK[TEXT]") == [b"* 1 FETCH (BODY[TEXT] {7}\r\nHello\r\n)"]
    assert await two.ok(b"STORE 2 +FLAGS (\\Answered)") == [b"* 2 FETCH (FLAGS (\\Answered))"]
    assert await two.ok(b"SEARCH ALL") == [b"* SEARCH 1 2 3"]
    assert await two.ok(b"UID SEARCH ANSWERED") == [b"* SEARCH 2", b"* 1 EXPUNGE"]
    assert await two.ok(b"FETCH 1 (UID FLAGS)") == [b"* 1 FETCH (UID 2 FLAGS (\\Answered))"]


async def test_uid_move_on_a_stale_view_moves_what_is_there(server: ImapServerProcess) -> None:
    one, two = await server.login(), await server.login()
    await one.ok(b"UID STORE 1 +FLAGS.SILENT (\\Deleted)")
    await one.ok(b"UID EXPUNGE 1")
    untagged, answer = await two.run(b"UID MOVE 1:2 Archive")
    assert re.fullmatch(rb"\* OK \[COPYUID \d+ 2 1\] moved", untagged[0])
    assert untagged[1:] == [b"* 2 EXPUNGE", b"* 1 EXPUNGE"] and answer.startswith(b"OK")
    assert await one.ok(b"NOOP") == [b"* 1 EXPUNGE"]
    three = await server.login()
    await one.ok(b"STORE 1 +FLAGS.SILENT (\\Deleted)")
    await one.ok(b"EXPUNGE")
    assert b"[EXPUNGEISSUED]" in await three.refused(b"COPY 1 Archive")
    assert b"[TRYCREATE]" in await two.refused(b"UID COPY 3 Nowhere")
    assert (await two.run(b"UID COPY 999 Archive"))[1].startswith(b"OK")
    await two.refused(b"COPY 9 Archive", b"BAD")
    assert await three.ok(b"STATUS Archive (MESSAGES UIDNEXT)") == [
        b"* STATUS Archive (MESSAGES 1 UIDNEXT 2)",
        b"* 1 EXPUNGE",
    ]


async def test_copies_keep_flags_and_close_expunges_in_silence(server: ImapServerProcess) -> None:
    client = await server.login()
    await client.ok(b"STORE 1:2 +FLAGS.SILENT (\\Deleted \\Seen)")
    _, answer = await client.run(b"COPY 1:2 Archive")
    assert re.match(rb"OK \[COPYUID \d+ 1:2 1:2\]", answer)
    assert await client.ok(b"CLOSE") == []
    assert (await client.ok(b"SELECT INBOX"))[2] == b"* 1 EXISTS"
    await client.ok(b"UNSELECT")
    await client.ok(b"SELECT Archive")
    assert await client.ok(b"FETCH 1:* FLAGS") == [b"* %d FETCH (FLAGS (\\Deleted \\Seen))" % n for n in (1, 2)]
    await client.ok(b"UNSELECT")
    assert (await client.ok(b"SELECT Archive"))[2] == b"* 2 EXISTS"


async def test_close_expunges_what_others_have_marked(server: ImapServerProcess) -> None:
    one, two = await server.login(), await server.login()
    await one.ok(b"STORE 2 +FLAGS.SILENT (\\Deleted)")
    assert await two.ok(b"CLOSE") == []
    assert await one.ok(b"NOOP") == [b"* 2 EXPUNGE"]


# ---------------------------------------------------------------------------------------------- IDLE


async def test_a_delivery_wakes_idle_without_a_broker(server: ImapServerProcess) -> None:
    client = await server.login()
    tag = await client.idle()
    await add_mails(server.database, server.alex, b"Subject: four\r\n\r\n")
    assert await client.response() == b"* 4 EXISTS"
    assert await client.response() == b"* 0 RECENT"
    # a command in the packet of DONE is run after it
    client.send(b"DONE\r\nx FETCH 4 UID\r\n")
    assert await client.finish(tag) == ([], b"OK IDLE: idled")
    assert await client.finish(b"x") == ([b"* 4 FETCH (UID 4)"], b"OK FETCH: fetched")


async def test_changes_of_other_sessions_wake_ten_idles_of_a_person(server: ImapServerProcess) -> None:
    idling = [await server.login() for _ in range(10)]
    tags = [await client.idle() for client in idling]
    other = await server.login()
    await other.ok(b"STORE 3 +FLAGS.SILENT (\\Deleted)")
    await other.ok(b"EXPUNGE")
    for client, tag in zip(idling, tags, strict=True):
        responses = [await client.response()]
        while responses[-1] != b"* 3 EXPUNGE":
            responses.append(await client.response())
        assert set(responses) <= {b"* 3 EXPUNGE", b"* 3 FETCH (FLAGS (\\Deleted))"}
        client.send(b"done\r\n")
        assert (await client.finish(tag))[1].startswith(b"OK")
    tag = await idling[0].idle()
    idling[0].send(b"NOOP\r\n")
    assert (await idling[0].finish(tag))[1] == b"BAD IDLE: IDLE ends with DONE"


# ---------------------------------------------------------------------------------------------- APPEND


async def test_append_stores_small_and_large_mails_with_flags_and_date(server: ImapServerProcess) -> None:
    client = await server.login()
    answer = await client.append(ONE, b'INBOX (\\Seen $Own) " 7-Feb-2024 21:52:25 -0800"')
    assert re.match(rb"OK \[APPENDUID \d+ 4\]", answer)
    assert (await client.ok(b"FETCH 4 (FLAGS INTERNALDATE BODY.PEEK[])")) == [
        b'* 4 FETCH (FLAGS (\\Seen $Own) INTERNALDATE " 8-Feb-2024 05:52:25 +0000" BODY[] {%d}\r\n%b)' % (len(ONE), ONE)
    ]
    assert (await client.append(LARGE)).startswith(b"OK [APPENDUID")
    [fetched] = await client.ok(b"FETCH 5 BODY.PEEK[]")
    assert fetched == b"* 5 FETCH (BODY[] {%d}\r\n%b)" % (len(LARGE), LARGE)
    first = len(LARGE) - 20
    [fetched] = await client.ok(b"FETCH 5 BODY.PEEK[]<%d.1000>" % first)
    assert fetched == b"* 5 FETCH (BODY[]<%d> {20}\r\n%b)" % (first, LARGE[first:])
    assert await client.ok(b'SEARCH BODY "end"') == [b"* SEARCH 5"]
    # the digest is that of the whole mail
    async with server.database.statement() as connection:
        cursor = await connection.execute("select count(*) from blobs where sha256 = sha256('\\x') or octets = 0")
        assert await cursor.fetchone() == (0,)
        cursor = await connection.execute("select encode(sha256, 'hex') from blobs order by id desc limit 1")
        assert await cursor.fetchone() == (hashlib.sha256(LARGE).hexdigest(),)


async def test_an_append_that_is_refused_leaves_nothing_behind(server: ImapServerProcess) -> None:
    client = await server.login()
    assert b"[TRYCREATE]" in await client.append(ONE, b"Nowhere")
    client.send(b"n APPEND Nowhere {%d+}\r\n%b\r\n" % (len(LARGE), LARGE))
    assert b"NO [TRYCREATE]" in (await client.finish(b"n"))[1]
    client.send(b"m APPEND INBOX {5+}\r\na\0\r\nb\r\n")
    assert b"NO" in (await client.finish(b"m"))[1]
    tag = client.start(b"APPEND INBOX {%d}" % (60 << 20))
    assert b"NO [TOOBIG]" in (await client.finish(tag))[1]
    # a client that leaves in the middle of a large mail
    leaving = await server.login()
    leaving.start(b"APPEND INBOX {%d}" % len(LARGE))
    await leaving.response()
    leaving.send(LARGE[: 1 << 20])

    async def stored() -> int:
        async with server.database.statement() as connection:
            cursor = await connection.execute("select count(*) from blobs")
            [count] = await cursor.fetchone() or (0,)
        return int(count)

    async def is_begun() -> bool:
        return await stored() == 4

    async def is_deleted() -> bool:
        return await stored() == 3

    await until(is_begun)  # the first octets are stored while the others arrive
    await leaving.close()
    await until(is_deleted)
    assert await client.ok(b"NOOP") == []


async def test_a_stop_says_good_bye_to_sessions_in_idle(server: ImapServerProcess) -> None:
    client = await server.login()
    await client.idle()
    server.process.send_signal(signal.SIGTERM)
    assert (await client.response()).startswith(b"* BYE [UNAVAILABLE]")
    assert await server.process.wait() == 0
    await until(lambda: "service stopped" in server.log.read_text(encoding="utf-8"))
