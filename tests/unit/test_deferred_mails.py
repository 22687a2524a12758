"""services/router/deferred_mails.py: mails with long headers cost nothing in batches that do not read them."""

from __future__ import annotations

import pytest

from services.router import deferred_mails
from services.router.deferred_mails import READ_AGAIN, DeferredMails

MAILS = [(row, f"{row}@x") for row in range(100, 150)]
ROWS = [row for row, _ in MAILS]


def test_a_batch_reads_unknown_mails_and_some_that_were_deferred() -> None:
    deferred = DeferredMails()
    assert deferred.divide([*ROWS, 1]) == ([*ROWS, 1], [])
    deferred.record(ROWS, MAILS)
    assert deferred.divide([*ROWS, 1, 2]) == ([*ROWS[:READ_AGAIN], 1, 2], MAILS[READ_AGAIN:])


def test_mails_that_were_read_are_forgotten() -> None:
    deferred = DeferredMails()
    deferred.record(ROWS, MAILS)
    while ROWS[-1] in deferred._addresses:
        now, later = deferred.divide(ROWS)
        deferred.record(now, [])
        assert [row for row in ROWS if row in deferred._addresses] == [row for row, _ in later]
    assert deferred._addresses == {}


def test_deferred_mails_beyond_the_limit_are_read_from_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deferred_mails, "REMEMBERED", 20)
    deferred = DeferredMails()
    deferred.record(ROWS, MAILS)
    assert deferred.divide(ROWS) == ([*ROWS[:-20], *ROWS[-20 : READ_AGAIN - 20]], MAILS[READ_AGAIN - 20 :])


def test_mails_that_another_router_routed_take_no_room(monkeypatch: pytest.MonkeyPatch) -> None:
    # given as many deferred mails as are remembered, which another router gets from the queue
    monkeypatch.setattr(deferred_mails, "REMEMBERED", 20)
    deferred = DeferredMails()
    deferred.record(ROWS[:20], MAILS[:20])
    # when others are deferred, then these cost nothing either
    deferred.record(ROWS[20:40], MAILS[20:40])
    assert deferred.divide(ROWS[20:40]) == (ROWS[20 : 20 + READ_AGAIN], MAILS[20 + READ_AGAIN : 40])
