"""services/fetcher/plan.py and poll_interval.py: which mails are fetched, kept and deleted, and when."""

from __future__ import annotations

import datetime
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.fetcher.plan import (
    MAX_TRIES,
    FetchItem,
    ListedMail,
    ProviderList,
    RenumberedMails,
    count_failures,
    decide,
    keys_to_compare,
    next_try,
    plan_digest,
    unchanged_until,
)
from services.fetcher.poll_interval import PollResult, after_failure, after_success
from shared.errors import Temporary
from shared.model import External, LedgerEntry, LedgerState, Poll, Relay, Server
from shared.net.dial import Unreachable
from shared.provider.session_errors import LoginRefused, ProtocolError, ServerBusy

NOW = datetime.datetime(2026, 5, 1, 12, tzinfo=datetime.UTC)
HOUR = datetime.timedelta(hours=1)
DAY = datetime.timedelta(days=1)
LIMIT = 1000


def account(**changes: object) -> External:
    values: dict[str, object] = {
        "id": 1,
        "address": "e@x.test",
        "enabled": True,
        "login": "e",
        "password": b"",
        "pop3": Server("h", 110, "none"),
        "relays": (Relay(Server("h", 25, "none")),),
        "poll_seconds": 60,
        "history": "all",
        "delete_after_days": None,
        "delete_history": False,
        "reply_to_author": True,
        "aliases": (),
    }
    return External(**values | changes)  # type: ignore[arg-type]  # a table of fields


def poll(**changes: object) -> Poll:
    values: dict[str, object] = {
        "external_id": 1,
        "owner": "o",
        "now": NOW,
        "next_poll_at": NOW,
        "first_contact_at": NOW - 30 * DAY,
        "last_success_at": NOW - HOUR,
        "last_error_kind": None,
        "failures": 0,
        "refusals": (),
        "paused_at": None,
        "login_delay": None,
    }
    return Poll(**values | changes)  # type: ignore[arg-type]  # a table of fields


def row(key: str, state: LedgerState = "fetched", **changes: object) -> LedgerEntry:
    values: dict[str, object] = {
        "id": hash(key) % 1_000_000,
        "key": key,
        "state": state,
        "before": None,
        "was_history": False,
        "octets": 10,
        "sha256": b"d" * 32,
        "fetched_at": NOW - HOUR,
        "tries": 0,
        "next_try_at": None,
        "state_at": NOW - HOUR,
    }
    return LedgerEntry(**values | changes)  # type: ignore[arg-type]  # a table of fields


def maildrop(*uidls: str, complete: bool = True) -> ProviderList:
    return ProviderList.of(list(enumerate(uidls, 1)), complete)


def keys(rows: Iterable[LedgerEntry]) -> set[str]:
    return {known.key for known in rows}


# ---------------------------------------------------------------------------------------------- plan


def test_new_mail_precedes_history_and_failed_mail_comes_last() -> None:
    ledger = [row("h", "history", was_history=True), row("s", "skipped", tries=1, next_try_at=NOW), row("f")]
    plan = decide(maildrop("h", "s", "f", "new"), ledger, account(), LIMIT, poll())
    assert [want.mail.key for want in plan.fetch] == ["new", "h", "s"]
    assert not plan.vanished and not plan.delete


def test_history_is_left_alone_from_now_on() -> None:
    plan = decide(maildrop("h"), [row("h", "history")], account(history="from_now"), LIMIT, poll())
    assert not plan.fetch


def test_a_repeated_uidl_is_fetched_once_each_and_never_deleted() -> None:
    drop = maildrop("a", "a", "b", "a")
    assert [mail.key for mail in drop.mails] == ["a", "a 2", "b", "a 3"]
    assert len(decide(drop, [], account(), LIMIT, poll()).fetch) == 4
    ledger = [row("a"), row("a 2"), row("b"), row("a 3", "deleting")]
    plan = decide(drop, ledger, account(delete_after_days=0), LIMIT, poll())
    assert [mail.key for mail, _ in plan.delete] == ["b"]
    assert not plan.fetch


