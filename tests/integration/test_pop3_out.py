"""services/pop3_out as a process on a real PostgreSQL, read by poplib, curl and fetchmail."""

from __future__ import annotations

import asyncio
import hashlib
import os
import poplib
import random
import re
import signal
import socket
import ssl
import sys
import time
import urllib.request
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psycopg
import pytest

from deploy.machine import ports
from shared.amqp.broker import Broker
from shared.amqp.payloads import ChangedItem, read_payload
from shared.amqp.topology import CHANGED
from shared.auth.passwords import hash_password
from shared.db.database import Database
from shared.model import Local
from shared.provider.vault import new_key
from shared.settings import SERVICES
from shared.store import account_changes
from tests.integration.test_folder_mails import add_mails, add_people
from tests.polling import until

PASSWORD = "se cret"
OFFSET = SERVICES.index("pop3_out")
MAILS = (
    b"From: a@example.net\r\nTo: support@company.com\r\nSubject: dots\r\n\r\n.\r\n..\r\n.x\r\n\r\nend\r\n",
    b"From: b@example.net\r\nTo: support@company.com\r\nSubject: \xc3\xa4\r\n\r\n8 bit \xff\xfe, a lone CR \r here\r\n",
    b"From: c@example.net\r\nTo: support@company.com\r\nSubject: large\r\n\r\n" + b".long line %70d\r\n" % 7 * 9_000,
    b"From: d@example.net\r\nTo: support@company.com\r\nSubject: last\r\n\r\nlast\r\n",
)
TLS_MODES = pytest.mark.parametrize("tls", ["none", "starttls", "implicit"])


@dataclass
class Running:
    """The service, started. alex, jim: accounts with PASSWORD; the mailbox of alex holds MAILS."""

    process: asyncio.subprocess.Process
    log: Path
    clear: int
    implicit: int
    metrics: int
    database: Database
    alex: Local
    jim: Local

    def login(self, tls: str = "none", user: str = "alex@local.com", password: str = PASSWORD) -> poplib.POP3:
        """A session by poplib. Blocks: call it by ``asyncio.to_thread``."""
        context = ssl.create_default_context()
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        client: poplib.POP3 = (
            poplib.POP3_SSL("127.0.0.1", self.implicit, timeout=20, context=context)
            if tls == "implicit"
            else poplib.POP3("127.0.0.1", self.clear, timeout=20)
        )
        if tls == "starttls":
            client.stls(context)
        client.user(user)
        client.pass_(password)
        return client

    async def left(self) -> int:
        """Count the mails of alex, in a separate session."""

        def count() -> int:
            client = self.login()
            mails = client.stat()[0]
            client.quit()
            return int(mails)

        return await asyncio.to_thread(count)

    def forget_peak(self) -> int:
        """Reset the peak memory (a login's argon2 is one) and return the octets of memory that the process has now."""
        Path(f"/proc/{self.process.pid}/clear_refs").write_text("5", encoding="ascii")
        return self.peak()

    def peak(self) -> int:
        """The most octets of memory that the process has had."""
        status = Path(f"/proc/{self.process.pid}/status").read_text(encoding="ascii")
        found = re.search(r"VmHWM:\s+(\d+) kB", status)
        assert found is not None
        return int(found[1]) * 1024


