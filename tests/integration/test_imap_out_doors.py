"""services/imap_out as a process: logins, limits of connections, certificates, and a database that is away.

The code is shared with the other services of mail clients, whose tests have more cases; here each promise holds by
IMAP, too.
"""

from __future__ import annotations

import asyncio
import base64
import os
import shutil
import signal
import ssl
import sys
import time
import urllib.request
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import psycopg
import pytest

from deploy.machine import ports
from shared.auth.passwords import hash_password
from shared.db.database import Database
from shared.net import server_tls
from shared.provider.vault import new_key
from shared.settings import SERVICES, load
from shared.store import account_changes
from tests.imap_clients import PASSWORD, ImapClient, ImapServerProcess, imap_server
from tests.polling import until

ONE = b"Subject: one\r\n\r\nHello\r\n"
TWO = b"Subject: two\r\n\r\nagain\r\n"


@pytest.fixture
async def server(database_url: str, database: Database, tmp_path: Path) -> AsyncIterator[ImapServerProcess]:
    """The service on a fresh database, with a mail in INBOX of alex; without a broker."""
    async with imap_server(database_url, database, tmp_path, [ONE], MAX_CONNECTIONS_PER_ADDRESS="8") as started:
        yield started


async def metric(server: ImapServerProcess, name: str) -> float:
    def read() -> float:
        with urllib.request.urlopen(f"http://127.0.0.1:{server.metrics}/metrics", timeout=30) as answer:
            lines = answer.read().decode().splitlines()
        [line] = [line for line in lines if line.startswith(f"{name} ")]
        return float(line.split()[-1])

    return await asyncio.to_thread(read)


async def connect(server: ImapServerProcess, source: str = "127.0.0.1", tls: bool = False) -> ImapClient:
    """A connection from an address of this machine, before its greeting."""
    context = None
    if tls:
        context = ssl.create_default_context()
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    client = ImapClient(
        *await asyncio.open_connection(
            "127.0.0.1", server.implicit if tls else server.clear, local_addr=(source, 0), ssl=context
        )
    )
    server.clients.append(client)
    return client


# ---------------------------------------------------------------------------------------------- logins


async def test_guesses_are_counted_and_passwords_are_in_no_log(server: ImapServerProcess) -> None:
    client = await server.connect()
    response = base64.b64encode(b"\0alex@local.com\0wr ong")
    for guess in (b'LOGIN alex@local.com "wr ong"', b"AUTHENTICATE PLAIN " + response):
        assert b"[AUTHENTICATIONFAILED]" in await client.refused(guess)
    await server.login()
    assert await metric(server, 'mailgroup_logins_total{result="refused",service="imap_out"}') == 2
    assert await metric(server, 'mailgroup_logins_total{result="ok",service="imap_out"}') == 1
    assert await metric(server, "mailgroup_imap_sessions") == 2
    assert await metric(server, "mailgroup_tls_certificate_expiry_timestamp_seconds") > time.time()
    for each in server.clients:
        await each.ok(b"LOGOUT")

    async def has_none() -> bool:
        return await metric(server, "mailgroup_imap_sessions") == 0

    await until(has_none)
    log = server.log.read_text(encoding="utf-8")
    assert '"local": "alex@local.com"' in log
    assert PASSWORD not in log and "wr ong" not in log and response.decode() not in log


async def test_guesses_from_a_hundred_addresses_delay_no_later_client(server: ImapServerProcess) -> None:
    async def log_in(source: str, user: str, password: str) -> bytes:
        client = await connect(server, source)
        await client.response()
        return (await client.run(f'LOGIN {user}@local.com "{password}"'.encode()))[1]

    # given a crowd that was never seen, and the first of them have been answered
    crowd = [asyncio.create_task(log_in(f"127.3.{number}.1", f"user{number}", "guess")) for number in range(100)]
    await asyncio.wait(crowd, return_when=asyncio.FIRST_COMPLETED)
    # when another unknown client logs in
    assert (await log_in("127.4.0.1", "alex", PASSWORD)).startswith(b"OK")
    # then most of the crowd wait still, and are answered as well
    assert sum(not guess.done() for guess in crowd) > 50
    assert all(answer.startswith(b"NO [AUTHENTICATIONFAILED]") for answer in await asyncio.gather(*crowd))


