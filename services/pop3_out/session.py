"""The states of a POP3 session and its commands (RFC 1939); knows no sockets.

A command is answered at once where that needs nothing but the snapshot, else by a coroutine that the connection awaits
before it takes the next command, so answers come in the order of the commands (RFC 2449, PIPELINING).
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import time
from collections.abc import Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import structlog

from services.pop3_out import replies, snapshot
from services.pop3_out.readahead import (
    MAILS_AHEAD,
    MAX_MAILS,
    SESSION_OCTETS,
    PrefetchBudget,
    PrefetchBuffer,
    plan_reading,
)
from services.pop3_out.snapshot import LINES_PER_PIECE, Snapshot
from shared.auth.authenticator import Throttled
from shared.errors import Permanent, Temporary
from shared.model import Local
from shared.store.blobs import HEAD_OCTETS

COMMAND_OCTETS = 512
"""RFC 2449 section 4 allows 255; some clients' passwords are long."""
AUTH_OCTETS = 12_288
"""A line of an AUTH exchange (RFC 5034 section 4)."""
MAX_REFUSED_LOGINS = 3
"""Logins refused before the connection ends."""
MAX_BAD_COMMANDS = 10
"""Commands that are none before the connection ends."""
MAX_COMMANDS_BEFORE_LOGIN = 100
PIECE_OCTETS = 16 * 1024
"""Of a long answer, read and sent at once for a slow client, or when the budget is used up."""
FIRST_PIECE_OCTETS = 256 * 1024
LARGE_PIECE_OCTETS = 1024 * 1024
"""For a client that takes a piece within QUICK_SECONDS, as far as the budget goes: larger pieces need fewer queries."""
QUICK_SECONDS = 0.5
TOP_OCTETS = 16 * 1024
"""First piece that TOP reads: most headers are shorter."""

Reply = bytes | Coroutine[Any, Any, bytes]

log = structlog.get_logger()


class Verifier(Protocol):
    """Who checks passwords: shared/auth/authenticator.py."""

    async def verify(self, address: str, password: str, peer: str) -> Local | None:
        """The account, or None. :raises Temporary, Throttled: as there."""


class MailboxStore(Protocol):
    """Where mailboxes are: store.py, which says what is raised."""

    async def load_snapshot(self, local_id: int) -> Snapshot:
        """The mailbox as it is now."""

    async def read_mails(self, blob_ids: Sequence[int], octets: int) -> dict[int, bytes]:
        """The bytes of small mails. :param octets: of all of them."""

    async def read_span(self, blob_id: int, start: int, length: int) -> bytes:
        """Some bytes of a mail."""

    async def delete_mails(self, local: Local, row_ids: Sequence[int]) -> None:
        """Delete mails, all of them or none."""


class Pop3Transport(Protocol):
    """The connection, as the session needs it."""

    def write(self, data: bytes) -> None:
        """Hand this to the client."""

    async def drain(self) -> None:
        """Wait until the client has read most of what was written. :raises ConnectionError: it is gone."""

    def drop_clear_text(self) -> None:
        """Throw away what else came in clear, and read nothing more before TLS."""

    async def start_tls(self, answer: bytes) -> None:
        """Write the answer in clear and go on under TLS. :raises ConnectionError: the client is gone."""

    def pending_retr_numbers(self) -> list[int]:
        """The numbers of the RETR commands that are next in the input."""

    def register_session(self, local: Local) -> str | None:
        """Whether one more session of this account may begin: None, and it counts; or why not, with the code."""

    def abort(self) -> None:
        """End the connection at once, whatever is not sent yet."""


@dataclass(frozen=True, slots=True)
class ClientInfo:
    """How a client is connected. peer: its IP address. clear_allowed: passwords are taken without TLS, too.

    login_delay: seconds between two logins, as announced.
    """

    peer: str
    tls: bool
    clear_allowed: bool
    login_delay: int = 0


