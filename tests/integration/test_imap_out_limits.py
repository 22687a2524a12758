"""services/imap_out as a process: limits, memory, TLS, and a database that refuses changes."""

from __future__ import annotations

import asyncio
import re
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from shared.db.database import Database
from tests.imap_clients import PASSWORD, ImapServerProcess, imap_server
from tests.polling import until
from tests.servers import make_read_only

MIB = 1024 * 1024
ONE = b"Subject: one\r\n\r\nHello\r\n"


@pytest.fixture
async def server(database_url: str, database: Database, tmp_path: Path) -> AsyncIterator[ImapServerProcess]:
    """The service on a fresh database, with a mail in INBOX of alex; without a broker."""
    async with imap_server(database_url, database, tmp_path, [ONE], MAX_CONNECTIONS_PER_ACCOUNT="6") as started:
        yield started


def peak(server: ImapServerProcess) -> int:
    """The most octets of memory that the process has had since ``forget_peak``."""
    status = Path(f"/proc/{server.process.pid}/status").read_text(encoding="ascii")
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    assert found is not None
    return int(found[1]) * 1024


def forget_peak(server: ImapServerProcess) -> int:
    """Reset the peak (a login's argon2 is one) and return the octets of memory that the process has now."""
    Path(f"/proc/{server.process.pid}/clear_refs").write_text("5", encoding="ascii")
    return peak(server)


async def test_what_arrives_in_clear_behind_starttls_is_dropped(server: ImapServerProcess) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", server.clear)
    assert b"STARTTLS" in await reader.readline()
    # when a command is injected behind STARTTLS
    writer.write(b"a STARTTLS\r\nb LOGIN alex@local.com x\r\n")
    assert (await reader.readline()).startswith(b"a OK")
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    await writer.start_tls(context)
    # then the first answer is that to the first command under TLS
    writer.write(b'c LOGIN alex@local.com "%b"\r\n' % PASSWORD.encode())
    assert (await reader.readline()).startswith(b"c OK [CAPABILITY IMAP4rev1")
    writer.write(b"d LOGOUT\r\n")
    assert (await reader.read()).startswith(b"* BYE")
    writer.close()


async def test_an_account_has_a_limited_number_of_sessions(server: ImapServerProcess) -> None:
    for _ in range(6):
        await server.login()
    client = await server.connect()
    answer = await client.refused(b'LOGIN alex@local.com "%b"' % PASSWORD.encode())
    assert answer.startswith(b"NO [LIMIT]")
    assert await client.reader.read() == b"* BYE too many sessions of this account\r\n"


async def test_a_large_mail_comes_and_goes_in_little_memory(server: ImapServerProcess) -> None:
    client = await server.login()
    mail = b"Subject: large\r\n\r\n" + b"0123456789abcdef" * (3 * MIB)
    before = forget_peak(server)
    assert (await client.append(mail)).startswith(b"OK [APPENDUID")
    assert await client.ok(b"NOOP") == []
    assert peak(server) - before < 16 * MIB
    [fetched] = await client.ok(b"UID FETCH 2 BODY.PEEK[]")
    assert fetched == b"* 2 FETCH (UID 2 BODY[] {%d}\r\n%b)" % (len(mail), mail)
    assert peak(server) - before < 16 * MIB


async def test_a_hundred_thousand_mails_are_listed_in_little_memory(server: ImapServerProcess) -> None:
    async with server.database.transaction() as connection:
        await connection.execute("delete from folder_mails")
        await connection.execute(
            """with m as (insert into blobs (octets, sha256, head)
                          select 4, ''::bytea, 'x'::bytea from generate_series(1, 100000) returning id)
               insert into folder_mails (folder_id, uid, mail_id, blob_id, octets, version)
               select f.id, row_number() over (order by m.id), nextval('mail_ids'), m.id, 4, 1000 from m, folders f
               where f.local_id = %s and special_use = 'inbox'""",
            (server.alex.id,),
        )
        await connection.execute(
            "update folders set version = 1000, uidnext = 100001 where local_id = %s and special_use = 'inbox'",
            (server.alex.id,),
        )
    client = await server.login(user="jim")  # the first login costs memory
    before = forget_peak(server)
    client = await server.login(None, "QRESYNC")
    shown = b" ".join(await client.ok(b"SELECT INBOX"))
    assert b"* 100000 EXISTS" in shown
    validity = re.search(rb"UIDVALIDITY (\d+)", shown)
    assert validity is not None
    assert len(await client.ok(b"FETCH 1:* (UID FLAGS RFC822.SIZE INTERNALDATE)")) == 100_000
    [found] = await client.ok(b"UID SEARCH NOT DELETED")
    assert found.count(b" ") == 100_001
    # further sessions share the state, and a poll with nothing new sends nothing
    for _ in range(5):
        other = await server.login(None, "QRESYNC")
        answers = await other.ok(b"SELECT INBOX (QRESYNC (%b 1000))" % validity[1])
        assert not any(b"FETCH" in line or b"VANISHED" in line for line in answers)
    assert peak(server) - before < 64 * MIB


async def test_clients_that_do_not_read_hold_little_memory(server: ImapServerProcess) -> None:
    first = await server.login()
    mail = b"Subject: large\r\n\r\n" + b"0123456789abcdef" * (MIB // 2)
    assert (await first.append(mail)).startswith(b"OK")
    clients = [first, *[await server.login() for _ in range(5)]]
    before = forget_peak(server)
    # when they ask for 8 MiB each, ten times, and read nothing
    for client in clients:
        client.reader._limit = 16 * 1024  # type: ignore[attr-defined]  # or else the client takes what is there
        for _ in range(10):
            client.start(b"UID FETCH 2 BODY.PEEK[]")
    other = await server.login(user="jim")
    for _ in range(20):
        await other.ok(b"NOOP")
    # then others are served, and the process has little of these mails
    assert peak(server) - before < 64 * MIB


async def test_a_database_that_refuses_changes_is_a_temporary_failure(
    server: ImapServerProcess, database: Database
) -> None:
    client = await server.login()
    await make_read_only(database, True)
    for command in (b"STORE 1 +FLAGS (\\Seen)", b"CREATE More", b"COPY 1 Archive", b"FETCH 1 BODY[]"):
        assert (await client.refused(command)).startswith(b"NO [UNAVAILABLE]")
    assert (await client.append(ONE)).startswith(b"NO [UNAVAILABLE]")
    assert await client.ok(b"FETCH 1 (FLAGS BODY.PEEK[TEXT])") == [b"* 1 FETCH (FLAGS () BODY[TEXT] {7}\r\nHello\r\n)"]
    await make_read_only(database, False)

    async def is_stored() -> bool:  # some of the service's connections are broken
        return (await client.run(b"STORE 1 +FLAGS (\\Seen)"))[1].startswith(b"OK")

    await until(is_stored)
    assert await client.ok(b"FETCH 1 FLAGS") == [b"* 1 FETCH (FLAGS (\\Seen))"]
