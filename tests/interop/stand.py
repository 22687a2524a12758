"""The running system with a reader, who also sends mail to a colleague and a customer."""

from __future__ import annotations

import imaplib
import poplib
import secrets
import ssl
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tests.company import local
from tests.interop.mails import KINDS, Letter, difference, letter
from tests.servers import scratch
from tests.system import PASSWORD, System, running, until

SUPPORT, READER, COLLEAGUE, CUSTOMER = "support@company.com", "alex@local.com", "jim@local.com", "anna@customer.example"

Tls = Literal["none", "starttls", "implicit"]
Protocol = Literal["pop3", "imap", "smtp"]
WAYS: tuple[Tls, ...] = ("none", "starttls", "implicit")


@dataclass(frozen=True, slots=True)
class Account:
    """The settings of a client for one of its two servers."""

    host: str
    port: int
    tls: Tls
    user: str
    password: str
    ca_file: Path  # PEM of the trusted certificate
    folder: Path  # empty, for all files of the client
    console_port: int  # serves the settings for clients that discover them (autoconfig)
    clear_ports: tuple[int, int]  # of this server and of SMTP without TLS, which autoconfig does not announce

    @property
    def certificate(self) -> bytes:
        """The certificate in ca_file without its key: DER."""
        pem = self.ca_file.read_text(encoding="ascii")
        return ssl.PEM_cert_to_DER_cert(pem[pem.index("-----BEGIN CERTIFICATE") :])


class Stand:
    """The gateway with the accounts of these tests. waiting: the mails in the reader's mailbox."""

    def __init__(self, system: System) -> None:
        self.system = system
        people = [local("Alex"), local("Jim")]
        system.apply({"external_accounts": [system.external(SUPPORT)], "local_accounts": people})
        system.provider.add_mailbox(CUSTOMER, PASSWORD)
        self.waiting = [
            letter(kind, secrets.token_hex(6), CUSTOMER, (SUPPORT,), f'"Alex" <{SUPPORT}>') for kind in KINDS
        ]
        for waiting in self.waiting:
            system.provider.put(SUPPORT, waiting.raw)
        until(lambda: self._count(READER) == len(self.waiting))

    def account(self, protocol: Protocol, tls: Tls, folder: Path, user: str = READER) -> Account:
        """Return a person's settings, with the port for this protocol and TLS mode."""
        settings = self.system.settings
        port = {
            ("pop3", "none"): settings.pop3_port,
            ("pop3", "starttls"): settings.pop3_port,
            ("pop3", "implicit"): settings.pop3s_port,
            ("imap", "none"): settings.imap_port,
            ("imap", "starttls"): settings.imap_port,
            ("imap", "implicit"): settings.imaps_port,
            ("smtp", "none"): settings.smtp_port,
            ("smtp", "starttls"): settings.submission_port,
            ("smtp", "implicit"): settings.smtps_port,
        }[protocol, tls]
        certificate = settings.data / "tls" / "self-signed.pem"
        clear = settings.imap_port if protocol == "imap" else settings.pop3_port, settings.smtp_port
        return Account("localhost", port, tls, user, PASSWORD, certificate, folder, settings.admin_port, clear)

    def session(self) -> imaplib.IMAP4:
        """Return a session of the test by IMAP, logged in as the reader."""
        client = imaplib.IMAP4("127.0.0.1", self.system.settings.imap_port, timeout=60)
        client.login(READER, PASSWORD)
        return client

    def letters(self) -> list[Letter]:
        """Return three new mails, from the reader to the colleague and the customer."""
        return [letter(kind, secrets.token_hex(6), READER, (COLLEAGUE, CUSTOMER)) for kind in KINDS]

    def received(self, letters: list[Letter], seconds: float = 60.0) -> tuple[dict[str, bytes], dict[str, bytes]]:
        """Wait for letters, and return and delete them: those of the colleague and of the customer, by token.

        :raises TimeoutError: not all of them arrived in time.
        """
        inside: dict[str, bytes] = {}
        outside: dict[str, bytes] = {}
        deadline = time.monotonic() + seconds
        while len(inside) < len(letters) or len(outside) < len(letters):
            if time.monotonic() > deadline:
                raise TimeoutError(f"{len(inside)} and {len(outside)} of {len(letters)} mails arrived")
            inside |= _by_token(letters, self._take(COLLEAGUE))
            outside |= _by_token(letters, self.system.provider.mail_of(CUSTOMER))
            time.sleep(0.1)
        for path in (self.system.provider.folder / "mail" / CUSTOMER).glob("[nc][eu][wr]/*"):
            path.unlink()
        return inside, outside

    def _take(self, address: str) -> list[bytes]:
        session = poplib.POP3("127.0.0.1", self.system.settings.pop3_port, timeout=60)
        session.user(address)
        session.pass_(PASSWORD)
        found = []
        for number in range(1, session.stat()[0] + 1):
            found.append(b"".join(line + b"\r\n" for line in session.retr(number)[1]))
            session.dele(number)
        session.quit()
        return found

    def _count(self, address: str) -> int:
        session = poplib.POP3("127.0.0.1", self.system.settings.pop3_port, timeout=60)
        session.user(address)
        session.pass_(PASSWORD)
        count: int = session.stat()[0]
        session.quit()
        return count


def as_relayed(raw: bytes, outside: Mapping[str, str]) -> bytes:
    """Return a letter as the customer must get it: only the local addresses are replaced.

    :param outside: from a local address to its replacement.
    """
    for address, name in outside.items():
        raw = raw.replace(address.encode(), name.encode(), 1)
    return raw


OUTSIDE = {READER: f'"Alex" <{SUPPORT}>', COLLEAGUE: f'"Jim" <{SUPPORT}>'}


def compared(letters: list[Letter], got: list[bytes]) -> str:
    """Describe the first problem of the mails that a client has read; "" if each was read once and unchanged."""
    for expected in letters:
        found = [mail for mail in got if expected.token.encode() in mail]
        if len(found) != 1:
            return f"the {expected.kind} mail was read {len(found)} times"
        if why := difference(expected.raw, found[0]):
            return f"the {expected.kind} mail: {why}"
    return "" if len(got) == len(letters) else f"{len(got)} mails were read, expected {len(letters)}"


def _by_token(letters: list[Letter], mails: list[bytes]) -> dict[str, bytes]:
    return {each.token: mail for mail in mails for each in letters if each.token.encode() in mail}


@contextmanager
def stand() -> Iterator[Stand]:
    """Run the system for the block."""
    with scratch() as folder, running(folder) as system:
        yield Stand(system)
