"""Reading what is given on the command line: times, JSON, cursors."""

import base64
import json
import struct
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import typer

from cli.failures import BadInput


def read_time(text: str) -> datetime:
    """Read `2026-11-22T17:00:00Z`, `2026-11-22` (UTC), or how long ago: `2h`, `7d`.

    Raises:
        BadParameter: it is neither.
    """
    from domain.duration import parse_duration

    try:
        return datetime.now(UTC) - parse_duration(text)
    except (ValueError, OverflowError):
        pass
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        raise typer.BadParameter(
            f"{text!r} is not a time: give 2026-11-22T17:00:00Z, 2026-11-22, or how long ago, such as 2h or 7d"
        ) from None
    return time if time.tzinfo else time.replace(tzinfo=UTC)


def read_document(given: str, option: str) -> dict[str, Any]:
    """Read a JSON object: `@file`, `-` for standard input, or the JSON itself.

    Raises:
        BadInput: it is none; the message names the option, the file and the place.
    """
    value = read_json(given, option)
    if not isinstance(value, dict):
        raise BadInput(f'{option}: should be a JSON object, such as {{"order_id": 1042}}')
    return value


def read_json(given: str, option: str) -> Any:
    """Read any JSON value from `@file`, `-` (standard input) or the text itself.

    Raises:
        BadInput: it is no JSON; the message names the option, the file and the place.
    """
    text, place = _source(given, option)
    try:
        return json.loads(text)
    except ValueError as error:
        hint = f"Is it a file? Write {option} @{given}" if place == option and Path(given).is_file() else ""
        raise BadInput(f"{place}: is not JSON: {error}", hint) from None
    except RecursionError:
        raise BadInput(f"{place}: is nested too deeply") from None


def _source(given: str, option: str) -> tuple[str, str]:
    """The text, and where it came from."""
    if given == "-":
        return _decoded(sys.stdin.buffer.read(), f"{option} -"), f"{option} -"
    if not given.startswith("@"):
        return given, option
    path = Path(given[1:])
    try:
        return _decoded(path.read_bytes(), f"{option} {given}"), f"{option} {given}"
    except OSError as error:
        raise BadInput(f"{option}: {path}: cannot be read: {error.strerror}") from None


def _decoded(raw: bytes, place: str) -> str:
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadInput(f"{place}: is not UTF-8: byte {error.start}") from None


_CURSOR = struct.Struct(">q16s")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


def cursor_of(created_at: datetime, last: str) -> str:
    """The cursor of a page that ends with this delivery: short enough to be copied from a narrow terminal."""
    packed = _CURSOR.pack((created_at - _EPOCH) // _MICROSECOND, UUID(last).bytes)
    return base64.urlsafe_b64encode(packed).decode()


def read_cursor(cursor: str) -> tuple[datetime, str]:
    """Where a page goes on.

    Raises:
        BadParameter: it is not a cursor that a page has ended with.
    """
    try:
        microseconds, last = _CURSOR.unpack(base64.b64decode(cursor, altchars=b"-_", validate=True))
        return _EPOCH + microseconds * _MICROSECOND, str(UUID(bytes=last))
    except (ValueError, struct.error, OverflowError):
        raise typer.BadParameter(
            "is not a cursor: copy it from the last line of the page before", param_hint="--after"
        ) from None
