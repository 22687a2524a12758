"""SMTP by aiosmtpd: delivers to the mailboxes of the stand-in, and refuses any other recipient."""

from __future__ import annotations

from aiosmtpd.smtp import SMTP, AuthResult, Envelope, LoginPassword, Session

from deploy.demo_provider.maildrops import Maildrops

_LARGEST = 50 * 1024 * 1024


class Handler:
    """The handler of aiosmtpd."""

    def __init__(self, maildrops: Maildrops) -> None:
        """:param maildrops: where mail goes."""
        self._maildrops = maildrops

    async def handle_RCPT(
        self, server: SMTP, session: Session, envelope: Envelope, address: str, options: list[str]
    ) -> str:
        """Accept a recipient with a mailbox."""
        if self._maildrops.get(address) is None:
            return "550 5.1.1 No such mailbox"
        envelope.rcpt_tos.append(address)
        return "250 2.1.5 OK"

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:
        """Put the mail into each mailbox, with the fields that Postfix adds."""
        content = envelope.content
        assert isinstance(content, bytes)
        for address in dict.fromkeys(envelope.rcpt_tos):
            drop = self._maildrops.get(address)
            assert drop is not None
            drop.put(f"Return-Path: <{envelope.mail_from}>\r\nDelivered-To: {address}\r\n".encode() + content)
        return "250 2.0.0 OK"


def server(maildrops: Maildrops) -> SMTP:
    """Return the protocol of one connection. AUTH is checked if it is used, but not required."""

    def authenticate(server: SMTP, session: Session, envelope: Envelope, mechanism: str, data: object) -> AuthResult:
        assert isinstance(data, LoginPassword)
        drop = maildrops.open(data.login.decode("utf-8", "replace"), data.password.decode("utf-8", "replace"))
        return AuthResult(success=drop is not None, handled=False)

    return SMTP(
        Handler(maildrops),
        hostname="provider.example",
        data_size_limit=_LARGEST,
        enable_SMTPUTF8=True,
        auth_require_tls=False,
        authenticator=authenticate,
    )
