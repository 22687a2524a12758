"""services/admin/formatting.py: the words that people read for states and times."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from services.admin.formatting import MAIL_STATUS, counted, mail_status

SCHEMA = Path(__file__).parents[2] / "shared" / "db" / "migrations" / "versions" / "initial.sql"


def states_of(table: str) -> set[str]:
    """The states that the schema allows in this table."""
    definition = re.search(rf"^create table {table} \((.*?)^\);", SCHEMA.read_text(encoding="utf-8"), re.M | re.S)
    assert definition is not None
    allowed = re.search(r"check \(state in \(([^)]*)\)\)", definition[1])
    assert allowed is not None
    return set(re.findall(r"'(\w+)'", allowed[1]))


@pytest.mark.parametrize("table", ["inbound", "submissions", "submission_recipients"])
def test_every_state_of_a_mail_in_the_schema_has_a_word_for_people(table: str) -> None:
    words = {"waiting", "on hold", "needs attention", "delivered", "sent", "failed", "cancelled"}
    assert {mail_status(state) for state in states_of(table)} <= words


def test_no_state_has_a_word_that_the_schema_does_not_know() -> None:
    known = {state for table in ("inbound", "submissions", "submission_recipients") for state in states_of(table)}
    assert known - {"done"} == set(MAIL_STATUS)


@pytest.mark.parametrize(
    ("state", "word"),
    [
        ("fetched", "waiting"),
        ("routed", "waiting"),
        ("submitted", "waiting"),
        ("queued", "waiting"),
        ("claimed", "waiting"),
        ("sent_unanswered", "waiting"),
        ("held", "on hold"),
        ("parked", "needs attention"),
        ("delivered", "delivered"),
        ("relayed", "sent"),
        ("failed", "failed"),
        ("cancelled", "cancelled"),
        ("discarded", "cancelled"),
    ],
)
def test_a_state_has_one_word_everywhere(state: str, word: str) -> None:
    assert mail_status(state) == word


@pytest.mark.parametrize(
    ("recipients", "word"),
    [
        (["relayed", "delivered"], "sent"),
        (["delivered"], "delivered"),
        (["relayed", "failed", "cancelled"], "failed"),
        (["relayed", "cancelled"], "cancelled"),
        ([], "sent"),
    ],
)
def test_a_submission_that_is_done_has_the_status_of_its_worst_recipient(recipients: list[str], word: str) -> None:
    assert mail_status("done", recipients) == word
    assert mail_status("parked", recipients) == "needs attention"


def test_an_unknown_state_is_an_error() -> None:
    with pytest.raises(KeyError):
        mail_status("lost")


@pytest.mark.parametrize(
    ("count", "noun", "text"),
    [
        (1, "mail", "1 mail"),
        (0, "mail", "0 mails"),
        (1, "try", "1 try"),
        (2, "try", "2 tries"),
        (3, "event", "3 events"),
        (12_345, "person", "12,345 people"),
    ],
)
def test_a_number_has_its_noun_in_the_plural_if_needed(count: int, noun: str, text: str) -> None:
    assert counted(count, noun) == text
