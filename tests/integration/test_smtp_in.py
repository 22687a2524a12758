"""services/smtp_in and shared/logins.py over real sockets, a real PostgreSQL and a real RabbitMQ."""

from __future__ import annotations

import asyncio
import base64
import os
import random
import re
import smtplib
import socket
import ssl
import sys
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from email.message import EmailMessage
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.errors import DiskFull

from deploy.machine import ports as free_ports
from services.smtp_in import engine
from services.smtp_in import listener as listening
from services.smtp_in import protocol as smtp_protocol
from services.smtp_in.intake import Handed, Intake, Taken
from services.smtp_in.listener import Listener, watch
from services.smtp_in.recipients import Directory
from shared import accounts, messages, submissions, tls, topology
from shared.accounts import External, Local, Server
from shared.broker import Broker
from shared.database import Connection, Database
from shared.envelopes import Submitted, read
from shared.logins import LOGINS, Logins
from shared.passwords import hash_password
from shared.settings import Settings, load

DIALOGUES = {
    path.stem: path.read_text().splitlines()
    for path in sorted((Path(__file__).parent.parent / "dialogues" / "smtp").glob("*.txt"))
}
SERVER = Server("mail.company.com", 25, "none")
SECRET = hash_password("secret")


def plain(address: str, password: str = "secret") -> str:
    """An AUTH PLAIN command."""
    return "AUTH PLAIN " + base64.b64encode(f"\0{address}\0{password}".encode()).decode()


async def add_office(database: Database) -> dict[str, int]:
    """The company: support@ shared by Alex, Jim, Away (disabled, Jim for him) and Gone (disabled). Ids by name."""
    async with database.transaction() as connection:
        ids = {}
        for name in ("support", "sales"):
            address = f"{name}@company.com"
            ids[name] = await accounts.save_external(
                connection,
                External(0, address, True, address, b"", SERVER, SERVER, True, 2, 60, "all", None, False, True, ()),
            )
        for name, enabled in (("alex", True), ("jim", True), ("away", False), ("gone", False)):
            ids[name] = await accounts.save_local(
                connection,
                Local(
                    0,
                    f"{name}@local.com",
                    enabled,
                    SECRET,
                    name.title(),
                    (),
                    (),
                    ids["support"],
                    ids["jim"] if name == "away" else None,
                ),
            )
    return ids


@dataclass
class Running:
    """A server in this process."""

    settings: Settings
    database: Database
    broker: Broker
    intake: Intake
    listener: Listener
    ids: dict[str, int]
    cafile: Path

    def port(self, name: str) -> int:
        """Of smtp, submission, smtps."""
        return int(getattr(self.settings, f"{name}_port"))

    async def stored(self) -> list[tuple[submissions.Listed, bytes]]:
        """All submissions with their bytes."""
        async with self.database.transaction() as connection:
            listed = await submissions.listing(connection, ["submitted"])
            cursor = await connection.execute("select id, message_id from submissions")
            message_ids = dict(await cursor.fetchall())
        return [
            (each, b"".join([part async for part in messages.stream(self.database, message_ids[each.id])]))
            for each in listed
        ]


def make_settings(folder: Path, **more: object) -> Settings:
    """Settings with ports that are free."""
    smtp, submission, smtps = free_ports.choose(3, str(folder))
    return load(data=folder, smtp_port=smtp, submission_port=submission, smtps_port=smtps, **more)


@asynccontextmanager
async def running(
    database: Database,
    broker_url: str,
    folder: Path,
    connections: int = 50,
    **more: object,
) -> AsyncIterator[Running]:
    """Start a server."""
    settings = make_settings(folder, **more)
    broker = Broker(broker_url, "test")
    await broker.open()
    for _ in range(1000):
        if broker.ready:
            break
        await asyncio.sleep(0.01)
    logins = Logins(database, settings, "smtp_in")
    intake = Intake(database, broker, settings.max_message_bytes)
    listener = Listener(settings, intake, logins, tls.Certificate(settings), connections)
    await listener.open()
    intake.start()
    yield Running(
        settings, database, broker, intake, listener, await add_office(database), tls.self_signed_file(settings)
    )
    await listener.close(1)
    await intake.stop()
    logins.close()
    await broker.close()


@pytest.fixture
async def server(database: Database, broker_url: str, tmp_path: Path) -> AsyncIterator[Running]:
    """A server with the settings of a first start."""
    async with running(database, broker_url, tmp_path) as started:
        yield started


class Client:
    """Speaks SMTP line by line."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    @classmethod
    async def connect(cls, port: int, source: str = "127.0.0.1", context: ssl.SSLContext | None = None) -> Client:
        """Connect, from this address, with TLS from the start if there is a context."""
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", port, local_addr=(source, 0), ssl=context, server_hostname="localhost" if context else None
        )
        return cls(reader, writer)

    @classmethod
    async def logged_in(cls, server: Running, who: str = "alex") -> Client:
        """Connect to SMTP_PORT and log in."""
        client = await cls.connect(server.port("smtp"))
        assert (await client.reply())[-1].startswith("220")
        await client.ask("EHLO client.example", plain(f"{who}@local.com"))
        return client

    async def reply(self) -> list[str]:
        """The lines of the next reply; none at the end of the connection."""
        lines: list[str] = []
        async with asyncio.timeout(30):
            while line := (await self.reader.readline()).decode():
                lines.append(line.rstrip("\r\n"))
                if line[3:4] == " ":
                    break
        return lines

    async def ask(self, *commands: str) -> str:
        """Say commands one by one; the last reply's last line."""
        lines: list[str] = []
        for command in commands:
            self.writer.write(command.encode() + b"\r\n")
            lines = await self.reply()
        return lines[-1] if lines else ""

    async def send(self, mail: bytes, *recipients: str, sender: str = "alex@local.com") -> str:
        """Send a mail (with its final dot); the reply to it."""
        assert (
            await self.ask(
                f"MAIL FROM:<{sender}>", *(f"RCPT TO:<{r}>" for r in recipients or ("x@example.net",)), "DATA"
            )
        ).startswith("354")
        self.writer.write(mail)
        return (await self.reply() or [""])[-1]

    async def closed(self) -> bool:
        """Whether the server has closed the connection, after anything that it still said."""
        try:
            async with asyncio.timeout(10):
                await self.reader.read()
        except ConnectionError:  # closed with something of ours unread
            return True
        return self.reader.at_eof()


