"""The states and commands of a POP3 session (RFC 1939), without sockets.

A command that needs only the snapshot is answered at once. Any other returns a coroutine, which the connection awaits
before it runs the next command, so replies come in the order of the commands (RFC 2449, PIPELINING).
"""

from __future__ import annotations

import asyncio
import base64
import binascii
from collections.abc import Callable, Coroutine, Iterable
from contextlib import aclosing
from typing import Any

import structlog

from services.pop3_out import replies
from services.pop3_out.interfaces import ClientInfo, MailboxStore, Pop3Transport, SessionStats, Verifier
from services.pop3_out.mail_reader import MailReader
from services.pop3_out.snapshot import LINES_PER_PIECE
from shared.auth.authenticator import Throttled
from shared.errors import Permanent, Temporary
from shared.model import Local
from shared.runtime.memory_budget import MemoryBudget
from shared.runtime.piece_reader import PIECE_OCTETS

COMMAND_OCTETS = 512
"""Longest command line: octets; RFC 2449 section 4 allows 255, but some clients have long passwords."""
AUTH_OCTETS = 12_288
"""Longest line of an AUTH exchange: octets (RFC 5034 section 4)."""
MAX_REFUSED_LOGINS = 3
"""Refused logins before the connection is closed."""
MAX_BAD_COMMANDS = 10
"""Invalid commands before the connection is closed."""
MAX_COMMANDS_BEFORE_LOGIN = 100
TOP_OCTETS = 16 * 1024
"""First piece that TOP reads: octets; most headers are shorter."""

Reply = bytes | Coroutine[Any, Any, bytes]
"""A reply, or the coroutine that returns it (b"" if it has been sent)."""

log = structlog.get_logger()


