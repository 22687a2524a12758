"""The connection of a POP3 session: command lines and replies (shared/runtime/served_connection.py)."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable, Coroutine
from typing import Any

from services.pop3_out import replies
from services.pop3_out.session import AUTH_OCTETS, Pop3Session
from shared.runtime.served_connection import (
    BURST_OCTETS,
    INPUT_OCTETS,
    ConnectionDeadlines,
    ConnectionKeeper,
    ConnectionState,
    ServedConnection,
)

MAX_PENDING_RETR = 100
"""RETR commands in the input that are read ahead together."""
COMMANDS_IN_TURN = 200
"""Pipelined commands of one session before the other sessions have their turn."""
REPLIES_IN_TURN = 256 * 1024
"""The same for the replies: octets; a LIST of a thousand mails takes as long as a hundred short commands."""

LOGIN_SECONDS = 60.0
IDLE_SECONDS = 600.0
"""RFC 1939 section 3 requires ten minutes at least. Also the longest pause of a client that reads a reply."""
SESSION_SECONDS = 12 * 3600.0
"""Longest session: seconds; far below the shortest retention time, so no mail that a session may read is purged."""

_RETR = re.compile(rb"retr +(\d{1,9}) *\r?\n", re.IGNORECASE)
_TOO_LONG = b"\n"
"""A line that is too long; no other line contains a line end."""
_READY = ConnectionState.READY  # a member of an enum costs more to find
_DEADLINES = ConnectionDeadlines(LOGIN_SECONDS, IDLE_SECONDS, IDLE_SECONDS, SESSION_SECONDS)


class Pop3Connection(ServedConnection):
    """One client's connection. ``session`` exists from the greeting until the end."""

    protocol = "pop3"

    def __init__(
        self,
        registry: ConnectionKeeper,
        open_session: Callable[[Pop3Connection, bool], Pop3Session],
        *,
        tls: bool,
        peer: str = "",
    ) -> None:
        """:param open_session: makes the session of this connection; the second argument is ``tls``."""
        super().__init__(registry, _DEADLINES, tls=tls, peer=peer)
        self._open_session = open_session
        self._command_task: asyncio.Task[None] | None = None
        self.session: Pop3Session | None = None

    # ------------------------------------------------------------------------------------------ of the protocol

    @property
    def _served(self) -> Pop3Session | None:
        return self.session

    def _open(self) -> None:
        self.session = self._open_session(self, self._tls)
        self.write(replies.GREETING)

    def _refuse(self) -> None:
        self.write(replies.TOO_MANY_CONNECTIONS)

    def _continue(self) -> None:
        self._run_commands()

    def _end_work(self) -> None:
        if self._command_task is not None:
            asyncio.get_running_loop().call_soon(self._command_task.cancel)  # after its first step, which may be due

    def _drop_session(self) -> None:
        self.session = None

    @property
    def _is_working(self) -> bool:
        return self._command_task is not None

    def pending_retr_numbers(self) -> list[int]:
        """The numbers of the RETR commands that are next in the input."""
        numbers: list[int] = []
        position = 0
        while len(numbers) < MAX_PENDING_RETR and (match := _RETR.match(self._input, position)):
            numbers.append(int(match[1]))
            position = match.end()
        return numbers

    # ------------------------------------------------------------------------------------------ commands

    def _start_command(self, work: Coroutine[Any, Any, bytes]) -> None:
        self._state = ConnectionState.BUSY
        self._command_task = asyncio.get_running_loop().create_task(self._finish_command(work))

    async def _finish_command(self, work: Coroutine[Any, Any, bytes]) -> None:
        try:
            reply = await work
        finally:
            self._command_task = None
            if self._state is ConnectionState.BUSY:
                self._state = ConnectionState.READY
        if reply:
            self.write(reply)
        self._active_at = time.monotonic()
        if self.session is not None and self.session.ended:
            self._close()
        else:
            self._run_commands()

    def _run_commands(self) -> None:
        """Run the commands that have arrived, up to the first that has to wait, and write their replies together."""
        session = self.session
        if session is None or self._state is not _READY:
            return
        out: list[bytes] = []
        octets = in_turn = commands = 0
        while not (self._write_paused or session.ended):
            if commands == COMMANDS_IN_TURN or in_turn > REPLIES_IN_TURN:
                asyncio.get_running_loop().call_soon(self._run_commands)
                break
            line = self._next_line(session)
            if line is None:
                break
            commands += 1
            reply = session.reject_long_line() if line is _TOO_LONG else session.run_line(line)
            if not isinstance(reply, bytes):
                self.write(b"".join(out))  # before the command starts: a connection that fails here cancels it
                out, octets = [], 0
                self._start_command(reply)
                break
            out.append(reply)
            octets += len(reply)
            in_turn += len(reply)
            if octets > BURST_OCTETS:
                self.write(b"".join(out))
                out, octets = [], 0
        if commands:  # a line without an end does not extend the deadline (RFC 1939 section 3)
            self._active_at = time.monotonic()
        if out:
            self.write(b"".join(out))
        if self._state is _READY:
            ended = session.ended or (self._input_ended and b"\n" not in self._input)
            if ended and not self._write_paused:
                self._close()
            elif self._read_paused and len(self._input) <= INPUT_OCTETS:
                self._resume_reading()

    def _next_line(self, session: Pop3Session) -> bytes | None:
        """A line without its end, None if there is no complete one, or _TOO_LONG."""
        end = self._input.find(b"\n", 0, AUTH_OCTETS)
        if end < 0:
            return _TOO_LONG if len(self._input) > session.max_line_octets(bytes(self._input[:4])) else None
        line = bytes(self._input[:end])
        del self._input[: end + 1]
        return line.removesuffix(b"\r")
