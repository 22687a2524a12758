"""Reads the facts that the rules of routing need from the header of a mail. Pure; never raises.

Senders are unknown, so every fact has a limit. Of the addresses in To and Cc only the names beside the account's own
address are kept. A mail with more addresses than are read goes to everyone, and the reason says so.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

from shared.mime import bounces, charsets
from shared.mime.addresses import address_matcher, plus_tag
from shared.mime.display_names import LONGEST, normalise_uncached, without_address
from shared.mime.headers import MAX_HOPS, Mailbox, iterate_mailboxes, iterate_values, mailboxes, message_ids
from shared.mime.provider_ids import sent_key
from shared.mime.reply_tags import is_tag
from shared.mime.tokens import TooManyTokens, token_budget
from shared.model import External

HEAD_OCTETS = 256 * 1024
"""Limits how much of a mail is read: octets."""
ADDRESS_OCTETS = 64 * 1024
"""Limits To and Cc together: octets; 1,000 mailboxes with long names are shorter."""
FIELD_MAILBOXES = 1000
"""Limits the mailboxes of To, and of Cc: no mail that a person writes has more."""
MAIL_MAILBOXES = 1500
"""Limits the mailboxes of both together."""
MAIL_TOKENS = 20_000
"""Limits the tokens of both together: 1,500 mailboxes with names of several words have fewer; reading them takes a few
hundredths of a second."""
NAMES = 100
"""Limits the different names beside the account's address in a field: some 100 people share an account."""
NAME_CHARACTERS = 200
"""Limits the part of a name that is kept as written, for reasons: characters."""
FROM_OCTETS = 4096
"""Limits From: octets; a mail with a longer one is no copy of a mail of ours."""
CACHE_SIZE = 1000
"""Cached accounts: every mail is compared with the addresses of its account."""
REPEATED_FIELDS = 100
"""Limits the fields of one name that are read."""
NEWEST_REFERENCES = 100
"""Limits the Message-IDs of References that are used: the newest."""
REFERENCES_OCTETS = 32 * 1024
"""Limits the end of a References field that is read: octets; the newest ids are at the end."""
TAGS = 10
"""Limits the reply tags of To, and of Cc, that are verified: an answer has one."""
IDS = 20
"""Limits the Message-IDs that are used of each other field."""
IDS_OCTETS = 16 * 1024
"""Limits the beginning of each of these fields that is read: octets."""
ID_CHARACTERS = 500
"""Longest Message-ID that is used: characters; that of a mail of ours is shorter."""

_READ_FIELDS = frozenset(
    {
        "to",
        "cc",
        "from",
        "message-id",
        "x-google-original-message-id",
        "x-microsoft-original-message-id",
        "in-reply-to",
        "references",
        *bounces.NOTICE_FIELDS,
    }
)
_ID_START = re.compile(rb"[\s<]")
_CHARSET = re.compile(rb"""charset\s*=\s*["']?([^\s;"']{1,60})""", re.IGNORECASE)
CONTENT_TYPE_OCTETS = 1024
"""Limits the beginning of Content-Type that is read for the charset of raw names: octets."""


class WrittenName(NamedTuple):
    """A name beside the account's address."""

    normalised: str  # as ``normalise``, cut after LONGEST characters: no person has such a name
    without_address: str  # the same without the account's address behind it: "alex (support@company.com)" is "alex"
    written: str  # decoded, cut after NAME_CHARACTERS
    repeats_address: bool  # the name is the address or its local part

    def meant(self, known: AbstractSet[str]) -> str:
        """Return the name that counts: the whole one if it is known, else the one without the address."""
        return self.normalised if self.normalised in known else self.without_address


@dataclass(frozen=True, slots=True)
class AddressedNames:
    """The mailboxes of To or Cc with the account's address or an alias; a ``+tag`` is tolerated."""

    found: bool = False  # there is such a mailbox
    names: tuple[WrittenName, ...] = ()  # beside them, each once, in order
    tags: tuple[str, ...] = ()  # of their addresses, those that have the form of a reply tag; not verified


