"""Structured logs: one JSON object a line on standard error, with request ids.

Knows how a line is rendered. Standard output is left to the readiness line.
"""

from __future__ import annotations

import logging
import sys
from typing import Any

import structlog

Logger = Any
"""A structlog bound logger (structlog types its loggers as Any)."""


def configure(level: str, component: str) -> Logger:
    """Set the process's logging up and return its logger.

    Args:
        level: debug, info, warning or error.
        component: `frontend` or `engine`; in every line.
    """
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.dict_tracebacks,
            structlog.processors.JSONRenderer(sort_keys=False),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, level.upper())),
        logger_factory=structlog.PrintLoggerFactory(file=sys.stderr),
        cache_logger_on_first_use=False,
    )
    return structlog.get_logger(component=component)