@pytest.mark.parametrize(
    ("days", "age", "was_history", "delete_history", "state", "deleted"),
    [
        (None, 1000 * DAY, False, False, "fetched", False),
        (0, 0 * DAY, False, False, "fetched", True),
        (7, 7 * DAY - HOUR, False, False, "fetched", False),
        (7, 7 * DAY, False, False, "fetched", True),
        (7, 9 * DAY, True, False, "fetched", False),
        (7, 9 * DAY, True, True, "fetched", True),
        (0, 9 * DAY, False, False, "skipped", False),
        (0, 9 * DAY, False, True, "history", False),
        (0, 9 * DAY, False, False, "deleting", True),
        (None, 9 * DAY, False, False, "deleting", False),
    ],
)
def test_only_fetched_mail_is_deleted_when_its_days_are_over(
    days: int | None,
    age: datetime.timedelta,
    was_history: bool,
    delete_history: bool,
    state: LedgerState,
    deleted: bool,
) -> None:
    ledger = [
        row("a", state, fetched_at=NOW - age if state in ("fetched", "deleting") else None, was_history=was_history)
    ]
    settings = account(history="from_now", delete_after_days=days, delete_history=delete_history)
    plan = decide(maildrop("a"), ledger, settings, LIMIT, poll())
    assert bool(plan.delete) is deleted


def test_mail_gone_from_a_whole_list_vanished_or_is_closed_if_we_deleted() -> None:
    ledger = [row("f"), row("h", "history"), row("s", "skipped"), row("d", "deleting"), row("v", "vanished")]
    plan = decide(maildrop(), ledger, account(), LIMIT, poll())
    assert keys(plan.vanished) == {"f", "h", "s"}
    assert keys(plan.closed) == {"d"}
    assert keys(plan.missing) == {"f", "h", "s", "v"}


def test_after_an_incomplete_list_no_mail_counts_as_vanished() -> None:
    ledger = [row("f"), row("d", "deleting")]
    plan = decide(maildrop("new", complete=False), ledger, account(), LIMIT, poll())
    assert not plan.vanished and not plan.closed
    assert len(plan.fetch) == 1


def test_a_vanished_mail_that_is_listed_again_keeps_its_state() -> None:
    ledger = [row("f", "vanished", before="fetched"), row("h", "vanished", before="history")]
    plan = decide(maildrop("f", "h"), ledger, account(delete_after_days=0), LIMIT, poll())
    assert keys(plan.reappeared) == {"f", "h"}
    assert [want.mail.key for want in plan.fetch] == ["h"]
    assert [mail.key for mail, _ in plan.delete] == ["f"]
    assert not plan.missing


def test_a_closed_uidl_that_is_listed_again_is_fetched_to_be_compared() -> None:
    plan = decide(maildrop("d"), [], account(delete_after_days=0), LIMIT, poll())  # closed rows are not in the ledger
    assert [want.row for want in plan.fetch] == [None]
    assert keys_to_compare(plan, maildrop("d")) == ["d"]


def test_a_position_names_no_deleted_mail() -> None:
    by_position = maildrop("1", "2")
    assert by_position.position_keyed
    assert keys_to_compare(decide(by_position, [], account(), LIMIT, poll()), by_position) == []


@pytest.mark.parametrize(
    ("changes", "again"),
    [
        ({"tries": 1, "next_try_at": NOW}, True),
        ({"tries": 4, "next_try_at": NOW + HOUR}, False),
        ({"tries": 1, "next_try_at": NOW + HOUR}, True),  # no try sets this time: the clock was an hour ahead
        ({"tries": MAX_TRIES, "next_try_at": NOW}, False),
        ({"octets": LIMIT + 1}, False),
        ({"octets": LIMIT}, True),
        ({"octets": None}, False),
    ],
)
def test_skipped_mail_is_retried_only_when_that_may_help(changes: dict[str, object], again: bool) -> None:
    plan = decide(maildrop("s"), [row("s", "skipped", sha256=None, **changes)], account(), LIMIT, poll())
    assert bool(plan.fetch) is again


def test_retries_of_a_skipped_mail_become_rare() -> None:
    waits = [next_try(tries, NOW) - NOW for tries in range(1, MAX_TRIES + 1)]
    assert waits[:2] == [0 * DAY, 0 * DAY]
    assert waits == sorted(waits) and waits[-1] == DAY


@pytest.mark.parametrize(
    ("tries", "minutes", "counted"),
    [(0, 0, 1), (1, 0, 2), (2, 0, 2), (2, 9, 2), (2, -9, 2), (2, 11, 3), (2, -11, 3), (3, 0, 4), (10, 11, 10)],
)
def test_an_interruption_is_a_failure_of_the_mail_only_if_it_recurs(tries: int, minutes: int, counted: int) -> None:
    failing_since = NOW - datetime.timedelta(minutes=minutes)
    item = FetchItem(ListedMail(1, "a", False), row("a", "skipped", tries=tries, state_at=failing_since))
    assert count_failures(item, NOW, interrupted=True) == counted
    # and any other failure is one at once
    assert count_failures(item, NOW) == min(tries + 1, 10)
    assert count_failures(item, NOW, least=3) == min(max(tries + 1, 3), 10)


