"""services/admin/monitoring/alert_rules.py and problems.py: what is reported, when, and in which words."""

from __future__ import annotations

import datetime
import email
import email.policy
import time
from dataclasses import replace
from pathlib import Path

import pytest

from services.admin.monitoring import alert_rules, problems
from services.admin.monitoring.alert_rules import AlertEvent
from services.admin.monitoring.database_health import DatabaseHealth
from services.admin.monitoring.problem_kinds import KINDS, Problem
from services.admin.monitoring.problems import SystemFacts
from shared.db.connection_budget import ConnectionUse
from shared.languages import stored_texts
from shared.languages.translation import in_language
from shared.model import Alert, External, Issuer, OAuth, Relay, Server
from shared.settings import Settings
from shared.store.accounts import AbsentDelegate
from shared.store.inbound_admin import UnstartedMail
from shared.store.maillog import LocalOrganizers
from shared.store.polls import PollState
from shared.store.provider_filings import FilingTrouble

START = datetime.datetime(2026, 11, 5, 12, 0, tzinfo=datetime.UTC)
HELD = Problem("held", "", "3 mails are held")
SERVER = Server("mail.company.com", 110, "none")
SUPPORT = External(1, "support@company.com", True, "s", b"", SERVER, (Relay(SERVER),), 60, "all", None, False, True, ())


class Story:
    """Checks a problem that starts and ends, with an injected clock. told: minute and event of each report."""

    def __init__(self) -> None:
        self.known: dict[tuple[str, str], Alert] = {}
        self.told: list[tuple[float, str]] = []

    def look(self, minute: float, *found: Problem) -> None:
        step = alert_rules.decide(list(self.known.values()), found, START + datetime.timedelta(minutes=minute))
        for key in step.removed:
            del self.known[key]
        self.known |= {(alarm.kind, alarm.subject): alarm for alarm in step.saved}
        self.told += [(minute, event.what) for event in step.events]


def test_a_lasting_problem_is_reported_once_and_so_is_its_end() -> None:
    story = Story()
    for quarter in range(40):
        story.look(quarter / 4, HELD)
    for quarter in range(40, 80):
        story.look(quarter / 4)
    assert story.told == [(1.0, "raised"), (11.75, "cleared")]


def test_a_problem_that_ends_too_soon_is_not_reported() -> None:
    story = Story()
    for quarter in range(100):
        story.look(quarter / 4, *([HELD] if quarter % 4 < 2 else []))
    assert (story.told, story.known) == ([], {})


@pytest.mark.parametrize("minutes", [2, 5, 30])
def test_a_problem_that_recurs_all_day_is_reported_a_few_times(minutes: int) -> None:
    story = Story()
    for quarter in range(24 * 60 * 4):
        minute = quarter / 4
        story.look(minute, *([HELD] if minute % (2 * minutes) < minutes else []))
    assert 1 <= len(story.told) <= 8


def test_a_problem_that_recurs_after_a_day_counts_as_new() -> None:
    story = Story()
    for minute in (0, 2, 3, 6):
        story.look(minute, *([HELD] if minute < 3 else []))
    assert [what for _, what in story.told] == ["raised", "cleared"]
    story.look(24 * 60 + 10)
    assert story.known == {}


def test_a_refused_login_is_reported_at_once() -> None:
    story = Story()
    story.look(0, Problem("login", "x", "refused", 0.0))
    assert story.told == [(0, "raised")]


def event(number: int, what: alert_rules.What = "raised") -> AlertEvent:
    return AlertEvent(
        what, Alert("login", f"a{number}@x", "raised", f"a{number}@x: refused\r\nBcc: evil@x", 0, START, START)
    )


def test_many_events_of_one_check_are_one_mail() -> None:
    assert [len(letter) for letter in alert_rules.split_into_mails([event(n) for n in range(3)])] == [1, 1, 1]
    [letter] = alert_rules.split_into_mails([event(n) for n in range(1000)])
    body, _ = alert_rules.compose(letter, "alex@local.com", START, "en")
    assert b"Subject: [mailgroup] 1000 alarms\r\n" in body and body.count(b"Alarm: ") == 1000


def test_the_mail_says_what_to_do_and_no_text_adds_a_header_field() -> None:
    body, message_id = alert_rules.compose([event(1)], "alex@local.com", START, "en")
    header, _, text = body.partition(b"\r\n\r\n")
    assert b"Auto-Submitted: auto-generated" in header and message_id.encode() in header
    assert not any(line.startswith(b"Bcc:") for line in header.split(b"\r\n"))
    assert b"mailgroup external set ADDRESS" in text


