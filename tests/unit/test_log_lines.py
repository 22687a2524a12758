"""services/admin/monitoring/log_lines.py: lines of a log for people, whatever outsiders have written into them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from services.admin.monitoring.log_lines import LogLine, format_line, read_line

AT = "2026-12-01T13:01:03.123456Z"


def line(**fields: Any) -> LogLine:
    return read_line(
        json.dumps({"timestamp": AT, "level": "info", "event": "routed", "service": "router"} | fields), "", ""
    )


def test_a_line_shows_time_level_service_event_and_fields() -> None:
    shown = format_line(line(inbound_id=7, who="a@x.example, b@x.example", external="s@x.example", ids=[1, 2]))
    assert shown == (
        "2026-12-01 13:01:03.123  info     router    routed inbound_id=7 "
        'who="a@x.example, b@x.example" external=s@x.example ids=[1, 2]'
    )


def test_a_traceback_follows_in_lines_of_its_own() -> None:
    shown = format_line(line(exception="Traceback\n  File x\nValueError: odd"))
    assert shown.splitlines()[1:] == ["    Traceback", "      File x", "    ValueError: odd"]


@pytest.mark.parametrize("text", ["\x1b[2J", "a\nb", "\x9b31m", "\u202e", "\ud800"])
def test_no_field_controls_the_terminal(text: str) -> None:
    shown = format_line(line(reply=text, event=text))
    assert shown.isprintable() and shown.encode()


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "{}", '{"event": {}}', "nonsense", '{"timestamp": 5, "ids": [{}]}', '{"a":' * 3000]
)
def test_a_line_that_is_no_event_is_shown_as_it_is_and_fails_nowhere(text: str) -> None:
    found = read_line(text, "router", AT)
    assert format_line(found).isprintable()
    assert not found.is_about([1]) and found.is_at_least("error") == (found.level == "")


def test_a_text_line_takes_the_time_of_the_line_before() -> None:
    assert read_line("Traceback (most recent call last):", "router", AT).time == AT
    console = read_line(
        "2026-12-01T13:02:00.000001Z [warning  ] poll failed   trace_id=7 service=fetcher", "fetcher", AT
    )
    assert (console.time, console.level) == ("2026-12-01T13:02:00.000001Z", "warning")
    assert console.is_about([7]) and not console.is_about([70]) and not console.is_about([3])


def test_a_mail_is_found_by_each_of_its_ids() -> None:
    assert line(inbound_id=7, trace_id=5).is_about([5]) and line(ids=[1, 7]).is_about([7])
    assert not line(octets=7, count=7).is_about([7])


def test_a_level_selects_itself_and_all_that_is_more_severe() -> None:
    assert [line(level=each).is_at_least("warning") for each in ("debug", "info", "warning", "error", "critical")] == [
        *(False, False),
        *(True, True, True),
    ]