# ------------------------------------------------------------------------------------------------ dialogues


@pytest.mark.parametrize("name", DIALOGUES)
async def test_dialogue(name: str, server: Running) -> None:
    """C: says a line, C> too, without waiting. S: the next reply begins so; S+ and S- what its lines hold or do not.

    TLS: shake hands. CLOSED: the server closes.
    """
    first, *script = DIALOGUES[name]
    port = server.port(first.removeprefix("# port: "))
    trusting = ssl.create_default_context(cafile=str(server.cafile))
    client = await Client.connect(port, context=trusting if script[0] == "TLS" else None)
    lines: list[str] = []

    for number, step in enumerate(script):
        where, text = f"{name}.txt:{number + 2}: {step}", step[3:]
        match step[:2]:
            case "C:" | "C>":
                client.writer.write(text.encode() + b"\r\n")
            case "S:":
                lines = await client.reply()
                assert lines and lines[-1].startswith(text), f"{where}: {lines}"
            case "S+":
                assert any(line[4:].startswith(text) for line in lines), f"{where}: {lines}"
            case "S-":
                assert not any(line[4:].startswith(text) for line in lines), f"{where}: {lines}"
            case "TL" if number:
                await client.writer.start_tls(trusting, server_hostname="localhost")
            case "CL":
                assert await client.closed(), where
            case other:
                assert other in ("# ", "TL", ""), where
    client.writer.close()


# ------------------------------------------------------------------------------------------------ what is stored


async def test_a_mail_is_stored_with_its_recipients_and_announced(server: Running, broker_url: str) -> None:
    broker = Broker(broker_url, "consumer")
    consumer = broker.consume(topology.SENDER, 10)
    await broker.open()
    client = await Client.logged_in(server)

    reply = await client.send(
        b"From: alex@local.com\nMessage-ID: <1@local.com>\r\n\r\n..dot\r\nlone\n.\r\n\r\n.\r\n",
        "jim@local.com",
        "JIM@local.com",
        "away@local.com",
        "sales@company.com",
        "customer@example.net",
        "customer@EXAMPLE.net",
    )

    [(listed, stored)] = await server.stored()
    assert reply == f"250 2.0.0 Queued as {listed.id}"
    assert stored == b"From: alex@local.com\r\nMessage-ID: <1@local.com>\r\n\r\n.dot\r\nlone\r\n.\r\n\r\n"
    assert (listed.author, listed.external) == ("alex@local.com", "support@company.com")
    assert listed.header_id == "1@local.com"
    assert [(r.address, r.kind) for r in listed.recipients] == [
        ("jim@local.com", "local"),
        ("sales@company.com", "external"),
        ("customer@example.net", "relay"),
    ]
    async with server.database.transaction() as connection:
        cursor = await connection.execute("select event, submission_id, external, who from events")
        assert await cursor.fetchall() == [("submitted", listed.id, "support@company.com", "alex@local.com")]
    [delivery] = await asyncio.wait_for(consumer.batch(10), 10)
    assert read(Submitted, delivery.body) == Submitted(id=listed.id, external="support@company.com")
    await broker.close()


async def test_a_mail_without_a_good_message_id_gets_one_in_the_external_accounts_domain(server: Running) -> None:
    client = await Client.logged_in(server)

    await client.send(b"Message-ID: <bad\r\n\r\n.\r\n")

    [(listed, _)] = await server.stored()
    assert re.fullmatch(r"[0-9a-f-]{36}@company\.com", listed.header_id)


async def test_8bit_and_utf8_are_noted_only_where_they_are_needed(server: Running) -> None:
    client = await Client.logged_in(server)
    for header, body in ((b"Subject: a", b"b"), (b"Subject: a", b"\xe9"), (b"Subject: \xc3\xa9", b"b")):
        await client.ask("MAIL FROM:<alex@local.com> BODY=8BITMIME SMTPUTF8", "RCPT TO:<x@example.net>", "DATA")
        client.writer.write(header + b"\r\n\r\n" + body + b"\r\n.\r\n")
        assert (await client.reply())[0].startswith("250")

    async with server.database.transaction() as connection:
        cursor = await connection.execute("select body_8bit, smtputf8 from submissions order by id")
        assert await cursor.fetchall() == [(False, False), (True, False), (True, True)]


async def test_what_is_to_be_told_about_a_delivery_is_kept(server: Running) -> None:
    client = await Client.logged_in(server)
    await client.ask(
        "MAIL FROM:<alex@local.com> RET=HDRS ENVID=QQ+3D1",
        "RCPT TO:<jim@local.com> NOTIFY=NEVER",
        "RCPT TO:<x@example.net> ORCPT=rfc822;x+2By@example.net NOTIFY=success",
        "RCPT TO:<y@example.net>",
        "DATA",
    )
    client.writer.write(b"Subject: x\r\n\r\n.\r\n")
    assert (await client.reply())[0].startswith("250")

    async with server.database.transaction() as connection:
        cursor = await connection.execute("select asked from submissions")
        assert await cursor.fetchall() == [("RET=HDRS ENVID=QQ+3D1",)]
        cursor = await connection.execute("select asked from submission_recipients order by position")
        assert [row[0] for row in await cursor.fetchall()] == [
            "NOTIFY=NEVER",
            "ORCPT=rfc822;x+2By@example.net NOTIFY=SUCCESS",
            None,
        ]


