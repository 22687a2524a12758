"""Configures logs: one JSON object per line (or text) on standard error: time, level, event, service, fields."""

from __future__ import annotations

import json
import logging
import sys
import time
from dataclasses import dataclass
from typing import Any, Literal

import structlog

_ENCODER = json.JSONEncoder(default=repr)
"""One encoder for all lines: json.dumps with an argument creates one for each line."""

_FIRST = ("timestamp", "level", "event", "service")
"""The first fields of a line, in this order."""

REPEAT_SECONDS = (1.0, 60.0)
"""Pause between two lines of one event about an unavailable server: seconds, first and longest; it doubles with each
line. Longer than the longest pause without the event, and the first pause applies again."""


def configure(form: Literal["json", "console"], service: str) -> None:
    """Configure structlog and the standard library's logging for this process."""
    limit = RepeatLimit()
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        _add_trace_id,
        _limit_repeats(limit),
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
        structlog.processors.UnicodeDecoder(),
        _put_first,
    ]
    renderer: structlog.typing.Processor = (
        _to_json if form == "json" else structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
    )
    structlog.configure(
        processors=[*shared, _Lines(renderer)],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.WriteLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    structlog.contextvars.bind_contextvars(service=service)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            processor=renderer,
            foreign_pre_chain=[
                structlog.contextvars.merge_contextvars,
                structlog.processors.add_log_level,
                structlog.processors.TimeStamper(fmt="iso", utc=True),
                _put_first,
            ],
        )
    )
    handler.addFilter(lambda record: record.name != "psycopg.pool" or limit.is_due(str(record.msg), time.monotonic()))
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.getLogger("pika").setLevel(logging.CRITICAL)  # broker.py logs what matters, once


@dataclass(slots=True)
class _Repeats:
    pause: float
    next_at: float  # monotonic seconds
    suppressed: int = 0


class RepeatLimit:
    """Decides which lines about an unavailable server are written: every task of a process would report it each second.

    The cause is the same for all of them, so the event alone counts, not its other fields.
    """

    def __init__(self) -> None:
        self._by_event: dict[str, _Repeats] = {}

    def is_due(self, event: str, now: float) -> bool:
        """Return whether to write this event now; count it if not."""
        first, longest = REPEAT_SECONDS
        repeats = self._by_event.setdefault(event, _Repeats(first, now))
        if now < repeats.next_at:
            repeats.suppressed += 1
            return False
        repeats.pause = first if now > repeats.next_at + longest else min(repeats.pause, longest)
        repeats.next_at = now + repeats.pause
        repeats.pause *= 2
        return True

    def take_suppressed(self, event: str) -> int:
        """Return how many lines of this event were left out since the last one that was written."""
        repeats = self._by_event[event]
        count, repeats.suppressed = repeats.suppressed, 0
        return count


def _limit_repeats(limit: RepeatLimit) -> structlog.typing.Processor:
    def process(_: object, __: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
        if event["level"] != "warning" or not str(event.get("error", "")).startswith(("database:", "broker:")):
            return event
        name = str(event["event"])
        if not limit.is_due(name, time.monotonic()):
            raise structlog.DropEvent
        if suppressed := limit.take_suppressed(name):
            event["suppressed"] = suppressed
        return event

    return process


def _add_trace_id(_: object, __: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    """Add the trace_id to a line that names a submission: it is its id (docs/tracing.md)."""
    if "submission_id" in event:
        event.setdefault("trace_id", event["submission_id"])
    return event


def _put_first(_: object, __: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    """Let a line begin with time, level and event: in long lines they are then in one place."""
    return {name: event[name] for name in _FIRST if name in event} | dict(event)


def _to_json(_: object, __: str, event: structlog.typing.EventDict) -> str:
    return _ENCODER.encode(event)


class _Lines:
    """Renders a call with ``lines=[{...}, ...]`` as several lines, each with the fields of the call and its own.

    A stage finishes hundreds of mails with one commit: their common fields are computed once, and all lines are written
    at once, which wakes the reader of the log once.
    """

    def __init__(self, renderer: structlog.typing.Processor) -> None:
        """:param renderer: of one line."""
        self._render = renderer

    def __call__(self, logger: Any, name: str, event: structlog.typing.EventDict) -> str:
        lines = event.pop("lines", None)
        if lines is None:
            return str(self._render(logger, name, event))
        return "\n".join([str(self._render(logger, name, event | line)) for line in lines])
