"""What an IMAP session needs from its connection and from the login check."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from shared.model import Local
from shared.runtime.memory_budget import MemoryBudget


class LoginVerifier(Protocol):
    """Checks passwords: shared/auth/authenticator.py."""

    async def verify(self, address: str, password: str, peer: str) -> Local | None:
        """Return the account, None if the login is refused. :raises Temporary, Throttled: as there."""


class ImapTransport(Protocol):
    """The connection, as the session uses it."""

    budget: MemoryBudget
    """Memory for mails: of all sessions, and from ``register_session`` on of the account."""

    def write(self, data: bytes) -> None:
        """Send data to the client."""

    async def drain(self) -> None:
        """Wait until the client has read most of what was sent. :raises ConnectionError: it has disconnected."""

    async def end_answer(self) -> None:
        """Send the answer to a command, together with the next one if that command is here already.

        Wait as ``drain``. :raises ConnectionError: the client has disconnected.
        """

    async def read_line(self, max_octets: int) -> bytes | None:
        """Return the next line without its end; None: it is longer.

        :raises ConnectionError: the client has disconnected.
        """

    async def read_octets(self, count: int, seconds: float) -> bytes:
        """Return up to so many octets of the input, at least one.

        :raises ConnectionError: the client has disconnected, or has sent none within ``seconds``.
        """

    async def wait_for_input(self, woken: Callable[[], bool]) -> None:
        """Wait for a whole line, or until ``wake`` is called and ``woken`` is true.

        :raises ConnectionError: the client has disconnected.
        """

    def wake(self) -> None:
        """Let ``wait_for_input`` look again."""

    def drop_clear_text(self) -> None:
        """Drop the input that arrived without TLS, and read no more before the handshake."""

    async def start_tls(self, reply: bytes) -> None:
        """Send the reply without TLS, then start TLS. :raises ConnectionError: the client has disconnected."""

    def register_session(self, local: Local) -> str | None:
        """Count a session of this account. Returns None, or the reason of a refusal with its response code.

        :raises ConnectionError: the client has disconnected.
        """


@dataclass(frozen=True, slots=True)
class ImapClientInfo:
    """How a client is connected."""

    peer: str  # IP address
    clear_allowed: bool  # passwords are accepted without TLS, too


@dataclass(slots=True)
class ImapSessionStats:
    """What a session did, for the log."""

    commands: int = 0
    fetched: int = 0  # texts of mails
    octets: int = 0  # of these texts
    appended: int = 0
    expunged: int = 0
