"""The connection under a session: pipelining, memory, limits, deadlines and the stop, over the loopback address."""

from __future__ import annotations

import asyncio
import gc
import time
import weakref
from collections.abc import Callable, Collection, Iterable
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from services.pop3_out import listener as pop3_listener
from services.pop3_out.connection import (
    COMMANDS_IN_TURN,
    IDLE_SECONDS,
    LOGIN_SECONDS,
    REPLIES_IN_TURN,
    Pop3Connection,
)
from services.pop3_out.snapshot import Snapshot
from shared.errors import Temporary
from shared.runtime.memory_budget import SHARE, session_share
from shared.runtime.piece_reader import LARGE_PIECE_OCTETS, PIECE_OCTETS
from shared.runtime.served_connection import INPUT_OCTETS, OUTPUT_OCTETS, PAUSE_SECONDS
from tests.dialogues.pop3.stand import ALEX, KIM, ONE, Stand, on_loop, stand, trusting
from tests.polling import until, until_still

LARGE = b"Subject: large\r\n\r\n" + b".a line of forty octets, dotted .......\r\n" * 50_000  # 2 MB
LOOPS = pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
TLS = pytest.mark.parametrize("tls", [False, True], ids=["clear", "tls"])


async def answer(reader: asyncio.StreamReader) -> bytes:
    """The mail, or list, that the next answer brings; it has at least one line."""
    assert (await reader.readline()).startswith(b"+OK")
    wire = await asyncio.wait_for(reader.readuntil(b"\r\n.\r\n"), 60)
    return wire.removesuffix(b".\r\n").replace(b"\n..", b"\n.")


def receiving(writer: asyncio.StreamWriter) -> asyncio.Transport:
    """The transport, to stop and start reading."""
    return cast(asyncio.Transport, writer.transport)


def buffered(connection: Pop3Connection) -> int:
    """Octets that the process holds unsent for a client."""
    assert connection._transport is not None
    return connection._transport.get_write_buffer_size()


def opened(server: Stand) -> list[Pop3Connection]:
    return list(server.listener.registry.connections)


@LOOPS
@TLS
def test_pipelined_mails_come_in_order_and_are_read_in_few_queries(tmp_path: Path, loop: str, tls: bool) -> None:
    async def work() -> None:
        async with stand(tmp_path) as server:
            # given 300 mails
            server.store.mails[ALEX.id] = {row: b"%d\r\n" % row * 50 for row in range(1000, 1300)}
            reader, writer = await server.logged_in(tls)
            # when the client asks for all of them at once
            writer.write(b"".join(b"RETR %d\r\n" % number for number in range(1, 301)))
            # then each mail arrives unchanged, in order
            for row in range(1000, 1300):
                assert await answer(reader) == b"%d\r\n" % row * 50
            assert len(server.store.reads) <= 6

    on_loop(loop, work)


@LOOPS
@TLS
def test_a_large_mail_for_a_slow_client_is_not_kept_in_memory(tmp_path: Path, loop: str, tls: bool) -> None:
    async def work() -> None:
        async with stand(tmp_path) as server:
            # given a mail larger than all buffers on the way, and a client that does not read
            server.store.mails[ALEX.id] = {1: LARGE * 6, 2: ONE}
            reader, writer = await server.logged_in(tls)
            receiving(writer).pause_reading()
            # when it asks for that mail and for another
            writer.write(b"RETR 1\r\nRETR 2\r\nQUIT\r\n")
            await until(lambda: server.store.reads)
            await until_still(lambda: len(server.store.reads))
            # then the server reads no more than fits on the way
            assert server.store.reads[-1][1] < len(LARGE) * 5
            # and memory has the allowed unsent octets and one stuffed piece (one octet more for each line of 40)
            [connection] = opened(server)
            assert buffered(connection) < (OUTPUT_OCTETS + LARGE_PIECE_OCTETS) * 41 // 40
            # and the client gets everything once it reads
            receiving(writer).resume_reading()
            assert await answer(reader) == LARGE * 6
            assert await answer(reader) == ONE
            assert await reader.read() == b"+OK bye\r\n"

    on_loop(loop, work)