@pytest.mark.parametrize("what", ["removed", "password"])
async def test_sessions_of_a_changed_account_end_also_in_idle(server: ImapServerProcess, what: str) -> None:
    alex, other = await server.login(), await server.login(user="jim")
    await alex.idle()
    async with server.database.transaction() as connection:
        if what == "removed":
            await account_changes.remove_account(connection, "local", server.alex.id)
        else:
            changed = replace(server.alex, password_hash=hash_password("other"))
            await account_changes.save_local(connection, changed)
    assert await alex.reader.read() == b"* BYE the account was changed, log in again\r\n"
    # and the remembered login is not valid any more, and the other session continues
    again = await server.connect()
    assert b"[AUTHENTICATIONFAILED]" in await again.refused(b'LOGIN alex@local.com "%b"' % PASSWORD.encode())
    await other.ok(b"NOOP")


# ---------------------------------------------------------------------------------------------- connections


@pytest.mark.parametrize("tls", [False, True], ids=["clear", "tls"])
async def test_too_many_connections_of_an_address_are_refused(server: ImapServerProcess, tls: bool) -> None:
    source = "127.9.0.1"
    admitted = [await connect(server, source, tls) for _ in range(8)]
    for client in admitted:
        assert (await client.response()).startswith(b"* OK [CAPABILITY ")
    if tls:
        with pytest.raises((ConnectionError, OSError)):
            await connect(server, source, tls)
    else:
        ninth = await connect(server, source)
        assert await ninth.response() == b"* BYE [UNAVAILABLE] too many connections"
    # another address is served, and this one when a client has left
    assert (await (await connect(server, tls=tls)).response()).startswith(b"* OK ")
    await admitted[0].close()

    async def is_served() -> bool:
        try:
            return (await (await connect(server, source, tls)).response()).startswith(b"* OK ")
        except (ConnectionError, OSError, EOFError):
            return False

    await until(is_served)


async def test_a_renewed_certificate_is_for_new_connections(
    database_url: str, database: Database, tmp_path: Path
) -> None:
    made = [server_tls.self_signed_file(load(data=tmp_path / name)) for name in ("a", "b")]
    file = tmp_path / "certificate.pem"
    shutil.copy(made[0], file)
    async with imap_server(database_url, database, tmp_path, [ONE], TLS_CERT_FILE=str(file)) as server:

        def shows(pem: Path) -> bool:
            try:
                ssl.get_server_certificate(("127.0.0.1", server.implicit), ca_certs=str(pem))
            except ssl.SSLError:
                return False
            return True

        assert await asyncio.to_thread(shows, made[0])
        before = await connect(server, tls=True)
        await before.response()
        shutil.copy(made[1], tmp_path / "new")
        (tmp_path / "new").replace(file)

        async def is_renewed() -> bool:
            return await asyncio.to_thread(shows, made[1])

        await until(is_renewed)
        # STARTTLS shows it, too, and the session of before goes on
        assert not await asyncio.to_thread(shows, made[0])
        after = await server.connect()
        await after.ok(b"STARTTLS")
        context = ssl.create_default_context(cafile=made[1])
        context.check_hostname = False
        await after.writer.start_tls(context)
        await after.ok(b'LOGIN alex@local.com "%b"' % PASSWORD.encode())
        await before.ok(b"NOOP")


