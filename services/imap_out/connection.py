"""The connection of an IMAP session: lines and octets of the input (shared/runtime/served_connection.py).

One task runs the session and reads from here; the event loop only adds to the input and wakes the task.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import structlog

from services.imap_out.responses import status
from services.imap_out.session import ImapSession
from shared.runtime.served_connection import (
    BURST_OCTETS,
    INPUT_OCTETS,
    ConnectionDeadlines,
    ConnectionKeeper,
    ConnectionState,
    ServedConnection,
)

LOGIN_SECONDS = 60.0
IDLE_SECONDS = 1800.0
"""RFC 3501 section 5.4 requires thirty minutes at least; clients repeat IDLE after 29 (RFC 2177)."""
PAUSE_SECONDS = 600.0
"""Longest pause of a client that reads a response: seconds."""
SESSION_SECONDS = 12 * 3600.0
"""Longest session: seconds; far below the shortest retention time, so few mails that a session may read are purged."""

log = structlog.get_logger()

COMMANDS_IN_TURN = 100
"""Pipelined commands of one session, in memory, before the other sessions have their turn."""

_DEADLINES = ConnectionDeadlines(LOGIN_SECONDS, IDLE_SECONDS, PAUSE_SECONDS, SESSION_SECONDS)
_TOO_MANY = status.untagged("BYE", "too many connections", status.UNAVAILABLE)


class ImapConnection(ServedConnection):
    """One client's connection. ``session`` exists from the greeting until the end."""

    protocol = "imap"

    def __init__(
        self,
        registry: ConnectionKeeper,
        open_session: Callable[[ImapConnection, bool], ImapSession],
        *,
        tls: bool,
        peer: str = "",
    ) -> None:
        """:param open_session: makes the session of this connection; the second argument is ``tls``."""
        super().__init__(registry, _DEADLINES, tls=tls, peer=peer)
        self._open_session = open_session
        self._task: asyncio.Task[None] | None = None
        self._changed: asyncio.Future[None] | None = None  # set when there is input, or the session is woken
        self._held: list[bytes] = []  # written by the session, and not sent yet
        self._held_octets = 0
        self._will_send = False  # in this turn of the event loop
        self._in_turn = 0  # commands since the last wait for the client
        self.session: ImapSession | None = None

    # ------------------------------------------------------------------------------------------ of the protocol

    @property
    def _served(self) -> ImapSession | None:
        return self.session

    def _open(self) -> None:
        self.session = self._open_session(self, self._tls)
        self._task = asyncio.get_running_loop().create_task(self._run(self.session))

    def _refuse(self) -> None:
        self.write(_TOO_MANY)

    def _continue(self) -> None:
        self.wake()

    def _end_work(self) -> None:
        if self._task is not None:
            asyncio.get_running_loop().call_soon(self._task.cancel)  # after its first step, which may be due

    def _drop_session(self) -> None:
        self.session = None

    def _farewell(self, reason: str) -> bytes:
        return b"" if self.busy else status.untagged("BYE", reason)  # a response may have been sent in part

    async def _run(self, session: ImapSession) -> None:
        self._state = ConnectionState.BUSY if self._state is ConnectionState.READY else self._state
        try:
            await session.run()
        except ConnectionError:
            pass
        except Exception:  # a defect ends this session, and no other
            log.exception("session ended unexpectedly", peer=self.peer)
        finally:
            self._task = None
            if not self._is_ending:
                self._close()

    # ------------------------------------------------------------------------------------------ for the session

    def write(self, data: bytes) -> None:
        """Send data to the client: together with what follows, before the next wait for the client."""
        self._held.append(data)
        self._held_octets += len(data)
        if self._held_octets >= BURST_OCTETS:
            self._send_held()

    def _send_held(self) -> None:
        if self._held:
            held, self._held, self._held_octets = self._held, [], 0
            self._send(b"".join(held) if len(held) > 1 else held[0])

    async def drain(self) -> None:
        """Send what is held, and wait until the client has read most of it.

        :raises ConnectionError: the client has disconnected.
        """
        self._send_held()
        await super().drain()

    async def end_answer(self) -> None:
        """Send the answer to a command. :raises ConnectionError: the client has disconnected.

        If the next command is here already, its answer is sent together with this one, unless it has to wait.
        """
        if b"\n" not in self._input:
            self._send_held()
        elif not self._will_send:
            self._will_send = True
            asyncio.get_running_loop().call_soon(self._send_in_turn)
        self._in_turn += 1
        if self._in_turn >= COMMANDS_IN_TURN:
            self._in_turn = 0
            await asyncio.sleep(0)
        if self._write_paused or self._is_ending:
            await super().drain()

    def _send_in_turn(self) -> None:
        self._will_send = False
        self._send_held()

    async def start_tls(self, reply: bytes) -> None:
        """Send the reply without TLS, then start TLS. :raises ConnectionError: the client has disconnected."""
        self._send_held()
        await super().start_tls(reply)

    def _close(self) -> None:
        self._send_held()
        super()._close()

    def wake(self) -> None:
        """Let ``wait_for_input`` look again."""
        if self._changed is not None and not self._changed.done():
            self._changed.set_result(None)

    async def read_line(self, max_octets: int) -> bytes | None:
        """Return the next line without its end; None: it is longer.

        :raises ConnectionError: the client has disconnected.
        """
        searched = 0
        while (end := self._input.find(b"\n", searched, max_octets)) < 0:
            searched = len(self._input)
            if searched >= max_octets:
                return None
            await self._wait()
        line = bytes(self._input[:end])
        self._take(end + 1)
        return line.removesuffix(b"\r")

    async def read_octets(self, count: int, seconds: float) -> bytes:
        """Return up to so many octets of the input, at least one.

        :raises ConnectionError: the client has disconnected, or has sent none within ``seconds``.
        """
        if not self._input:
            try:
                async with asyncio.timeout(seconds):
                    while not self._input:
                        await self._wait()
            except TimeoutError as error:
                self.write(status.untagged("BYE", "the client sends too slowly"))
                raise ConnectionResetError("the client sends too slowly") from error
        octets = bytes(self._input[:count])
        self._take(len(octets))
        return octets

    async def wait_for_input(self, woken: Callable[[], bool]) -> None:
        """Wait for a whole line, or until ``wake`` is called and ``woken`` is true.

        :raises ConnectionError: the client has disconnected.
        """
        while b"\n" not in self._input and len(self._input) < INPUT_OCTETS and not woken():
            await self._wait()

    async def _wait(self) -> None:
        """Wait for more input, or for ``wake``: the command is not at work meanwhile."""
        self._send_held()
        self._in_turn = 0
        if self._is_ending or self._input_ended:
            raise ConnectionResetError("the client has disconnected")
        if self._read_paused:
            self._resume_reading()
        self._state = ConnectionState.READY
        self._changed = asyncio.get_running_loop().create_future()
        try:
            await self._changed
        finally:
            self._changed = None
            if self._state is ConnectionState.READY:
                self._state = ConnectionState.BUSY
        if self._is_ending:
            raise ConnectionResetError("the client has disconnected")

    def _take(self, octets: int) -> None:
        del self._input[:octets]
        self._active_at = time.monotonic()
        if self._read_paused and len(self._input) <= INPUT_OCTETS:
            self._resume_reading()
