"""Names beside the shared address as programs and people really write them, by the pure rules of routing."""

from __future__ import annotations

import pytest

from shared import routing
from shared.mime.headers import format_mailbox, mailboxes
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


# ---------------------------------------------------------------------------------------------- repeated addresses


@pytest.mark.parametrize(
    "name",
    [
        f"Alex ({E})",
        f"Alex <{E}>",
        f"Alex [{E}]",
        f"Alex {{{E}}}",
        f"Alex (<{E}>)",
        f"Alex [mailto:{E}]",
        f"Alex <mailto:{E}>",
        f"Alex {E}",
        f"Alex - {E}",
        f"Alex, {E}",
        f"Alex '{E}'",
        f"Alex \u00ab{E}\u00bb",
        f"Alex \u3010{E}\u3011",
        f"Alex\uff08{E}\uff09",
        f"Alex({E})",
        f"'Alex' ({E})",
        f"'Alex ({E})'",
        f"ALEX ({E.upper()})",
        "Alex (support+shop@company.com)",
        f"Alex ({E}",
    ],
)
def test_a_name_that_repeats_the_address_is_the_name_before_it(name: str) -> None:
    assert who(f'To: "{name}" <{E}>') == {"Alex"}
    assert who(f"To: {format_mailbox(name, E).decode()}") == {"Alex"}


@pytest.mark.parametrize(
    "name",
    [
        "Alex (sales@company.com)",
        "Alex (support@company.com.example)",
        "Alex (Support)",
        f"Jones, Jim ({E})",
        f"({E})",
        f"{E} Alex",
        f"{E} ({E})",
    ],
)
def test_another_address_is_a_part_of_the_name(name: str) -> None:
    assert who(f'To: "{name}" <{E}>') == EVERYONE


def test_a_person_may_have_a_name_with_the_address() -> None:
    account, sharers = company(E, "Alex", f"Alex ({E})", E)
    for name, number in (("Alex", 1), (f"alex ({E})", 2), (E, 3)):
        assert got(decide(mail(f'To: "{name}" <{E}>'), account, sharers, {})) == {number}


def test_a_name_that_only_repeats_the_address_is_no_unknown_name() -> None:
    account, sharers = company(E, "Alex")
    for name, unknown in ((f"({E})", []), (f"Bob ({E})", ["Bob"]), (f"Alex ({E})", []), (f"support ({E})", [])):
        facts = routing.read_facts(mail(f'To: "{name}" <{E}>'), account)
        assert [shown.partition(" (")[0] for shown in routing.unknown_names(facts, sharers)] == unknown


@pytest.mark.parametrize(
    "name", ["O\u2019Brien", "O\u2018Brien", "O`Brien", "\u201cO'Brien\u201d", "\u00abO\u2019Brien\u00bb"]
)
def test_typographic_apostrophes_and_quotation_marks_are_folded(name: str) -> None:
    assert who(f"To: {name} <{E}>") == {"O'Brien"}
    assert who(f"To: {format_mailbox(name, E).decode()}") == {"O'Brien"}