@asynccontextmanager
async def running(database_url: str, database: Database, folder: Path, **settings: str) -> AsyncIterator[Running]:
    """The service as a process, without a broker, which it does not need."""
    people = await add_people(database, "alex", "jim", password_hash=hash_password(PASSWORD))
    await add_mails(database, people["alex"], *MAILS)
    clear, implicit, metrics = ports.choose(3, str(folder))
    log = folder / "log"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MAILGROUP_")} | {
        "MAILGROUP_DATA": str(folder),
        "MAILGROUP_DATABASE_URL": database_url,
        "MAILGROUP_BROKER_URL": "amqp://127.0.0.1:1/",
        "MAILGROUP_SECRET_KEY": new_key(),
        "MAILGROUP_POP3_PORT": str(clear),
        "MAILGROUP_POP3S_PORT": str(implicit),
        "MAILGROUP_METRICS_PORT": str(metrics - OFFSET),
    }
    environment |= {f"MAILGROUP_{name}": value for name, value in settings.items()}
    with log.open("wb") as file:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "services.pop3_out", env=environment, stderr=file, stdout=file
        )
    try:
        await until(lambda: listens(clear) and listens(implicit), 20)
        yield Running(process, log, clear, implicit, metrics, database, people["alex"], people["jim"])
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
        print(log.read_text(encoding="utf-8"))  # pytest shows it if the test failed


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture
async def server(database_url: str, database: Database, tmp_path: Path) -> AsyncIterator[Running]:
    """The service on a fresh database."""
    async with running(database_url, database, tmp_path) as started:
        yield started


