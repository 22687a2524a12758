"""Logs: one JSON object a line (or readable text) on standard error: time, level, service, the event's fields."""

from __future__ import annotations

import json
import logging
import sys
from typing import Any, Literal

import structlog

_ENCODER = json.JSONEncoder(default=repr)
"""Made once: json.dumps with an argument makes one for every line."""


def configure(form: Literal["json", "console"], service: str) -> None:
    """Set up structlog, and the standard library's logging behind it, for this process."""
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
        structlog.processors.UnicodeDecoder(),
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
            ],
        )
    )
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.getLogger("pika").setLevel(logging.CRITICAL)  # the broker wrapper says what matters, once


def _to_json(_: object, __: str, event: structlog.typing.EventDict) -> str:
    return _ENCODER.encode(event)


class _Lines:
    """Renders a call with ``lines=[{...}, ...]`` as so many lines, each with the fields of the call beside its own.

    A stage finishes hundreds of mails with one commit: what they have in common is made once and written once, and
    whoever reads the log is woken once.
    """

    def __init__(self, one: structlog.typing.Processor) -> None:
        """:param one: renders one line."""
        self._one = one

    def __call__(self, logger: Any, name: str, event: structlog.typing.EventDict) -> str:
        lines = event.pop("lines", None)
        if lines is None:
            return str(self._one(logger, name, event))
        return "\n".join([str(self._one(logger, name, event | line)) for line in lines])
