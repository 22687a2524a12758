"""services/imap_out/structure/ beside a real Dovecot: the same mails, the same answers to FETCH."""

from __future__ import annotations

import imaplib
import itertools
import re
from typing import Any

import pytest

from deploy.machine.dovecot import installed_version
from deploy.machine.dovecot_postfix import DemoProvider
from services.imap_out.grammar.command_parser import parse_command
from services.imap_out.grammar.commands import FetchArguments
from services.imap_out.structure.sections import filter_header, section_span
from services.imap_out.structure.stored import read_structure
from shared.provider.imap_responses import Literal, Part, Value, parse_values
from tests.imap_mails import MAILS

_names = itertools.count()
_LITERAL = re.compile(rb"\{(\d+)\}\r\n")
ODD = frozenset(("malformed type", "type without a value", "unknown type"))
"""Mails with a Content-Type that RFC 2045 section 5.2 lets a reader take for text/plain; Dovecot has it otherwise."""
SECTIONS = (
    *("BODY[TEXT]", "BODY[HEADER]", "BODY[1]", "BODY[2]", "BODY[3]", "BODY[1.1]", "BODY[1.2]", "BODY[2.1]"),
    *("BODY[1.MIME]", "BODY[2.MIME]", "BODY[1.HEADER]", "BODY[2.HEADER]", "BODY[2.TEXT]", "BODY[1]<3.5>"),
    *("BODY[HEADER.FIELDS (SUBJECT TO)]", "BODY[HEADER.FIELDS.NOT (DATE FROM)]", "BODY[2.HEADER.FIELDS (TO)]"),
)


def values(octets: bytes) -> list[Value]:
    """Parse a response; a literal and a quoted string are the same value."""
    parts: list[Part] = []
    position = 0
    while found := _LITERAL.search(octets, position):
        end = found.end() + int(found[1])
        parts += [octets[position : found.start()], Literal(octets[found.end() : end])]
        position = end
    return parse_values([*parts, octets[position:]])


def joined(response: list[Any]) -> bytes:
    """Join what imaplib has split."""
    return b"".join(one[0] + b"\r\n" + one[1] if isinstance(one, tuple) else one for one in response)


@pytest.fixture(scope="module")
def dovecot(provider: DemoProvider) -> imaplib.IMAP4:
    """A session with a mailbox that has MAILS."""
    address = f"structure{next(_names)}@imap.test"
    provider.add_mailbox(address, "secret")
    client = imaplib.IMAP4("127.0.0.1", provider.imap_port)
    client.login(address, "secret")
    for mail in MAILS.values():
        client.append("INBOX", "", "", mail)
    client.select("INBOX")
    return client


def fetch(client: imaplib.IMAP4, name: str, item: str) -> Value:
    """Return the value that Dovecot has for an item of one of MAILS."""
    number = list(MAILS).index(name) + 1
    _, response = client.fetch(str(number), f"({item.replace('BODY[', 'BODY.PEEK[')})")
    match values(joined(response)):
        case [_, list(pairs)]:
            return pairs[-1]
    raise AssertionError(response)


@pytest.mark.parametrize("item", ["ENVELOPE", "BODY", "BODYSTRUCTURE"])
@pytest.mark.parametrize("name", [name for name in MAILS if name not in ODD])
def test_the_description_is_that_of_dovecot(dovecot: imaplib.IMAP4, name: str, item: str) -> None:
    if name == "RFC 2231" and item != "ENVELOPE" and installed_version() >= (2, 4):
        pytest.skip("Dovecot 2.4 decodes values with a character set; RFC 2231 section 5 wants only their parts joined")
    structure = read_structure([MAILS[name]])
    assert [fetch(dovecot, name, item)] == values(getattr(structure, item.lower()))


@pytest.mark.parametrize("item", SECTIONS)
@pytest.mark.parametrize(
    "name",
    ["plain", "alternative", "mixed", "forwarded", "forwarded with parts", "digest", "a message alone"],
)
def test_a_section_is_that_of_dovecot(dovecot: imaplib.IMAP4, name: str, item: str) -> None:
    mail = MAILS[name]
    structure = read_structure([mail])
    arguments = parse_command(f"a FETCH 1 {item}".encode()).arguments
    assert isinstance(arguments, FetchArguments)
    [attribute] = arguments.items
    assert attribute.section is not None
    span = section_span(attribute.section, structure.parts[0].body_start, len(mail), structure)
    span = span.clipped(attribute.partial)
    octets = mail[span.start : span.end]
    if span.names is not None:
        octets = filter_header(octets, span.names, span.negated)
    assert fetch(dovecot, name, item) == octets