async def call(*words: str) -> tuple[int, bytes, str]:
    """Run a program; its exit status, standard output and standard error."""
    process = await asyncio.create_subprocess_exec(
        *words, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    out, errors = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode is not None
    return process.returncode, out, errors.decode()


def joined(lines: list[bytes]) -> bytes:
    return b"".join(line + b"\r\n" for line in lines)


@TLS_MODES
async def test_poplib_reads_every_mail_byte_for_byte(server: Running, tls: str) -> None:
    def session() -> None:
        client = server.login(tls)
        assert client.stat() == (4, sum(map(len, MAILS)))
        _, listed, _ = client.list()
        assert listed == [b"%d %d" % (number, len(body)) for number, body in enumerate(MAILS, 1)]
        names = [line.split()[1] for line in client.uidl()[1]]
        assert len(set(names)) == 4
        for number, body in enumerate(MAILS, 1):
            assert joined(client.retr(number)[1]) == body
            assert joined(client.top(number, 0)[1]) == body[: body.index(b"\r\n\r\n") + 4]
        client.quit()

    await asyncio.to_thread(session)


async def test_curl_reads_over_every_kind_of_connection(server: Running) -> None:
    address = f"127.0.0.1:{server.clear}"
    for words in (
        [f"pop3://{address}/2"],
        [f"pop3://{address}/2", "--ssl-reqd", "-k"],
        [f"pop3s://127.0.0.1:{server.implicit}/2", "-k"],
        [f"pop3://{address}/2", "--login-options", "AUTH=PLAIN"],
        [f"pop3://{address}/2", "--login-options", "AUTH=PLAIN", "--sasl-ir"],
    ):
        status, out, errors = await call("curl", "-sS", "-u", f"alex@local.com:{PASSWORD}", *words)
        assert status == 0, errors
        assert out == MAILS[1], words
    status, out, _ = await call("curl", "-sS", "-u", f"alex@local.com:{PASSWORD}", f"pop3://{address}/")
    assert out == b"".join(b"%d %d\r\n" % (number, len(body)) for number, body in enumerate(MAILS, 1))
    status, _, errors = await call("curl", "-sS", "-u", "alex@local.com:wrong", f"pop3://{address}/")
    assert status == 67, errors  # curl's word for a refused login


@pytest.mark.parametrize("options", ["sslproto ''", "sslproto 'TLS1.2+'", "ssl"])
@pytest.mark.parametrize("keep", [False, True], ids=["fetch", "keep"])
async def test_fetchmail_fetches_everything_once(server: Running, tmp_path: Path, options: str, keep: bool) -> None:
    # given a fetchmail that hands each mail to a program, which writes it down
    folder = tmp_path / "fetchmail"
    folder.mkdir()
    (folder / "got").mkdir()
    (folder / "store").write_text('#!/bin/sh\nexec cat > "$(mktemp "$1/XXXXXX")"\n')
    (folder / "store").chmod(0o755)
    control = folder / "rc"
    port = server.implicit if options == "ssl" else server.clear
    control.write_text(
        f"poll 127.0.0.1 protocol pop3 port {port} uidl\n"
        f'  user "alex@local.com" password "{PASSWORD}" {options} {"keep" if keep else "nokeep"}\n'
        f'  mda "{folder}/store {folder}/got"\n'
    )
    control.chmod(0o700)
    fetchmail = (
        "fetchmail",
        "-f",
        str(control),
        "-i",
        str(folder / "ids"),
        "--nosyslog",
        "--nosslcertck",
        "--pidfile",
        str(folder / "pid"),
    )
    # when it runs twice
    status, out, errors = await call(*fetchmail)
    assert status == 0, out.decode() + errors
    status, out, errors = await call(*fetchmail)
    assert status == 1, out.decode() + errors  # no new mail
    # then each mail was fetched once
    subjects = sorted(
        re.findall(rb"^Subject: .*$", path.read_bytes(), re.MULTILINE)[0].strip() for path in (folder / "got").iterdir()
    )
    assert subjects == [b"Subject: dots", b"Subject: large", b"Subject: last", b"Subject: \xc3\xa4"]
    assert await server.left() == (4 if keep else 0)


async def test_a_session_keeps_its_numbers_while_the_mailbox_changes(server: Running) -> None:
    def first() -> poplib.POP3:
        client = server.login()
        client.dele(2)
        return client

    def second() -> None:
        client = server.login()
        client.dele(1)
        client.dele(2)
        client.quit()

    # given a session that marked a mail
    earlier = await asyncio.to_thread(first)
    # when another session deletes that mail and one more, and new mail arrives
    await asyncio.to_thread(second)
    await add_mails(server.database, server.alex, b"Subject: new\r\n\r\n")

    def rest() -> None:
        # then nothing changed in the first
        assert earlier.stat() == (3, sum(map(len, MAILS)) - len(MAILS[1]))
        assert joined(earlier.retr(1)[1]) == MAILS[0]
        assert joined(earlier.retr(4)[1]) == MAILS[3]
        # and deleting a deleted mail is no error
        assert earlier.quit().startswith(b"+OK")
        later = server.login()
        assert [line.split()[1] for line in later.list()[1]] == [
            b"%d" % len(body) for body in (MAILS[2], MAILS[3], b"Subject: new\r\n\r\n")
        ]
        later.quit()

    await asyncio.to_thread(rest)


async def test_a_session_that_is_cut_deletes_nothing(server: Running) -> None:
    def cut() -> None:
        client = server.login()
        for number in range(1, 5):
            client.dele(number)
        assert client.sock is not None
        client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # a reset, not an end
        client.sock.close()

    await asyncio.to_thread(cut)
    await asyncio.sleep(0.3)
    assert await server.left() == 4


async def test_a_deletion_is_announced_to_the_other_programs(
    database_url: str, database: Database, broker_url: str, tmp_path: Path
) -> None:
    hints: list[bytes] = []
    broker = Broker(broker_url, "test")
    broker.listen(f"{CHANGED}.#", hints.append)
    await broker.open()
    try:
        async with running(database_url, database, tmp_path, BROKER_URL=broker_url) as server:
            await until(lambda: "broker connected" in server.log.read_text(encoding="utf-8"), 60)
            await broker.wait_until_ready(60)

            def delete() -> None:
                client = server.login()
                client.dele(2)
                client.quit()

            await asyncio.to_thread(delete)
            await until(lambda: bool(hints), 60)
            assert read_payload(ChangedItem, hints[0]).ids == (server.alex.id,)
    finally:
        await broker.close()


@pytest.mark.parametrize("what", ["disabled", "removed", "password"])
async def test_open_sessions_of_a_changed_account_end_soon(server: Running, what: str) -> None:
    # given sessions of alex and of jim; alex has marked a mail
    alex = await asyncio.to_thread(server.login)
    jim = await asyncio.to_thread(server.login, "implicit", "jim@local.com")
    await asyncio.to_thread(alex.dele, 1)
    # when the account of alex changes
    async with server.database.transaction() as connection:
        if what == "removed":
            await account_changes.remove_account(connection, "local", server.alex.id)
        else:
            await account_changes.save_local(
                connection,
                replace(
                    server.alex,
                    enabled=what != "disabled",
                    password_hash=hash_password("other") if what == "password" else server.alex.password_hash,
                ),
            )
    changed = time.monotonic()

    # then that session ends
    def wait() -> None:
        assert alex.sock is not None
        with suppress(ConnectionResetError):
            assert alex.sock.recv(1) == b""

    await asyncio.to_thread(wait)
    assert time.monotonic() - changed < 120  # an idle session would last for ten minutes
    # and the remembered login is not valid any more, and the other session continues
    with pytest.raises(poplib.error_proto, match=r"-ERR \[AUTH\]"):
        await asyncio.to_thread(server.login)
    assert (await asyncio.to_thread(jim.noop)).startswith(b"+OK")
    async with server.database.transaction() as connection:
        cursor = await connection.execute("select count(*) from folder_mails where expunged_at is not null")
        assert await cursor.fetchone() == (0,)


async def test_without_the_database_sessions_get_temporary_errors_and_continue(
    server: Running, database_url: str
) -> None:
    # given a session that marked a mail
    client = await asyncio.to_thread(server.login)
    await asyncio.to_thread(client.dele, 1)
    name = psycopg.conninfo.conninfo_to_dict(database_url)["dbname"]
    assert isinstance(name, str)
    administrator = psycopg.conninfo.make_conninfo(database_url, dbname="postgres")
    async with await psycopg.AsyncConnection.connect(administrator, autocommit=True) as connection:
        # when the database accepts no connection
        await connection.execute(f'alter database "{name}" allow_connections false'.encode())
        await connection.execute(
            """select pg_terminate_backend(pid) from pg_stat_activity
               where usename = current_user and pid <> pg_backend_pid() and datname = %s""",
            (name,),
        )
        try:
            # then commands that need it fail for now, the others work
            with pytest.raises(poplib.error_proto, match=r"-ERR \[SYS/TEMP\]"):
                await asyncio.to_thread(client.retr, 2)
            assert (await asyncio.to_thread(client.stat))[0] == 3
            other = poplib.POP3("127.0.0.1", server.clear, timeout=30)
            other.user("alex@local.com")
            with pytest.raises(poplib.error_proto, match=r"-ERR \[SYS/TEMP\]"):
                await asyncio.to_thread(other.pass_, PASSWORD)
            other.close()
            # and QUIT says that nothing was deleted
            doomed = client
        finally:
            await connection.execute(f'alter database "{name}" allow_connections true'.encode())

    # when it is available again, then the same session continues
    def rest() -> None:
        assert joined(retry(lambda: doomed.retr(2)[1])) == MAILS[1]
        assert doomed.quit().startswith(b"+OK")

    await asyncio.to_thread(rest)
    assert await server.left() == 3


def retry(work: Callable[[], Any], seconds: float = 20.0) -> Any:
    """The first result that is no error."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            return work()
        except poplib.error_proto:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
async def test_a_service_that_ends_deletes_nothing_unasked(server: Running, how: signal.Signals) -> None:
    # given a session with marked mails
    client = await asyncio.to_thread(server.login)
    await asyncio.to_thread(client.dele, 1)
    # when the service is stopped or killed
    server.process.send_signal(how)
    status = await asyncio.wait_for(server.process.wait(), 10)
    # then
    assert status == (0 if how == signal.SIGTERM else -signal.SIGKILL)
    assert not listens(server.clear)
    async with server.database.transaction() as connection:
        cursor = await connection.execute("select count(*) from folder_mails where expunged_at is not null")
        assert await cursor.fetchone() == (0,)


@pytest.mark.parametrize("tls", ["none", "implicit"])
async def test_a_mail_of_50_megabytes_is_streamed_in_bounded_memory(server: Running, tls: str) -> None:
    # given a mail of 50 MB, and a service that has served a small one
    block = random.Random(7).randbytes(30_000).hex().encode()
    line = b"".join(b".%b\r\n" % block[start : start + 75] for start in range(0, 60_000, 75))
    body = b"Subject: very large\r\n\r\n" + line * (50 * 1024 * 1024 // len(line))
    await add_mails(server.database, server.alex, body)

    def session() -> tuple[str, int]:
        client = server.login(tls)
        client.retr(1)
        before = server.forget_peak()
        digest = hashlib.sha256()
        assert client.sock is not None
        client.sock.sendall(b"RETR 5\r\n")
        with client.sock.makefile("rb") as stream:
            assert stream.readline() == b"+OK %d octets\r\n" % len(body)
            while (got := stream.readline()) != b".\r\n":
                digest.update(got.removeprefix(b"."))
        return digest.hexdigest(), server.peak() - before

    # when it is read, then it arrives byte for byte
    digest, growth = await asyncio.to_thread(session)
    assert digest == hashlib.sha256(body).hexdigest()
    # and the peak memory grew by less than 16 MiB
    assert growth < 16 * 1024 * 1024, growth


async def test_a_hundred_thousand_unchanged_mails_are_listed_without_a_scan(server: Running, database_url: str) -> None:
    # given a mailbox of 100,000 mails, which a session has seen
    async with server.database.transaction() as connection:
        await connection.execute("delete from folder_mails")
        await connection.execute(
            """with m as (insert into blobs (octets, sha256, head)
                          select 4, ''::bytea, 'x'::bytea from generate_series(1, 100000) returning id),
                    i as (insert into inbound (source, blob_id, state)
                          select 'local', id, 'delivered' from m returning id, blob_id)
               insert into folder_mails (folder_id, uid, mail_id, blob_id, octets, version)
               select f.id, row_number() over (order by i.id), i.id, blob_id, 4, 1000 from i, folders f
               where f.local_id = %s and special_use = 'inbox'""",
            (server.alex.id,),
        )
        await connection.execute(
            "update folders set version = 1000, uidnext = 100001 where local_id = %s", (server.alex.id,)
        )

    def session() -> None:
        client = server.login()
        assert client.stat() == (100_000, 400_000)
        assert client.sock is not None
        for command in (b"UIDL\r\n", b"LIST\r\n"):  # poplib itself is slow with so many lines
            client.sock.sendall(command)
            got = bytearray()
            while not got.endswith(b"\r\n.\r\n"):
                got += client.sock.recv(1 << 20)
            assert got.count(b"\r\n") == 100_002
        client.quit()

    async def touched() -> int:
        """Rows of mailboxes that PostgreSQL has looked at so far, by scans and by indexes."""
        async with await psycopg.AsyncConnection.connect(database_url, autocommit=True) as connection:
            await connection.execute("select pg_sleep(11)")  # an idle connection hands its figures in after 10 s
            cursor = await connection.execute(
                "select seq_tup_read + coalesce(idx_tup_fetch, 0) from pg_stat_user_tables where relname = %s",
                ("folder_mails",),
            )
            row = await cursor.fetchone()
            assert row is not None
            return int(row[0])

    await asyncio.to_thread(session)
    before = await touched()
    assert before >= 100_000
    # when other sessions list it again
    for _ in range(5):
        await asyncio.to_thread(session)
    # then not one row is read for them
    assert await touched() == before
    # and one new mail costs one row
    await add_mails(server.database, server.alex, b"new\r\n")
    between = await touched()
    client = await asyncio.to_thread(server.login)
    assert (await asyncio.to_thread(client.stat))[0] == 100_001
    assert await touched() - between <= 10


async def test_without_tls_passwords_are_refused_where_settings_forbid_them(
    database_url: str, database: Database, tmp_path: Path
) -> None:
    async with running(database_url, database, tmp_path, ALLOW_PLAINTEXT_AUTH="no") as server:
        with pytest.raises(poplib.error_proto, match="under TLS only"):
            await asyncio.to_thread(server.login)
        for tls in ("starttls", "implicit"):
            client = await asyncio.to_thread(server.login, tls)
            assert (await asyncio.to_thread(client.stat))[0] == 4
            client.close()


async def test_guessing_ends_the_connection_and_is_counted(server: Running) -> None:
    def guess() -> None:
        client = poplib.POP3("127.0.0.1", server.clear, timeout=30)
        for _ in range(3):
            client.user("alex@local.com")
            with pytest.raises(poplib.error_proto, match=r"-ERR \[AUTH\]"):
                client.pass_("wrong")
        assert client.sock is not None
        assert client.sock.recv(1) == b""

    await asyncio.to_thread(guess)
    assert await asyncio.to_thread(metric, server, 'mailgroup_logins_total{result="refused",service="pop3_out"}') == 3


async def test_open_sessions_are_a_metric_and_passwords_are_in_no_log(server: Running) -> None:
    clients = [await asyncio.to_thread(server.login, tls) for tls in ("none", "starttls", "implicit")]
    assert await asyncio.to_thread(metric, server, "mailgroup_pop3_sessions") == 3
    assert await asyncio.to_thread(metric, server, "mailgroup_tls_certificate_expiry_timestamp_seconds") > time.time()
    assert await asyncio.to_thread(metric, server, "mailgroup_tls_certificate_refused") == 0
    for client in clients:
        await asyncio.to_thread(client.quit)
    await until(lambda: metric(server, "mailgroup_pop3_sessions") == 0)
    log = server.log.read_text(encoding="utf-8")
    assert '"local": "alex@local.com"' in log
    assert PASSWORD not in log


async def passes(server: Running, source: str, user: str, password: str) -> bytes:
    """The answer to a login from an address of this machine."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.clear, local_addr=(source, 0))
    writer.write(f"USER {user}\r\nPASS {password}\r\n".encode())
    answers = [await reader.readline() for _ in range(3)]
    writer.close()
    return answers[-1]


async def test_queued_guesses_from_a_hundred_addresses_delay_no_later_client(
    server: Running,
) -> None:
    # given a crowd that was never seen, and the first of them have been answered
    crowd = [
        asyncio.create_task(passes(server, f"127.3.{number}.1", f"user{number}@local.com", "guess"))
        for number in range(100)
    ]
    await asyncio.wait(crowd, return_when=asyncio.FIRST_COMPLETED)
    # when another unknown client logs in
    assert (await passes(server, "127.4.0.1", "alex@local.com", PASSWORD)).startswith(b"+OK")
    # then most of the crowd wait still, and are answered as well
    assert sum(not guess.done() for guess in crowd) > 50
    assert all(answer.startswith(b"-ERR [AUTH]") for answer in await asyncio.gather(*crowd))


def metric(server: Running, name: str) -> float:
    with urllib.request.urlopen(f"http://127.0.0.1:{server.metrics}/metrics", timeout=5) as answer:
        lines = answer.read().decode().splitlines()
    [line] = [line for line in lines if line.startswith(f"{name} ")]
    return float(line.split()[-1])


async def test_a_port_that_is_in_use_is_named(server: Running, database_url: str, tmp_path: Path) -> None:
    free, metrics = ports.choose(2, "taken")
    environment = os.environ | {
        "MAILGROUP_DATA": str(tmp_path),
        "MAILGROUP_DATABASE_URL": database_url,
        "MAILGROUP_BROKER_URL": "amqp://127.0.0.1:1/",
        "MAILGROUP_SECRET_KEY": new_key(),
        "MAILGROUP_POP3_PORT": str(server.clear),
        "MAILGROUP_POP3S_PORT": str(free),
        "MAILGROUP_METRICS_PORT": str(metrics - OFFSET),
    }
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "services.pop3_out", env=environment, stderr=asyncio.subprocess.PIPE
    )
    _, errors = await asyncio.wait_for(process.communicate(), 20)
    assert process.returncode not in {0, None}
    assert f"MAILGROUP_POP3_PORT: {server.clear}: cannot listen" in errors.decode()
