"""Options that several commands take."""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from cli.inputs import read_time
from domain.vocabulary import Channel, Reason, State


class Parked(StrEnum):
    """Whose dead letters are meant: a channel's deliveries, messages that were no events, or receipts of nothing."""

    EMAIL = "email"
    SMS = "sms"
    PUSH = "push"
    CHAT = "chat"
    WEBHOOK = "webhook"
    INBOX = "inbox"
    EVENTS = "events"
    RECEIPTS = "receipts"


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
AtMostOption = Annotated[int, typer.Option("--limit", min=1, help="At most so many.")]
AfterOption = Annotated[
    str | None, typer.Option("--after", metavar="CURSOR", help="Go on after the page that ended so.")
]
StateOption = Annotated[State | None, typer.Option("--state", help="Only those in this state.")]
ParkedOption = Annotated[
    Parked | None,
    typer.Option("--channel", help="Only this channel's; or [bold]events[/], [bold]receipts[/] that were of no use."),
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

IdOption = Annotated[
    list[str] | None,
    typer.Option(
        "--id",
        metavar="ID",
        help="Only this one, as `dead list` names it, or a delivery's first 8 characters; may be given several times.",
    ),
]
_TIME = "2026-11-22T17:00:00Z, 2026-11-22, or how long ago (2h, 7d)."
SinceOption = Annotated[
    datetime | None, typer.Option("--since", parser=read_time, metavar="TIME", help=f"Dead since: {_TIME}")
]
UntilOption = Annotated[
    datetime | None, typer.Option("--until", parser=read_time, metavar="TIME", help="Dead before that time.")
]
ReceivedSinceOption = Annotated[
    datetime | None, typer.Option("--since", parser=read_time, metavar="TIME", help=f"Received since: {_TIME}")
]
PlannedSinceOption = Annotated[
    datetime | None, typer.Option("--since", parser=read_time, metavar="TIME", help=f"Planned since: {_TIME}")
]
ReceivedUntilOption = Annotated[
    datetime | None, typer.Option("--until", parser=read_time, metavar="TIME", help="Received before that time.")
]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Show what would be done, and do nothing.")]
