"""Lines of the services' logs: read from JSON, selected, and formatted for people. Pure.

Outsiders write parts of some fields, such as a server's reply. Characters that could control a terminal are escaped.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

LEVELS = ("debug", "info", "warning", "error", "critical")
"""Levels of a line, the least severe first."""
_MAIL_FIELDS = ("trace_id", "inbound_id", "submission_id", "id", "ids", "mails")
"""Fields with the id of a mail, or with a list of such ids."""
_SHOWN_APART = ("timestamp", "level", "service", "event", "exception")
_PLAIN = re.compile(r"[^\s=\"'{}\[\]]+")
_TIME = re.compile(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(\.\d+)?Z?")
_TEXT_LEVEL = re.compile(r"\[(debug|info|warning|error|critical) *\]")


@dataclass(frozen=True, slots=True)
class LogLine:
    """A line of a log."""

    time: str  # ISO 8601 in UTC, which sorts as text; of a line without one, that of the line before
    level: str  # '' if the line has none
    service: str
    text: str  # as it was written
    fields: Mapping[str, Any] | None  # None: the line is no JSON object

    def is_about(self, ids: Collection[int]) -> bool:
        """Return whether the line names one of these mails or submissions."""
        if self.fields is None:
            return any(re.search(rf"\b(?:trace_id|inbound_id|submission_id|id)={id_}\b", self.text) for id_ in ids)
        named = (self.fields.get(name) for name in _MAIL_FIELDS)
        numbers = [number for value in named for number in (value if isinstance(value, list) else [value])]
        return any(isinstance(number, int) and number in ids for number in numbers)

    def is_at_least(self, level: str) -> bool:
        """Return whether the line has this level, a more severe one, or none, as the traceback of a crash."""
        return self.level not in LEVELS or LEVELS.index(self.level) >= LEVELS.index(level)


def read_line(text: str, service: str, time_before: str) -> LogLine:
    """Read a line. It never fails: a line that is no JSON is kept as text.

    :param service: whose log it is, if the line does not say so. :param time_before: of the line before.
    """
    text = text.rstrip("\r\n")
    fields = None
    if text.startswith("{"):
        with suppress(ValueError, RecursionError):
            fields = json.loads(text)
    if not isinstance(fields, dict):
        time, level = _TIME.match(text), _TEXT_LEVEL.search(text[:60])
        begun = time[0].replace(" ", "T") if time else time_before
        return LogLine(begun, level[1] if level else "", service, text, None)
    return LogLine(
        str(fields.get("timestamp", time_before)),
        str(fields.get("level", "")),
        str(fields.get("service", service)),
        text,
        fields,
    )


def format_line(line: LogLine) -> str:
    """Return the line for people: time (UTC), level, service, event and fields; a traceback follows in lines."""
    if line.fields is None:
        return f"{'':23}  {line.level:<8} {line.service:<9} {_safe(line.text)}"
    rest = [f"{name}={_shown(value)}" for name, value in line.fields.items() if name not in _SHOWN_APART]
    time = line.time.replace("T", " ").removesuffix("Z")[:23]
    words = " ".join([_safe(str(line.fields.get("event", ""))), *rest])
    shown = f"{_safe(time):<23}  {_safe(line.level):<8} {_safe(line.service):<9} {words}"
    traceback = str(line.fields.get("exception", "")).splitlines()
    return "\n".join([shown, *(f"    {_safe(each)}" for each in traceback)])


def _shown(value: object) -> str:
    """Return the value of a field: a word as it is, anything else in JSON."""
    if isinstance(value, str) and _PLAIN.fullmatch(value):
        return _safe(value)
    return _safe(json.dumps(value, ensure_ascii=False, default=str))


def _safe(text: str) -> str:
    """Escape all that is not printable, such as the sequences that control a terminal."""
    if text.isprintable():
        return text
    return "".join(letter if letter.isprintable() else json.dumps(letter)[1:-1] for letter in text)
