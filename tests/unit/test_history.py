"""services/admin/mail/history.py: the events of a mail in sentences."""

from __future__ import annotations

import re

import pytest

from services.admin.mail.history import _sentence
from shared.store.maillog import MailEvent

EVENTS = re.findall(r"\w+", re.search(r"event: ([^.]+)\.", MailEvent.__doc__ or "")[1])  # type: ignore[index]  # it is there


@pytest.mark.parametrize("event", EVENTS)
def test_every_event_is_a_sentence(event: str) -> None:
    said = _sentence(MailEvent(event, external="support@company.com", who="Alex", reply="a reason"))
    assert said[0].isupper() and event not in said.split()


def test_the_reason_of_a_parked_mail_is_part_of_its_sentence() -> None:
    said = _sentence(MailEvent("parked", submission_id=1, reply="restored from a backup of 2026-11-05"))
    assert said == "Needs attention: restored from a backup of 2026-11-05"
