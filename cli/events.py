"""`notipy events`: what came in, and planning anew what met no notification."""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from cli.failures import CommandFailed, CommandGroup
from cli.options import (
    AfterOption,
    AtMostOption,
    DryRunOption,
    JsonOption,
    ReceivedSinceOption,
    ReceivedUntilOption,
    SourceOption,
    TypeOption,
)
from cli.output import Column, counted, hint, json_line, print_fields, print_table, say, time_text
from cli.session import execute, load, storage
from domain.vocabulary import EventState

if TYPE_CHECKING:
    from cli.unmatched import Chosen, Done, Report
    from config.settings import Settings
    from consumers.stores import Stores
    from domain.delivery import Delivery
    from domain.ports import StoredEvent

app = typer.Typer(cls=CommandGroup, rich_markup_mode="rich", no_args_is_help=True, help="What producers published.")
STATES = {
    "accepted": "accepted: its deliveries are being planned",
    "planned": "planned: every delivery is stored, and was dispatched or ended at once",
    "unmatched": "unmatched: no notification was on it; `notipy events replay` plans it once there is one",
    "failed": "failed: planning it ended its process again and again; parked in notipy.dead.events",
}
PAGE = 1000
"""Events that are printed at once."""
LOOKED_AT = 1_000_000
"""So many events without one of the state that is looked for, which takes some seconds, end the look."""
SHOWN = 20
"""How many of those that would be replayed a dry run shows to a person."""


@app.command("list")
def list_(
    ctx: typer.Context,
    state: Annotated[EventState | None, typer.Option("--state", help="Only those in this state.")] = None,
    limit: AtMostOption = 50,
    after: AfterOption = None,
    as_json: JsonOption = False,
) -> None:
    """List events, the newest first: those of every state, or of one.

    Those in the state unmatched have met no notification: their keys show which `on:` is missing, or mistyped. Once
    there is one, `notipy events replay` has them planned. Where a million events have none of the state that is looked
    for, the look ends; --after goes on from there.

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


@app.command("replay")
def replay(
    ctx: typer.Context,
    source_of_one: Annotated[
        str | None, typer.Argument(metavar="SOURCE", help="The event's source, e.g. shop.", show_default=False)
    ] = None,
    event_id: Annotated[
        str | None, typer.Argument(metavar="ID", help="The event's id, as its producer gave it.", show_default=False)
    ] = None,
    state: Annotated[
        EventState | None,
        typer.Option("--state", help="All those in this state: [bold]unmatched[/], the only one that can be replayed."),
    ] = None,
    source: SourceOption = None,
    type_: TypeOption = None,
    since: ReceivedSinceOption = None,
    until: ReceivedUntilOption = None,
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="At most so many, the newest first.")] = None,
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
) -> None:
    """Plan events that met no notification when they came, with the notifications that are in force now.

    One event, or with --state unmatched all that the other options mean. A running NotiPy plans them, at its sweeper's
    next round. Nothing is sent twice: such an event has had no deliveries, and of two operators at once one replays it.
    One that is too late by its [bold]expires_at[/] ends expired.

    An event on which there is still no notification is left alone, as is one of another state; the exit code is then 1.

    [bold]Examples[/]

      $ notipy events replay shop ord-1042-shipped
      $ notipy events replay --state unmatched --source shop --since 2h --dry-run
      $ notipy events replay --state unmatched --type order.shipped --json
    """
    from cli.unmatched import Chosen, Report

    chosen = Chosen(source, type_, since, until, limit)
    one = _the_one(source_of_one, event_id, state, chosen)
    settings = load(ctx)
    report = Report(as_json, SHOWN if dry_run else 1, dry_run)
    if one is None:
        done = execute(_replay_all(settings, chosen, report))
        _print_all(done, report)
    else:
        done = execute(_replay_one(settings, *one, report))
        _print_one(done, report, f"{one[0]}/{one[1]}")
    if done.treated and not dry_run:
        hint(f"A running NotiPy begins to plan within {settings.sweeper.interval.total_seconds():g} s.")
    if done.skipped:
        raise typer.Exit(1)


def _the_one(
    source: str | None, event_id: str | None, state: EventState | None, chosen: "Chosen"
) -> tuple[str, str] | None:
    """The source and id of the one event that is meant; None: all of a state.

    Raises:
        BadParameter: neither is meant, or both, or a state whose events cannot be replayed.
    """
    from cli.unmatched import Chosen
    from domain.unmatched import INSTEAD

    if source is not None and (state is not None or chosen != Chosen()):
        raise typer.BadParameter("is one event, with which no option goes that chooses among many", param_hint="SOURCE")
    if source is not None and event_id is None:
        raise typer.BadParameter("goes with SOURCE", param_hint="ID")
    if source is None and state is None:
        raise typer.BadParameter(
            "name one event, SOURCE and ID; or all of them, --state unmatched", param_hint="SOURCE"
        )
    if state is not None and state in INSTEAD:
        told = f"only unmatched events are replayed; one that is {state}: {INSTEAD[state]}"
        raise typer.BadParameter(told, param_hint="--state")
    return None if source is None or event_id is None else (source, event_id)


async def _replay_one(settings: "Settings", source: str, event_id: str, report: "Report") -> "Done":
    from cli.unmatched import replay_one
    from domain.event import event_key

    async with storage(settings) as stores:
        event = await stores.events.get(event_key(source, event_id))
        if event is None:
            raise unknown_event(source, event_id)
        return await replay_one(stores, event, report)


async def _replay_all(settings: "Settings", chosen: "Chosen", report: "Report") -> "Done":
    from cli.parked import progress
    from cli.unmatched import replay_all

    async with storage(settings) as stores:
        with progress("looking through events", None) as advance:
            return await replay_all(stores, chosen, report, advance)


def _print_one(done: "Done", report: "Report", name: str) -> None:
    if report.as_json:
        return
    would = "would be" if report.dry_run else "is"
    for event in done.shown:
        say(f"{name} {would} replayed: {_notifications(event) or 'its own content'}.")
    if done.skipped:
        raise CommandFailed(f"{name} {would} left alone: {next(iter(done.skipped))}.")


def _print_all(done: "Done", report: "Report") -> None:
    if report.as_json:
        return
    if report.dry_run:
        _print_page(done.shown, as_json=False)
    say(f"{counted(done.treated, 'event')} {'would be ' if report.dry_run else ''}replayed.")
    for why, number in done.skipped.most_common():
        say(f"{counted(number, 'other')} left alone: {why}.")


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
