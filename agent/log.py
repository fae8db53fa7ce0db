"""Structured logs: one JSON object a line on standard error, which is the journal."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from typing import Any

LEVELS = {"debug": 10, "info": 20, "warning": 30, "error": 40}


def make(level: str) -> Callable[..., None]:
    """`log(level, event, **fields)`. Fields are data; nothing secret may be one."""
    import structlog

    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(LEVELS[level]),
        logger_factory=structlog.WriteLoggerFactory(file=sys.stderr),
        cache_logger_on_first_use=True,
    )
    # The client's and netlink's own complaints, in their words.
    logging.basicConfig(level=logging.ERROR, stream=sys.stderr, format="%(name)s: %(message)s")
    logger = structlog.get_logger()

    def log(severity: str, event: str, **fields: Any) -> None:
        getattr(logger, severity)(event, **fields)

    return log