def test_the_mail_is_in_the_language_of_its_reader() -> None:
    body, _ = alert_rules.compose([event(1)], "alex@local.com", START, "de")
    mail = email.message_from_bytes(body, policy=email.policy.default)
    assert mail["Subject"].startswith("[mailgroup] Alarm: a1@x") and mail["Content-Language"] == "de"
    text = mail.get_content()
    assert "Der Anbieter lehnt die Anmeldung ab." in text and "zeigt den jetzigen Zustand des Systems" in text
    body, _ = alert_rules.compose([event(n, "cleared") for n in range(5)] + [event(9)], "alex@local.com", START, "de")
    assert b"Subject: [mailgroup] 1 Alarm, 5 vorbei\r\n" in body and body.count(b"Vorbei: ") == 5


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_of_problem_is_explained_in_german(kind: str) -> None:
    raised = AlertEvent("raised", Alert(kind, "", "raised", "x", 0, START, START))
    body, _ = alert_rules.compose([raised], "alex@local.com", START, "de")
    assert KINDS[kind].encode() not in body


def test_the_webhook_gets_the_same_text() -> None:
    found = alert_rules.webhook_body(event(1, "cleared"), START)
    assert (found["event"], found["kind"], found["subject"]) == ("cleared", "login", "a1@x")
    assert found["at"] == "2026-11-05T12:00:00Z" and found["text"].startswith("mailgroup: Over: a1@x")


# ---------------------------------------------------------------------------------------------- what is wrong


def polled(**fields: object) -> PollState:
    well = PollState(1, START, None, None, None, 0, None, START, 0, 0, START, START)
    return replace(well, **fields)  # type: ignore[arg-type]  # by name


def facts(poll: PollState, **fields: object) -> SystemFacts:
    well = SystemFacts(START, [SUPPORT], {1: poll}, {}, 0, 0, 0, 0, {}, 0.0, 0, 0.0, ConnectionUse(10, 100))
    return replace(well, **fields)  # type: ignore[arg-type]  # by name


def kinds(found: list[Problem]) -> list[tuple[str, str]]:
    return [(trouble.kind, trouble.subject) for trouble in found]


AGO = START - datetime.timedelta(minutes=16)


@pytest.mark.parametrize(
    ("poll", "expected"),
    [
        (polled(), []),
        (polled(last_success_at=AGO), [("poll", "support@company.com")]),
        (polled(last_success_at=None), [("poll", "support@company.com")]),
        (polled(last_success_at=AGO, paused_at=AGO, last_error="535"), [("login", "support@company.com fetching")]),
    ],
)
def test_an_account_that_is_not_polled_or_is_refused_is_a_problem(
    poll: PollState, expected: list[tuple[str, str]]
) -> None:
    assert kinds(problems.find_problems(facts(poll))) == expected


def test_mail_that_is_held_parked_or_late_is_a_problem() -> None:
    assert problems.find_problems(facts(polled())) == []
    bad = facts(polled(), held=1, parked=2, late={1: 601.0, None: 700.0}, unhanded=601.0)
    assert kinds(problems.find_problems(bad)) == [
        ("held", ""),
        ("parked", ""),
        ("late", "support@company.com"),
        ("late", ""),
        ("late", "submissions"),
    ]


def test_a_disabled_person_whose_delegate_gets_no_mail_is_a_problem() -> None:
    here = AbsentDelegate("kim@local.com", False, "tom@local.com", "is disabled", 1)
    away = AbsentDelegate("alex@local.com", True, "jim@local.com", "is removed", 0)
    [found] = problems.find_problems(facts(polled(), absent_delegates=[here, away]))
    assert (found.kind, found.subject) == ("delegate", "alex@local.com") and found.kind in KINDS
    assert found.text == (
        "alex@local.com: is disabled, and the delegate jim@local.com is removed: mail with this person's name stays "
        "on hold"
    )