@LOOPS
@TLS
def test_many_slow_clients_get_the_smallest_pieces_once_memory_is_short(tmp_path: Path, loop: str, tls: bool) -> None:
    async def work() -> None:
        async with stand(tmp_path) as server:
            # given twelve clients and a budget that makes one of them fast
            server.store.mails[ALEX.id] = {1: LARGE * 6}
            budget = server.listener.budget
            budget.octets = LARGE_PIECE_OCTETS
            clients = [await server.logged_in(tls) for _ in range(12)]
            for _, writer in clients:
                receiving(writer).pause_reading()
                writer.write(b"RETR 1\r\n")
            # when none of them reads
            await until(lambda: budget.available < LARGE_PIECE_OCTETS)
            await until_still(lambda: (len(server.store.reads), [*map(buffered, opened(server))]))
            # then each keeps the allowed unsent octets and a smallest piece, all together at most the budget more
            most = LARGE_PIECE_OCTETS + 12 * (OUTPUT_OCTETS + PIECE_OCTETS)
            assert sum(buffered(connection) for connection in opened(server)) < most * 41 // 40
            assert budget.available < LARGE_PIECE_OCTETS
            # and after they have disconnected, the whole budget is available
            for _, writer in clients:
                writer.transport.abort()
            await until(lambda: budget.available == LARGE_PIECE_OCTETS)

    on_loop(loop, work)


@LOOPS
def test_one_account_uses_its_share_of_the_memory_and_no_more(
    tmp_path: Path, loop: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pop3_listener, "ACCOUNT_OCTETS", LARGE_PIECE_OCTETS)

    async def work() -> None:
        async with stand(tmp_path) as server:
            # given twenty slow clients of one account
            server.store.mails[ALEX.id] = {1: LARGE * 6}
            server.store.mails[KIM.id] = {2: LARGE}
            clients = [await server.logged_in() for _ in range(20)]
            for _, writer in clients:
                receiving(writer).pause_reading()
                writer.write(b"RETR 1\r\n")
            await until(lambda: server.listener.budget.in_use)
            await until_still(lambda: (len(server.store.reads), [*map(buffered, opened(server))]))
            # then all others have the rest of the memory
            most = 2 * LARGE_PIECE_OCTETS + 20 * (OUTPUT_OCTETS + PIECE_OCTETS)
            budget = server.listener.budget
            assert LARGE_PIECE_OCTETS // 2 < budget.in_use < most * 41 // 40
            reader, writer = await server.connect()
            writer.write(b"USER kim@local.com\r\nPASS  open  sesame \r\nRETR 1\r\nQUIT\r\n")
            for _ in range(3):
                assert (await reader.readline()).startswith(b"+OK")
            [kim] = [connection for connection in opened(server) if connection.account == KIM]
            assert session_share(kim.budget) >= LARGE_PIECE_OCTETS // 4
            assert budget.available // SHARE > 2 * LARGE_PIECE_OCTETS
            assert await answer(reader) == LARGE
            # and the share ends with the sessions
            for _, writer in clients:
                writer.transport.abort()
            del kim
            await until(lambda: budget.in_use == 0)
            await server.listener.registry.closed.wait()
            gc.collect()
            assert not server.listener._account_budgets

    on_loop(loop, work)


