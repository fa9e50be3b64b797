"""Structured logs: one JSON object a line, with the request id wherever there is one.

Knows how an event is rendered and where it goes (standard error, never standard output, which may
carry the answers).
"""

from __future__ import annotations

import logging
import sys
from typing import Any, TextIO

import structlog

Logger = Any
"""A structlog bound logger (structlog types its loggers as Any)."""


class _BesideTheBar:
    """Standard error, written through the progress bar so that neither breaks the other."""

    def write(self, text: str) -> int:
        from tqdm import tqdm

        if text.strip():
            tqdm.write(text.rstrip("\n"), file=sys.stderr)
        return len(text)

    def flush(self) -> None:
        sys.stderr.flush()


def configure(level: str = "info", stream: TextIO | None = None, bar: bool = False) -> Logger:
    """Set the process's logging up and return its logger.

    Args:
        level: debug, info, warning or error.
        stream: where lines go; standard error by default.
        bar: a progress bar shares standard error.
    """
    target: Any = stream if stream is not None else _BesideTheBar() if bar else sys.stderr
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.dict_tracebacks,
            structlog.processors.EventRenamer("event"),
            structlog.processors.JSONRenderer(sort_keys=False),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, level.upper())),
        logger_factory=structlog.PrintLoggerFactory(file=target),
        cache_logger_on_first_use=False,
    )
    return structlog.get_logger(component="edge_agent")
