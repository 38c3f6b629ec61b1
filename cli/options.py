"""Options that several commands take, and how their values are read."""

import base64
import binascii
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from cli.failures import BadInput
from domain.vocabulary import Channel, Reason, State


class Parked(StrEnum):
    """Whose dead letters are meant: a channel's deliveries, or messages that were no events."""

    EMAIL = "email"
    SMS = "sms"
    PUSH = "push"
    CHAT = "chat"
    WEBHOOK = "webhook"
    INBOX = "inbox"
    EVENTS = "events"


class DeadState(StrEnum):
    """The states in which a delivery lies dead until somebody replays it."""

    FAILED = "failed"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Globals:
    """The options that stand before the command."""

    config: Path | None = None


JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON, one object a line.")]
ChannelOption = Annotated[Channel | None, typer.Option("--channel", help="Only this channel.")]
StateOption = Annotated[State | None, typer.Option("--state", help="Only those in this state.")]
ParkedOption = Annotated[
    Parked | None, typer.Option("--channel", help="Only this channel's, or [bold]events[/] that could not be used.")
]
DeadStateOption = Annotated[
    DeadState, typer.Option("--state", help="[bold]unknown[/]: those of which nobody knows whether they were sent.")
]
ReasonOption = Annotated[
    Reason | None,
    typer.Option("--reason", metavar="REASON", show_choices=False, help="Only those with this reason, e.g. timeout."),
]
SourceOption = Annotated[str | None, typer.Option("--source", help="Only events of this source, e.g. shop.")]
TypeOption = Annotated[str | None, typer.Option("--type", help="Only events of this type, e.g. order.shipped.")]


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


_TIME = "2026-11-22T17:00:00Z, 2026-11-22, or how long ago (2h, 7d)."
SinceOption = Annotated[
    datetime | None, typer.Option("--since", parser=read_time, metavar="TIME", help=f"Dead since: {_TIME}")
]
UntilOption = Annotated[
    datetime | None, typer.Option("--until", parser=read_time, metavar="TIME", help="Dead before that time.")
]


def read_document(given: str, option: str) -> dict[str, Any]:
    """Read a JSON object: `@file`, `-` for standard input, or the JSON itself.

    Raises:
        BadInput: it is none; the message names the option, the file and the place.
    """
    value = read_json(given, option)
    if not isinstance(value, dict):
        raise BadInput(f"{option}: should be a JSON object, such as {{\"order_id\": 1042}}")
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


def cursor_of(record: Any) -> str:
    """The cursor of a page that ends with this delivery."""
    text = f"{record.created_at.isoformat()}|{record.id}"
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


def read_cursor(cursor: str) -> tuple[datetime, str]:
    """Where a page goes on.

    Raises:
        BadParameter: it is not a cursor that a page has ended with.
    """
    try:
        text = base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)).decode()
        at, found, last = text.partition("|")
        if not found:
            raise ValueError
        time = datetime.fromisoformat(at)
    except (ValueError, binascii.Error):
        raise typer.BadParameter("is not a cursor: copy it from the last line of the page before") from None
    return (time if time.tzinfo else time.replace(tzinfo=UTC)), last


def compact(value: Mapping[str, Any]) -> str:
    """JSON on one line, for a table."""
    return json.dumps(value, ensure_ascii=False)
