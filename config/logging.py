"""Structured logs: events with ids and reasons, never addresses or content."""

import logging
import sys
from typing import Any

import structlog

from config.settings import LoggingSettings

_QUIET = ("aio_pika", "aiormq", "pymongo", "faststream", "aiohttp.access", "asyncio")


def configure_logging(settings: LoggingSettings, **bound: Any) -> None:
    """Send every log line of this process to standard error: JSON for machines, pretty on a terminal."""
    pretty = settings.format == "pretty" or (settings.format == "auto" and sys.stderr.isatty())
    level = logging.getLevelNamesMapping()[settings.level.upper()]
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
    ]
    renderer: Any = (
        structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)
        if pretty
        else structlog.processors.JSONRenderer()
    )
    structlog.configure(
        processors=[*shared, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    structlog.contextvars.bind_contextvars(**bound)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(structlog.stdlib.ProcessorFormatter(processor=renderer, foreign_pre_chain=shared))
    logging.basicConfig(handlers=[handler], level=max(level, logging.WARNING), force=True)
    for name in _QUIET:  # their warnings tell of every reconnection; the health page and our own events do so better
        logging.getLogger(name).setLevel(logging.ERROR)