class Pop3Session:
    """One client's session.

    :ivar local: the account that is logged in; None before the login.
    :ivar ended: the connection is to be closed after the last reply.
    :ivar stopping: the server stops: every command but QUIT is refused.
    :ivar committing: QUIT deletes mail now: the command must not be cancelled.
    """

    def __init__(
        self, transport: Pop3Transport, store: MailboxStore, logins: Verifier, budget: MemoryBudget, client: ClientInfo
    ) -> None:
        """:param budget: shared by all sessions."""
        self._transport = transport
        self._store = store
        self._verifier = logins
        self._client = {"peer": client.peer}  # for the log
        self._peer = client.peer
        self._tls = client.tls
        self._clear_allowed = client.clear_allowed
        self._login_delay = client.login_delay
        self._deleted: set[int] = set()  # numbers
        self._reader = MailReader(store, budget, self._deleted, self._client)
        self._snapshot = self._reader.snapshot
        self._utf8 = False
        self._user: str | None = None
        self._challenged = False  # the next line is the response to AUTH's challenge
        self._refused_logins = 0
        self._bad_commands = 0
        self._commands_before_login = 0
        self._deleted_octets = 0
        self._reply_started = False  # a part of a multi-line reply is sent
        self.local: Local | None = None
        self.ended = False
        self.stopping = False
        self.committing = False
        self.stats = SessionStats()

    # ------------------------------------------------------------------------------------------ dispatch

    def max_line_octets(self, start: bytes) -> int:
        """The longest line that may start with these octets."""
        return AUTH_OCTETS if self._challenged or start.upper() == b"AUTH" else COMMAND_OCTETS

    def run_line(self, line: bytes) -> Reply:
        """Run the command in a line (without its line end)."""
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
        if verb != b"PASS":  # a password may begin or end with spaces (RFC 1939 section 7)
            argument = argument.strip(b" ")
        run = (_AUTHORIZATION if self.local is None else _TRANSACTION).get(verb)
        if run is not None:
            return run(self, argument)
        if verb in _AUTHORIZATION or verb in _TRANSACTION:
            return self._reject_command("log in first" if self.local is None else "you are logged in already")
        return self._reject_command("unknown command")

    def reject_long_line(self) -> bytes:
        """End the session: after a line that is too long, the start of the next command is not known."""
        self.ended = True
        return replies.error("line too long")

    def _reject_command(self, text: str) -> bytes:
        self._bad_commands += 1
        self.ended = self.ended or self._bad_commands >= MAX_BAD_COMMANDS
        return replies.error(text)

    async def _run_command(self, work: Coroutine[Any, Any, bytes]) -> bytes:
        """Await a command. A failure is answered, or closes the connection if a part of the reply is sent."""
        try:
            return await work
        except Temporary as failure:
            log.warning("command failed, try again later", error=str(failure), **self._client)
            reply = replies.UNAVAILABLE
        except Permanent as failure:
            log.error("command failed, mail unreadable", error=str(failure), **self._client)
            reply = replies.error("[SYS/PERM] this cannot be read; the administrator finds the reason in the log")
        except ConnectionError:
            self.ended = True
            return b""
        except Exception:  # a defect ends this session, and no other
            log.exception("command failed unexpectedly", **self._client)
            self.ended = True
            reply = replies.error("[SYS/TEMP] internal error")
        finally:
            started, self._reply_started = self._reply_started, False
        if started:  # the client would take an error reply for a part of the mail
            self.ended = True
            self._transport.abort()
            return b""
        return reply

    def release_memory(self) -> None:
        """Drop the mails that are read ahead: the client pauses or has disconnected."""
        self._reader.release_memory()

    # ------------------------------------------------------------------------------------------ any state

    def _capa(self, _: bytes) -> Reply:
        return replies.capabilities(self._password_allowed, not self._tls and self.local is None, self._login_delay)

    def _quit(self, argument: bytes) -> Reply:
        if argument:  # a line that is not exactly the command deletes nothing
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
        return replies.ok("now the password")  # the reply does not depend on whether the account exists

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
        if not mechanism:  # old clients list the mechanisms so; there was no CAPA then
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
        mailbox = await self._store.load_snapshot(local.id)
        if refusal := self._transport.register_session(local):
            self.ended = True
            return replies.error(refusal)
        self._reader.use_budget(self._transport.budget)
        self.local = local
        self._client["local"] = local.address
        self._snapshot = self._reader.snapshot = mailbox
        return replies.ok(f"{len(mailbox)} messages")

    def _start_tls(self, _: bytes) -> Reply:
        """RFC 2595 section 4: what the client sent before is forgotten."""
        if self._tls:
            return self._reject_command("TLS is active already")
        if self._utf8:
            return self._reject_command("STLS comes before UTF8")
        self._user = None
        self._transport.drop_clear_text()
        return self._run_command(self._negotiate())

    def _enable_utf8(self, _: bytes) -> Reply:
        """RFC 6856 section 2. Without UTF8, too, names are read as UTF-8 and mails are sent as they are stored."""
        self._utf8 = True
        return replies.ok("UTF-8 it is")

    async def _negotiate(self) -> bytes:
        await self._transport.start_tls(replies.ok("begin TLS"))
        self._tls = True
        return b""

    # ------------------------------------------------------------------------------------------ TRANSACTION

    def _number(self, argument: bytes) -> int | None:
        """The number of a mail that exists and is not marked as deleted, else None."""
        number = _parse_number(argument)
        return None if number is None or self._reader.size_of(number) is None else number

    def _stat(self, _: bytes) -> Reply:
        mailbox = self._snapshot
        return b"+OK %d %d\r\n" % (len(mailbox) - len(self._deleted), mailbox.total - self._deleted_octets)

    def _list(self, argument: bytes) -> Reply:
        if argument:
            number = self._number(argument)
            if number is None:
                return _no_such_message()
            return replies.ok(f"{number} {self._snapshot.octets[number - 1]}")
        return self._long_reply(self._snapshot.list_reply(self._deleted))

    def _uidl(self, argument: bytes) -> Reply:
        if argument:
            number = self._number(argument)
            return _no_such_message() if number is None else replies.ok(f"{number} {self._snapshot.uidl(number)}")
        return self._long_reply(self._snapshot.uidl_reply(self._deleted))

    def _long_reply(self, pieces: Iterable[bytes]) -> Reply:
        """Send a reply of many lines in pieces, so that other sessions have their turn in between."""
        return b"".join(pieces) if len(self._snapshot) <= LINES_PER_PIECE else self._run_command(self._send(pieces))

    async def _send(self, pieces: Iterable[bytes]) -> bytes:
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
        body = self._reader.pop_prefetched(number)
        if body is not None:
            return self._retr_reply(body)
        if self._reader.is_large(number):
            return self._run_command(self._send_large(number))
        return self._run_command(self._send_small(number))

    def _retr_reply(self, body: bytes) -> bytes:
        self.stats.retrieved += 1
        self.stats.octets += len(body)
        return replies.retr_reply(body)

    async def _send_small(self, number: int) -> bytes:
        return self._retr_reply(await self._reader.read(number, self._transport.pending_retr_numbers))

    async def _send_large(self, number: int) -> bytes:
        octets, stuffing = self._snapshot.octets[number - 1], replies.StuffedReply()
        async with aclosing(self._reader.pieces(number)) as pieces:
            async for piece in pieces:
                if not self._reply_started:
                    self._reply_started = True
                    self._transport.write(b"+OK %d octets\r\n" % octets)
                self._transport.write(stuffing.put(piece))
                del piece  # while the client is slow, only the connection holds it
                await self._transport.drain()
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
        """Delete the marked mails, then reply (RFC 1939 section 6)."""
        self.release_memory()
        try:
            await self._store.delete_mails(local, [self._snapshot.uids[number - 1] for number in sorted(self._deleted)])
        except Exception as failure:  # after any failure the reply must not say that the mails are deleted
            if not isinstance(failure, Temporary | Permanent):
                log.exception("deletion failed unexpectedly", **self._client)
            else:
                log.warning("deletion failed", error=str(failure), **self._client)
            return replies.error("[SYS/TEMP] the marked mails could not be deleted, they are still there")
        finally:
            self.committing = False
        self.stats.deleted = len(self._deleted)
        return replies.ok("bye, the marked mails are deleted")


def _decode_text(octets: bytes) -> str:
    """A name or password as text: UTF-8, or Latin-1 from old clients."""
    try:
        return octets.decode()
    except UnicodeDecodeError:
        return octets.decode("latin-1")


def _parse_number(digits: bytes) -> int | None:
    """A number (its length is limited by the line's), None if it is not one."""
    return int(digits) if digits.isdigit() else None


def _no_such_message() -> bytes:
    return replies.error("no such message")


def _no_clear_passwords() -> bytes:
    return replies.error("passwords are taken under TLS only: use STLS first, or the port for TLS")


_Run = Callable[[Pop3Session, bytes], Reply]
_AUTHORIZATION: dict[bytes, _Run] = {
    b"USER": Pop3Session._user_name,
    b"PASS": Pop3Session._password,
    b"AUTH": Pop3Session._auth,
    b"STLS": Pop3Session._start_tls,
    b"UTF8": Pop3Session._enable_utf8,
    b"CAPA": Pop3Session._capa,
    b"QUIT": Pop3Session._quit,
}
_TRANSACTION: dict[bytes, _Run] = {
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