@dataclass(frozen=True, slots=True)
class HeaderFacts:
    """The facts about a mail that the rules need. Message-IDs are without angle brackets."""

    problem: str = ""  # why the mail goes to everyone: what cannot be read; '' if everything was read
    to: AddressedNames = AddressedNames()
    cc: AddressedNames = AddressedNames()
    from_account: bool = False  # From contains only addresses of the account
    message_id: str | None = None
    original_ids: tuple[str, ...] = ()  # Google and Microsoft keep them here when they replace the Message-ID
    in_reply_to: tuple[str, ...] = ()
    references: tuple[str, ...] = ()  # oldest first
    is_notice: bool = False
    reported: tuple[str, ...] = ()  # the mails that a notice refers to
    has_transit: bool = False  # a field shows a delivery, a forwarding or a mailing list
    hops: int = 0  # servers that have relayed the mail (RFC 5321 section 6.3), at most one more than MAX_HOPS


def read_facts(head: bytes, external: External | None) -> HeaderFacts:
    """Read the facts from the first 256 KiB of a mail of this account. The time is proportional to the length."""
    try:
        return _read(head[:HEAD_OCTETS], account_addresses(external) if external else ())
    except Exception:  # untrusted input: with any error in the header, everyone gets the mail
        return HeaderFacts("the header cannot be read")


def answered_ids(head: bytes) -> list[str]:
    """Return the mails that this mail answers: In-Reply-To, and the last one of References. Never raises."""
    facts = read_facts(head, None)
    return list(dict.fromkeys((*facts.in_reply_to, *facts.references[-1:])))


def referenced_ids(facts: HeaderFacts) -> set[str]:
    """Return the Message-IDs whose authors the rules need, as sent mail is recorded (``sent_key``), at most 200."""
    own = {facts.message_id} if facts.message_id else set()
    return set(map(sent_key, own | {*facts.original_ids, *facts.in_reply_to, *facts.references, *facts.reported}))


def _read(head: bytes, addresses: tuple[str, ...]) -> HeaderFacts:
    header: dict[str, list[bytes]] = {}
    hops, has_transit = 0, False
    for name, value in iterate_values(head):
        if name in _READ_FIELDS:
            same = header.setdefault(name, [])
            if len(same) <= REPEATED_FIELDS:
                same.append(value)
        elif name == "received":
            hops = min(hops + 1, MAX_HOPS + 1)
        elif name == "delivered-to" or name.startswith(("list-", "resent-")):
            has_transit = True

    def ids(*names: str) -> tuple[str, ...]:
        return _ids([value for name in names for value in header.get(name, [])])

    problem, to, cc = _read_addresses(
        header.get("to", []), header.get("cc", []), _AddressReader(addresses, _charset(header.get("content-type", [])))
    )
    is_notice = bounces.is_notice(header)
    return HeaderFacts(
        problem,
        to,
        cc,
        from_account=_is_from_account(header.get("from", []), addresses),
        message_id=next(iter(ids("message-id")), None),
        original_ids=ids("x-google-original-message-id", "x-microsoft-original-message-id"),
        in_reply_to=ids("in-reply-to"),
        references=_newest_references(header.get("references", [])),
        is_notice=is_notice,
        reported=tuple(_usable(bounces.reported_ids(head))) if is_notice else (),
        has_transit=has_transit,
        hops=hops,
    )


def _read_addresses(
    to: Sequence[bytes], cc: Sequence[bytes], reader: _AddressReader
) -> tuple[str, AddressedNames, AddressedNames]:
    """Return the names in To and in Cc, after what exceeds a limit ('' if nothing does)."""
    nobody = AddressedNames()
    for field, values in (("To", to), ("Cc", cc)):
        if len(values) > REPEATED_FIELDS:
            return f"the header has more than {REPEATED_FIELDS} fields {field}", nobody, nobody
    if sum(map(len, (*to, *cc))) > ADDRESS_OCTETS:
        return f"To and Cc are longer than {ADDRESS_OCTETS // 1024} KiB", nobody, nobody
    try:
        return "", reader.read("To", to), reader.read("Cc", cc)
    except _TooMany as error:
        return str(error), nobody, nobody


def _charset(values: Sequence[bytes]) -> str:
    """Return the codec of Content-Type; without one, the codec that guesses."""
    found = _CHARSET.search(values[0][:CONTENT_TYPE_OCTETS]) if values else None
    codec = charsets.find_codec(found[1].decode("ascii", "replace")) if found else None
    return codec or charsets.GUESSED


# ---------------------------------------------------------------------------------------------- addresses


class _TooMany(ValueError):
    """To and Cc contain more than is read."""


def account_addresses(external: External) -> tuple[str, ...]:
    """Return the address of the account and its aliases."""
    return external.address, *external.aliases