@LOOPS
@TLS
def test_a_client_that_reads_too_slowly_is_cut(
    tmp_path: Path, loop: str, tls: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def work() -> None:
        passed = 0.0
        clock = SimpleNamespace(monotonic=lambda: time.monotonic() + passed)
        for module in (
            "services.pop3_out.connection",
            "shared.runtime.served_connection",
            "shared.runtime.served_listener",
        ):
            monkeypatch.setattr(f"{module}.time", clock)
        async with stand(tmp_path) as server:
            server.store.mails[ALEX.id] = {1: LARGE * 6}
            for octets_a_second, cut in ((300, True), (1500, False)):
                reader, writer = await server.logged_in(tls)
                reader._limit = 16 * 1024  # type: ignore[attr-defined]  # or else the client takes what is there
                writer.write(b"RETR 1\r\n")
                await until_still(lambda: len(server.store.reads))
                [connection] = opened(server)
                # when the client reads a little within every five minutes
                for _ in range(12):
                    passed += 300
                    with suppress(ConnectionError, asyncio.IncompleteReadError):
                        await reader.readexactly(300 * octets_a_second)
                    await until_still(lambda: len(server.store.reads), 3)
                    server.listener.check_deadlines()
                assert connection._is_ending is cut
                writer.transport.abort()
                await until(lambda: not opened(server))

    on_loop(loop, work)


@LOOPS
def test_long_replies_leave_the_others_their_turn(tmp_path: Path, loop: str, monkeypatch: pytest.MonkeyPatch) -> None:
    built: list[int] = []
    uidl_reply = Snapshot.uidl_reply

    def counted(mailbox: Snapshot, deleted: Collection[int]) -> Iterable[bytes]:
        pieces = list(uidl_reply(mailbox, deleted))
        built.append(sum(map(len, pieces)))
        return pieces

    async def work() -> None:
        async with stand(tmp_path) as server:
            # given a client that wants the list of a thousand mails again and again, and does not get it from a cache
            server.store.mails[ALEX.id] = dict.fromkeys(range(1, 1001), ONE)
            reader, writer = await server.logged_in()
            monkeypatch.setattr(Snapshot, "uidl_reply", counted)
            reading = asyncio.create_task(reader.read())
            writer.write(b"DELE 1\r\n" + b"UIDL\r\n" * 500 + b"QUIT\r\n")
            turns, most = 0, 0
            while len(built) < 500:
                before = sum(built)
                await asyncio.sleep(0)
                turns, most = turns + 1, max(most, sum(built) - before)
            writer.transport.abort()
            await asyncio.gather(reading, return_exceptions=True)
            # then other sessions have their turn after some replies
            assert most <= REPLIES_IN_TURN + max(built)

    on_loop(loop, work)


@LOOPS
def test_input_of_a_client_that_reads_no_replies_is_paused(tmp_path: Path, loop: str) -> None:
    async def work() -> None:
        async with stand(tmp_path) as server:
            server.store.mails[ALEX.id] = {1: bytes(200_000) + b"\r\n"}
            _, writer = await server.logged_in()
            receiving(writer).pause_reading()
            # when a client floods the server with commands and reads nothing
            for _ in range(100):
                writer.write(b"RETR 1\r\n" * 10_000)
                await asyncio.sleep(0.002)
            [connection] = opened(server)
            await until_still(lambda: (len(connection._input), writer.transport.get_write_buffer_size()))
            # then the server holds few of them
            assert len(connection._input) <= INPUT_OCTETS + 256 * 1024
            assert writer.transport.get_write_buffer_size() > 0
            writer.transport.abort()

    on_loop(loop, work)


@LOOPS
def test_a_list_of_a_large_mailbox_goes_out_piece_by_piece(tmp_path: Path, loop: str) -> None:
    async def work() -> None:
        async with stand(tmp_path) as server:
            server.store.mails[ALEX.id] = dict.fromkeys(range(1, 50_001), ONE)
            reader, writer = await server.logged_in()
            writer.write(b"UIDL\r\nLIST\r\nSTAT\r\n")
            assert len((await answer(reader)).splitlines()) == 50_000
            assert (await answer(reader)).splitlines()[-1] == b"50000 39"
            assert await reader.readline() == b"+OK 50000 1950000\r\n"

    on_loop(loop, work)


@LOOPS
def test_a_mail_that_fails_halfway_ends_the_connection_without_a_final_dot(tmp_path: Path, loop: str) -> None:
    async def work() -> None:
        async with stand(tmp_path) as server:
            server.store.mails[ALEX.id] = {1: LARGE * 6}
            reader, writer = await server.logged_in()
            receiving(writer).pause_reading()
            writer.write(b"RETR 1\r\n")
            await until(lambda: server.store.reads)
            await until_still(lambda: len(server.store.reads))
            # when the store fails in the middle of a mail
            server.store.broken = True
            receiving(writer).resume_reading()
            # then the client sees the connection end, and no end of the mail
            got = bytearray()
            with suppress(ConnectionError):
                while part := await asyncio.wait_for(reader.read(65536), 60):
                    got += part
            assert 0 < len(got) < len(LARGE) * 12
            assert b"\r\n.\r\n" not in got
            assert b"-ERR" not in got

    on_loop(loop, work)


@LOOPS
def test_commands_in_small_pieces_and_with_bare_lf_are_understood(tmp_path: Path, loop: str) -> None:
    async def work() -> None:
        async with stand(tmp_path) as server:
            reader, writer = await server.logged_in()
            for octet in b"STAT\r\nNOOP\nSTAT\r":
                writer.write(bytes([octet]))
                await asyncio.sleep(0.001)
            assert await reader.readline() == b"+OK 3 86\r\n"
            assert await reader.readline() == b"+OK\r\n"
            writer.write(b"\n")
            assert await reader.readline() == b"+OK 3 86\r\n"

    on_loop(loop, work)


@LOOPS
@pytest.mark.parametrize("line", [b"NOOP " + b"x" * 600, b"x" * 600 + b"\r\n", b"AUTH PLAIN " + b"A" * 13_000])
def test_a_line_that_is_too_long_ends_the_connection(tmp_path: Path, loop: str, line: bytes) -> None:
    async def work() -> None:
        async with stand(tmp_path) as server:
            reader, writer = await server.connect()
            await reader.readline()
            writer.write(line)
            assert await asyncio.wait_for(reader.read(), 60) == b"-ERR line too long\r\n"

    on_loop(loop, work)


@LOOPS
def test_a_client_that_closes_its_side_gets_the_outstanding_replies(tmp_path: Path, loop: str) -> None:
    async def work() -> None:
        async with stand(tmp_path) as server:
            reader, writer = await server.connect()
            writer.write(b"USER alex@local.com\r\nPASS secret\r\nRETR 1\r\nDELE 1\r\nQUIT\r\n")
            writer.write_eof()
            got = await asyncio.wait_for(reader.read(), 60)
            assert got.endswith(ONE + b".\r\n+OK marked as deleted\r\n+OK bye, the marked mails are deleted\r\n")
            assert server.store.left(ALEX) == [2, 3]

    on_loop(loop, work)


@LOOPS
def test_a_client_that_closes_its_side_without_quit_deletes_nothing(tmp_path: Path, loop: str) -> None:
    async def work() -> None:
        async with stand(tmp_path) as server:
            reader, writer = await server.connect()
            writer.write(b"USER alex@local.com\r\nPASS secret\r\nDELE 1\r\nQUI")
            writer.write_eof()
            assert (await asyncio.wait_for(reader.read(), 60)).endswith(b"+OK marked as deleted\r\n")
            assert server.store.left(ALEX) == [1, 2, 3]

    on_loop(loop, work)


@LOOPS
def test_a_quit_is_executed_even_if_the_client_has_disconnected(tmp_path: Path, loop: str) -> None:
    async def work() -> None:
        async with stand(tmp_path) as server:
            _, writer = await server.logged_in()
            server.store.gate = asyncio.Event()
            [connection] = opened(server)
            writer.write(b"DELE 1\r\nQUIT\r\n")
            await until(lambda: connection.session is not None and connection.session.committing)
            writer.transport.abort()
            await until_still(lambda: len(opened(server)))
            server.store.gate.set()
            await until(lambda: server.store.left(ALEX) == [2, 3])

    on_loop(loop, work)


@LOOPS
@TLS
def test_too_many_connections_of_one_address_are_refused(tmp_path: Path, loop: str, tls: bool) -> None:
    async def work() -> None:
        async with stand(tmp_path, max_connections_per_address=2) as server:
            # given two connections, which is all that one address may have
            first, second = await server.connect(tls), await server.connect(tls)
            for reader, _ in (first, second):
                assert (await reader.readline()).startswith(b"+OK")
            # when a third client connects
            if tls:
                with pytest.raises((ConnectionError, OSError)):
                    await server.connect(tls)
            else:
                reader, _ = await server.connect()
                assert await reader.read() == b"-ERR [SYS/TEMP] too many connections\r\n"
            # then it is refused; and it is let in when one of the others has left
            first[1].close()
            await until(lambda: len(opened(server)) == 1)
            reader, _ = await server.connect(tls)
            assert (await reader.readline()).startswith(b"+OK")

    on_loop(loop, work)


@LOOPS
def test_connections_before_their_tls_handshake_count(tmp_path: Path, loop: str) -> None:
    async def work() -> None:
        async with stand(tmp_path, max_connections_per_address=1) as server:
            _, silent = await asyncio.open_connection("127.0.0.1", server.settings.pop3s_port)
            await until(lambda: opened(server))
            reader, _ = await server.connect()
            assert await reader.read() == b"-ERR [SYS/TEMP] too many connections\r\n"
            silent.close()
            await until(lambda: not opened(server))
            reader, _ = await server.connect()
            assert (await reader.readline()).startswith(b"+OK")

    on_loop(loop, work)


@LOOPS
def test_too_many_connections_in_all_are_refused(tmp_path: Path, loop: str) -> None:
    async def work() -> None:
        async with stand(tmp_path, connections=1) as server:
            first, _first_writer = await server.connect()
            assert (await first.readline()).startswith(b"+OK")
            reader, _ = await server.connect()
            assert await reader.read() == b"-ERR [SYS/TEMP] too many connections\r\n"

    on_loop(loop, work)


@LOOPS
def test_too_many_sessions_of_an_account_are_refused_until_some_end(tmp_path: Path, loop: str) -> None:
    async def work() -> None:
        async with stand(tmp_path, max_connections_per_account=2) as server:
            (_, first), second = await server.logged_in(), await server.logged_in()
            # when a third session of alex starts, and one of kim
            reader, writer = await server.connect()
            writer.write(b"USER alex@local.com\r\nPASS secret\r\n")
            assert (await asyncio.wait_for(reader.read(), 5)).splitlines()[2].startswith(b"-ERR [IN-USE]")
            other, writer = await server.connect()
            writer.write(b"USER kim@local.com\r\nPASS  open  sesame \r\nQUIT\r\n")
            assert (await asyncio.wait_for(other.read(), 5)).count(b"+OK") == 4
            # then the next one is let in when one of the others has left
            first.close()
            await asyncio.sleep(0.1)
            third = await server.logged_in()
            assert server.listener.registry._by_account == {ALEX.id: 2} and not (
                second[0].at_eof() or third[0].at_eof()
            )

    on_loop(loop, work)


@LOOPS
def test_a_login_before_the_announced_delay_is_refused(tmp_path: Path, loop: str) -> None:
    async def work() -> None:
        async with stand(tmp_path, pop3_login_delay=60) as server:
            reader, writer = await server.logged_in()
            writer.write(b"CAPA\r\n")
            assert b"\r\nLOGIN-DELAY 60\r\n" in await reader.readuntil(b"\r\n.\r\n")
            reader, writer = await server.connect()
            writer.write(b"USER alex@local.com\r\nPASS secret\r\n")
            assert (await asyncio.wait_for(reader.read(), 5)).splitlines()[2].startswith(b"-ERR [LOGIN-DELAY]")
            server.listener._logged_in_at[ALEX.id] -= 61
            await server.logged_in()

    on_loop(loop, work)


@LOOPS
def test_octets_of_an_unfinished_command_do_not_extend_the_deadline(tmp_path: Path, loop: str) -> None:
    async def work() -> None:
        async with stand(tmp_path) as server:
            _, writer = await server.logged_in()
            [connection] = opened(server)
            connection._active_at -= IDLE_SECONDS - 1
            for _ in range(3):
                writer.write(b"N")
                await asyncio.sleep(0.02)
            connection.check_deadlines(time.monotonic())
            assert not connection._is_ending
            connection.check_deadlines(time.monotonic() + 2)
            assert connection._is_ending

    on_loop(loop, work)


@LOOPS
def test_a_flood_of_commands_does_not_delay_other_clients(tmp_path: Path, loop: str) -> None:
    async def work() -> None:
        async with stand(tmp_path) as server:
            reader, writer = await server.logged_in()
            [connection] = opened(server)
            turns = 0
            advance = connection._run_commands

            def counted() -> None:
                nonlocal turns
                turns += 1
                advance()

            connection._run_commands = counted  # type: ignore[method-assign]  # watched from outside
            writer.write(b"NOOP\r\n" * 3000)
            got = await asyncio.wait_for(reader.readexactly(5 * 3000), 5)
            assert got == b"+OK\r\n" * 3000 and turns >= 3000 // COMMANDS_IN_TURN

    on_loop(loop, work)


@LOOPS
def test_commands_before_the_login_that_need_one_are_counted(tmp_path: Path, loop: str) -> None:
    async def work() -> None:
        async with stand(tmp_path) as server:
            reader, writer = await server.connect()
            writer.write(b"NOOP\r\n" * 10_000)
            assert (await asyncio.wait_for(reader.read(), 5)).count(b"-ERR log in first") == 10

    on_loop(loop, work)


@LOOPS
@pytest.mark.parametrize("line", [b"CAPA", b"AUTH", b"USER alex@local.com", b"PASS secret", b"AUTH PLAIN\r\n*"])
def test_too_many_commands_before_the_login_end_the_connection(tmp_path: Path, loop: str, line: bytes) -> None:
    async def work() -> None:
        async with stand(tmp_path) as server:
            reader, writer = await server.connect()
            writer.write((line + b"\r\n") * 150)
            said = await asyncio.wait_for(reader.read(), 5)
            assert said.endswith(b"\r\n-ERR too many commands before the login\r\n")

    on_loop(loop, work)


@LOOPS
def test_a_failed_tls_handshake_leaves_nothing_behind(tmp_path: Path, loop: str) -> None:
    async def work() -> None:
        async with stand(tmp_path) as server:
            # given clients that talk nonsense instead of TLS, after STLS and on the port for TLS
            reader, writer = await server.connect()
            writer.write(b"STLS\r\n")
            await reader.readline()
            assert await reader.readline() == b"+OK begin TLS\r\n"
            writer.write(b"STAT\r\n" * 10)
            other, nonsense = await asyncio.open_connection("127.0.0.1", server.settings.pop3s_port)
            nonsense.write(b"STAT\r\n" * 10)
            # then both are closed without a word in clear, and counted no longer
            for stream in (reader, other):
                with suppress(ConnectionError):
                    assert b"+OK" not in await asyncio.wait_for(stream.read(), 5)
            await asyncio.sleep(0.05)
            assert opened(server) == []
            assert not server.listener.registry._by_network

    on_loop(loop, work)


def late(seconds: float) -> float:
    return time.monotonic() + seconds


@LOOPS
@TLS
@pytest.mark.parametrize("how", ["quit", "reset"])
def test_a_connection_that_has_ended_leaves_memory_at_once(tmp_path: Path, loop: str, tls: bool, how: str) -> None:
    async def work() -> None:
        async with stand(tmp_path) as server:
            server.store.mails[ALEX.id] = {1: LARGE}
            reader, writer = await server.logged_in(tls)
            receiving(writer).pause_reading()
            writer.write(b"RETR 1\r\nRETR 1\r\n")
            [connection] = map(weakref.ref, opened(server))
            await asyncio.sleep(0.1)
            if how == "reset":
                writer.transport.abort()
            else:
                receiving(writer).resume_reading()
                writer.write(b"QUIT\r\n")
                await asyncio.wait_for(reader.read(), 10)
                writer.close()
            for _ in range(500):
                if connection() is None:
                    break
                await asyncio.sleep(0.01)
            assert connection() is None and not opened(server)

    gc.disable()  # only reference counts may free the memory: the collector may run much later
    try:
        on_loop(loop, work)
    finally:
        gc.enable()


@LOOPS
def test_a_client_without_a_login_after_a_minute_is_disconnected(tmp_path: Path, loop: str) -> None:
    await_end(tmp_path, loop, lambda server: server.connect(), LOGIN_SECONDS)


@LOOPS
def test_an_idle_session_is_closed_after_ten_minutes(tmp_path: Path, loop: str) -> None:
    await_end(tmp_path, loop, lambda server: server.logged_in(), IDLE_SECONDS)


def await_end(tmp_path: Path, loop: str, connect: Callable[[Stand], Any], seconds: float) -> None:
    """Check that the connection is open before its deadline, and closed after it without a reply or deletion."""

    async def work() -> None:
        async with stand(tmp_path) as server:
            reader, writer = await connect(server)
            writer.write(b"DELE 1\r\n")
            await asyncio.sleep(0.05)
            [connection] = opened(server)
            connection.check_deadlines(late(seconds - 5))
            assert not connection._is_ending
            connection.check_deadlines(late(seconds + 1))
            got = b""
            with suppress(ConnectionError):
                got = await asyncio.wait_for(reader.read(), 60)
            assert got.count(b"\r\n") <= 2  # the greeting and DELE's answer
            assert server.store.left(ALEX) == [1, 2, 3]

    on_loop(loop, work)


@LOOPS
def test_a_client_that_pauses_has_no_prefetched_mail_in_memory(tmp_path: Path, loop: str) -> None:
    async def work() -> None:
        async with stand(tmp_path) as server:
            server.store.mails[ALEX.id] = dict.fromkeys(range(1, 50), ONE)
            reader, writer = await server.logged_in()
            whole = server.listener.budget.available
            for number in range(1, 9):
                writer.write(b"RETR %d\r\n" % number)
                await answer(reader)
            assert server.listener.budget.available < whole
            [connection] = opened(server)
            connection.check_deadlines(late(PAUSE_SECONDS + 1))
            assert server.listener.budget.available == whole
            writer.write(b"RETR 9\r\n")
            assert await answer(reader) == ONE

    on_loop(loop, work)


@LOOPS
def test_a_failed_prefetch_is_reported_when_that_mail_is_requested(tmp_path: Path, loop: str) -> None:
    async def work() -> None:
        async with stand(tmp_path) as server:
            # given a client that reads mail after mail
            server.store.mails[ALEX.id] = {number: b"%d\r\n" % number * 9_000 for number in range(1, 301)}
            reader, writer = await server.logged_in()
            whole = server.listener.budget.available
            number = 1
            for number in range(1, 10):
                writer.write(b"RETR %d\r\n" % number)
                assert await answer(reader) == b"%d\r\n" % number * 9_000
            # when the store fails
            server.store.broken = True
            refused = b""
            while not refused:
                number += 1
                writer.write(b"RETR %d\r\n" % number)
                if (line := await reader.readline()).startswith(b"-ERR"):
                    refused = line
                else:
                    wire = await reader.readuntil(b"\r\n.\r\n")
                    assert wire == b"%d\r\n" % number * 9_000 + b".\r\n"
            # then only the mail that is not here yet is refused
            assert refused.startswith(b"-ERR [SYS/TEMP]")
            # and once reading works again, that mail and all others arrive
            server.store.broken = False
            for again in range(number, 301):
                writer.write(b"RETR %d\r\n" % again)
                assert await answer(reader) == b"%d\r\n" % again * 9_000
            # and no memory is reserved for mails that were not read
            assert server.listener.budget.available == whole

    on_loop(loop, work)


@LOOPS
def test_a_prefetch_that_failed_before_a_pause_spoils_no_later_read(tmp_path: Path, loop: str) -> None:
    async def work() -> None:
        async with stand(tmp_path) as server:
            # given a client for which the next mails are being read
            server.store.mails[ALEX.id] = {number: b"%d\r\n" % number * 900 for number in range(1, 301)}
            reader, writer = await server.logged_in()
            for number in (1, 2):
                writer.write(b"RETR %d\r\n" % number)
                await answer(reader)
            [connection] = opened(server)
            session = connection.session
            assert session is not None
            before = server.store.read_mails
            server.store.read_mails = failing(gate := asyncio.Event())  # type: ignore[method-assign]  # this read fails
            writer.write(b"RETR 3\r\n")
            await answer(reader)
            assert 7 in session._reader.buffer
            # when it pauses, and asks for one of them while that read fails
            session.release_memory()
            server.store.read_mails = slow(before, gate)  # type: ignore[method-assign]  # the next one waits
            writer.write(b"RETR 7\r\n")
            # then it gets it
            assert await answer(reader) == b"7\r\n" * 900

    async def pause(gate: asyncio.Event) -> None:
        await asyncio.sleep(0.05)
        gate.set()

    def failing(gate: asyncio.Event) -> Callable[..., Any]:
        async def whole(blob_ids: Any, octets: int) -> dict[int, bytes]:
            await gate.wait()
            raise Temporary("the store was away")

        return whole

    def slow(before: Callable[..., Any], gate: asyncio.Event) -> Callable[..., Any]:
        async def whole(blob_ids: Any, octets: int) -> dict[int, bytes]:
            await pause(gate)
            await asyncio.sleep(0.05)
            found: dict[int, bytes] = await before(blob_ids, octets)
            return found

        return whole

    on_loop(loop, work)


@LOOPS
def test_a_stop_finishes_the_current_mail_and_refuses_commands(tmp_path: Path, loop: str) -> None:
    async def work() -> None:
        async with stand(tmp_path) as server:
            # given one client in the middle of a mail and one between two commands
            server.store.mails[ALEX.id] = {1: LARGE}
            server.store.gate = asyncio.Event()
            busy, busy_writer = await server.logged_in()
            idle, idle_writer = await server.logged_in()
            silent, _silent_writer = await server.logged_in()
            busy_writer.write(b"RETR 1\r\nNOOP\r\n")
            await asyncio.sleep(0.05)
            # when the server stops
            started = time.monotonic()
            stopping = asyncio.create_task(server.listener.close())
            await asyncio.sleep(0.05)
            idle_writer.write(b"STAT\r\n")
            # then new work is refused
            assert await idle.read() == b"-ERR [SYS/TEMP] the server is going down, try again later\r\n"
            # and the mail that is being sent is sent to its end
            server.store.gate.set()
            assert await answer(busy) == LARGE
            assert await busy.read() == b"-ERR [SYS/TEMP] the server is going down, try again later\r\n"
            # and a client that sends nothing finds the reply before its next command
            assert await silent.read() == b"-ERR [SYS/TEMP] the server is going down, try again later\r\n"
            await stopping
            assert time.monotonic() - started < 30
            with pytest.raises(OSError):
                await server.connect()

    on_loop(loop, work)


@LOOPS
def test_sessions_of_a_changed_account_end(tmp_path: Path, loop: str) -> None:
    async def work() -> None:
        async with stand(tmp_path) as server:
            reader, writer = await server.logged_in()
            writer.write(b"DELE 1\r\n")
            await reader.readline()
            assert server.listener.registry.logins() == {(ALEX.id, ALEX.password_hash)}
            server.listener.registry.end_sessions({(ALEX.id, "another hash")})
            writer.write(b"NOOP\r\n")
            assert await reader.readline() == b"+OK\r\n"
            server.listener.registry.end_sessions({(ALEX.id, ALEX.password_hash)})
            with suppress(ConnectionError):
                assert await asyncio.wait_for(reader.read(), 5) == b""
            assert server.store.left(ALEX) == [1, 2, 3]

    on_loop(loop, work)


@LOOPS
def test_stls_in_the_same_packet_as_clear_commands_executes_none_of_them(tmp_path: Path, loop: str) -> None:
    async def work() -> None:
        async with stand(tmp_path) as server:
            reader, writer = await server.connect()
            await reader.readline()
            writer.write(b"STLS\r\nUSER alex@local.com\r\nPASS secret\r\n")
            assert await reader.readline() == b"+OK begin TLS\r\n"
            await writer.start_tls(trusting())
            writer.write(b"STAT\r\n")
            assert await reader.readline() == b"-ERR log in first\r\n"

    on_loop(loop, work)
