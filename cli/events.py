"""`notipy events` and `notipy send`: what came in, and putting one event in by hand."""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from cli.failures import CommandFailed, CommandGroup
from cli.options import AfterOption, AtMostOption, JsonOption
from cli.output import Column, counted, hint, json_line, print_fields, print_table, say, time_text
from cli.session import execute, load, storage
from domain.vocabulary import EventState

if TYPE_CHECKING:
    from config.settings import Settings
    from consumers.stores import Stores
    from domain.delivery import Delivery
    from domain.ports import StoredEvent

app = typer.Typer(cls=CommandGroup, rich_markup_mode="rich", no_args_is_help=True, help="What producers published.")
STATES = {
    "accepted": "accepted: its deliveries are being planned",
    "planned": "planned: every delivery is stored, and was dispatched or ended at once",
    "unmatched": "unmatched: no notification is on it, nobody is told",
    "failed": "failed: planning it ended its process again and again; parked in notipy.dead.events",
}
PAGE = 1000
"""Events that are printed at once."""
LOOKED_AT = 1_000_000
"""So many events without one of the state that is looked for, which takes some seconds, end the look."""


@app.command("list")
def list_(
    ctx: typer.Context,
    state: Annotated[EventState | None, typer.Option("--state", help="Only those in this state.")] = None,
    limit: AtMostOption = 50,
    after: AfterOption = None,
    as_json: JsonOption = False,
) -> None:
    """List events, the newest first: those of every state, or of one.

    Those in the state unmatched have met no notification: their keys show which `on:` is missing, or mistyped. Where
    a million events have none of the state that is looked for, the look ends; --after goes on from there.

    [bold]Examples[/]

      $ notipy events list --limit 20
      $ notipy events list --state unmatched
      $ notipy events list --state unmatched --json | jq -r '.source + "." + .type'
    """
    from cli.inputs import cursor_of, read_cursor

    listed = execute(_list(load(ctx), state, limit, read_cursor(after) if after else None, as_json))
    if not listed.number and not as_json:
        hint(f"No {f'{state} ' if state else ''}events{_among(listed)}.")
    if listed.goes_on:
        hint(f"There may be more: --after {cursor_of(*listed.goes_on)}")


@dataclass(frozen=True, slots=True)
class _Listed:
    """How many events were printed, and where the next page begins, if there may be one."""

    number: int
    goes_on: tuple[datetime, str] | None


def _among(listed: _Listed) -> str:
    return f" among those received since {time_text(listed.goes_on[0])}" if listed.goes_on else ""


async def _list(
    settings: "Settings", state: EventState | None, limit: int, after: tuple[datetime, str] | None, as_json: bool
) -> _Listed:
    """Print the events, a page at a time: a table is as wide as its page needs."""
    from storage.event_pages import STRETCH, event_page

    number = in_vain = 0
    page: list[StoredEvent] = []
    async with storage(settings) as stores:
        while number < limit and in_vain < LOOKED_AT:
            found = await event_page(stores.database, state, after, min(limit - number, STRETCH))
            page = _print_pages([*page, *found.events], as_json)
            number, after = number + len(found.events), found.looked_until
            in_vain = 0 if found.events else in_vain + STRETCH
            if after is None:
                break
    _print_page(page, as_json)
    return _Listed(number, after)


def _print_pages(events: "list[StoredEvent]", as_json: bool) -> "list[StoredEvent]":
    """Print as many whole pages as there are; returns what is left."""
    while len(events) >= PAGE:
        _print_page(events[:PAGE], as_json)
        events = events[PAGE:]
    return events


def _print_page(events: "Sequence[StoredEvent]", as_json: bool) -> None:
    if as_json:
        for event in events:
            json_line(_about(event))
    elif events:
        print_table(_COLUMNS, map(_row, events))


_COLUMNS = (
    Column("event"),
    Column("key"),
    Column("state"),
    Column("received", rank=1),
    Column("deliveries", rank=2),
    Column("notifications", rank=3),
)


def _row(event: "StoredEvent") -> Sequence[str]:
    """The cells of `_COLUMNS`."""
    about = (f"{event.source}/{event.id}", f"{event.source}.{event.type}", str(event.state))
    return (*about, time_text(event.received_at), str(event.planned), _notifications(event))


