"""services/admin/web/folded_history.py: a mail to many people is one sentence and a fold."""

from __future__ import annotations

import datetime

from services.admin.mail.header_summary import HeaderSummary
from services.admin.mail.history import MailHistory
from services.admin.web.folded_history import FOLDS_FROM, ShownEvent, ShownReason, fold_events, fold_reasons
from shared.store.inbound_admin import Copyholder

NOW = datetime.datetime(2026, 12, 1, tzinfo=datetime.UTC)


def story(people: int, events: int) -> MailHistory:
    holders = [
        Copyholder(n, f"p{n}@local.com", f"Person {n}", 5, "To names nobody", NOW if n else None, True)
        for n in range(people)
    ]
    happened = [("2026-12-01T00:00:00Z", "Routed: everyone", "done")]
    happened += [
        (f"2026-12-01T00:00:0{n % 10}Z", f"Put into the mailbox of p{n}@local.com: x", "done") for n in range(events)
    ]
    return MailHistory(7, NOW, HeaderSummary(None, (), ""), 1, 10, None, None, holders, ["sentence"], happened, False)


def test_few_recipients_have_a_sentence_each() -> None:
    reasons = fold_reasons(story(2, 0))
    assert reasons == [
        ShownReason("Person 0 is to get this because To names nobody (rule 5)."),
        ShownReason("Person 1 got this because To names nobody (rule 5)."),
    ]


def test_a_mail_to_202_people_is_one_sentence_and_a_fold() -> None:
    first, everyone = fold_reasons(story(203, 0))
    assert first.sentence.startswith("Person 0 is to get this")
    assert everyone.sentence == "202 people got this because To names nobody (rule 5)."
    assert len(everyone.folded) == 202 and everyone.folded[0] == "Person 1 (p1@local.com)"


def test_a_mail_without_recipients_says_why_it_waits() -> None:
    assert fold_reasons(story(0, 0)) == [ShownReason("sentence")]


def test_many_events_of_one_kind_are_one_line_and_a_fold() -> None:
    routed, put = fold_events(story(0, FOLDS_FROM + 1))
    assert routed == ShownEvent("2026-12-01T00:00:00Z", "Routed: everyone", "done")
    assert put.sentence == "Put into the mailbox: 6 times" and len(put.folded) == 6
    assert len(fold_events(story(0, FOLDS_FROM))) == FOLDS_FROM + 1