def test_each_problem_is_shown_in_german() -> None:
    # given all that may be wrong
    away = AbsentDelegate("alex@local.com", True, "jim@local.com", "is removed", 0)
    poll = polled(last_success_at=AGO, last_error="pop.x:110: connection refused; check host and port")
    bad = facts(
        poll,
        held=1,
        parked=2000,
        restored=2,
        looping=1,
        late={1: 601.0, None: 700.0},
        unhanded=601.0,
        connections=ConnectionUse(95, 100),
        absent_delegates=[away],
        unstarted=[UnstartedMail(1, "support@company.com", 2, 3, 90_000.0)],
        organizers=[LocalOrganizers("alex@local.com", "support@company.com", 3)],
        filings={1: FilingTrouble(1, 2, "imap.x: refused: NO")},
        server=DatabaseHealth(xid_age=10**9 * 2, inactive_slots=2, wal_retained=2**40, archive_failing=True),
    )
    found = [problem.text for problem in problems.find_problems(bad)]
    # then no part of it stays English
    with in_language("de"):
        shown = [stored_texts.shown(text) for text in found]
    assert [text for text, german in zip(found, shown, strict=True) if text == german] == []
    assert shown[0] == "support@company.com: 2 Mails können beim Anbieter nicht abgelegt oder markiert werden: " + (
        "imap.x: abgelehnt: NO"
    )
    assert shown[1].startswith("support@company.com: kein erfolgreicher Abruf seit 2026-11-05 11:44 UTC (pop.x:110: Ve")
    assert "1.997 Mails brauchen Aufmerksamkeit: die Verarbeitung ist fünfmal gescheitert" in shown


def test_each_parked_mail_is_reported_with_the_reason() -> None:
    found = problems.find_parked(facts(polled(), parked=6, restored=2, looping=1))
    assert [trouble.text for trouble in found] == [
        "3 mails need attention: processing failed five times",
        "2 mails need attention: restored from a backup and perhaps relayed since",
        "1 mail needs attention: in a mail loop",
    ]
    assert kinds(found) == [("parked", ""), ("parked", "restored"), ("parked", "mail loop")]


@pytest.mark.parametrize(
    ("free", "total", "full"),
    [(10 << 30, 100 << 30, False), (4 << 30, 100 << 30, True), (1 << 29, 2 << 30, True), (2 << 30, 4 << 30, False)],
)
def test_a_disk_that_is_nearly_full_is_a_problem(free: int, total: int, full: bool) -> None:
    assert problems.is_nearly_full(free, total) is full


def test_the_end_of_a_certificate_is_reported_by_its_service(monkeypatch: pytest.MonkeyPatch) -> None:
    ends = time.time() + 13 * 86_400
    said = {"9104": "", "9105": f"mailgroup_tls_certificate_expiry_timestamp_seconds {ends}\n"}
    monkeypatch.setattr(problems, "fetch_health", lambda url: ("", said.get(url.rpartition(":")[2], "")))
    [found] = problems.find_in_services(Settings())
    assert (found.kind, found.subject) == ("certificate", "smtp_in")
    assert found.text == "service smtp_in: its certificate expires in 13 days"


def test_corrupted_data_is_reported_by_the_service_that_met_it(monkeypatch: pytest.MonkeyPatch) -> None:
    said = {"9102": f"mailgroup_database_corrupted_timestamp_seconds {time.time()}\n"}
    monkeypatch.setattr(problems, "fetch_health", lambda url: ("", said.get(url.rpartition(":")[2], "")))
    [found] = problems.find_in_services(Settings())
    assert (found.kind, found.subject, found.min_duration) == ("corrupted", "router", 0.0)
    assert "PostgreSQL reports corrupted data" in found.text and "corrupted" in KINDS


def test_a_disk_that_is_full_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert problems.measure_disks(Settings(data=tmp_path / "none")) == []
    monkeypatch.setattr(problems, "DISK_OCTETS", 2**60)
    [found] = problems.find_in_disks(problems.measure_disks(Settings(data=tmp_path)))
    assert (found.kind, found.subject) == ("disk", str(tmp_path)) and "are free" in found.text


def test_a_refused_grant_is_not_a_wrong_password() -> None:
    issuer = Issuer("https://issuer.example/token", "mail")
    account = replace(SUPPORT, oauth=OAuth("", issuer, "client"))
    found = problems.find_problems(facts(polled(paused_at=AGO, last_error="no token"), externals=[account]))
    assert kinds(found) == [("grant", "support@company.com fetching")]
    assert problems.find_problems(facts(polled(paused_at=AGO), externals=[replace(SUPPORT, enabled=False)])) == []
