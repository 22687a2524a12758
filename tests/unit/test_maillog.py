"""shared/store/maillog.py: the log lines of each mail."""

from __future__ import annotations

from typing import Any

import pytest

from shared.store import maillog
from shared.store.maillog import MailEvent


class Log:
    """Collects the lines."""

    def __init__(self) -> None:
        self.lines: list[dict[str, Any]] = []

    def info(self, message: str, lines: list[dict[str, Any]]) -> None:
        self.lines += lines


def test_every_event_of_a_mail_has_the_same_trace_id_in_and_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    log = Log()
    monkeypatch.setattr(maillog, "log", log)

    maillog.announce([MailEvent("fetched", inbound_id=7, external="support@company.com")])
    maillog.announce([MailEvent("delivered", inbound_id=7, who="alex@local.com"), MailEvent("delivered", inbound_id=8)])
    maillog.announce([MailEvent("submitted", submission_id=9), MailEvent("relayed", submission_id=9)])

    assert [(line["event"], line["trace_id"]) for line in log.lines] == [
        ("fetched", 7),
        ("delivered", 7),
        ("delivered", 8),
        ("submitted", 9),
        ("relayed", 9),
    ]


def test_copies_in_one_event_are_counted_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    log = Log()
    monkeypatch.setattr(maillog, "log", log)
    before = maillog.DELIVERED._value.get()

    who = maillog.join_addresses(["alex@local.com", "jim@local.com", "kim@local.com"])
    maillog.announce(
        [MailEvent("delivered", inbound_id=7, who=who), MailEvent("delivered", inbound_id=8, who="tom@local.com")]
    )

    assert maillog.DELIVERED._value.get() - before == 4
    assert [line["who"] for line in log.lines] == ["alex@local.com, jim@local.com, kim@local.com", "tom@local.com"]