async def test_nothing_is_smuggled_inside_a_mail(server: Running) -> None:
    client = await Client.logged_in(server)
    for end in (b"\n.\n", b"\n.\r\n", b"\r\n.\n", b"\r.\r", b"\r\n.\r"):
        reply = await client.send(
            b"Subject: x\r\n\r\na" + end + b"MAIL FROM:<alex@local.com>\r\n"
            b"RCPT TO:<evil@example.org>\r\nDATA\r\nSubject: smuggled\r\n\r\n.\r\n"
        )
        assert reply.startswith("250")
        assert (await client.ask("NOOP")).startswith("250 2.0.0")

    stored = await server.stored()
    assert len(stored) == 5
    assert all([r.address for r in listed.recipients] == ["x@example.net"] for listed, _ in stored)


# ------------------------------------------------------------------------------------------------ commit and answer


@pytest.mark.parametrize("octets", [0, messages.HEAD_OCTETS])
async def test_no_250_precedes_the_commit(server: Running, octets: int) -> None:
    client = await Client.logged_in(server)

    # given somebody who holds up the last row of all that is written for a mail
    async with server.database.transaction() as connection:
        await connection.execute("lock table events in exclusive mode")
        sending = asyncio.create_task(client.send(b"Subject: x\r\n\r\n" + b"x\r\n" * (octets // 3) + b".\r\n"))
        await asyncio.sleep(0.5)
        assert not sending.done() and not await server.stored()

    assert (await sending).startswith("250") and len(await server.stored()) == 1


@pytest.mark.parametrize("error", [DiskFull("no room"), RuntimeError("of ours"), ValueError("secret detail")])
async def test_a_failing_commit_is_a_temporary_failure_without_details(
    server: Running, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    async def fail(connection: Connection, batch: Sequence[submissions.Submission]) -> list[int | None]:
        raise error

    monkeypatch.setattr(submissions, "record", fail)
    client = await Client.logged_in(server)

    reply = await client.send(b"Subject: x\r\n\r\n.\r\n")

    assert reply == "451 4.3.0 The server cannot take it now, try again later"
    monkeypatch.undo()
    assert (await client.send(b"Subject: x\r\n\r\n.\r\n")).startswith("250")


async def test_a_client_gets_no_answer_where_nobody_knows_whether_its_mail_is_committed(
    server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given a database that goes away with the answer to a commit
    record = submissions.record

    async def cut_off(connection: Connection, batch: Sequence[submissions.Submission]) -> list[int | None]:
        await record(connection, batch)
        raise psycopg.OperationalError("server closed the connection unexpectedly")

    monkeypatch.setattr(submissions, "record", cut_off)
    client = await Client.logged_in(server)

    # then neither a yes nor a no is said, so the client tries again
    assert await client.send(b"Subject: x\r\n\r\n.\r\n") == ""
    assert len(await server.stored()) == 1


async def test_a_bad_mail_harms_no_other_session(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    record = submissions.record

    async def picky(connection: Connection, batch: Sequence[submissions.Submission]) -> list[int | None]:
        await asyncio.sleep(0.05)  # so that the others queue
        if any(b"poison" in each.content.body for each in batch):
            await connection.execute("select 1/0")
        return await record(connection, batch)

    monkeypatch.setattr(submissions, "record", picky)
    clients = [await Client.logged_in(server) for _ in range(6)]

    replies = await asyncio.gather(
        *(
            client.send(b"Subject: %s\r\n\r\n.\r\n" % (b"poison" if number == 3 else b"good"))
            for number, client in enumerate(clients)
        )
    )

    assert [reply[:3] for reply in replies] == ["250", "250", "250", "451", "250", "250"]
    assert len(await server.stored()) == 5


async def test_a_client_that_is_gone_after_the_last_dot_takes_nothing_back(
    server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    committing = asyncio.Event()
    record = submissions.record

    async def slow(connection: Connection, batch: Sequence[submissions.Submission]) -> list[int | None]:
        committing.set()
        await asyncio.sleep(0.3)
        return await record(connection, batch)

    monkeypatch.setattr(submissions, "record", slow)
    client = await Client.logged_in(server)
    sending = asyncio.create_task(client.send(b"Subject: x\r\n\r\n.\r\n"))
    await committing.wait()

    client.writer.transport.abort()

    await sending
    await asyncio.sleep(0.6)
    assert len(await server.stored()) == 1


async def test_a_client_that_sends_all_and_closes_its_side_gets_its_answers(server: Running) -> None:
    login, mail = plain("alex@local.com"), "MAIL FROM:<alex@local.com>\r\nRCPT TO:<x@example.net>\r\nDATA"
    for said, answers in (
        (f"EHLO x\r\n{login}\r\n{mail}\r\nSubject: x\r\n\r\nbody\r\n.\r\nQUIT\r\n", "220 250 235 250 250 354 250 221"),
        (f"EHLO x\r\n{login}\r\n{mail}\r\nSubject: x\r\n\r\nbody\r\n.\r\n", "220 250 235 250 250 354 250"),
        (f"EHLO x\r\n{login}\r\n{mail}\r\nSubject: x\r\n\r\nbody\r\n", "220 250 235 250 250 354"),
        ("EHLO x\r\nNOOP", "220 250"),
        ("EHLO x\r\nSTARTTLS\r\n", "220 250 220"),
    ):
        client = await Client.connect(server.port("smtp"))
        client.writer.write(said.encode())
        client.writer.write_eof()
        got = []
        while lines := await client.reply():
            got.append(lines[-1][:3])
        assert " ".join(got) == answers, said
        client.writer.close()
    async with asyncio.timeout(10):
        await server.listener._empty.wait()
    assert [stored for _, stored in await server.stored()] == [b"Subject: x\r\n\r\nbody\r\n"] * 2


async def test_an_account_that_is_disabled_sends_nothing_more(server: Running) -> None:
    async def change(**changes: object) -> None:
        async with server.database.transaction() as connection:
            [alex] = await accounts.locals_(connection, [server.ids["alex"]])
            await accounts.save_local(connection, replace(alex, **changes))  # type: ignore[arg-type]  # fields

    first, second = await Client.logged_in(server), await Client.logged_in(server)
    assert (await second.ask("MAIL FROM:<alex@local.com>", "RCPT TO:<x@example.net>", "DATA")).startswith("354")

    await change(enabled=False)

    assert (await first.ask("MAIL FROM:<alex@local.com>", "RCPT TO:<x@example.net>", "DATA")).startswith("421 4.7.0")
    assert await first.closed()
    second.writer.write(b"Subject: x\r\n\r\n.\r\n")
    assert (await second.reply())[-1].startswith("421 4.7.0")
    assert not await server.stored()


async def test_a_change_of_accounts_counts_for_the_next_mail(server: Running) -> None:
    client = await Client.logged_in(server)
    for enabled, expected in ((True, "354"), (False, "550 5.2.1"), (True, "354")):
        async with server.database.transaction() as connection:
            [gone] = await accounts.locals_(connection, [server.ids["gone"]])
            await accounts.save_local(connection, replace(gone, enabled=enabled))

        # then a recipient is refused by the accounts as they are, and one that was taken is looked at again
        await client.ask("MAIL FROM:<alex@local.com>", "RCPT TO:<gone@local.com>")
        assert (await client.ask("DATA")).startswith(expected)
        await client.ask(*(["Subject: x\r\n\r\n."] if expected == "354" else ["RSET"]))


async def test_who_was_taken_by_the_accounts_of_before_is_looked_at_again_before_the_mail_is(server: Running) -> None:
    async def name_for_jim(*former: str) -> None:
        async with server.database.transaction() as connection:
            [jim] = await accounts.locals_(connection, [server.ids["jim"]])
            await accounts.save_local(connection, replace(jim, addresses=former))

    # given two addresses that are the same person's
    await name_for_jim("info@local.com")
    client = await Client.logged_in(server)
    await client.ask("MAIL FROM:<alex@local.com>", "RCPT TO:<x@example.net>", "RSET")
    question: asyncio.Future[Directory] = asyncio.get_running_loop().create_future()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(server.intake, "ask", lambda: question)
        assert (await client.ask("MAIL FROM:<alex@local.com>")).startswith("250")
    # then who is taken does not wait, who is refused does
    assert (await client.ask("RCPT TO:<jim@local.com>", "RCPT TO:<info@local.com>")).startswith("250")
    client.writer.write(b"RCPT TO:<nobody@local.com>\r\n")
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(client.reply(), 0.3)
    # and when they are two people's by then, both get the mail
    await name_for_jim()
    async with server.database.transaction() as connection:
        [gone] = await accounts.locals_(connection, [server.ids["gone"]])
        await accounts.save_local(connection, replace(gone, enabled=True, addresses=("info@local.com",)))
    question.set_result(await server.intake.ask())
    assert (await client.reply())[-1].startswith("550 5.1.1")
    assert (await client.ask("DATA")).startswith("354")
    assert (await client.ask("Subject: x\r\n\r\n.")).startswith("250")
    [(stored, _)] = await server.stored()
    assert {(each.address, each.kind) for each in stored.recipients} == {
        ("jim@local.com", "local"),
        ("info@local.com", "local"),
    }


async def test_a_connection_that_broke_while_nobody_used_it_is_no_failure(server: Running) -> None:
    client = await Client.logged_in(server)
    assert (await client.ask("MAIL FROM:<alex@local.com>", "RSET")).startswith("250")
    async with server.database.statement() as connection:
        await connection.execute(
            "select pg_terminate_backend(pid) from pg_stat_activity where query like '%accounts_version%'"
            " and datname = current_database() and pid <> pg_backend_pid()"
        )

    assert (await client.ask("MAIL FROM:<alex@local.com>")).startswith("250")


async def test_sessions_of_a_changed_account_end_by_themselves(
    server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listening, "WATCH_SECONDS", 0.1)
    watcher = asyncio.create_task(watch(server.listener, server.database))
    alex, jim = await Client.logged_in(server), await Client.logged_in(server, "jim")
    async with server.database.transaction() as connection:
        [account] = await accounts.locals_(connection, [server.ids["alex"]])
        await accounts.save_local(connection, replace(account, password_hash=hash_password("new")))

    assert (await alex.reply())[-1].startswith("421") and await alex.closed()
    assert (await jim.ask("NOOP")).startswith("250")
    watcher.cancel()


# ------------------------------------------------------------------------------------------------ limits


async def test_a_mail_that_is_too_large_is_refused_and_the_session_goes_on(
    database: Database, broker_url: str, tmp_path: Path
) -> None:
    async with running(database, broker_url, tmp_path, max_message_bytes=10_000) as server:
        client = await Client.logged_in(server)
        head = b"Subject: x\r\n\r\n"

        exactly = await client.send(head + b"x" * (10_000 - len(head) - 2) + b"\r\n.\r\n")
        over = await client.send(head + b"x" * (10_001 - len(head) - 2) + b"\r\n.\r\n")
        far_over = await client.send(head + (b"y" * 98 + b"\r\n") * 30_000 + b".\r\n")

        assert exactly.startswith("250")
        assert over.startswith("552 5.3.4") and far_over.startswith("552 5.3.4")
        assert (await client.ask("MAIL FROM:<alex@local.com> SIZE=10001")).startswith("552 5.3.4")
        assert (await client.send(head + b".\r\n")).startswith("250")


async def test_a_mail_larger_than_its_provider_takes_is_refused_for_outside_recipients(server: Running) -> None:
    # given a provider of which that was learnt while the client is logged in
    client = await Client.logged_in(server)
    async with server.database.transaction() as connection:
        await accounts.learn_size(connection, server.ids["support"], 5000)
    # when the size is announced, then it is refused recipient by recipient
    await client.ask("MAIL FROM:<alex@local.com> SIZE=6000")
    assert (await client.ask("RCPT TO:<ann@customer.org>")).startswith("552 5.3.4 The mail is larger than the 5000")
    assert (await client.ask("RCPT TO:<jim@local.com>")).startswith("250")
    await client.ask("RSET")
    # and when it is not, as a whole if it is for nobody inside, and else it is taken: the others get their notice
    mail = b"Subject: x\r\n\r\n" + b"x" * 6000 + b"\r\n.\r\n"
    assert (await client.send(mail, "ann@customer.org")).startswith("552 5.3.4")
    assert (await client.send(mail, "ann@customer.org", "jim@local.com")).startswith("250")
    # when a mail was refused, the same size is not tried again, and a smaller one is
    async with server.database.transaction() as connection:
        await accounts.forget_size(connection, server.ids["support"])
        await accounts.learn_refused(connection, server.ids["support"], 4000)
    assert (await client.send(mail, "ann@customer.org")).startswith("552 5.3.4 The mail is larger than the 3999")
    assert (await client.send(b"Subject: x\r\n\r\n.\r\n", "ann@customer.org")).startswith("250")


async def test_a_mail_takes_at_most_a_thousand_recipients(server: Running) -> None:
    client = await Client.logged_in(server)
    await client.ask("MAIL FROM:<alex@local.com>")
    client.writer.write(b"".join(b"RCPT TO:<user%d@example.net>\r\n" % number for number in range(1001)))

    replies = [(await client.reply())[0][:9] for _ in range(1001)]

    assert replies == ["250 2.1.5"] * 1000 + ["452 4.5.3"]
    assert (await client.ask("DATA")).startswith("354")
    client.writer.write(b"Subject: x\r\n\r\n.\r\n")
    assert (await client.reply())[0].startswith("250")
    assert len((await server.stored())[0][0].recipients) == 1000


async def test_too_many_connections_are_told_to_come_later(database: Database, broker_url: str, tmp_path: Path) -> None:
    async with running(database, broker_url, tmp_path, connections=5, max_connections_per_address=3) as server:

        async def greeting(source: str) -> tuple[Client, str]:
            client = await Client.connect(server.port("smtp"), source)
            return client, (await client.reply())[-1]

        here = [await greeting("127.0.0.1") for _ in range(4)]
        there = [await greeting("127.0.0.2") for _ in range(3)]

        assert [text[:3] for _, text in here] == ["220", "220", "220", "421"]
        assert [text[:3] for _, text in there] == ["220", "220", "421"]
        assert await here[3][0].closed()
        await here[0][0].ask("QUIT")
        await here[0][0].closed()
        assert (await greeting("127.0.0.1"))[1].startswith("220")
        assert listening.SESSIONS._value.get() == 5


async def test_a_connection_counts_before_its_handshake_and_no_longer_after_a_failed_one(
    database: Database, broker_url: str, tmp_path: Path
) -> None:
    async with running(database, broker_url, tmp_path, max_connections_per_address=2) as server:
        silent = [await Client.connect(server.port("smtps")) for _ in range(2)]
        await asyncio.sleep(0.1)

        assert (await (await Client.connect(server.port("smtp"))).reply())[-1].startswith("421")

        for client in silent:
            client.writer.close()
        await asyncio.sleep(0.1)
        assert (await (await Client.connect(server.port("smtp"))).reply())[-1].startswith("220")


async def test_many_large_mails_at_once_are_put_off(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server.intake, "_budget", 100_000)
    client, other = await Client.logged_in(server), await Client.logged_in(server)
    await client.ask("MAIL FROM:<alex@local.com>", "RCPT TO:<x@example.net>", "DATA")
    client.writer.write(b"Subject: x\r\n\r\n" + b"x" * 70_000 + b"\r\n")
    await asyncio.sleep(0.1)

    assert (await other.send(b"Subject: y\r\n\r\n" + b"y" * 70_000 + b"\r\n.\r\n")).startswith("452 4.3.1")

    client.writer.write(b".\r\n")
    assert (await client.reply())[0].startswith("250")
    assert (await other.send(b"Subject: y\r\n\r\n" + b"y" * 70_000 + b"\r\n.\r\n")).startswith("250")
    assert server.intake._in_hand == 0


async def test_large_mails_whose_size_is_announced_wait_for_room(
    server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server.intake, "_budget", 100_000)
    mail = b"Subject: x\r\n\r\n" + b"x" * 60_000 + b"\r\n.\r\n"
    clients = [await Client.logged_in(server) for _ in range(6)]

    async def send(client: Client) -> str:
        await client.ask(f"MAIL FROM:<alex@local.com> SIZE={len(mail)}", "RCPT TO:<x@example.net>")
        assert (await client.ask("DATA")).startswith("354")
        client.writer.write(mail)
        return (await client.reply())[-1]

    # when six come at once, where there is room for one
    replies = await asyncio.gather(*map(send, clients))
    assert [reply[:3] for reply in replies] == ["250"] * 6 and server.intake._in_hand == 0

    # and one that sends nothing keeps the others waiting, then they are told; who leaves while waiting takes nothing
    await clients[0].ask(f"MAIL FROM:<alex@local.com> SIZE={len(mail)}", "RCPT TO:<x@example.net>", "DATA")
    await clients[1].ask(f"MAIL FROM:<alex@local.com> SIZE={len(mail)}", "RCPT TO:<x@example.net>")
    clients[1].writer.write(b"DATA\r\n")
    await asyncio.sleep(0.1)
    clients[1].writer.transport.abort()
    monkeypatch.setattr(smtp_protocol, "ROOM_SECONDS", 0.2)
    await clients[2].ask(f"MAIL FROM:<alex@local.com> SIZE={len(mail)}", "RCPT TO:<x@example.net>")
    assert (await clients[2].ask("DATA")).startswith("452 4.3.1")
    assert (await clients[3].send(b"Subject: small\r\n\r\n.\r\n")).startswith("250")
    clients[0].writer.write(mail)
    assert (await clients[0].reply())[-1].startswith("250")
    assert server.intake._in_hand == 0 and (await send(clients[2])).startswith("250")


async def test_a_slow_client_is_not_cut_while_it_sends(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    client = await Client.logged_in(server)
    [(connection, _)] = server.listener.logged_in()
    monkeypatch.setattr(connection, "_timeout_duration", 0.5)
    await client.ask("MAIL FROM:<alex@local.com>", "RCPT TO:<x@example.net>", "DATA")
    for _ in range(5):
        client.writer.write(b"X-A: b\r\n")
        await asyncio.sleep(0.3)
    client.writer.write(b"\r\n.\r\n")
    assert (await client.reply())[0].startswith("250")

    assert (await client.reply())[-1].startswith("421 4.4.2") and await client.closed()


async def test_a_client_that_reads_nothing_is_cut(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "CLOSING_SECONDS", 0.2)
    client = await Client.logged_in(server)
    [(connection, _)] = server.listener.logged_in()
    client.reader._transport.pause_reading()  # type: ignore[attr-defined]  # as if its buffers were full
    client.writer.write(b"HELP\r\n" * 90)
    connection._writer.write(b"x" * 20_000_000)
    await asyncio.sleep(0.2)

    connection.stop()
    await asyncio.sleep(0.6)

    assert listening.SESSIONS._value.get() == 0


async def test_a_command_that_is_too_long_is_refused(server: Running) -> None:
    client = await Client.logged_in(server)

    assert (await client.ask("NOOP " + "x" * 3000)).startswith("500 5.5.2")
    assert (await client.ask("NOOP " + "x" * 300_000)).startswith("500 5.5.2")
    assert (await client.ask("NOOP")).startswith("250")


async def test_a_line_sent_octet_by_octet_costs_little_however_long_it_is(server: Running) -> None:
    client = await Client.logged_in(server)
    [(connection, _)] = server.listener.logged_in()

    # as the transport hands over what comes so: an octet at a time, with the session's turn in between
    connection.data_received(b"NOOP ")
    started = time.process_time()
    for number in range(60_000):
        connection.data_received(b"x")
        if number % 8 == 0:
            await asyncio.sleep(0)
    seconds = time.process_time() - started
    assert len(connection._input) <= engine.AUTH_OCTETS + 8
    connection.data_received(b"\r\n")

    assert (await client.reply())[-1].startswith("500 5.5.2")
    assert (await client.ask("NOOP")).startswith("250")
    assert seconds < 0.5  # it was more than that for every line, when all of the line was kept


async def test_a_command_that_does_not_end_in_time_ends_the_session(
    server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = await Client.logged_in(server)
    [(connection, _)] = server.listener.logged_in()
    monkeypatch.setattr(connection, "_timeout_duration", 0.5)
    await client.ask("NOOP")
    started = time.monotonic()

    async def drip() -> None:
        while True:
            client.writer.write(b"N")
            await asyncio.sleep(0.05)

    dripping = asyncio.create_task(drip())
    assert (await client.reply())[-1].startswith("421 4.4.2") and await client.closed()
    dripping.cancel()
    assert time.monotonic() - started < 5


async def test_an_account_has_so_many_sessions_and_no_more(database: Database, broker_url: str, tmp_path: Path) -> None:
    async with running(database, broker_url, tmp_path, max_connections_per_account=2) as server:
        first, _ = await Client.logged_in(server), await Client.logged_in(server)
        third, jim = await Client.connect(server.port("smtp")), await Client.logged_in(server, "jim")
        await third.reply()
        assert (await third.ask("EHLO x", plain("alex@local.com"))).startswith("421 4.7.0") and await third.closed()
        assert (await jim.ask("NOOP")).startswith("250")

        await first.ask("QUIT")
        await first.closed()
        again = await Client.logged_in(server)
        assert (await again.ask("MAIL FROM:<>")).startswith("250")
        assert server.listener._by_account == {server.ids["alex"]: 2, server.ids["jim"]: 1}


# ------------------------------------------------------------------------------------------------ logins


async def test_guessing_is_slow_and_ends_the_connection_and_locks_nobody_out(server: Running) -> None:
    checked = 0
    refused = LOGINS.labels("smtp_in", "refused")._value.get()

    async def attack(number: int) -> None:
        nonlocal checked
        while True:
            client = await Client.connect(server.port("smtp"), "127.0.0.9")
            await client.reply()
            await client.ask("EHLO x")
            for _ in range(4):
                reply = await client.ask(plain("alex@local.com", f"guess{number}{random.random()}"))
                checked += reply.startswith("535")
                if not reply.startswith("535"):
                    break
            client.writer.close()

    started = time.monotonic()
    attackers = [asyncio.create_task(attack(number)) for number in range(20)]
    await asyncio.sleep(3)
    latencies = []
    for who, source in (("alex", "127.0.0.1"), ("jim", "127.0.0.1"), ("jim", "127.0.0.9")):
        client, begun = await Client.connect(server.port("smtp"), source), time.monotonic()
        assert (await client.ask("EHLO x", plain(f"{who}@local.com"))).startswith(("250", "235"))
        assert (await client.reply())[-1].startswith("235")
        latencies.append(time.monotonic() - begun)
    seconds = time.monotonic() - started
    for attacker in attackers:
        attacker.cancel()
    await asyncio.gather(*attackers, return_exceptions=True)

    assert 3 <= checked < 3 * seconds
    assert max(latencies) < 5  # the last one comes from the attacker's own address
    assert latencies[1] < 2  # neither address nor account is the attacker's
    assert LOGINS.labels("smtp_in", "refused")._value.get() - refused >= checked


async def test_a_remembered_login_passes_at_once_beside_an_attacker(server: Running) -> None:
    await (await Client.logged_in(server)).ask("QUIT")
    for _ in range(4):
        client = await Client.connect(server.port("smtp"))
        await client.reply()
        await client.ask("EHLO x", plain("alex@local.com", "wrong"))
    started = time.monotonic()

    client = await Client.logged_in(server)

    assert time.monotonic() - started < 5  # in the attacker's line it would wait for longer
    assert (await client.ask("MAIL FROM:<>")).startswith("250")


async def test_a_remembered_login_ends_with_the_password(server: Running) -> None:
    logins = Logins(server.database, server.settings, "test")
    alex = await logins.verify("ALEX@local.com", "secret", "192.0.2.1")
    assert alex is not None

    async with server.database.transaction() as connection:
        await accounts.save_local(connection, replace(alex, password_hash=hash_password("new")))

    assert await logins.verify("alex@local.com", "secret", "192.0.2.1") is None
    changed = await logins.verify("alex@local.com", "new", "192.0.2.1")
    assert changed is not None
    async with server.database.transaction() as connection:
        await accounts.save_local(connection, replace(changed, enabled=False))
    assert await logins.verify("alex@local.com", "new", "192.0.2.1") is None
    logins.close()


@pytest.mark.parametrize("address", ["nobody@local.com", "", "a\0b", "\udcff@local.com", "x" * 100_000])
async def test_an_address_that_is_no_account_is_refused(server: Running, address: str) -> None:
    logins = Logins(server.database, server.settings, "test")

    assert await logins.verify(address, "secret", "192.0.2.1") is None
    logins.close()


async def test_passwords_in_clear_are_refused_where_the_operator_says_so(
    database: Database, broker_url: str, tmp_path: Path
) -> None:
    async with running(database, broker_url, tmp_path, allow_plaintext_auth="no") as server:
        client = await Client.connect(server.port("smtp"))
        await client.reply()
        client.writer.write(b"EHLO x\r\n")
        assert not any("AUTH" in line for line in await client.reply())
        assert (await client.ask(plain("alex@local.com"))).startswith("538 5.7.11")


# ------------------------------------------------------------------------------------------------ TLS


async def test_what_is_pipelined_behind_starttls_is_thrown_away(server: Running) -> None:
    client = await Client.connect(server.port("submission"))
    await client.reply()
    await client.ask("EHLO x")
    client.writer.write(b"STARTTLS\r\nNOOP injected\r\nRSET\r\n")
    assert (await client.reply())[-1].startswith("220")

    await client.writer.start_tls(ssl.create_default_context(cafile=str(server.cafile)), server_hostname="localhost")

    client.writer.write(b"EHLO y\r\n")
    assert len(await client.reply()) > 1  # the answer to EHLO, and none to NOOP before it
    assert (await client.ask("QUIT")).startswith("221")


async def test_a_handshake_that_fails_ends_the_connection(server: Running) -> None:
    starttls = await Client.connect(server.port("submission"))
    await starttls.reply()
    await starttls.ask("EHLO x", "STARTTLS")
    implicit = await Client.connect(server.port("smtps"))

    for client in (starttls, implicit):
        client.writer.write(b"this is no handshake\r\n" * 10)
        assert await client.closed()
    await asyncio.sleep(0.1)
    assert listening.SESSIONS._value.get() == 0


# ------------------------------------------------------------------------------------------------ stopping


async def test_a_stop_finishes_the_mail_in_hand_and_ends_the_rest(server: Running) -> None:
    idle, busy = await Client.logged_in(server), await Client.logged_in(server)
    await busy.ask("MAIL FROM:<alex@local.com>", "RCPT TO:<x@example.net>", "DATA")
    busy.writer.write(b"Subject: x\r\n")

    closing = asyncio.create_task(server.listener.close(10))

    assert (await idle.reply())[-1].startswith("421 4.3.2") and await idle.closed()
    with pytest.raises(OSError):
        await Client.connect(server.port("smtp"))
    busy.writer.write(b"\r\nbody\r\n.\r\n")
    assert (await busy.reply())[-1].startswith("250")
    assert (await busy.reply())[-1].startswith("421 4.3.2") and await busy.closed()
    await closing
    assert len(await server.stored()) == 1


# ------------------------------------------------------------------------------------------------ clients, the process


@dataclass
class Served:
    """The service as a process of its own, on uvloop."""

    settings: Settings
    database: Database
    cafile: Path
    process: asyncio.subprocess.Process


@pytest.fixture
async def served(database: Database, database_url: str, broker_url: str, tmp_path: Path) -> AsyncIterator[Served]:
    """python -m services.smtp_in"""
    settings = make_settings(tmp_path)
    await add_office(database)
    metrics = free_ports.choose(1, str(tmp_path) + "metrics")[0]
    environment = {
        **os.environ,
        "MAILGROUP_DATA": str(tmp_path),
        "MAILGROUP_DATABASE_URL": database_url,
        "MAILGROUP_BROKER_URL": broker_url,
        "MAILGROUP_SECRET_KEY": base64.urlsafe_b64encode(b"k" * 32).decode(),
        "MAILGROUP_SMTP_PORT": str(settings.smtp_port),
        "MAILGROUP_SUBMISSION_PORT": str(settings.submission_port),
        "MAILGROUP_SMTPS_PORT": str(settings.smtps_port),
        "MAILGROUP_METRICS_PORT": str(metrics),
    }
    process = await asyncio.create_subprocess_exec(sys.executable, "-m", "services.smtp_in", env=environment)
    for port in (settings.smtp_port, settings.submission_port, settings.smtps_port):
        for _ in range(100):
            with suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                break
            await asyncio.sleep(0.1)
    yield Served(settings, database, tmp_path / "tls" / "self-signed.pem", process)
    if process.returncode is None:
        process.terminate()
    assert await asyncio.wait_for(process.wait(), 20) == 0


async def run(*command: str) -> None:
    """Run a client; it has to succeed."""
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    output, _ = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode == 0, output.decode("utf-8", "replace")


async def mail_with_curl(served: Served) -> int:
    """curl, over each TLS mode; how many mails."""
    mail = served.cafile.parent / "mail"
    mail.write_bytes(b"From: alex@local.com\r\nTo: x@example.net\r\n\r\n.body\r\n")
    common = (
        "curl",
        "-sS",
        "--max-time",
        "20",
        "--mail-from",
        "alex@local.com",
        "--mail-rcpt",
        "x@example.net",
        "--user",
        "alex@local.com:secret",
        "--upload-file",
        str(mail),
        "--cacert",
        str(served.cafile),
    )
    await run(*common, f"smtp://localhost:{served.settings.smtp_port}/client")
    await run(*common, f"smtp://localhost:{served.settings.smtp_port}/client", "--ssl-reqd")
    await run(*common, f"smtp://localhost:{served.settings.submission_port}/client", "--ssl-reqd")
    await run(*common, f"smtps://localhost:{served.settings.smtps_port}/client", "--login-options", "AUTH=LOGIN")
    return 4


async def mail_with_swaks(served: Served) -> int:
    """swaks, in clear (its TLS needs a Perl package more); how many mails."""
    common = (
        "swaks",
        "--from",
        "alex@local.com",
        "--to",
        "x@example.net",
        "--au",
        "alex@local.com",
        "--ap",
        "secret",
        "--server",
        "127.0.0.1",
        "--timeout",
        "20",
    )
    for more in (("--auth", "LOGIN"), ("--auth", "PLAIN"), ("--pipeline",)):
        await run(*common, "--port", str(served.settings.smtp_port), *more)
    return 3


async def mail_with_smtplib(served: Served) -> int:
    """Python's smtplib, over each TLS mode; how many mails."""

    def send() -> None:
        mail = EmailMessage()
        mail["From"], mail["To"] = "Alex <alex@local.com>", "J\xf6rg <x@example.net>"
        mail.set_content("Gr\xfc\xdfe\n.\n..\n" + "x" * 2000)
        context = ssl.create_default_context(cafile=str(served.cafile))
        with smtplib.SMTP("localhost", served.settings.submission_port, timeout=20) as client:
            client.starttls(context=context)
            client.login("alex@local.com", "secret")
            client.send_message(mail)
            client.send_message(mail)
        with smtplib.SMTP_SSL("localhost", served.settings.smtps_port, context=context, timeout=20) as client:
            client.login("alex@local.com", "secret")
            client.send_message(mail)
        with smtplib.SMTP("localhost", served.settings.smtp_port, timeout=20) as client:
            client.login("alex@local.com", "secret")
            client.send_message(mail)

    await asyncio.to_thread(send)
    return 4


@pytest.mark.parametrize("send", [mail_with_curl, mail_with_swaks, mail_with_smtplib])
async def test_mail_clients_get_along_with_the_process(
    served: Served, send: Callable[[Served], Coroutine[Any, Any, int]]
) -> None:
    sent = await send(served)

    async with served.database.transaction() as connection:
        assert len(await submissions.listing(connection, ["submitted"])) == sent


def peak_octets(process: asyncio.subprocess.Process) -> int:
    """The most memory that a process has had, in octets."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


async def test_a_mail_of_50_mb_costs_less_than_two_and_a_half_times_its_size(served: Served) -> None:
    client = await Client.connect(served.settings.smtp_port)
    await client.reply()
    assert (await client.ask("EHLO x", plain("alex@local.com"))).startswith("235")
    assert (await client.send(b"Subject: small\r\n\r\n.\r\n")).startswith("250")
    before = peak_octets(served.process)
    mail = b"Subject: x\r\n\r\n" + (b"x" * 76 + b"\r\n") * 672_000  # 52,416,014 octets

    reply = await client.send(mail + b".\r\n")

    assert reply.startswith("250")
    assert peak_octets(served.process) - before < 2.5 * len(mail)


async def test_every_taken_mail_was_written_by_one_batch_or_another(server: Running) -> None:
    batches: list[int] = []
    write = server.intake._group._write

    async def counted(connection: Connection, batch: Sequence[Handed]) -> Sequence[Taken]:
        batches.append(len(batch))
        await asyncio.sleep(0.005)  # so that others come meanwhile, however fast the disk is
        return await write(connection, batch)

    server.intake._group._write = counted

    async def worker() -> None:
        client = await Client.logged_in(server)
        for number in range(10):
            assert (await client.send(b"Subject: %d\r\n\r\nbody\r\n.\r\n" % number)).startswith("250")

    await asyncio.gather(*(worker() for _ in range(16)))

    assert sum(batches) == 160 == len(await server.stored())
    assert len(batches) < 160
