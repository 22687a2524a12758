"""The rules and the texts of alerts: when a problem is reported, and when its end. Pure.

A problem is reported when it has lasted for a while, its end when it has been over for a while. Flap suppression: after
each recurrence a problem must be over four times longer before its end is reported, so a flapping problem sends a few
alerts a day.
"""

from __future__ import annotations

import datetime
import email.utils
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from services.admin.monitoring.problem_kinds import KINDS, Problem
from shared.languages import stored_texts
from shared.languages.translation import gettext, in_language, marked, ngettext
from shared.languages.translation import language as current_language
from shared.mime import encoded_words, headers
from shared.model import Alert

RESOLVE_AFTER = datetime.timedelta(minutes=2)
"""Time without the problem before its end is reported; four times longer after each recurrence."""
LONGEST_RESOLVE_AFTER = datetime.timedelta(hours=4)
"""Limit of that time."""
FORGET_AFTER = datetime.timedelta(days=1)
"""Time after the end of a problem after which its recurrences are forgotten."""
MAX_SEPARATE_MAILS = 3
"""Events of one check that are sent as a mail each; more events are sent in one mail."""

What = Literal["raised", "cleared"]


@dataclass(frozen=True, slots=True)
class AlertEvent:
    """A report: a problem began, or it is over."""

    what: What
    alert: Alert


@dataclass(frozen=True, slots=True)
class AlertChanges:
    """The result of one check."""

    events: list[AlertEvent]  # to be reported
    saved: list[Alert]  # rows to be written
    removed: list[tuple[str, str]]  # kind and subject of the rows to be deleted


def decide(known: Sequence[Alert], problems: Sequence[Problem], now: datetime.datetime) -> AlertChanges:
    """Compare the stored alerts with the problems of now. :param problems: one of each kind and subject."""
    changes = AlertChanges([], [], [])
    present = {(problem.kind, problem.subject): problem for problem in problems}
    for alert in known:
        problem = present.pop((alert.kind, alert.subject), None)
        if problem is not None:
            _record_present(changes, replace(alert, text=problem.text, seen_at=now), problem, now)
        else:
            _record_absent(changes, alert, now)
    for problem in present.values():
        _record_present(
            changes, Alert(problem.kind, problem.subject, "pending", problem.text, 0, now, now), problem, now
        )
    return changes


def _record_present(changes: AlertChanges, alert: Alert, problem: Problem, now: datetime.datetime) -> None:
    if alert.state == "calm":
        alert = replace(alert, state="pending", flaps=alert.flaps + 1, changed_at=now)
    if alert.state == "pending" and now - alert.changed_at >= datetime.timedelta(seconds=problem.min_duration):
        alert = replace(alert, state="raised", changed_at=now)
        changes.events.append(AlertEvent("raised", alert))
    changes.saved.append(alert)


def _record_absent(changes: AlertChanges, alert: Alert, now: datetime.datetime) -> None:
    if alert.state == "raised" and now - alert.seen_at >= min(RESOLVE_AFTER * 4**alert.flaps, LONGEST_RESOLVE_AFTER):
        calm = replace(alert, state="calm", changed_at=now)
        changes.saved.append(calm)
        changes.events.append(AlertEvent("cleared", calm))
    elif alert.state == "pending" and alert.flaps:
        changes.saved.append(replace(alert, state="calm", flaps=alert.flaps - 1, changed_at=now))
    elif alert.state == "pending" or (alert.state == "calm" and now - alert.changed_at >= FORGET_AFTER):
        changes.removed.append((alert.kind, alert.subject))


# ---------------------------------------------------------------------------------------------- texts


def split_into_mails(events: Sequence[AlertEvent]) -> list[list[AlertEvent]]:
    """Group the events by the mail that reports them."""
    return [[event] for event in events] if len(events) <= MAX_SEPARATE_MAILS else [list(events)]


def compose(events: Sequence[AlertEvent], to: str, now: datetime.datetime, language: str) -> tuple[bytes, str]:
    """Return the mail that reports these events, and its Message-ID without angle brackets.

    :param to: a local address. :param language: of its owner.
    """
    with in_language(language):
        return _compose(events, to, now)


def _compose(events: Sequence[AlertEvent], to: str, now: datetime.datetime) -> tuple[bytes, str]:
    domain = to.rpartition("@")[2]
    message_id = email.utils.make_msgid("alarm", domain).strip("<>")
    lines = []
    for event in events:
        lines += [_title(event)]
        if event.what == "raised" and event.alert.kind in KINDS:
            lines += ["", gettext(KINDS[event.alert.kind])]
        lines += [""]
    lines += [gettext("'mailgroup status' shows the present state of the system."), ""]
    subject = f"[mailgroup] {_subject(events)}"
    head = [
        b"From: " + headers.format_mailbox("mailgroup", f"mailer-daemon@{domain}"),
        b"To: " + headers.format_mailbox(None, to),
        b"Subject: " + _encoded(_line(subject).decode()),
        b"Date: " + email.utils.format_datetime(now).encode(),
        f"Message-ID: <{message_id}>".encode(),
        b"Auto-Submitted: auto-generated",
        b"MIME-Version: 1.0",
        b"Content-Type: text/plain; charset=utf-8",
        b"Content-Language: " + current_language().encode(),  # RFC 3282
        b"Content-Transfer-Encoding: 8bit",
        b"",
    ]
    return b"\r\n".join([*head, *(_line(line, 900) for line in lines)]), message_id


_WORDS: dict[What, str] = {"raised": marked("Alarm: %(text)s"), "cleared": marked("Over: %(text)s")}


def _title(event: AlertEvent) -> str:
    return gettext(_WORDS[event.what], text=stored_texts.shown(event.alert.text))


def _subject(events: Sequence[AlertEvent]) -> str:
    if len(events) == 1:
        return _title(events[0])
    raised = sum(event.what == "raised" for event in events)
    over = len(events) - raised
    parts = [ngettext("%(num)s alarm", "%(num)s alarms", raised)] if raised else []
    return ", ".join([*parts, *([gettext("%(count)s over", count=over)] if over else [])])


def _encoded(text: str) -> bytes:
    """Encode the text of a header: unchanged if it is ASCII, else as encoded words, folded (RFC 2047)."""
    if text.isascii() and "=?" not in text:
        return text.encode()
    return "\r\n ".join(encoded_words.encode(text, first=60)).encode()


def _line(text: str, max_octets: int = 200) -> bytes:
    """Return the text as one line: control characters become blanks, so no text can add a header."""
    line = "".join(character if character.isprintable() else " " for character in text)
    return line.encode("utf-8", "replace")[:max_octets].decode("utf-8", "ignore").encode()


def webhook_body(event: AlertEvent, now: datetime.datetime) -> dict[str, Any]:
    """Return the JSON body that the webhook receives. Most chat programs show ``text`` alone."""
    return {
        "event": event.what,
        "kind": event.alert.kind,
        "subject": event.alert.subject,
        "text": f"mailgroup: {_WORDS[event.what] % {'text': event.alert.text}}",
        "what": event.alert.text,
        "at": now.astimezone(datetime.UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
    }
