"""Orders mails by the criteria of SORT (RFC 5256 section 3)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from services.imap_out.folding import fold_text, order_text
from services.imap_out.grammar.keys import SortKey
from services.imap_out.search.base_subject import base_subject
from services.imap_out.search.mail_texts import sent_date
from services.imap_out.structure.addresses import parse_addresses
from shared.mime import charsets, headers

ADDRESS_OCTETS = 1_000
"""Octets of an address field in which the first address is looked for."""


class SortFacts(NamedTuple):
    """What SORT compares of a mail. Times are seconds since 1970 in UTC, texts as ``order_text`` returns them."""

    arrival: float
    octets: int
    sent: float  # of the Date field; the arrival if there is none that can be read (RFC 5256 section 2.2)
    subject: str = ""  # base subject
    author: str = ""  # mailbox, without domain, of the first address in From
    to: str = ""
    cc: str = ""


def needs_header(order: Sequence[SortKey]) -> bool:
    """Whether the headers of the mails have to be read."""
    return any(key.name not in ("ARRIVAL", "SIZE") for key in order)


def read_sort_facts(header: bytes, arrival: float, octets: int) -> SortFacts:
    """Return what SORT compares. :param header: raw. :param arrival: INTERNALDATE. :param octets: of the mail."""
    known = headers.by_name(header)
    moment = sent_date(header)
    subject = order_text(base_subject(known["subject"][0]).text) if "subject" in known else ""
    names = [_first_mailbox(known.get(name, [])) for name in ("from", "to", "cc")]
    return SortFacts(arrival, octets, arrival if moment is None else moment.timestamp(), subject, *names)


def _first_mailbox(values: Sequence[bytes]) -> str:
    addresses = parse_addresses(values[0][:ADDRESS_OCTETS]) if values else []
    return order_text(fold_text(charsets.read_text(addresses[0].mailbox or b""))) if addresses else ""


_VALUES: dict[str, Callable[[SortFacts], float | str]] = {
    "ARRIVAL": lambda mail: mail.arrival,
    "SIZE": lambda mail: mail.octets,
    "DATE": lambda mail: mail.sent,
    "SUBJECT": lambda mail: mail.subject,
    "FROM": lambda mail: mail.author,
    "TO": lambda mail: mail.to,
    "CC": lambda mail: mail.cc,
}


def sort_mails(order: Sequence[SortKey], mails: Sequence[SortFacts]) -> list[int]:
    """Return the indexes of mails in this order. Equal mails stay in the order of the mailbox.

    :param mails: in the order of the mailbox.
    """
    indexes = list(range(len(mails)))
    for key in reversed(order):
        value = _VALUES[key.name]
        values = [value(mail) for mail in mails]
        indexes.sort(key=values.__getitem__, reverse=key.reverse)
    return indexes