@dataclass(slots=True)
class SessionStats:
    """What a session did, for the log."""

    retrieved: int = 0
    octets: int = 0
    deleted: int = 0


class Pop3Session:
    """One client's session. ``ended``: the connection is to be closed once the last answer is written."""

    def __init__(
        self, link: Pop3Transport, store: MailboxStore, logins: Verifier, budget: PrefetchBudget, terms: ClientInfo
    ) -> None:
        """:param budget: shared by all sessions."""
        self._transport = link
        self._store = store
        self._verifier = logins
        self._budget = budget
        self._prefetched = PrefetchBuffer(budget)
        self._peer = terms.peer
        self._tls = terms.tls
        self._clear_allowed = terms.clear_allowed
        self._login_delay = terms.login_delay
        self._utf8 = False
        self._user: str | None = None
        self._challenged = False  # the next line answers AUTH's challenge
        self._refused_logins = 0
        self._bad_commands = 0
        self._commands_before_login = 0  # commands so far
        self._snapshot = snapshot.empty_snapshot()  # until the login
        self._deleted: set[int] = set()
        self._deleted_octets = 0
        self._last_number = -1  # number of the last RETR
        self._sequential = 0  # mails fetched in order before it
        self._next_prefetch = 0  # number of the first mail behind those that were read ahead
        self._prefetch_task: asyncio.Task[None] | None = None  # what is read ahead now
        self._reply_started = False  # an answer of many lines is half sent
        self.local: Local | None = None
        self.ended = False
        self.stopping = False
        self.committing = False
        self.stats = SessionStats()

    # ------------------------------------------------------------------------------------------ dispatch

    def max_line_octets(self, start: bytes) -> int:
        """Octets of the longest line that may start so."""
        return AUTH_OCTETS if self._challenged or start.upper() == b"AUTH" else COMMAND_OCTETS

    def run_line(self, line: bytes) -> Reply:
        """Do what a line says (without its line end)."""
        if len(line) > self.max_line_octets(line[:4]):
            return self.reject_long_line()
        if self.local is None:
            self._commands_before_login += 1
            if self._commands_before_login > MAX_COMMANDS_BEFORE_LOGIN:
                self.ended = True
                return replies.error("too many commands before the login")
        if self._challenged:
            self._challenged = False
            return self._finish_auth(line)
        verb, _, argument = line.partition(b" ")
        verb = verb.upper()
        if self.stopping and verb != b"QUIT":
            self.ended = True
            return replies.STOPPING
        if verb != b"PASS":  # its argument may hold spaces anywhere (RFC 1939 section 7)
            argument = argument.strip(b" ")
        act = (_AUTHORIZATION if self.local is None else _TRANSACTION).get(verb)
        if act is not None:
            return act(self, argument)
        if verb in _AUTHORIZATION or verb in _TRANSACTION:
            return self._reject_command("log in first" if self.local is None else "you are logged in already")
        return self._reject_command("unknown command")

    def reject_long_line(self) -> bytes:
        """A line came that is longer than allowed; what follows cannot be told from commands."""
        self.ended = True
        return replies.error("line too long")

    def _reject_command(self, text: str) -> bytes:
        self._bad_commands += 1
        self.ended = self.ended or self._bad_commands >= MAX_BAD_COMMANDS
        return replies.error(text)

    async def _run_command(self, work: Coroutine[Any, Any, bytes]) -> bytes:
        """Run a command that takes time; what fails is answered, or ends the connection."""
        try:
            return await work
        except Temporary as failure:
            log.warning("pop3 command failed", local=self._address, peer=self._peer, error=str(failure))
            answer = replies.UNAVAILABLE
        except Permanent as failure:
            log.error("pop3 command failed", local=self._address, peer=self._peer, error=str(failure))
            answer = replies.error("[SYS/PERM] this cannot be read; the administrator finds the reason in the log")
        except ConnectionError:
            self.ended = True
            return b""
        except Exception:  # whatever it is: this session ends, the others go on
            log.exception("pop3 command failed", local=self._address, peer=self._peer)
            self.ended = True
            answer = replies.error("[SYS/TEMP] internal error")
        finally:
            midway, self._reply_started = self._reply_started, False
        if midway:  # anything that is written now would be taken for mail
            self.ended = True
            self._transport.abort()
            return b""
        return answer

    @property
    def _address(self) -> str | None:
        return None if self.local is None else self.local.address

    def release_memory(self) -> None:
        """The client pauses or is gone: hold no mail in memory for it."""
        self._prefetched.clear()
        self._sequential = self._next_prefetch = 0

    # ------------------------------------------------------------------------------------------ any state

    def _capa(self, _: bytes) -> Reply:
        return replies.capabilities(self._password_allowed, not self._tls and self.local is None, self._login_delay)

    def _quit(self, argument: bytes) -> Reply:
        if argument:  # nothing is deleted by a line that is not quite the command
            return self._reject_command("QUIT takes no argument")
        self.ended = True
        if self.local is None or not self._deleted:
            return replies.ok("bye")
        self.committing = True
        return self._update(self.local)

    # ------------------------------------------------------------------------------------------ AUTHORIZATION

    @property
    def _password_allowed(self) -> bool:
        return self._tls or self._clear_allowed

    def _user_name(self, argument: bytes) -> Reply:
        if not self._password_allowed:
            return _no_clear_passwords()
        if not argument:
            return self._reject_command("USER takes a name")
        self._user = _decode_text(argument)
        return replies.ok("now the password")  # whether there is such an account or not

    def _password(self, argument: bytes) -> Reply:
        if not self._password_allowed:
            return _no_clear_passwords()
        user, self._user = self._user, None
        if user is None:
            return replies.error("USER comes first")
        return self._run_command(self._log_in(user, _decode_text(argument)))

    def _auth(self, argument: bytes) -> Reply:
        """RFC 5034 section 4."""
        mechanism, _, initial = argument.partition(b" ")
        if not self._password_allowed:
            return _no_clear_passwords()
        if not mechanism:  # how clients asked before there was CAPA
            return replies.MECHANISMS
        if mechanism.upper() != b"PLAIN":
            return self._reject_command("the one mechanism here is PLAIN")
        if initial:
            return self._plain(b"" if initial == b"=" else initial)
        self._challenged = True
        return b"+ \r\n"

    def _finish_auth(self, line: bytes) -> Reply:
        if line == b"*":
            return replies.error("authentication cancelled")
        return self._plain(line)

    def _plain(self, encoded: bytes) -> Reply:
        """RFC 4616: authorization identity, NUL, authentication identity, NUL, password."""
        try:
            identity, user, password = map(_decode_text, base64.b64decode(encoded, validate=True).split(b"\0"))
        except (binascii.Error, ValueError):
            return self._reject_command("this is no PLAIN response in base64")
        if identity not in ("", user):
            return replies.error("[AUTH] one can only log in as oneself")
        return self._run_command(self._log_in(user, password))

    async def _log_in(self, user: str, password: str) -> bytes:
        try:
            local = await self._verifier.verify(user, password, self._peer)
        except Throttled:
            self.ended = True
            return replies.error("[SYS/TEMP] too many failed logins, try again later")
        if local is None:
            self._refused_logins += 1
            self.ended = self._refused_logins >= MAX_REFUSED_LOGINS
            return replies.error("[AUTH] wrong name or password")
        found = await self._store.load_snapshot(local.id)
        if refusal := self._transport.register_session(local):
            self.ended = True
            return replies.error(refusal)
        self.local, self._snapshot = local, found
        return replies.ok(f"{len(found)} messages")

    def _start_tls(self, _: bytes) -> Reply:
        """RFC 2595 section 4; what was said before counts no longer."""
        if self._tls:
            return self._reject_command("TLS is active already")
        if self._utf8:
            return self._reject_command("STLS comes before UTF8")
        self._user = None
        self._transport.drop_clear_text()
        return self._run_command(self._negotiate())

    def _enable_utf8(self, _: bytes) -> Reply:
        """RFC 6856 section 2. Names are read, and mails sent, in UTF-8 in any case: they are stored as they came."""
        self._utf8 = True
        return replies.ok("UTF-8 it is")

    async def _negotiate(self) -> bytes:
        await self._transport.start_tls(replies.ok("begin TLS"))
        self._tls = True
        return b""

    # ------------------------------------------------------------------------------------------ TRANSACTION

    def _number(self, argument: bytes) -> int | None:
        """The number of a mail that is there and not marked, else None."""
        number = _parse_number(argument)
        return None if number is None or self._size(number) is None else number

    def _size(self, number: int) -> int | None:
        there = 0 < number <= len(self._snapshot) and number not in self._deleted
        return self._snapshot.octets[number - 1] if there else None

    def _stat(self, _: bytes) -> Reply:
        box = self._snapshot
        return b"+OK %d %d\r\n" % (len(box) - len(self._deleted), box.total - self._deleted_octets)

    def _list(self, argument: bytes) -> Reply:
        if argument:
            number = self._number(argument)
            return _no_such_message() if number is None else replies.ok(f"{number} {self._snapshot.octets[number - 1]}")
        return self._long_reply(self._snapshot.list_reply(self._deleted))

    def _uidl(self, argument: bytes) -> Reply:
        if argument:
            number = self._number(argument)
            return _no_such_message() if number is None else replies.ok(f"{number} {self._snapshot.uidl(number)}")
        return self._long_reply(self._snapshot.uidl_reply(self._deleted))

    def _long_reply(self, pieces: Iterable[bytes]) -> Reply:
        """A long answer goes out in pieces, so that others have their turn and it is in memory once, if at all."""
        return (
            b"".join(pieces) if len(self._snapshot) <= LINES_PER_PIECE else self._run_command(self._send_pieces(pieces))
        )

    async def _send_pieces(self, pieces: Iterable[bytes]) -> bytes:
        self._reply_started = True
        for piece in pieces:
            self._transport.write(piece)
            await self._transport.drain()
            await asyncio.sleep(0)
        return b""

    def _dele(self, argument: bytes) -> Reply:
        number = self._number(argument)
        if number is None:
            return _no_such_message()
        self._deleted.add(number)
        self._deleted_octets += self._snapshot.octets[number - 1]
        return replies.ok("marked as deleted")

    def _rset(self, _: bytes) -> Reply:
        self._deleted.clear()
        self._deleted_octets = 0
        return replies.OK

    def _noop(self, _: bytes) -> Reply:
        return replies.OK

    def _retr(self, argument: bytes) -> Reply:
        number = self._number(argument)
        if number is None:
            return _no_such_message()
        self._sequential = self._sequential + 1 if number == self._last_number + 1 else 0
        self._last_number = number
        body = self._prefetched.pop(number)
        if body is not None:
            self._start_prefetch(number)
            return self._retr_reply(body)
        octets = self._snapshot.octets[number - 1]
        if octets > HEAD_OCTETS or octets > max(PIECE_OCTETS, self._budget.share):
            return self._run_command(self._send_large(number))
        return self._run_command(self._send_small(number))

    def _retr_reply(self, body: bytes) -> bytes:
        self.stats.retrieved += 1
        self.stats.octets += len(body)
        return replies.retr_reply(body)

    async def _send_small(self, number: int) -> bytes:
        """Send a small mail: it is on its way already, or is read now, and with it those that will be asked for."""
        if number in self._prefetched and self._prefetch_task is not None:
            await asyncio.wait([self._prefetch_task])
            self._start_prefetch(number)
        body = self._prefetched.pop(number)
        if body is None:
            asked = [number, *self._transport.pending_retr_numbers()]
            numbers = plan_reading(
                asked,
                self._next_numbers(asked[-1] + 1),
                self._prefetch_octets,
                self._prefetched,
                self._prefetched.available,
            )
            body = (await self._load_mails(numbers)).get(number)
            self._prefetched.pop(number)
        if body is None:
            raise Permanent(f"the bytes of blob {self._snapshot.blob_ids[number - 1]} are gone")
        return self._retr_reply(body)

    def _start_prefetch(self, number: int) -> None:
        """Read ahead behind what is here, while the client gets that. :param number: of the mail sent now."""
        if (
            self._prefetch_task is None
            and self._prefetched.octets <= SESSION_OCTETS // 2
            and self._next_prefetch <= len(self._snapshot)
        ):
            numbers = plan_reading(
                [],
                self._next_numbers(max(self._next_prefetch, number + 1)),
                self._prefetch_octets,
                self._prefetched,
                self._prefetched.available,
            )
            if numbers:
                self._prefetch_task = asyncio.get_running_loop().create_task(self._prefetch(numbers))

    def _next_numbers(self, start: int) -> range:
        """The numbers that a client which fetches mail after mail will ask for, ``start`` and later."""
        return range(
            start, min(self._last_number + MAILS_AHEAD * self._sequential, start + MAX_MAILS, len(self._snapshot)) + 1
        )

    def _prefetch_octets(self, number: int) -> int | None:
        """Octets of a mail that may be read ahead."""
        size = self._size(number)
        return None if size is None or size > HEAD_OCTETS else size

    async def _prefetch(self, numbers: Sequence[int]) -> None:
        """Read ahead; whatever fails here fails again, and is answered, when it is asked for."""
        try:
            await self._load_mails(numbers)
        except Exception as failure:  # whatever it is: nobody has asked for it yet
            log.info("pop3 read ahead failed", local=self._address, peer=self._peer, error=str(failure))
        finally:
            self._prefetch_task = None

    async def _load_mails(self, numbers: Sequence[int]) -> dict[int, bytes]:
        """Read mails and put them on the shelf; those whose bytes are gone are left out."""
        blob_ids, octets = self._snapshot.blob_ids, self._snapshot.octets
        sizes = {number: octets[number - 1] for number in numbers}
        self._next_prefetch = max(self._next_prefetch, numbers[-1] + 1) if self._sequential else numbers[-1] + 1
        self._prefetched.reserve(sizes)
        try:
            bodies = await self._store.read_mails([blob_ids[number - 1] for number in numbers], sum(sizes.values()))
            mails = {number: bodies[blob_ids[number - 1]] for number in numbers if blob_ids[number - 1] in bodies}
            self._prefetched.store(mails)
        finally:
            self._prefetched.drop_missing(numbers)
        return mails

    async def _send_large(self, number: int) -> bytes:
        """Send a large mail piece by piece; while a client that reads quickly takes one, the next is read."""
        blob_id, octets = self._snapshot.blob_ids[number - 1], self._snapshot.octets[number - 1]
        stuffing = replies.StuffedReply()
        position, size, quick = 0, FIRST_PIECE_OCTETS, True
        coming: asyncio.Task[bytes] | None = None
        lent = 0
        loop = asyncio.get_running_loop()
        try:
            while position < octets:
                if coming is None:
                    lent = self._budget.acquire(size)
                    coming = loop.create_task(self._store.read_span(blob_id, position, max(lent, PIECE_OCTETS)))
                piece = await coming
                coming = None
                self._budget.left += lent
                lent = 0
                position += len(piece)
                if not self._reply_started:
                    self._reply_started = True
                    self._transport.write(b"+OK %d octets\r\n" % octets)
                if quick and position < octets:
                    lent = self._budget.acquire(size)
                    coming = loop.create_task(self._store.read_span(blob_id, position, max(lent, PIECE_OCTETS)))
                self._transport.write(stuffing.put(piece))
                del piece  # while the client is slow, only the connection holds it
                written_at = time.monotonic()
                await self._transport.drain()
                quick = time.monotonic() - written_at < QUICK_SECONDS
                size = min(2 * size, LARGE_PIECE_OCTETS) if quick else PIECE_OCTETS
        finally:
            self._budget.left += lent
            if coming is not None:
                coming.cancel()
                coming.add_done_callback(lambda task: task.cancelled() or task.exception())  # nobody waits for it
        self.stats.retrieved += 1
        self.stats.octets += octets
        return stuffing.end()

    def _top(self, argument: bytes) -> Reply:
        word, _, count = argument.partition(b" ")
        lines = _parse_number(count.strip(b" "))
        if lines is None:
            return self._reject_command("TOP takes a number and a count of lines")
        number = self._number(word)
        return _no_such_message() if number is None else self._run_command(self._send_top(number, lines))

    async def _send_top(self, number: int, lines: int) -> bytes:
        blob_id, octets = self._snapshot.blob_ids[number - 1], self._snapshot.octets[number - 1]
        top, stuffing = replies.TopCutter(lines), replies.StuffedReply()
        piece = await self._store.read_span(blob_id, 0, TOP_OCTETS)
        position = len(piece)
        out = b"+OK top of message follows\r\n" + stuffing.put(top.cut(piece))
        while not top.done and position < octets:
            self._reply_started = True
            self._transport.write(out)
            del out, piece
            await self._transport.drain()
            piece = await self._store.read_span(blob_id, position, PIECE_OCTETS)
            position += len(piece)
            out = stuffing.put(top.cut(piece))
        return out + stuffing.end()

    # ------------------------------------------------------------------------------------------ UPDATE

    async def _update(self, local: Local) -> bytes:
        """Delete what is marked, then answer (RFC 1939 section 6)."""
        self.release_memory()
        try:
            await self._store.delete_mails(local, [self._snapshot.rows[number - 1] for number in sorted(self._deleted)])
        except Exception as failure:  # whatever it is: the answer must not say that mail is gone that is not
            if not isinstance(failure, Temporary):
                log.exception("pop3 deletions failed", local=self._address, peer=self._peer)
            else:
                log.warning("pop3 deletions failed", local=self._address, peer=self._peer, error=str(failure))
            return replies.error("[SYS/TEMP] the marked mails could not be deleted, they are still there")
        finally:
            self.committing = False
        self.stats.deleted = len(self._deleted)
        return replies.ok("bye, the marked mails are deleted")


