"""What a POP3 session needs from its connection, from the store and from the login check."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from services.pop3_out.snapshot import Snapshot
from shared.model import Local
from shared.runtime.memory_budget import MemoryBudget


class Verifier(Protocol):
    """Checks passwords: shared/auth/authenticator.py."""

    async def verify(self, address: str, password: str, peer: str) -> Local | None:
        """Return the account, None if the login is refused. :raises Temporary, Throttled: as there."""


class MailboxStore(Protocol):
    """Reads and changes mailboxes: mailbox_store.py, which documents the errors."""

    async def load_snapshot(self, local_id: int) -> Snapshot:
        """Return the mailbox as it is now."""

    async def read_mails(self, blob_ids: Sequence[int], octets: int) -> dict[int, bytes]:
        """Return the bytes of small mails. :param octets: of all of them."""

    async def read_span(self, blob_id: int, start: int, length: int) -> bytes:
        """Return some bytes of a mail."""

    async def delete_mails(self, local: Local, uids: Sequence[int]) -> None:
        """Delete all of these mails, or none."""


class Pop3Transport(Protocol):
    """The connection, as the session uses it."""

    budget: MemoryBudget
    """Memory for mails: of all sessions, and from ``register_session`` on of the account."""

    def write(self, data: bytes) -> None:
        """Send data to the client."""

    async def drain(self) -> None:
        """Wait until the client has read most of what was sent. :raises ConnectionError: it has disconnected."""

    def drop_clear_text(self) -> None:
        """Drop the input that arrived without TLS, and read no more before the handshake."""

    async def start_tls(self, reply: bytes) -> None:
        """Send the reply without TLS, then start TLS. :raises ConnectionError: the client has disconnected."""

    def pending_retr_numbers(self) -> list[int]:
        """The numbers of the RETR commands that are next in the input."""

    def register_session(self, local: Local) -> str | None:
        """Count a session of this account. Returns None, or the reason of a refusal with its response code.

        :raises ConnectionError: the client has disconnected.
        """

    def abort(self) -> None:
        """Close the connection at once and drop what is unsent."""


@dataclass(frozen=True, slots=True)
class ClientInfo:
    """How a client is connected."""

    peer: str  # IP address
    tls: bool
    clear_allowed: bool  # passwords are accepted without TLS, too
    login_delay: int = 0  # seconds between two logins that CAPA announces


@dataclass(slots=True)
class SessionStats:
    """What a session did, for the log."""

    retrieved: int = 0  # mails
    octets: int = 0  # of these mails
    deleted: int = 0  # mails
