"""When a trouble is told, and when its end; and in which words. Pure.

A trouble is told when it has lasted for a while, and its end when it has been over for a while. What comes back soon
has to be over for longer each time before that counts as the end, so what comes and goes is told a few times a
day and not every minute.
"""

from __future__ import annotations

import datetime
import email.utils
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from services.admin.monitoring.problem_kinds import KINDS, Problem
from shared.mime import headers
from shared.model import Alert

RESOLVE_AFTER = datetime.timedelta(minutes=2)
"""A trouble that is over for so long is over; four times as long after each time that it came back."""
LONGEST_RESOLVE_AFTER = datetime.timedelta(hours=4)
FORGET_AFTER = datetime.timedelta(days=1)
"""What is over for so long counts as new when it comes back."""
MAX_SEPARATE_MAILS = 3
"""So many events of one look are a mail each; more are one mail together."""

What = Literal["raised", "cleared"]


@dataclass(frozen=True, slots=True)
class AlertEvent:
    """Something to be told: a trouble is there, or is over."""

    what: What
    alert: Alert


@dataclass(frozen=True, slots=True)
class AlertChanges:
    """What follows from one look. saved: rows to be written. gone: kinds and subjects of rows to be deleted."""

    events: list[AlertEvent]
    saved: list[Alert]
    removed: list[tuple[str, str]]


def decide(known: Sequence[Alert], troubles: Sequence[Problem], now: datetime.datetime) -> AlertChanges:
    """Compare what was known with what is wrong now; ``troubles`` has one of each kind and subject."""
    step = AlertChanges([], [], [])
    present = {(trouble.kind, trouble.subject): trouble for trouble in troubles}
    for alarm in known:
        trouble = present.pop((alarm.kind, alarm.subject), None)
        if trouble is not None:
            _is_there(step, replace(alarm, text=trouble.text, seen_at=now), trouble, now)
        else:
            _is_not_there(step, alarm, now)
    for trouble in present.values():
        _is_there(step, Alert(trouble.kind, trouble.subject, "pending", trouble.text, 0, now, now), trouble, now)
    return step


def _is_there(step: AlertChanges, alarm: Alert, trouble: Problem, now: datetime.datetime) -> None:
    if alarm.state == "calm":
        alarm = replace(alarm, state="pending", flaps=alarm.flaps + 1, changed_at=now)
    if alarm.state == "pending" and now - alarm.changed_at >= datetime.timedelta(seconds=trouble.min_duration):
        alarm = replace(alarm, state="raised", changed_at=now)
        step.events.append(AlertEvent("raised", alarm))
    step.saved.append(alarm)


def _is_not_there(step: AlertChanges, alarm: Alert, now: datetime.datetime) -> None:
    if alarm.state == "raised" and now - alarm.seen_at >= min(RESOLVE_AFTER * 4**alarm.flaps, LONGEST_RESOLVE_AFTER):
        calm = replace(alarm, state="calm", changed_at=now)
        step.saved.append(calm)
        step.events.append(AlertEvent("cleared", calm))
    elif alarm.state == "pending" and alarm.flaps:
        step.saved.append(replace(alarm, state="calm", flaps=alarm.flaps - 1, changed_at=now))
    elif alarm.state == "pending" or (alarm.state == "calm" and now - alarm.changed_at >= FORGET_AFTER):
        step.removed.append((alarm.kind, alarm.subject))


# ---------------------------------------------------------------------------------------------- in words


def split_into_mails(events: Sequence[AlertEvent]) -> list[list[AlertEvent]]:
    """Which events are told in one mail."""
    return [[event] for event in events] if len(events) <= MAX_SEPARATE_MAILS else [list(events)]


def compose(events: Sequence[AlertEvent], to: str, now: datetime.datetime) -> tuple[bytes, str]:
    """The mail that tells of these events, and its Message-ID without angle brackets. :param to: a local address."""
    domain = to.rpartition("@")[2]
    message_id = email.utils.make_msgid("alarm", domain).strip("<>")
    lines = []
    for event in events:
        lines += [f"{_WORDS[event.what]}: {event.alert.text}"]
        if event.what == "raised":
            lines += ["", KINDS.get(event.alert.kind, "")]
        lines += [""]
    lines += ["'mailgroup status' tells how everything is now.", ""]
    subject = f"[mailgroup] {_subject(events)}"
    head = [
        b"From: " + headers.format_mailbox("mailgroup", f"mailer-daemon@{domain}"),
        b"To: " + headers.format_mailbox(None, to),
        b"Subject: " + _line(subject),
        b"Date: " + email.utils.format_datetime(now).encode(),
        f"Message-ID: <{message_id}>".encode(),
        b"Auto-Submitted: auto-generated",
        b"MIME-Version: 1.0",
        b"Content-Type: text/plain; charset=utf-8",
        b"Content-Transfer-Encoding: 8bit",
        b"",
    ]
    return b"\r\n".join([*head, *(_line(line, 900) for line in lines)]), message_id


_WORDS = {"raised": "Alarm", "cleared": "Over"}


def _subject(events: Sequence[AlertEvent]) -> str:
    if len(events) == 1:
        return f"{_WORDS[events[0].what]}: {events[0].alert.text}"
    return ", ".join(
        f"{count} {word}"
        for what, word in (("raised", "alarms"), ("cleared", "over"))
        if (count := sum(event.what == what for event in events))
    )


def _line(text: str, most: int = 200) -> bytes:
    """One line; control characters become blanks, so nothing can begin another one."""
    line = "".join(character if character.isprintable() else " " for character in text)
    return line.encode("utf-8", "replace")[:most].decode("utf-8", "ignore").encode()


def webhook_body(event: AlertEvent, now: datetime.datetime) -> dict[str, Any]:
    """The event as the webhook gets it. ``text`` alone is what most chat programs show."""
    return {
        "event": event.what,
        "kind": event.alert.kind,
        "subject": event.alert.subject,
        "text": f"mailgroup: {_WORDS[event.what]}: {event.alert.text}",
        "what": event.alert.text,
        "at": now.astimezone(datetime.UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
    }
