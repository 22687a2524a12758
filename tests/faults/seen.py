"""What the driver sees at the providers and in mailboxes, and what of it is wrong whatever was offered. Pure."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping

from tests.faults.books import Copies, Submitted, token
from tests.faults.mails import ACCOUNTS

_KEPT = ("To", "Subject", "Date", "Message-ID")
"""Header fields that the gateway relays as the client wrote them."""


class Relayed:
    """What the providers took. found, altered: by token and recipient."""

    def __init__(self, submitted: Mapping[str, Submitted]) -> None:
        self.found: Copies = Counter()
        self.altered: Copies = Counter()
        self._submitted = submitted

    def add(self, address: str, mail: bytes) -> None:
        """Count a mail. It is altered if its body or a kept field is another, or if it comes from another account."""
        name = token(mail)
        self.found[name, address] += 1
        known = self._submitted.get(name)
        if known is None or not is_relayed_form(known, mail):
            self.altered[name, address] += 1


def is_relayed_form(submitted: Submitted, relayed: bytes) -> bool:
    """Whether a relayed mail is the submitted one: the same but for header fields that the gateway may change."""
    header, _, body = relayed.partition(b"\r\n\r\n")
    sent_header, _, sent_body = submitted.mail.partition(b"\r\n\r\n")
    authors = [line.rpartition(b"<")[2].rstrip(b">") for line in _fields(header, "From")]
    return (
        body == sent_body
        and all(_fields(header, name) == _fields(sent_header, name) for name in _KEPT)
        and authors == [ACCOUNTS[submitted.author].encode()]
    )


def _fields(header: bytes, name: str) -> list[bytes]:
    return re.findall(rb"^%s: (.*?)\r?$" % name.encode(), header, re.M | re.I)


class Listings:
    """What sessions listed, compared with the sessions before.

    came_back: mails that a client had deleted. vanished: mails that a client had read and not deleted. Both by UIDL and
    mailbox.
    """

    def __init__(self) -> None:
        self.came_back: Copies = Counter()
        self.vanished: Copies = Counter()
        self._deleted: defaultdict[str, set[bytes]] = defaultdict(set)  # by mailbox; QUIT was answered
        self._may_be_deleted: defaultdict[str, set[bytes]] = defaultdict(set)  # by mailbox; DELE was sent

    def compare(self, address: str, read_before: Collection[bytes], listed: Collection[bytes]) -> None:
        """Compare the UIDLs of a session. :param read_before: UIDLs that were read in earlier sessions."""
        self.came_back.update((uidl.decode(), address) for uidl in self._deleted[address].intersection(listed))
        gone = set(read_before).difference(listed, self._may_be_deleted[address])
        self.vanished.update((uidl.decode(), address) for uidl in gone)

    def delete(self, address: str, uidls: Collection[bytes], *, answered: bool) -> None:
        """Note mails that a session has deleted. :param answered: QUIT was, so they are gone for good."""
        self._may_be_deleted[address].update(uidls)
        if answered:
            self._deleted[address].update(uidls)


def failed_recipients(notice: bytes) -> list[str]:
    """The recipients that a notice of failure names."""
    named = re.findall(rb"^Final-Recipient: rfc822; *(\S+)\r\nAction: failed\r", notice, re.M)
    return [name.decode() for name in named]


def reported_mail(notice: bytes) -> str:
    """The token of the mail that a notice is about; '' for none."""
    found = re.search(rb"^In-Reply-To: <([^@]*)@", notice, re.M)
    return found[1].decode() if found else ""


def is_notice(mail: bytes) -> bool:
    """Whether this is a delivery status notification (RFC 3464)."""
    return b"\r\nContent-Type: multipart/report" in mail[: mail.find(b"\r\n\r\n") + 2]


def is_alarm(mail: bytes) -> bool:
    """Whether the gateway tells the first person of a company what is wrong, or that it is over."""
    header = mail[: mail.find(b"\r\n\r\n") + 2]
    return b"\r\nAuto-Submitted: auto-generated\r\n" in header and b"mailer-daemon@" in header