def test_interruptions_of_old_mail_count_from_the_first_interruption() -> None:
    history = row("a", "history", tries=2, state_at=NOW - datetime.timedelta(days=9))
    assert count_failures(FetchItem(ListedMail(1, "a", False), history), NOW, interrupted=True) == 2


def test_each_vanished_copy_explains_one_renumbered_mail() -> None:
    lost = RenumberedMails.of(
        [
            row("a", "vanished", before="fetched"),
            row("b", "vanished", before="fetched"),
            row("c", "vanished", before="fetched", sha256=b"e" * 32),
            row("big", "vanished", before="skipped", sha256=None, octets=5000),
        ]
    )
    assert {known.key for known in [lost.take_match(b"d" * 32, 10), lost.take_match(b"d" * 32, 10)] if known} == {
        "a",
        "b",
    }
    assert lost.take_match(b"d" * 32, 10) is None
    assert lost.take_match(b"e" * 32, 11) is None
    found = lost.take_skipped(5000)
    assert found is not None and found.key == "big" and lost.take_skipped(5000) is None


def test_history_that_vanished_lately_may_explain_unknown_mail() -> None:
    ledger = [
        row("now", "history"),
        row("cut", "vanished", before="history", state_at=NOW - HOUR / 2),
        row("long-ago", "vanished", before="history", state_at=NOW - DAY),
    ]
    plan = decide(maildrop("x", "y", "z"), ledger, account(history="from_now"), LIMIT, poll())
    assert keys(plan.lost_history) == {"now", "cut"}


# ---------------------------------------------------------------------------------------------- schedule


def course(**changes: object) -> PollResult:
    values: dict[str, object] = {
        "started": NOW,
        "ended": NOW + datetime.timedelta(seconds=10),
        "login_delay": None,
        "backlog": 0,
    }
    return PollResult(**values | changes)  # type: ignore[arg-type]  # a table of fields


def seconds(at: datetime.datetime) -> float:
    return (at - NOW).total_seconds()


def test_the_interval_counts_from_the_start_and_login_delay_from_the_end() -> None:
    assert seconds(after_success(account(), course()).next_poll_at) == 60
    assert seconds(after_success(account(), course(login_delay=300)).next_poll_at) == 310
    assert seconds(after_success(account(poll_seconds=1), course()).next_poll_at) == 10
    assert seconds(after_success(account(), course(more=True, login_delay=20)).next_poll_at) == 30


@pytest.mark.parametrize(
    ("poll_seconds", "failures", "least", "most"),
    [
        (1, 0, 0.75, 1),
        (1, 3, 6, 8),
        (1, 50, 45, 60),
        (60, 0, 45, 60),
        (60, 9, 45, 60),
        (600, 0, 450, 600),
        (600, 9, 450, 600),
    ],
)
def test_back_off_grows_to_the_longer_of_a_minute_and_the_interval(
    poll_seconds: int, failures: int, least: float, most: float
) -> None:
    for jitter, expected in ((0.0, least), (1.0, most)):
        outcome = after_failure(
            account(poll_seconds=poll_seconds), poll(failures=failures), course(), ProtocolError("x"), jitter
        )
        assert seconds(outcome.next_poll_at) - 10 == expected
        assert (outcome.failures, outcome.kind, outcome.error) == (failures + 1, "protocol", "x")


@pytest.mark.parametrize(("poll_seconds", "most"), [(1, 8), (60, 60)])
def test_a_provider_that_does_not_answer_is_polled_again_soon(poll_seconds: int, most: float) -> None:
    outcome = after_failure(account(poll_seconds=poll_seconds), poll(failures=50), course(), Unreachable("x"), 1)
    assert seconds(outcome.next_poll_at) - 10 == most
    assert outcome.kind == "unreachable"


def test_a_failure_of_the_database_delays_no_account_for_long() -> None:
    outcome = after_failure(account(poll_seconds=600), poll(failures=50), course(), Temporary("away"), 1)
    assert seconds(outcome.next_poll_at) - 10 <= 3


