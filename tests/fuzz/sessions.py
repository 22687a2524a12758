"""Runs whole POP3 and submission sessions in memory: the input is what a client sends, in one piece and in small ones.

The first octet of the input chooses how far the session is before: just connected, logged in, or (submission) in DATA.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import io
import re
from collections.abc import Callable, Coroutine, Iterable
from typing import Any, cast

from services.pop3_out import replies
from services.pop3_out.connection import Pop3Connection as Pop3Connection
from services.pop3_out.interfaces import ClientInfo
from services.pop3_out.readahead import PROCESS_OCTETS
from services.pop3_out.session import Pop3Session
from services.smtp_in.commit_queue import CommittedSubmission, PendingSubmission
from services.smtp_in.connection import SmtpConnection as SmtpConnection
from services.smtp_in.envelope_policy import Envelope
from services.smtp_in.receive_memory import ReceiveMemory
from services.smtp_in.recipient_policy import Directory
from shared.model import Local
from shared.net.server_tls import Certificate
from shared.runtime.memory_budget import MemoryBudget
from tests.dialogues.pop3.stand import ALEX, MemoryLogins, MemoryStore

_LONE = re.compile(rb"\r(?!\n)|(?<!\r)\n")
_TURNS = 3000


class Wire:
    """A transport that records what is written."""

    def __init__(self) -> None:
        self.out = bytearray()
        self.closed = False

    def write(self, data: bytes) -> None:
        if not self.closed:
            self.out += data

    def close(self) -> None:
        self.closed = True

    abort = close

    def is_closing(self) -> bool:
        return self.closed

    def get_extra_info(self, name: str, default: object = None) -> object:
        return ("192.168.1.9", 4711) if name == "peername" else default

    def get_write_buffer_size(self) -> int:
        return 0

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """Do nothing: there is no buffer."""

    def pause_reading(self) -> None:
        """Do nothing: the test sends the next piece only when the session waits for input."""

    resume_reading = pause_reading


class Door:
    """Admits every connection, for both servers. open: number of open connections."""

    def __init__(self) -> None:
        self.budget = MemoryBudget(PROCESS_OCTETS)
        self.certificate = cast(Certificate, None)  # no session reaches a TLS handshake
        self.open = 0

    def admit(self, _: object) -> bool:
        self.open += 1
        return True

    def on_closed(self, _: object) -> None:
        self.open -= 1

    def account_budget(self, _: int) -> MemoryBudget:
        return self.budget

    def register_session(self, connection: object, _: Local) -> Any:
        """POP3 expects None or a reason, submission whether the session is accepted."""
        return None if isinstance(connection, Pop3Connection) else True

    def clear_auth_from(self, peer: str) -> bool:
        return peer.startswith("192.168.")


async def _until(quiet: Callable[[], bool]) -> None:
    for _ in range(_TURNS):
        await asyncio.sleep(0)
        if quiet():
            return
    raise AssertionError("the session does not come to rest")


def _watch(session: Coroutine[Any, Any, None]) -> None:
    """Run a session without its log output. A failure in a callback or another task fails the test too."""
    failures: list[dict[str, Any]] = []

    async def run() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: failures.append(context))
        await session

    with contextlib.redirect_stdout(io.StringIO()) as log:
        asyncio.run(run())
    assert not failures, failures
    assert "Traceback" not in log.getvalue() and "failed" not in log.getvalue(), log.getvalue()


def _pieces(data: bytes, step: int) -> list[bytes]:
    return [data[start : start + step] for start in range(0, len(data), step)]


async def _read_mail(store: MemoryStore, wire: Wire, pieces: Iterable[bytes]) -> None:
    door = Door()

    def open_session(connection: Pop3Connection, under_tls: bool) -> Pop3Session:
        return Pop3Session(
            connection, store, MemoryLogins(), door.budget, ClientInfo(connection.peer, under_tls, clear_allowed=True)
        )

    connection = Pop3Connection(door, open_session, tls=True)
    assert connection.admit()
    connection.connection_made(cast(asyncio.Transport, wire))

    def at_rest() -> bool:
        return connection._command_task is None and (wire.closed or b"\n" not in connection._input)

    for piece in pieces:
        connection.data_received(piece)
        await _until(at_rest)
    connection.connection_lost(None)
    await _until(at_rest)
    assert door.open == 0 and door.budget.in_use == 0


def pop3_session(data: bytes) -> None:
    """The replies of a POP3 session do not depend on how the input is split, and nothing is deleted without QUIT."""
    start = b"USER alex@local.com\r\nPASS secret\r\n" if data[:1] > b"\x80" else b""
    outs = []
    for step in (len(data) + 1, 1 + len(data) % 5):
        store, wire = MemoryStore(), Wire()
        _watch(_read_mail(store, wire, [start, *_pieces(data[1:], step)]))
        out = bytes(wire.out)
        assert out.startswith(replies.GREETING) and not _LONE.search(out)
        if store.left(ALEX) != [1, 2, 3]:
            assert (
                re.search(rb"(?i)\nQUIT *\r?\n", b"\n" + data[1:]) and b"+OK bye, the marked mails are deleted" in out
            )
        outs.append((out, store.left(ALEX)))
    assert outs[0] == outs[1]


class Hands:
    """Stands in for the commit queue, the accounts and the password check of smtp_in. handed: mails in order."""

    def __init__(self, office: Directory, author: Local) -> None:
        self.handed: list[PendingSubmission] = []
        self.memory = ReceiveMemory(1 << 20)
        self._office, self._author = office, author

    @property
    def cached_directory(self) -> Directory:
        return self._office

    def refresh_in_background(self) -> None:
        pass

    def refresh_directory(self) -> asyncio.Future[Directory]:
        answer: asyncio.Future[Directory] = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().call_soon(answer.set_result, self._office)
        return answer

    async def commit(self, handed: PendingSubmission) -> CommittedSubmission:
        await asyncio.sleep(0)
        self.handed.append(handed)
        return CommittedSubmission(len(self.handed), (), handed.external, (1, ""))

    async def may_redirect(self, _: Envelope) -> bool:
        await asyncio.sleep(0)
        return True

    async def verify(self, address: str, password: str, peer: str) -> Local | None:
        await asyncio.sleep(0)
        return self._author if (address.lower(), password) == (self._author.address, "secret") else None


_LOGIN = b"EHLO x\r\nAUTH PLAIN " + base64.b64encode(b"\0alex@local.com\0secret") + b"\r\n"
_MAIL = b"MAIL FROM:<alex@local.com>\r\nRCPT TO:<ann@customer.org>\r\nDATA\r\n"
_REPLIES = re.compile(rb"(?:(?:[2-5]\d\d-[^\r\n]*\r\n)*[2-5]\d\d [^\r\n]*\r\n)+")


async def _hand_in(hands: Hands, wire: Wire, pieces: Iterable[bytes]) -> None:
    door = Door()
    connection = SmtpConnection(
        door,
        cast(Any, hands),
        cast(Any, hands),
        door.certificate,
        implicit_tls=False,
        clear_auth=True,
        host_name="mail.local.com",
        max_octets=1 << 20,
    )
    connection.connection_made(cast(asyncio.Transport, wire))
    await _until(lambda: connection._arrived is not None)
    connection._under_tls = True  # so STARTTLS is refused: a handshake needs a socket

    def at_rest() -> bool:
        return wire.closed or (connection._arrived is not None and not connection._arrived.done())

    for piece in pieces:
        if piece and not wire.closed:
            connection.data_received(piece)
            await _until(at_rest)
    handler = connection.session_task
    connection.connection_lost(None)
    assert handler is not None
    await asyncio.gather(handler, return_exceptions=True)
    assert door.open == 0


def smtp_session(data: bytes, office: Directory, author: Local) -> None:
    """A submission session sends only well-formed replies, which do not depend on how the input is split.

    Each accepted mail is complete, and its sender is an address of the author.
    """
    start = b"" if data[:1] < b"\x40" else _LOGIN if data[:1] < b"\x80" else _LOGIN + _MAIL
    outs = []
    for step in (len(data) + 1, 1 + len(data) % 5):
        hands, wire = Hands(office, author), Wire()
        _watch(_hand_in(hands, wire, [start, *_pieces(data[1:], step)]))
        out = bytes(wire.out)
        assert _REPLIES.fullmatch(out), out[-200:]
        assert not hands.handed or b"\r\n235 " in out
        assert len(re.findall(rb"(?m)^250 2\.0\.0 Queued as ", out)) == len(hands.handed)
        for handed in hands.handed:
            _judge(handed, office, author)
        outs.append((out, [(bytes(h.submission.content.body), h.submission.recipients) for h in hands.handed]))
    assert outs[0] == outs[1]


def _judge(handed: PendingSubmission, office: Directory, author: Local) -> None:
    mail = handed.submission
    assert mail.author_id == author.id and 1 <= len(mail.recipients) <= 1000
    assert mail.envelope_from.lower() in office.addresses_of(author) | {""}
    for recipient in mail.recipients:
        assert not (recipient.kind == "relay" and recipient.address.lower().endswith("@local.com"))
        assert not re.search(r"[\x00-\x20\x7f<>]", recipient.address)
    assert not _LONE.search(bytes(mail.content.body))