def _decode_text(octets: bytes) -> str:
    """A name or password as text: UTF-8, or what old clients send."""
    try:
        return octets.decode()
    except UnicodeDecodeError:
        return octets.decode("latin-1")


def _parse_number(digits: bytes) -> int | None:
    """A number, as long as the line that it comes in lets it be; None if it is none."""
    return int(digits) if digits.isdigit() else None


def _no_such_message() -> bytes:
    return replies.error("no such message")


def _no_clear_passwords() -> bytes:
    return replies.error("passwords are taken under TLS only: use STLS first, or the port for TLS")


_Act = Callable[[Pop3Session, bytes], Reply]
_AUTHORIZATION: dict[bytes, _Act] = {
    b"USER": Pop3Session._user_name,
    b"PASS": Pop3Session._password,
    b"AUTH": Pop3Session._auth,
    b"STLS": Pop3Session._start_tls,
    b"UTF8": Pop3Session._enable_utf8,
    b"CAPA": Pop3Session._capa,
    b"QUIT": Pop3Session._quit,
}
_TRANSACTION: dict[bytes, _Act] = {
    b"STAT": Pop3Session._stat,
    b"LIST": Pop3Session._list,
    b"UIDL": Pop3Session._uidl,
    b"RETR": Pop3Session._retr,
    b"TOP": Pop3Session._top,
    b"DELE": Pop3Session._dele,
    b"RSET": Pop3Session._rset,
    b"NOOP": Pop3Session._noop,
    b"CAPA": Pop3Session._capa,
    b"QUIT": Pop3Session._quit,
}