def test_three_plain_refusals_within_an_hour_pause() -> None:
    first = after_failure(account(), poll(), course(), LoginRefused("no", None), 1)
    assert first.paused_at is None and seconds(first.next_poll_at) == 70
    second = after_failure(account(), poll(refusals=first.refusals), course(), LoginRefused("no", None), 1)
    assert second.paused_at is None
    third = after_failure(account(), poll(refusals=second.refusals), course(), LoginRefused("no", None), 1)
    assert third.paused_at == NOW + datetime.timedelta(seconds=10)
    assert seconds(third.next_poll_at) == 3610
    assert "paused" in (third.error or "")


def test_old_refusals_do_not_pause_the_account() -> None:
    old = (NOW - 2 * HOUR, NOW - 2 * HOUR)
    outcome = after_failure(account(), poll(refusals=old), course(), LoginRefused("no", None), 1)
    assert outcome.paused_at is None and len(outcome.refusals) == 1


def test_one_refusal_with_auth_pauses_and_one_careful_try_an_hour_follows() -> None:
    first = after_failure(account(), poll(), course(), LoginRefused("no", "AUTH"), 1)
    assert first.paused_at is not None
    later = after_failure(account(), poll(paused_at=first.paused_at), course(), LoginRefused("no", None), 1)
    assert later.paused_at == first.paused_at and seconds(later.next_poll_at) == 3610


def test_a_busy_mailbox_never_pauses() -> None:
    old = (NOW, NOW)
    outcome = after_failure(account(), poll(refusals=old), course(login_delay=900), ServerBusy("in use"), 1)
    assert outcome.paused_at is None and seconds(outcome.next_poll_at) == 910


def test_success_ends_a_pause() -> None:
    outcome = after_success(account(), course())
    assert (outcome.paused_at, outcome.refusals, outcome.failures, outcome.error) == (None, (), 0, None)


# ---------------------------------------------------------------------------------------------- quiet maildrops

ROWS = st.builds(
    lambda number, state, was_history, age, tries, retry, octets: row(
        str(number),
        state,
        was_history=was_history,
        before="fetched" if state == "vanished" else None,
        fetched_at=NOW - age * HOUR / 2 if state in ("fetched", "deleting") else None,
        tries=tries,
        next_try_at=None if retry is None else NOW + retry * HOUR,
        octets=octets,
    ),
    st.integers(0, 5),
    st.sampled_from(["history", "fetched", "skipped", "deleting", "vanished"]),
    st.booleans(),
    st.integers(0, 60),
    st.integers(0, 10),
    st.none() | st.integers(-2, 2),
    st.none() | st.integers(0, 200),
)


@given(
    st.lists(ROWS, max_size=6, unique_by=lambda known: known.key),
    st.sets(st.integers(0, 5), max_size=6),
    st.booleans(),
    st.sampled_from([None, 0, 1, 2]),
    st.booleans(),
    st.floats(0, 1),
)
def test_a_quiet_maildrop_stays_so_until_the_returned_time(
    rows: list[LedgerEntry], listed: set[int], complete: bool, days: int | None, history_too: bool, later: float
) -> None:
    mine = account(delete_after_days=days, delete_history=history_too, history="from_now")
    maildrop = ProviderList.of([(number + 1, str(number)) for number in sorted(listed)], complete)
    if not decide(maildrop, rows, mine, 100, poll()).is_empty:
        return
    until = unchanged_until(maildrop, rows, mine, NOW)
    assert NOW < until <= NOW + HOUR
    at = NOW + (until - NOW) * later * 0.999
    assert decide(maildrop, rows, mine, 100, poll(now=at)).is_empty


def test_other_settings_make_another_digest_of_the_same_list() -> None:
    same = plan_digest(b"list", account(), 100, poll())
    assert plan_digest(b"list", account(password=b"new", poll_seconds=5), 100, poll(now=NOW + DAY)) == same
    others = [
        plan_digest(b"other", account(), 100, poll()),
        plan_digest(b"list", account(), 101, poll()),
        plan_digest(b"list", account(delete_after_days=3), 100, poll()),
        plan_digest(b"list", account(history="from_now"), 100, poll()),
        plan_digest(b"list", account(delete_history=True), 100, poll()),
        plan_digest(b"list", account(login="else"), 100, poll()),
        plan_digest(b"list", account(), 100, poll(first_contact_at=NOW)),
    ]
    assert len({same, *others}) == len(others) + 1