@app.command("show")
def show(
    ctx: typer.Context,
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="The event's source, e.g. shop.")],
    event_id: Annotated[str, typer.Argument(metavar="ID", help="The event's id, as its producer gave it.")],
    body: Annotated[bool, typer.Option("--body", help="Show what was published, as it is stored.")] = False,
    limit: Annotated[int, typer.Option("--limit", min=1, max=10_000, help="At most so many deliveries.")] = 50,
    as_json: JsonOption = False,
) -> None:
    """Show an event and its deliveries.

    With --json it is one object: the event, its deliveries' number by state in [bold]states[/], and the newest of
    them in [bold]deliveries[/].

    [bold]Examples[/]

      $ notipy events show shop ord-1042-shipped
      $ notipy events show shop ord-1042-shipped --body
      $ notipy events show shop ord-1042-shipped --json | jq .states
    """
    event, states, deliveries = execute(_look(load(ctx), source, event_id, limit))
    if as_json:
        json_line(_record(event, states, deliveries, body))
    else:
        _print(event, states, deliveries, body)


async def _look(
    settings: "Settings", source: str, event_id: str, limit: int
) -> "tuple[StoredEvent, Mapping[str, int], Sequence[Delivery]]":
    from domain.event import event_key
    from storage.deliveries import DeliveryFilter

    key = event_key(source, event_id)
    async with storage(settings) as stores:
        event = await stores.events.get(key)
        if event is None:
            raise unknown_event(source, event_id)
        deliveries = await stores.deliveries.page(DeliveryFilter(event_key=key), limit)
        return event, await states_of(stores, key), deliveries


def unknown_event(source: str, event_id: str) -> CommandFailed:
    """What is told where no such event is stored."""
    return CommandFailed(
        f"No event {event_id} of {source} is stored.",
        "If it was published just now, wait a moment; if it could not be used, `notipy dead list"
        " --channel events` says why; if nothing consumes the events, start `notipy run`.",
    )


async def states_of(stores: "Stores", key: str) -> Mapping[str, int]:
    """How many of an event's deliveries stand in each stored state."""
    from domain.vocabulary import State

    states: dict[str, int] = {}
    for (_, state), count in (await stores.deliveries.count_by_state(tuple(State), key)).items():
        states[str(state)] = states.get(str(state), 0) + count
    return states


def _record(
    event: "StoredEvent", states: Mapping[str, int], deliveries: "Sequence[Delivery]", body: bool
) -> dict[str, Any]:
    from cli.delivery_views import record_of

    return {
        **_about(event),
        "bytes": len(event.body),
        "states": states,
        "deliveries": [record_of(delivery) for delivery in deliveries],
    } | (body_values(event.body) if body else {})


def _about(event: "StoredEvent") -> dict[str, Any]:
    """The event as `--json` prints it in a list."""
    return {
        "id": event.id,
        "source": event.source,
        "type": event.type,
        "time": event.time,
        "received_at": event.received_at,
        "state": str(event.state),
        "planned": event.planned,
        "notifications": [{"name": name, "version": version} for name, version in event.plan],
    }


def _notifications(event: "StoredEvent") -> str:
    return ", ".join(f"{name} v{version}" for name, version in event.plan)


def body_values(body: bytes) -> dict[str, str]:
    """A body as a text, or in base64 where it is none."""
    try:
        return {"body": body.decode()}
    except UnicodeDecodeError:
        return {"body_base64": base64.b64encode(body).decode()}


def _print(event: "StoredEvent", states: Mapping[str, int], deliveries: "Sequence[Delivery]", body: bool) -> None:
    from cli.delivery_views import print_deliveries

    print_fields(
        {
            "Event": f"{event.source}/{event.id}",
            "Type": event.type,
            "State": STATES[str(event.state)],
            "Time": time_text(event.time),
            "Received": time_text(event.received_at.astimezone(UTC)),
            "Notifications": _notifications(event),
            "Deliveries": ", ".join(f"{count} {state}" for state, count in sorted(states.items())) or "none",
            "Size": counted(len(event.body), "byte"),
        }
    )
    if body:
        say(Text("\nBody", style="bold"))
        say("".join(body_values(event.body).values()))
    if deliveries:
        say()
        print_deliveries(deliveries)
    if sum(states.values()) > len(deliveries):
        hint(f"There are more: notipy deliveries list --event {event.source} {event.id}")