async def test_a_port_that_is_in_use_is_named(server: ImapServerProcess, database_url: str, tmp_path: Path) -> None:
    free, metrics = ports.choose(2, "taken")
    environment = os.environ | {
        "MAILGROUP_DATA": str(tmp_path),
        "MAILGROUP_DATABASE_URL": database_url,
        "MAILGROUP_BROKER_URL": "amqp://127.0.0.1:1/",
        "MAILGROUP_SECRET_KEY": new_key(),
        "MAILGROUP_IMAP_PORT": str(server.clear),
        "MAILGROUP_IMAPS_PORT": str(free),
        "MAILGROUP_METRICS_PORT": str(metrics - SERVICES.index("imap_out")),
    }
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "services.imap_out", env=environment, stderr=asyncio.subprocess.PIPE
    )
    _, errors = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode not in {0, None}
    assert f"MAILGROUP_IMAP_PORT: {server.clear}: cannot listen" in errors.decode()


# ---------------------------------------------------------------------------------------------- failures


async def test_without_the_database_sessions_get_temporary_errors_and_go_on(
    server: ImapServerProcess, database_url: str
) -> None:
    client = await server.login()
    idling = await server.login()
    tag = await idling.idle()
    name = psycopg.conninfo.conninfo_to_dict(database_url)["dbname"]
    assert isinstance(name, str)
    administrator = psycopg.conninfo.make_conninfo(database_url, dbname="postgres")
    async with await psycopg.AsyncConnection.connect(administrator, autocommit=True) as connection:
        await connection.execute(f'alter database "{name}" allow_connections false'.encode())
        await connection.execute(
            """select pg_terminate_backend(pid) from pg_stat_activity
               where usename = current_user and pid <> pg_backend_pid() and datname = %s""",
            (name,),
        )
        try:
            # what needs it fails for now, the rest works
            for command in (b"FETCH 1 BODY[]", b"STORE 1 +FLAGS (\\Seen)", b"EXAMINE Sent", b'LIST "" *'):
                assert (await client.refused(command)).startswith(b"NO [UNAVAILABLE]")
            await client.ok(b"CAPABILITY")
            other = await server.connect()
            assert b"[UNAVAILABLE]" in await other.refused(b'LOGIN jim@local.com "%b"' % PASSWORD.encode())
        finally:
            await connection.execute(f'alter database "{name}" allow_connections true'.encode())

    async def is_selected() -> bool:
        return (await client.run(b"SELECT INBOX"))[1].startswith(b"OK")

    await until(is_selected)
    assert await client.ok(b"FETCH 1 (FLAGS BODY.PEEK[])") == [
        b"* 1 FETCH (FLAGS () BODY[] {%d}\r\n%b)" % (len(ONE), ONE)
    ]

    async def is_stored() -> bool:
        return (await client.run(b"STORE 1 +FLAGS.SILENT (\\Seen)"))[1].startswith(b"OK")

    await until(is_stored)
    # a session in IDLE has lasted, and hears of it
    assert await idling.response() == b"* 1 FETCH (FLAGS (\\Seen))"
    idling.send(b"DONE\r\n")
    assert (await idling.finish(tag))[1].startswith(b"OK")


async def test_what_was_answered_outlives_a_killed_service(server: ImapServerProcess) -> None:
    client = await server.login()
    await client.ok(b"STORE 1 +FLAGS.SILENT (\\Flagged Own)")
    assert b"APPENDUID" in await client.append(TWO, b"INBOX (\\Seen)")
    shown = await client.ok(b"SELECT INBOX")
    # when it is killed while a client stores
    client.start(b"STORE 2 +FLAGS.SILENT (\\Answered)")
    server.process.send_signal(signal.SIGKILL)
    await server.process.wait()
    async with server.database.statement() as connection:
        cursor = await connection.execute(
            """select r.uid, r.flags & ~2, r.keywords, f.uidvalidity, f.uidnext from folder_mails r
               join folders f on f.id = r.folder_id where f.local_id = %s order by r.uid""",
            (server.alex.id,),
        )
        rows = await cursor.fetchall()
    validity = next(int(line.split()[3].rstrip(b"]")) for line in shown if b"UIDVALIDITY" in line)
    assert rows == [(1, 4, ["Own"], validity, 3), (2, 1, None, validity, 3)]
