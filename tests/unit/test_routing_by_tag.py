"""shared/routing: a reply tag of ours counts as In-Reply-To, before it; any other one is a tolerated ``+tag``."""

from __future__ import annotations

import pytest

from shared import routing
from shared.mime.reply_tags import make_tag
from shared.model import External
from shared.routing import read_facts
from shared.routing.facts import TAGS
from tests.unit.test_routing import ALEX, EVERYONE, IN_REPLY_TO_ALEX, JIM, KIM, SENT, E, external, mail, outcome, people

KEY, OLD_KEY, FOREIGN_KEY = b"k" * 32, b"o" * 32, b"f" * 32
TO_JIM = f"support+{make_tag(KEY, 1, JIM)}@company.com"
OFF: dict[str, object] = {"enabled": False}


def decide(*lines: str, account: External | None = None, **changes: dict[str, object]) -> routing.Decision:
    chosen = account or external()
    facts = read_facts(mail(*lines), chosen)
    return routing.decide(facts, chosen, people(**changes), SENT, tag_keys=[KEY, OLD_KEY])


@pytest.mark.parametrize(
    ("lines", "rule", "who"),
    [
        ([f"To: {TO_JIM}"], 3, {JIM}),
        ([f"To: {TO_JIM.upper()}"], 3, {JIM}),  # some programs change the case
        ([f'To: "Customer Service" <{TO_JIM}>'], 3, {JIM}),
        ([f"To: x@y.example, {TO_JIM}"], 3, {JIM}),
        (["To: x@y.example", f"Cc: {TO_JIM}"], 3, {JIM}),
        ([f"To: help+{make_tag(KEY, 1, JIM)}@company.com"], 3, {JIM}),  # an alias
        ([f"To: support+{make_tag(OLD_KEY, 1, JIM)}@company.com"], 3, {JIM}),
        ([f"To: {TO_JIM}", IN_REPLY_TO_ALEX], 3, {JIM}),  # before In-Reply-To
        ([f'To: "Alex" <{TO_JIM}>'], 1, {ALEX, JIM}),  # a name decides first
        ([f'To: "Jim" <{TO_JIM}>', IN_REPLY_TO_ALEX], 1, {JIM}),  # in place of In-Reply-To
        (["To: x@y.example", f'Cc: "Alex" <{TO_JIM}>'], 2, {ALEX}),
        ([f"To: support+{make_tag(FOREIGN_KEY, 1, JIM)}@company.com"], 5, EVERYONE),
        ([f"To: support+{make_tag(KEY, 2, JIM)}@company.com"], 5, EVERYONE),  # of another account
        ([f"To: support+{make_tag(KEY, 1, 99)}@company.com"], 5, EVERYONE),  # shares the account no more
        ([f"To: support+{make_tag(FOREIGN_KEY, 1, JIM)}@company.com", IN_REPLY_TO_ALEX], 3, {ALEX}),
        ([f"To: sales+{make_tag(KEY, 1, JIM)}@company.com"], 5, EVERYONE),  # another address
        (["To: support+news@company.com"], 5, EVERYONE),
        ([f"To: support+{make_tag(FOREIGN_KEY, 1, KIM)}@company.com, {TO_JIM}"], 3, {JIM}),
    ],
)
def test_a_valid_tag_counts_as_in_reply_to(lines: list[str], rule: int, who: set[int]) -> None:
    assert outcome(decide(*lines, account=external(aliases=("help@company.com",)))) == (rule, who)


def test_the_reason_names_the_tag() -> None:
    assert decide(f"To: {TO_JIM}").reason == "it is addressed to the reply tag of Jim"
    assert decide(f'To: "Alex" <{TO_JIM}>').reason == "To names Alex; it is addressed to the reply tag of Jim"


def test_a_disabled_author_is_replaced_as_by_any_rule() -> None:
    assert outcome(decide(f"To: {TO_JIM}", jim=OFF | {"delegate_id": KIM})) == (3, {KIM})
    assert outcome(decide(f"To: {TO_JIM}", jim=OFF)) == (3, {ALEX, KIM})


def test_without_answers_to_the_author_a_tag_counts_nothing() -> None:
    assert outcome(decide(f"To: {TO_JIM}", account=external(reply_to_author=False))) == (5, EVERYONE)


def test_a_colleague_who_writes_to_an_own_tag_reaches_the_others() -> None:
    facts = read_facts(mail(f"To: {TO_JIM}"), external())
    decided = routing.decide(facts, external(), people(), SENT, "submitted", JIM, [KEY])
    assert outcome(decided) == (5, {ALEX, KIM})


REPORT = ("Auto-Submitted: auto-replied", "In-Reply-To: <alex-1@company.com>")


@pytest.mark.parametrize(
    ("lines", "found_by"),
    [
        ([f'To: "Alex" <{E}>'], "name"),
        ([f'To: "Alex" <{TO_JIM}>', IN_REPLY_TO_ALEX], "name"),
        ([f'Cc: "Alex" <{E}>'], "name"),
        ([f"To: {TO_JIM}", IN_REPLY_TO_ALEX], "tag"),
        ([f"To: {E}", IN_REPLY_TO_ALEX], "reference"),
        ([f"To: {E}", "In-Reply-To: <unknown@x.example>"], "nobody"),
        ([f'To: "Nobody" <{E}>', "References: <unknown@x.example>"], "nobody"),
        ([f"To: {E}", "Auto-Submitted: auto-replied"], "nobody"),
        ([f"To: {E}"], None),  # a new mail
        ([f'To: "Nobody" <{E}>'], None),
    ],
)
def test_how_an_answer_found_its_people_is_known(lines: list[str], found_by: str | None) -> None:
    assert decide(*lines).found_by == found_by


def test_without_rule_3_a_report_still_finds_its_author() -> None:
    found = decide(f"To: {E}", *REPORT, account=external(reply_to_author=False))
    assert (found.rule, found.found_by) == (4, "report")


def test_a_crowd_of_tags_is_verified_in_part() -> None:
    crowd = ", ".join(f"support+{make_tag(FOREIGN_KEY, 1, number)}@company.com" for number in range(1, 900))
    facts = read_facts(mail(f"To: {crowd}"), external())
    assert facts.to.found and len(facts.to.tags) == TAGS
