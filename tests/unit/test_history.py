"""services/admin/mail/history.py: the events of a mail in sentences."""

from __future__ import annotations

import re

import pytest

from services.admin.mail.history import _sentence, describe_reason
from shared.languages.translation import in_language
from shared.store.inbound_admin import Copyholder
from shared.store.maillog import MailEvent

EVENTS = re.findall(r"\w+", re.search(r"event: ([^.]+)\.", MailEvent.__doc__ or "")[1])  # type: ignore[index]  # it is there


@pytest.mark.parametrize("event", EVENTS)
def test_every_event_is_a_sentence(event: str) -> None:
    said = _sentence(MailEvent(event, external="support@company.com", who="Alex", reply="a reason"))
    assert said[0].isupper() and event not in said.split()


@pytest.mark.parametrize("event", EVENTS)
def test_every_event_is_a_sentence_in_german(event: str) -> None:
    found = MailEvent(event, external="support@company.com", who="Alex", reply='To names Alex as "Al"; into Junk')
    with in_language("de"):
        german = _sentence(found)
    assert german != _sentence(found) and "names" not in german


@pytest.mark.parametrize(
    ("stored", "german"),
    [
        ("To names Alex Smith", "To nennt Alex Smith (Regel 1)"),
        ("it answers a mail that Alex wrote", "es ist die Antwort auf eine Mail von Alex (Regel 1)"),
        (
            'To names "Zoe", which is nobody\'s name here, so everyone who shares it gets it',
            'To nennt "Zoe", und so heißt hier niemand, deshalb bekommen es alle, die sich das Konto teilen (Regel 1)',
        ),
        (
            "Cc names Alex; Alex is disabled, the delegate gets it",
            "Cc nennt Alex; Alex ist deaktiviert, die Vertretung bekommt es (Regel 1)",
        ),
    ],
)
def test_the_reason_of_a_delivery_is_translated(stored: str, german: str) -> None:
    holder = Copyholder(1, "alex@local.com", "Alex", 1, stored, None, True)
    with in_language("de"):
        assert describe_reason(holder) == german


def test_the_reason_of_a_parked_mail_is_part_of_its_sentence() -> None:
    said = _sentence(MailEvent("parked", submission_id=1, reply="restored from a backup of 2026-11-05"))
    assert said == "Needs attention: restored from a backup of 2026-11-05"
