"""services/smtp_in over real sockets: its limits, logins, TLS and its end."""

from __future__ import annotations

import asyncio
import random
import ssl
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from services.smtp_in import command_loop, receive_memory
from services.smtp_in import connection as smtp_connection
from services.smtp_in.listener import SESSIONS
from services.smtp_in.receive_memory import ReceiveMemory
from shared.auth.authenticator import LOGINS, Authenticator
from shared.auth.passwords import hash_password
from shared.db.database import Connection, Database
from shared.model import Local
from shared.store import account_changes, accounts, relays
from tests.polling import until
from tests.submission_harness import Client, Running, plain, running


@pytest.fixture
async def server(database: Database, broker_url: str, tmp_path: Path) -> AsyncIterator[Running]:
    """A server with the settings of a first start."""
    async with running(database, broker_url, tmp_path) as started:
        yield started


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


async def test_a_mail_over_the_provider_s_size_limit_is_refused_for_outside(server: Running) -> None:
    # given a provider of which that was learnt while the client is logged in
    client = await Client.logged_in(server)
    async with server.database.transaction() as connection:
        await relays.learn_size(connection, server.ids["support"], 5000)
    # when the size is announced, then it is refused recipient by recipient
    await client.ask("MAIL FROM:<alex@local.com> SIZE=6000")
    assert (await client.ask("RCPT TO:<ann@customer.org>")).startswith("552 5.3.4 The mail is larger than the 5000")
    assert (await client.ask("RCPT TO:<jim@local.com>")).startswith("250")
    await client.ask("RSET")
    # and else as a whole if it has no local recipient; otherwise it is accepted, with notices for the others
    mail = b"Subject: x\r\n\r\n" + b"x" * 6000 + b"\r\n.\r\n"
    assert (await client.send(mail, "ann@customer.org")).startswith("552 5.3.4")
    assert (await client.send(mail, "ann@customer.org", "jim@local.com")).startswith("250")
    # when a mail was refused, the same size is not tried again, and a smaller one is
    async with server.database.transaction() as connection:
        await relays.forget_sizes(connection, server.ids["support"])
        await relays.learn_refused(connection, server.ids["support"], 4000)
    assert (await client.send(mail, "ann@customer.org")).startswith("552 5.3.4 The mail is larger than the 3999")
    assert (await client.send(b"Subject: x\r\n\r\n.\r\n", "ann@customer.org")).startswith("250")


async def test_a_mail_has_at_most_a_thousand_recipients(server: Running) -> None:
    client = await Client.logged_in(server)
    await client.ask("MAIL FROM:<alex@local.com>")
    client.writer.write(b"".join(b"RCPT TO:<user%d@example.net>\r\n" % number for number in range(1001)))

    replies = [(await client.reply())[0][:9] for _ in range(1001)]

    assert replies == ["250 2.1.5"] * 1000 + ["452 4.5.3"]
    assert (await client.ask("DATA")).startswith("354")
    client.writer.write(b"Subject: x\r\n\r\n.\r\n")
    assert (await client.reply())[0].startswith("250")
    assert len((await server.stored())[0][0].recipients) == 1000


async def test_too_many_connections_are_refused_with_421(database: Database, broker_url: str, tmp_path: Path) -> None:
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
        assert SESSIONS._value.get() == 5


async def test_a_connection_counts_before_its_handshake_not_after_a_failed_one(
    database: Database, broker_url: str, tmp_path: Path
) -> None:
    async with running(database, broker_url, tmp_path, max_connections_per_address=2) as server:
        silent = [await Client.connect(server.port("smtps")) for _ in range(2)]
        await until(lambda: SESSIONS._value.get() == 2)

        assert (await (await Client.connect(server.port("smtp"))).reply())[-1].startswith("421")

        for client in silent:
            client.writer.close()
        await until(lambda: SESSIONS._value.get() == 0)
        assert (await (await Client.connect(server.port("smtp"))).reply())[-1].startswith("220")


HEAD = b"Subject: x\r\n\r\n"
LARGE = HEAD + (b"x" * 78 + b"\r\n") * 30_000 + b".\r\n"  # 2.4 MB


