"""The mails that a stream appends, by name."""

from __future__ import annotations

import json
from pathlib import Path

from tests.imap_mails import MAILS
from tests.integration.test_imap_search_results import LETTERS
from tests.integration.test_imap_structure import ODD

_CASES = Path(__file__).parent.parent / "cases" / "to_headers.jsonl"


def _addressed() -> dict[str, bytes]:
    """The headers of tests/cases, each in a mail of its own."""
    found = {}
    for line in _CASES.read_text(encoding="utf-8").splitlines():
        case = json.loads(line)
        fields = [f"To: {value}" for value in case["to"]] + [f"Cc: {value}" for value in case["cc"]]
        head = ["From: anna@customer.example", *fields, f"Subject: case {case['id']}", f"Message-ID: <c{case['id']}@x>"]
        found[f"case {case['id']}"] = "\r\n".join([*head, "", "text", ""]).encode()
    return found


_MALFORMED = ("case 218", "case 222", "case 226", "case 230")
"""Addresses that RFC 5322 does not allow; the servers read what they can, not the same."""
_NESTED = ("boundaries with a common beginning", "empty parts", "header ends at the boundary")
"""Parts whose octets RFC 2046 section 5.1.1 leaves open: a blank line that is missing, a boundary that begins like one
around it."""
_ODD = (*ODD, *_NESTED, *_MALFORMED, "RFC 2231")
"""Mails whose type is malformed: RFC 2045 section 5.2 leaves open what they are; Dovecot 2.4 decodes parameters."""
ALL: dict[str, bytes] = {
    **MAILS,
    **{f"letter {number}": letter for number, letter in enumerate(LETTERS[len(MAILS) :], 1)},
    **_addressed(),
}
NAMES = sorted(set(ALL) - set(_ODD))
"""Those that streams append."""
