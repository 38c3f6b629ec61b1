"""Structured logs: events with ids and reasons, never addresses or content."""

import logging
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import structlog

from config.settings import LoggingSettings

QUIET = ("aio_pika", "aiormq", "pymongo", "faststream", "aiohttp.access", "asyncio")
"""They tell of every reconnection many times over, our own events and the page do so once; and what some of them tell
has addresses and contents in it."""


class _StandardError:
    """Writes to standard error as it is at that moment.

    A line that cannot be written (a full disk, a closed pipe) is lost, and nothing else: a log must not stop the work.
    """

    def __init__(self, *_: Any) -> None:
        pass

    def msg(self, message: str) -> None:
        """One line."""
        with suppress(OSError, ValueError):
            print(message, file=sys.stderr, flush=True)  # noqa: T201 - this is the log

    log = debug = info = warning = warn = error = critical = fatal = exception = msg


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
        logger_factory=_StandardError,
        cache_logger_on_first_use=True,
    )
    structlog.contextvars.bind_contextvars(**bound)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(structlog.stdlib.ProcessorFormatter(processor=renderer, foreign_pre_chain=shared))
    logging.basicConfig(handlers=[handler], level=max(level, logging.WARNING), force=True)
    for name in QUIET:
        logging.getLogger(name).setLevel(logging.CRITICAL)


def told_seldom(event: str, what_to_do: str, every: float = 10.0) -> Callable[[BaseException], None]:
    """A listener for outages: a warning at once, then at most one in `every` seconds, with how many there were."""
    log = structlog.get_logger()
    last, times = -every, 0

    def tell(error: BaseException) -> None:
        nonlocal last, times
        times += 1
        if time.monotonic() - last >= every:
            log.warning(event, error=type(error).__name__, times=times, what_to_do=what_to_do)
            last, times = time.monotonic(), 0

    return tell
