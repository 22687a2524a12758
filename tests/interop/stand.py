"""The running system with a person who reads, a colleague and a customer who get what is sent, and what they got."""

from __future__ import annotations

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
WAYS: tuple[Tls, ...] = ("none", "starttls", "implicit")


@dataclass(frozen=True, slots=True)
class Account:
    """What a client is set up with, for one of its two servers. ca_file: PEM of what it is to trust.

    folder: empty, for all that the client writes. console_port: where a client that can fetches its settings;
    clear_ports: what it does not find there, the ports of POP3 and SMTP without TLS.
    """

    host: str
    port: int
    tls: Tls
    user: str
    password: str
    ca_file: Path
    folder: Path
    console_port: int
    clear_ports: tuple[int, int]

    @property
    def certificate(self) -> bytes:
        """The one in ca_file, without the key behind which it stands there; DER."""
        pem = self.ca_file.read_text(encoding="ascii")
        return ssl.PEM_cert_to_DER_cert(pem[pem.index("-----BEGIN CERTIFICATE") :])


class Stand:
    """mailgroup with the accounts of this room; ``waiting`` lies in the reader's mailbox."""

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

    def account(self, protocol: Literal["pop3", "smtp"], tls: Tls, folder: Path, user: str = READER) -> Account:
        """For a person, over the port that is meant for this protocol with this TLS."""
        settings = self.system.settings
        port = {
            ("pop3", "none"): settings.pop3_port,
            ("pop3", "starttls"): settings.pop3_port,
            ("pop3", "implicit"): settings.pop3s_port,
            ("smtp", "none"): settings.smtp_port,
            ("smtp", "starttls"): settings.submission_port,
            ("smtp", "implicit"): settings.smtps_port,
        }[protocol, tls]
        certificate = settings.data / "tls" / "self-signed.pem"
        clear = settings.pop3_port, settings.smtp_port
        return Account("localhost", port, tls, user, PASSWORD, certificate, folder, settings.admin_port, clear)

    def letters(self) -> list[Letter]:
        """The three mails again, from the reader to the colleague and the customer."""
        return [letter(kind, secrets.token_hex(6), READER, (COLLEAGUE, CUSTOMER)) for kind in KINDS]

    def received(self, letters: list[Letter], seconds: float = 60.0) -> tuple[dict[str, bytes], dict[str, bytes]]:
        """What the colleague and the customer got, by token; taken out of their mailboxes.

        :raises TimeoutError: not all of it arrived.
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
    """What the customer is to get of a letter: the local people's addresses are replaced, nothing else.

    :param outside: from a local address to what stands there instead.
    """
    for address, name in outside.items():
        raw = raw.replace(address.encode(), name.encode(), 1)
    return raw


OUTSIDE = {READER: f'"Alex" <{SUPPORT}>', COLLEAGUE: f'"Jim" <{SUPPORT}>'}


def compared(letters: list[Letter], got: list[bytes]) -> str:
    """What is wrong with the mails that a client has read, in words; empty if each is there once and unchanged."""
    for expected in letters:
        found = [mail for mail in got if expected.token.encode() in mail]
        if len(found) != 1:
            return f"the {expected.kind} mail was read {len(found)} times"
        if why := difference(expected.raw, found[0]):
            return f"the {expected.kind} mail: {why}"
    return "" if len(got) == len(letters) else f"{len(got)} mails were read instead of {len(letters)}"


def _by_token(letters: list[Letter], mails: list[bytes]) -> dict[str, bytes]:
    return {each.token: mail for mail in mails for each in letters if each.token.encode() in mail}


@contextmanager
def stand() -> Iterator[Stand]:
    """It runs while the block lasts."""
    with scratch() as folder, running(folder) as system:
        yield Stand(system)
