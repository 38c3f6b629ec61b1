import io
import sys

import pytest
import structlog

from config.logging import configure_logging
from config.settings import LoggingSettings


def test_a_log_that_cannot_be_written_stops_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    configure_logging(LoggingSettings(format="json"))
    log = structlog.get_logger()
    closed = io.StringIO()
    closed.close()
    monkeypatch.setattr(sys, "stderr", closed)
    log.warning("lost")
    opened = io.StringIO()
    monkeypatch.setattr(sys, "stderr", opened)
    log.warning("kept", delivery="d-1")
    assert '"delivery": "d-1"' in opened.getvalue()
