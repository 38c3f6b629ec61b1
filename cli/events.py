"""`notipy events` and `notipy send`: what came in, and putting one event in by hand."""

import base64
from collections.abc import Mapping, Sequence
from datetime import UTC
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from cli.failures import CommandFailed, CommandGroup
from cli.options import JsonOption
from cli.output import counted, hint, json_line, print_fields, say, time_text
from cli.session import execute, load, storage

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
}


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
        "id": event.id,
        "source": event.source,
        "type": event.type,
        "time": event.time,
        "received_at": event.received_at,
        "state": str(event.state),
        "planned": event.planned,
        "notifications": [{"name": name, "version": version} for name, version in event.plan],
        "bytes": len(event.body),
        "states": states,
        "deliveries": [record_of(delivery) for delivery in deliveries],
    } | (body_values(event.body) if body else {})


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
            "Notifications": ", ".join(f"{name} v{version}" for name, version in event.plan),
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
