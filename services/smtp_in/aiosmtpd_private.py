"""aiosmtpd's connection with its private members behind public names. No other module uses private members of aiosmtpd.

aiosmtpd calls ``_handle_client`` (as a task), ``_create_session``, ``_set_rset_state`` and ``_reset_timeout`` in
``connection_made``; ``connection_lost`` cancels the task and the timer. A unit test fails when another version than
``CHECKED_VERSION`` is installed: compare its ``smtp.py`` with what is written here before changing the number.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from typing import ClassVar

from aiosmtpd import smtp

CHECKED_VERSION = "1.4.6"
"""Version of aiosmtpd that this module was checked against."""


class SmtpProtocol(smtp.SMTP):
    """A connection whose loop (``run_session``), session, envelope and timeout are the subclass's.

    :ivar ended: the session has ended: no timeout is due any more.
    """

    session_type: ClassVar[type[smtp.Session]]
    envelope_type: ClassVar[type[smtp.Envelope]]
    session: smtp.Session
    _command_methods: ClassVar[Sequence[str]]

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        cls._command_methods = [name for name in dir(cls) if name.startswith("smtp_")]

    def __init__(self, host_name: str, idle_seconds: float) -> None:
        """:param idle_seconds: timeout of a client that sends no complete command."""
        loop, ident = asyncio.get_running_loop(), "ESMTP mailgroup"
        super().__init__(None, enable_SMTPUTF8=True, hostname=host_name, ident=ident, timeout=idle_seconds, loop=loop)
        self.idle_seconds = idle_seconds
        self.ended = False
        self.commands = self._smtp_methods  # by name, without "smtp_"
        self._expires_at = self._timer_at = 0.0

    def __dir__(self) -> Iterable[str]:
        """The command methods: aiosmtpd searches all names for them three times for every connection."""
        return self._command_methods

    async def run_session(self) -> None:
        """Serve the client until the session ends."""
        raise NotImplementedError

    def on_timeout(self) -> None:
        """The client has sent no complete command in time."""
        raise NotImplementedError

    @property
    def session_task(self) -> asyncio.Task[None] | None:
        """The task of ``run_session``; None before ``connection_made``."""
        return self._handler_coroutine

    def reset_transaction(self) -> None:
        """Start with an empty envelope."""
        self.envelope = self.envelope_type()

    def restart_timer(self, duration: float | None = None) -> None:
        """Start the timeout of ``duration`` seconds again. A running timer stays, and checks the time when it fires."""
        if self.ended:
            return
        self._expires_at = self.loop.time() + (duration or self.idle_seconds)
        if self._timeout_handle is None or self._expires_at < self._timer_at:
            self._arm_timer()

    def _arm_timer(self) -> None:
        if self._timeout_handle is not None:
            self._timeout_handle.cancel()
        self._timer_at = self._expires_at
        self._timeout_handle = self.loop.call_at(self._timer_at, self._on_timer)

    def _on_timer(self) -> None:
        if not self.ended:
            self._arm_timer() if self.loop.time() < self._expires_at else self.on_timeout()

    async def drain(self) -> None:
        """Wait until the client has read most of the replies. :raises ConnectionError: the connection is lost."""
        await self._writer.drain()

    def use_transport(self, transport: asyncio.Transport) -> None:
        """Continue on this transport in a new session, after STARTTLS (RFC 3207 section 4.2)."""
        self.transport = transport
        self._writer._transport = transport  # type: ignore[attr-defined]  # asyncio has no public way to change it
        self.reset_transaction()
        self.session = self._create_session()
        self.session.peer = transport.get_extra_info("peername")

    def release_streams(self) -> None:
        """Break the reference cycle with the streams, so that memory is freed without the garbage collector."""
        del self._reader, self._writer

    def _create_session(self) -> smtp.Session:
        return self.session_type(self.loop)

    _set_rset_state = reset_transaction
    _reset_timeout = restart_timer

    async def _handle_client(self) -> None:
        await self.run_session()