class _AddressReader:
    """Reads To and Cc of one mail within the limits of a mail.

    :param codec: of raw 8-bit names that are no UTF-8.
    """

    def __init__(self, addresses: tuple[str, ...], codec: str) -> None:
        self._codec = codec
        self._addresses = addresses
        self._is_own = address_matcher(addresses)
        self._own_names = _own_names(addresses)
        self._budget = token_budget(MAIL_TOKENS)
        self._mailboxes = 0

    def read(self, field: str, values: Sequence[bytes]) -> AddressedNames:
        """Read a field. :raises _TooMany: a limit is exceeded."""
        found = False
        names: dict[str, WrittenName] = {}
        tags: dict[str, None] = {}
        count = 0
        for value in values:
            for mailbox in self._iterate(field, value):
                count += 1
                if count > FIELD_MAILBOXES:
                    raise _TooMany(f"{field} has more than {FIELD_MAILBOXES} addresses")
                if self._is_own(mailbox.address):
                    found = True
                    if "+" in mailbox.address and len(tags) < TAGS:
                        tag = plus_tag(mailbox.address, self._addresses)
                        if tag is not None and is_tag(tag):
                            tags[tag] = None
                    if mailbox.name and len(names) <= NAMES:
                        name = self._name(mailbox.name, mailbox.address)
                        names.setdefault(name.normalised, name)
        if len(names) > NAMES:
            raise _TooMany(f"{field} has more than {NAMES} names beside the address of the account")
        self._mailboxes += count
        if self._mailboxes > MAIL_MAILBOXES:
            raise _TooMany(f"To and Cc have more than {MAIL_MAILBOXES} addresses")
        return AddressedNames(found, tuple(names.values()), tuple(tags))

    def _iterate(self, field: str, value: bytes) -> Iterator[Mailbox]:
        try:
            yield from iterate_mailboxes(charsets.to_utf8(value, self._codec), self._budget, joins_words=True)
        except TooManyTokens:
            raise _TooMany(f"{field} is too long") from None

    def _name(self, written: str, address: str) -> WrittenName:
        normalised = normalise_uncached(written)[: LONGEST + 1]
        shorter = without_address(normalised, self._is_own) if len(normalised) <= LONGEST else normalised
        bare = shorter.strip("<>").removeprefix("mailto:")
        repeats = not shorter or bare in self._own_names or bare in _as_names((address,))
        return WrittenName(normalised, shorter, written[:NAME_CHARACTERS], repeats)


@lru_cache(CACHE_SIZE)
def _own_names(addresses: tuple[str, ...]) -> frozenset[str]:
    return _as_names(addresses)


def _as_names(addresses: tuple[str, ...]) -> frozenset[str]:
    """Return the addresses and their local parts, normalised: as names they only repeat the address."""
    normalised = [normalise_uncached(address) for address in addresses]
    return frozenset({*normalised, *(address.rpartition("@")[0] for address in normalised)})


def _is_from_account(values: Sequence[bytes], addresses: tuple[str, ...]) -> bool:
    if not values or sum(map(len, values)) > FROM_OCTETS:
        return False
    is_own = address_matcher(addresses)
    found = [is_own(mailbox.address) for value in values for mailbox in mailboxes(value)]
    return bool(found) and all(found)


# ---------------------------------------------------------------------------------------------- ids


def _ids(values: Sequence[bytes]) -> tuple[str, ...]:
    found: list[str] = []
    for value in values:
        if len(found) >= IDS:
            break
        found += _usable(message_ids(value[:IDS_OCTETS], IDS))
    return tuple(found[:IDS])


def _newest_references(values: Sequence[bytes]) -> tuple[str, ...]:
    """Return the last ids, oldest first. Of a long field only the end is read, from a whole id on."""
    newest: list[str] = []
    for value in reversed(values):
        if len(newest) >= NEWEST_REFERENCES:
            break
        if len(value) > REFERENCES_OCTETS:
            value = value[-REFERENCES_OCTETS:]
            start = _ID_START.search(value)
            value = value[start.start() :] if start else b""
        newest[:0] = _usable(message_ids(value))
    return tuple(newest[-NEWEST_REFERENCES:])


def _usable(message_ids: Sequence[str]) -> list[str]:
    return [message_id for message_id in message_ids if len(message_id) <= ID_CHARACTERS]