async def start_mail(client: Client, who: str = "alex", size: int = 0) -> None:
    """Start a mail, up to the reply to DATA."""
    announced = f" SIZE={size}" if size else ""
    await client.ask(f"MAIL FROM:<{who}@local.com>{announced}", "RCPT TO:<x@example.net>")
    assert (await client.ask("DATA")).startswith("354")


async def test_a_size_that_is_only_announced_takes_no_memory(server: Running) -> None:
    # given seven sessions of one user that announce large mails and send nothing
    for _ in range(7):
        await start_mail(await Client.logged_in(server), size=50_000_000)

    assert server.commit_queue.memory.in_use == 0
    jim = await Client.logged_in(server, "jim")
    assert (await jim.send(LARGE, sender="jim@local.com")).startswith("250")


async def test_an_honest_large_mail_passes_while_a_user_holds_ten_slow_ones(
    server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given a share that ten mails use up
    monkeypatch.setattr(receive_memory, "ACCOUNT_OCTETS", 4 * 1024 * 1024)
    memory = server.commit_queue.memory
    slow = [await Client.logged_in(server) for _ in range(10)]
    for client in slow:
        await start_mail(client)
        client.writer.write(LARGE[:-3])
    await until(lambda: len(memory._waiting) >= 5)
    held = memory.in_use
    assert held < 4 * 1024 * 1024 + len(LARGE) + receive_memory.STEP_OCTETS

    jim = await Client.logged_in(server, "jim")
    assert (await jim.send(LARGE, sender="jim@local.com")).startswith("250")
    assert memory.in_use == held
    # and all of the slow ones pass, too, one after the other
    for client in slow:
        client.writer.write(b".\r\n")
    assert [(await client.reply())[-1][:3] for client in slow] == ["250"] * 10
    assert memory.in_use == 0


async def test_large_mails_at_once_all_pass_where_there_is_room_for_one(
    server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server.commit_queue, "memory", memory := ReceiveMemory(len(LARGE), limit_octets=1))
    clients = [await Client.logged_in(server, who) for who in ("alex", "jim") * 4]

    async def send(client: Client, who: str) -> str:
        return await client.send(LARGE, sender=f"{who}@local.com")

    replies = await asyncio.gather(*map(send, clients, ("alex", "jim") * 4))

    assert [reply[:3] for reply in replies] == ["250"] * 8 and memory.in_use == 0


async def test_a_mail_that_finds_no_memory_in_time_is_put_off(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server.commit_queue, "memory", memory := ReceiveMemory(len(LARGE), limit_octets=1))
    monkeypatch.setattr(smtp_connection, "MEMORY_WAIT_SECONDS", 0.3)
    slow, gone, late = [await Client.logged_in(server) for _ in range(3)]
    await start_mail(slow)
    slow.writer.write(LARGE[:-3])
    await until(lambda: memory.in_use >= len(LARGE) - 3)

    # when one leaves while it waits, it takes nothing
    await start_mail(gone)
    gone.writer.write(LARGE)
    await until(lambda: bool(memory._waiting))
    gone.writer.transport.abort()
    assert (await late.send(LARGE)).startswith("452 4.3.1")
    assert (await late.send(HEAD + b".\r\n")).startswith("250")  # a small mail

    slow.writer.write(b".\r\n")
    assert (await slow.reply())[0].startswith("250")
    assert (await late.send(LARGE)).startswith("250") and memory.in_use == 0


@pytest.mark.parametrize("start", [b"", LARGE[:-3]], ids=["from the start", "after a large part"])
async def test_a_mail_that_comes_too_slowly_ends_the_session(
    server: Running, monkeypatch: pytest.MonkeyPatch, start: bytes
) -> None:
    monkeypatch.setattr(smtp_connection, "PAUSE_SECONDS", 8.0)
    started = time.monotonic()
    client, honest = await Client.logged_in(server), await Client.logged_in(server)
    for each in (client, honest):
        await start_mail(each)
    client.writer.write(start)

    async def send(writer: asyncio.StreamWriter, octets: int) -> None:
        with suppress(ConnectionError):
            while not cut.is_set():
                writer.write(b"x" * octets)
                await asyncio.sleep(0.1)

    cut = asyncio.Event()
    drip = asyncio.create_task(send(client.writer, 5))
    honest_task = asyncio.create_task(send(honest.writer, 1500))
    assert (await client.reply())[-1].startswith("421 4.4.2") and await client.closed()
    assert time.monotonic() - started > 7.9
    cut.set()
    await drip
    await honest_task
    honest.writer.write(b"\r\n.\r\n")
    assert (await honest.reply())[-1].startswith("250") and server.commit_queue.memory.in_use == 0


async def test_a_mail_that_takes_too_long_in_all_ends_the_session(
    server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(smtp_connection, "DATA_SECONDS", 1.0)
    client = await Client.logged_in(server)
    await start_mail(client)

    async def send() -> None:
        with suppress(ConnectionError):
            while True:
                client.writer.write(b"x" * 10_000)
                await asyncio.sleep(0.05)

    sending = asyncio.create_task(send())
    # without the deadline it would be as long as the client sends
    assert (await client.reply())[-1].startswith("421 4.4.2") and await client.closed()
    sending.cancel()


async def test_a_slow_client_is_not_disconnected_while_it_sends(
    server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = await Client.logged_in(server)
    [connection] = server.listener.registry.connections
    await client.ask("MAIL FROM:<alex@local.com>", "RCPT TO:<x@example.net>", "DATA")
    for _ in range(5):
        # when it sends a line, then its deadline is later
        before = connection._expires_at
        client.writer.write(b"X-A: b\r\n")
        await until(lambda before=before: connection._expires_at > before)
    monkeypatch.setattr(connection, "idle_seconds", 0.5)
    client.writer.write(b"\r\n.\r\n")
    assert (await client.reply())[0].startswith("250")

    assert (await client.reply())[-1].startswith("421 4.4.2") and await client.closed()


async def test_a_client_that_reads_nothing_is_disconnected(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command_loop, "CLOSING_SECONDS", 0.2)
    client = await Client.logged_in(server)
    [connection] = server.listener.registry.connections
    client.reader._transport.pause_reading()  # type: ignore[attr-defined]  # as if its buffers were full
    client.writer.write(b"HELP\r\n" * 90)
    cast(asyncio.Transport, connection.transport).write(b"x" * 20_000_000)
    await asyncio.sleep(0.2)

    connection.stop()

    await until(lambda: SESSIONS._value.get() == 0)


async def test_a_command_that_is_too_long_is_refused(server: Running) -> None:
    client = await Client.logged_in(server)

    assert (await client.ask("NOOP " + "x" * 3000)).startswith("500 5.5.2")
    assert (await client.ask("NOOP " + "x" * 300_000)).startswith("500 5.5.2")
    assert (await client.ask("NOOP")).startswith("250")


async def test_a_line_sent_octet_by_octet_costs_little_however_long_it_is(server: Running) -> None:
    client = await Client.logged_in(server)
    [connection] = server.listener.registry.connections

    # as a transport delivers such input: an octet at a time, with the session running in between
    connection.data_received(b"NOOP ")
    stored = 0
    for number in range(60_000):
        connection.data_received(b"x")
        stored = max(stored, len(connection._input))
        if number % 8 == 0:
            await asyncio.sleep(0)
    assert stored <= command_loop.AUTH_OCTETS + 8
    connection.data_received(b"\r\n")

    assert (await client.reply())[-1].startswith("500 5.5.2")
    assert (await client.ask("NOOP")).startswith("250")


async def test_a_command_that_does_not_end_in_time_ends_the_session(
    server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = await Client.logged_in(server)
    [connection] = server.listener.registry.connections
    monkeypatch.setattr(connection, "idle_seconds", 0.5)
    await client.ask("NOOP")

    async def drip() -> None:
        while True:
            client.writer.write(b"N")
            await asyncio.sleep(0.05)

    dripping = asyncio.create_task(drip())
    # without that deadline the session would last for five minutes
    assert (await client.reply())[-1].startswith("421 4.4.2") and await client.closed()
    dripping.cancel()


async def test_sessions_of_an_account_are_limited(database: Database, broker_url: str, tmp_path: Path) -> None:
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
        assert server.listener.registry._by_account == {server.ids["alex"]: 2, server.ids["jim"]: 1}


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
    overtaken = []  # guesses that were checked while an honest client waited
    for who, source in (("alex", "127.0.0.1"), ("jim", "127.0.0.1"), ("jim", "127.0.0.9")):
        client, before = await Client.connect(server.port("smtp"), source), checked
        assert (await client.ask("EHLO x", plain(f"{who}@local.com"))).startswith(("250", "235"))
        assert (await client.reply())[-1].startswith("235")
        overtaken.append(checked - before)
    seconds = time.monotonic() - started
    for attacker in attackers:
        attacker.cancel()
    await asyncio.gather(*attackers, return_exceptions=True)

    assert 3 <= checked < 3 * seconds
    assert max(overtaken) < 20  # the last one comes from the attacker's own address
    assert overtaken[1] < 10  # neither address nor account is the attacker's
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
    logins = Authenticator(server.database, server.settings, "test")
    alex = await logins.verify("ALEX@local.com", "secret", "192.0.2.1")
    assert alex is not None

    async with server.database.transaction() as connection:
        await account_changes.save_local(connection, replace(alex, password_hash=hash_password("new")))

    assert await logins.verify("alex@local.com", "secret", "192.0.2.1") is None
    changed = await logins.verify("alex@local.com", "new", "192.0.2.1")
    assert changed is not None
    async with server.database.transaction() as connection:
        await account_changes.save_local(connection, replace(changed, enabled=False))
    assert await logins.verify("alex@local.com", "new", "192.0.2.1") is None
    logins.close()


async def test_an_account_is_read_again_only_after_a_change(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    logins, load = Authenticator(server.database, server.settings, "test"), accounts.load_logins
    read: list[str] = []

    async def counting(connection: Connection, addresses: Sequence[str], more: str) -> dict[str, tuple[Local, Any]]:
        read.extend(addresses)
        return await load(connection, addresses, more)

    monkeypatch.setattr(accounts, "load_logins", counting)
    found = [await logins.verify("alex@local.com", "secret", "192.0.2.1") for _ in range(3)]
    assert found[0] is not None and found[0] == found[1] == found[2] and read == ["alex@local.com"]
    assert await logins.verify("alex@local.com", "wrong", "192.0.2.1") is None and len(read) == 2
    # when any account changes, then this one is read again
    async with server.database.transaction() as connection:
        jim = await accounts.local_by_login(connection, "jim@local.com")
        assert jim is not None
        await account_changes.save_local(connection, replace(jim, user_name="James"))
    read.clear()
    assert await logins.verify("alex@local.com", "secret", "192.0.2.1") == found[0] and read == ["alex@local.com"]
    assert await logins.verify("alex@local.com", "secret", "192.0.2.1") == found[0] and read == ["alex@local.com"]
    logins.close()


@pytest.mark.parametrize("address", ["nobody@local.com", "", "a\0b", "\udcff@local.com", "x" * 100_000])
async def test_an_address_that_is_no_account_is_refused(server: Running, address: str) -> None:
    logins = Authenticator(server.database, server.settings, "test")

    assert await logins.verify(address, "secret", "192.0.2.1") is None
    logins.close()


async def test_passwords_in_clear_are_refused_where_the_settings_forbid_them(
    database: Database, broker_url: str, tmp_path: Path
) -> None:
    async with running(database, broker_url, tmp_path, allow_plaintext_auth="no") as server:
        client = await Client.connect(server.port("smtp"))
        await client.reply()
        client.writer.write(b"EHLO x\r\n")
        assert not any("AUTH" in line for line in await client.reply())
        assert (await client.ask(plain("alex@local.com"))).startswith("538 5.7.11")


# ------------------------------------------------------------------------------------------------ TLS


async def test_commands_pipelined_behind_starttls_are_dropped(server: Running) -> None:
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
    await until(lambda: SESSIONS._value.get() == 0)


# ------------------------------------------------------------------------------------------------ stopping


async def test_a_stop_finishes_the_current_mail_and_ends_other_sessions(server: Running) -> None:
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
