"""Errors of a POP3 session with a provider. kind: the label of mailgroup_fetch_errors_total."""

from __future__ import annotations

from typing import ClassVar

from shared.errors import Permanent, Temporary
from shared.net.dial import Unreachable


class LoginRefused(Permanent):
    """The login was refused. code: the response code (RFC 2449 section 8, RFC 3206) in upper case, or None."""

    kind: ClassVar[str] = "refused"

    def __init__(self, text: str, code: str | None) -> None:
        super().__init__(text)
        self.code = code


class ServerBusy(Temporary):
    """The server refuses service for now: [IN-USE], [LOGIN-DELAY], [SYS/TEMP], or a negative greeting.

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
    """A mail exceeds the size limit by far. octets: received before the transfer was aborted."""

    def __init__(self, text: str, octets: int) -> None:
        super().__init__(text)
        self.octets = octets


class OutOfStep(ProtocolError):
    """The reply to the fence is another one: a mail before it was cut short, or is another mail.

    head: the first octets of the mail at fault, if it is known.
    """

    def __init__(self, text: str, head: bytes = b"") -> None:
        super().__init__(text)
        self.head = head


class Pop3ConnectionLost(Unreachable):
    """The connection ended before the reply did."""
