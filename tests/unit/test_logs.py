"""shared/runtime/logs.py: an unavailable server is reported by each place, but not each second."""

from __future__ import annotations

import json
import subprocess
import sys
from itertools import pairwise

from shared.runtime.logs import RepeatLimit

PROGRAM = """
import logging
import structlog
from shared.runtime import logs
from types import SimpleNamespace
logs.time = SimpleNamespace(monotonic=lambda: 0.0)  # all of it happens at once, on a slow machine too
logs.configure("json", "router")
log = structlog.get_logger()
for number in range(50):
    log.warning("batch delayed", error="database: ReadOnlySqlTransaction: cannot execute UPDATE", mails=number)
    log.warning("poll failed", error="pop3: connection refused", external=f"a{number}@x.example")
    log.error("mail failed", error="database: something else", id=number)
    logging.getLogger("psycopg.pool").warning("error connecting in %r: %s", "router", number)
"""


def due(limit: RepeatLimit, times: list[float]) -> list[float]:
    return [now for now in times if limit.is_due("batch delayed", now)]


def test_lines_of_an_outage_come_at_growing_pauses() -> None:
    limit = RepeatLimit()
    assert due(limit, [number / 2 for number in range(120)]) == [0, 1, 3, 7, 15, 31]
    assert limit.take_suppressed("batch delayed") == 114
    assert limit.take_suppressed("batch delayed") == 0


def test_the_longest_pause_is_a_minute_and_quiet_ends_the_growth() -> None:
    limit = RepeatLimit()
    times = due(limit, [float(number) for number in range(600)])
    assert [after - before for before, after in pairwise(times)][-3:] == [60, 60, 60]
    assert due(limit, [1000.0, 1000.5, 1001.0, 1002.0, 1003.0]) == [1000.0, 1001.0, 1003.0]


def test_each_event_has_a_limit_of_its_own() -> None:
    limit = RepeatLimit()
    assert limit.is_due("batch delayed", 0.0) and limit.is_due("sweep delayed", 0.0)


def test_only_lines_about_an_unavailable_server_are_left_out() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    events = [line["event"] for line in lines]
    assert events.count("batch delayed") == 1
    assert events.count("poll failed") == events.count("mail failed") == 50
    assert len([event for event in events if event.startswith("error connecting")]) == 1


def test_each_line_begins_with_time_level_event_and_service() -> None:
    program = """
import logging, structlog
from shared.runtime import logs
logs.configure("json", "router")
structlog.get_logger().info("poll failed", error="x")
structlog.get_logger().info("mails", lines=[{"event": "routed", "inbound_id": 1}])
logging.getLogger("asyncio").warning("a library")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    lines = [list(json.loads(line).items()) for line in done.stderr.splitlines()]
    assert [[name for name, _ in line[:4]] for line in lines] == [["timestamp", "level", "event", "service"]] * 3
    assert [line[2][1] for line in lines] == ["poll failed", "routed", "a library"]


def test_a_line_that_names_a_submission_has_its_trace_id() -> None:
    program = """
import structlog
from shared.runtime import logs
logs.configure("json", "sender")
log = structlog.get_logger()
log.warning("claim lost, mail not sent", submission_id=7)
log.error("mail failed", id=9, trace_id=7)
log.warning("poll failed", external="a@x.example")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert [json.loads(line).get("trace_id") for line in done.stderr.splitlines()] == [7, 7, None]
