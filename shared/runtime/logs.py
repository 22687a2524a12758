"""Configures logs: one JSON object per line (or text) on standard error: time, level, service, the event's fields."""

from __future__ import annotations

import json
import logging
import sys
from typing import Any, Literal

import structlog

_ENCODER = json.JSONEncoder(default=repr)
"""One encoder for all lines: json.dumps with an argument creates one for each line."""


def configure(form: Literal["json", "console"], service: str) -> None:
    """Configure structlog and the standard library's logging for this process."""
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
    logging.getLogger("pika").setLevel(logging.CRITICAL)  # broker.py logs what matters, once


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
