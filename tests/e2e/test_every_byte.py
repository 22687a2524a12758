"""A mail client reads every octet of a submitted or fetched mail unchanged, by RETR and by TOP."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from tests.system import PASSWORD, System, until

HEADER = b"From: alex@local.com\r\nTo: jim@local.com\r\nMessage-ID: <%d@local.com>\r\nSubject: every byte\r\n"
ANY_OCTET = bytes(octet for octet in range(256) if octet not in b"\r\n")
BODIES = {
    "nothing": b"",
    "dots": b"\r\n.\r\n..\r\n.x\r\n...\r\n\r\n",
    "any octet": b"\r\n" + ANY_OCTET + b"\r\n" + b"\0" * 3000 + b"\r\n\xff\xfe\r\n",
    "a line of 3 MB": b"\r\n" + b"." + b"long" * 750_000 + b"\r\nshort\r\n",
    "many short lines": b"\r\n" + b".\r\n" * 20_000,
    "blank lines": b"\r\n" + b"\r\n" * 50,
}


class Reader:
    """A POP3 session that accepts lines of any length; poplib refuses long ones."""

    def __init__(self, port: int, address: str) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=60)
        self._file = self._socket.makefile("rb")
        for command in ("", f"USER {address}", f"PASS {PASSWORD}"):
            assert (self.ask(command) if command else self._file.readline()).startswith(b"+OK")

    def ask(self, command: str) -> bytes:
        """Send a command and return the first line of the reply."""
        self._socket.sendall(command.encode() + b"\r\n")
        return self._file.readline()

    def body(self, command: str) -> bytes:
        """Send a command and return its multi-line reply without dot-stuffing."""
        assert self.ask(command).startswith(b"+OK")
        found = bytearray()
        while (line := self._file.readline()) != b".\r\n":
            assert line
            found += line.removeprefix(b".")
        return bytes(found)

    def close(self) -> None:
        """Send QUIT and close the connection."""
        self.ask("QUIT")
        self._socket.close()


@contextmanager
def reading(port: int, address: str) -> Iterator[Reader]:
    """Open a session for the block."""
    reader = Reader(port, address)
    try:
        yield reader
    finally:
        reader.close()


def top(mail: bytes, lines: int) -> bytes:
    """Return the header, the blank line and this number of lines of the body, as TOP does (RFC 1939 section 7)."""
    end = re.search(rb"(?:\A|\r\n)\r\n", mail)
    if end is None:
        return mail
    return mail[: end.end()] + b"".join(re.findall(rb"[^\n]*\n", mail[end.end() :])[:lines])


def compare(port: int, address: str, mails: list[bytes]) -> None:
    """Check that a mailbox has these mails, in order: sizes, whole contents, and TOP with several numbers of lines."""
    with reading(port, address) as reader:
        assert reader.ask("STAT") == b"+OK %d %d\r\n" % (len(mails), sum(map(len, mails)))
        for number, mail in enumerate(mails, 1):
            assert int(reader.ask(f"LIST {number}").split()[2]) == len(mail)
            assert reader.body(f"RETR {number}") == mail
            for lines in (0, 1, 3, 100_000):
                assert reader.body(f"TOP {number} {lines}") == top(mail, lines)


def test_a_submitted_mail_is_read_octet_for_octet(system: System) -> None:
    system.apply(system.company())
    mails = [HEADER % number + body for number, body in enumerate(BODIES.values())]
    for number, mail in enumerate(mails, 1):
        system.submit("alex@local.com", ["jim@local.com"], mail)
        until(partial(holds, system, "jim@local.com", number))
    compare(system.settings.pop3_port, "jim@local.com", mails)


def holds(system: System, address: str, mails: int) -> bool:
    """Return whether a mailbox has at least this number of mails."""
    with reading(system.settings.pop3_port, address) as reader:
        return int(reader.ask("STAT").split()[1]) >= mails


def test_a_fetched_mail_is_read_octet_for_octet(system: System) -> None:
    system.apply(system.company())
    address = "support@company.com"
    header = b"From: anna@customer.example\r\nTo: Jim <support@company.com>\r\nSubject: %d\r\n"
    for number, body in enumerate(BODIES.values()):
        mail = header % number + body
        system.provider.put(address, mail.replace(b"\r\n", b"\n") if number % 2 else mail)
    system.provider.put(address, header % 99 + b"\r\nno end of the last line")
    # Dovecot's POP3 server is the reference, also for NULs and for a last line without a line end
    with reading(system.provider.pop3_port, address) as reader:
        theirs = [reader.body(f"RETR {number}") for number in range(1, len(BODIES) + 2)]
    until(partial(holds, system, "jim@local.com", len(theirs)))
    with reading(system.settings.pop3_port, "jim@local.com") as reader:
        ours = [reader.body(f"RETR {number}") for number in range(1, len(theirs) + 1)]
    assert sorted(ours) == sorted(theirs)
    assert sum(b"long" * 750_000 in mail for mail in ours) == 1
