"""Errors of a session with a provider's maildrop, by POP3 or IMAP. kind: the label of mailgroup_fetch_errors_total."""

from __future__ import annotations

from typing import ClassVar

from shared.errors import Permanent, Temporary
from shared.net.dial import Unreachable


class LoginRefused(Permanent):
    """The login was refused.

    code: AUTH if the server says that the credentials are wrong (RFC 3206 for POP3, RFC 5530 for IMAP), another
    response code in upper case, or None.
    """

    kind: ClassVar[str] = "refused"

    def __init__(self, text: str, code: str | None) -> None:
        super().__init__(text)
        self.code = code


class ServerBusy(Temporary):
    """The server refuses service for now: [IN-USE], [LOGIN-DELAY], [SYS/TEMP], [UNAVAILABLE], or a negative greeting.

    code: the response code in upper case, or None.
    """

    kind: ClassVar[str] = "busy"

    def __init__(self, text: str, code: str | None = None) -> None:
        super().__init__(text)
        self.code = code


class ProtocolError(Temporary):
    """The server violates the protocol, or lacks a capability that we need."""

    kind: ClassVar[str] = "protocol"


class ReplyTooLong(ProtocolError):
    """A mail exceeds the size limit by far. octets: its size, as far as it is known."""

    def __init__(self, text: str, octets: int) -> None:
        super().__init__(text)
        self.octets = octets


class OutOfStep(ProtocolError):
    """Another reply comes than the one that has to follow a mail: the mail was cut short, or is another one.

    reason: why the mail at fault is skipped. head: its first octets, if the mail is known.
    """

    def __init__(self, text: str, reason: str, head: bytes = b"") -> None:
        super().__init__(text)
        self.reason = reason
        self.head = head


class ConnectionLost(Unreachable):
    """The connection ended before the reply did."""
