"""Names beside the shared address as programs and people really write them, by the pure rules of routing."""

from __future__ import annotations

import pytest

from shared import routing
from shared.mime.headers import mailboxes
from tests.unit.test_routing import E, company, decide, got, mail

NAMES = ("Alex", "Jim", "Smith, Alex", "O'Brien", "髙橋", "André")
EVERYONE = set(NAMES)


def who(*lines: str | bytes) -> set[str]:
    """The names of those who get a mail with these header lines."""
    account, sharers = company(E, *NAMES)
    head = b"\r\n".join([*(line.encode() if isinstance(line, str) else line for line in lines), b"", b"Hello"])
    reached = got(routing.decide(routing.read_facts(head, account), account, sharers, {}))
    return {local.user_name for local in sharers if local.id in reached}


# ---------------------------------------------------------------------------------------------- separated words


@pytest.mark.parametrize(
    ("to", "people"),
    [
        # the words have the name of a person
        (f"Smith, Alex <{E}>", {"Smith, Alex"}),
        (f"Smith; Alex <{E}>", {"Smith, Alex"}),
        (f"Smith,Alex<{E}>", {"Smith, Alex"}),
        (f"SMITH ,\r\n\talex <{E}>", {"Smith, Alex"}),
        (f'"Smith", Alex <{E}>', {"Smith, Alex"}),
        (f'"Smith", "Alex" <{E}>', {"Smith, Alex"}),
        (f"'Smith, Alex' <{E}>", {"Smith, Alex"}),
        (f"=?utf-8?q?Smith?=, =?utf-8?b?QWxleA==?= <{E}>", {"Smith, Alex"}),
        (f"Smith\\, Alex <{E}>", {"Smith, Alex"}),
        (f'"Smith, Alex <{E}>', {"Smith, Alex"}),
        (f'Smith", Alex <{E}>', {"Smith, Alex"}),
        (f"=?utf-8?q?Smith,\r\n Alex?= <{E}>", {"Smith, Alex"}),
        (f"Smith, , (Sales), Alex <{E}>", {"Smith, Alex"}),
        (f"Smith (Sales), Alex <{E}>", {"Smith, Alex"}),
        (f"Smith, Alex {E}", {"Smith, Alex"}),
        (f"Smith, {E} (Alex)", {"Smith, Alex"}),
        (f"Smith, Alex, {E}", {"Smith, Alex"}),
        # nobody has the name, though a part of it is one
        (f"Jones, Jim <{E}>", EVERYONE),
        (f"Jones; Jim <{E}>", EVERYONE),
        (f'"Jones", Jim <{E}>', EVERYONE),
        (f'"Jones"; "Jim" <{E}>', EVERYONE),
        (f"=?utf-8?q?Jones?=, Jim <{E}>", EVERYONE),
        (f"=?utf-8?q?Jones?=; =?utf-8?q?Jim?= <{E}>", EVERYONE),
        (f"Jones\\, Jim <{E}>", EVERYONE),
        (f'"Jones, Jim <{E}>', EVERYONE),
        (f'Jones, "Jim <{E}>', EVERYONE),
        (f"Jones, {E} (Jim)", EVERYONE),
        (f"Jones, Jim {E}", EVERYONE),
        (f"Jones <>, Jim <{E}>", EVERYONE),
        (f"Jim, Jones <{E}>", EVERYONE),
        (f"Jim, Smith, Alex <{E}>", EVERYONE),
        # behind and before other recipients
        (f"Bob <b@x.example>, Smith, Alex <{E}>", {"Smith, Alex"}),
        (f"b@x.example; Jones; Jim <{E}>", EVERYONE),
        (f"Bob <b@x.example> Jones, Jim <{E}>", EVERYONE),  # a comma is missing
        (f"Jones, Bob <b@x.example>, Jim <{E}>", {"Jim"}),
        (f"Jones, Jim <b@x.example>, Alex <{E}>", {"Alex"}),
        (f"Jones, Jim <{E}>, Alex <{E}>", {"Alex"}),
        (f"Jim <{E}>, Alex", {"Jim"}),
        (f"Jim <{E}>; Smith, Alex", {"Jim"}),
        # members of a group
        (f'Team: "Jim" <{E}>;', {"Jim"}),
        (f"Team: Jim <{E}>, Alex <{E}>;", {"Jim", "Alex"}),
        (f"Jones, Team: Jim <{E}>;", {"Jim"}),
        (f"Team: Smith, Alex <{E}>;", {"Smith, Alex"}),
        (f"Team: Jones, Jim <{E}>;", EVERYONE),
        (f"Team: b@x.example;, Jim <{E}>", {"Jim"}),
        (f"undisclosed-recipients:; Jim <{E}>", {"Jim"}),
    ],
)
@pytest.mark.parametrize("field", ["To", "Cc"])
def test_words_without_an_address_begin_the_next_name(field: str, to: str, people: set[str]) -> None:
    assert who(f"{field}: {to}") == people


def test_the_reason_shows_the_whole_name() -> None:
    account, sharers = company(E, *NAMES)
    decision = decide(mail(f"To: Jones; Jim <{E}>"), account, sharers, {})
    assert decision.reason.startswith('To names "Jones, Jim", which is nobody\'s name here')


def test_a_sender_is_read_without_the_words_before_it() -> None:
    assert [box.name for box in mailboxes(f"Smith, Alex <{E}>".encode())] == ["Alex"]


def test_words_without_an_address_have_the_limits_of_a_name() -> None:
    assert who(f"To: {'a,' * 15_000} Jim <{E}>") == EVERYONE
    assert who(f"To: {'a;' * 700} Jim <{E}>, Alex <{E}>") == {"Alex"}
