"""`notipy deliveries`: what became of each delivery."""

import asyncio
import sys
from dataclasses import dataclass, replace
from time import monotonic
from typing import TYPE_CHECKING, Annotated

import typer

from cli.events import unknown_event
from cli.failures import CommandFailed, CommandGroup
from cli.inputs import cursor_of, read_cursor
from cli.options import AfterOption, AtMostOption, ChannelOption, JsonOption, PlannedSinceOption, StateOption
from cli.output import hint, json_line, say, time_text
from cli.session import core, execute, load, storage
from domain.vocabulary import State

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from config.settings import Settings
    from domain.delivery import Delivery
    from domain.operate import Refused
    from storage.deliveries import DeliveryFilter, DeliveryPage, MongoDeliveries, Place

app = typer.Typer(cls=CommandGroup, rich_markup_mode="rich", no_args_is_help=True, help="What became of each delivery.")

PAGE = 1000
"""Deliveries that are read and printed at once."""
SOON = 2.0
"""Seconds after which what is found is printed, however little it is."""
MOST_CHARACTERS = 4096
"""Of whom `--to` means: a device's token is the longest."""
LOOKED_AT = 1_000_000
"""So many deliveries to others, which take some seconds, end the look for those to a recipient without --since."""


@app.command("list")
def list_(
    ctx: typer.Context,
    event: Annotated[
        tuple[str, str] | None, typer.Option("--event", metavar="SOURCE ID", help="Only this event's.")
    ] = None,
    to: Annotated[
        str | None,
        typer.Option("--to", metavar="WHO", help="Only to this recipient: an id or any address."),
    ] = None,
    channel: ChannelOption = None,
    state: StateOption = None,
    since: PlannedSinceOption = None,
    limit: AtMostOption = 50,
    after: AfterOption = None,
    as_json: JsonOption = False,
) -> None:
    """List deliveries, the newest first.

    --to finds what was planned for a person, over whatever channel, by the id or an address that the event gave; copies
    (cc, bcc) are no deliveries. It looks through them one after the other: --since, --channel and --event make it
    shorter. Without --since it ends where a million are to somebody else; --after goes on from there.

    [bold]Examples[/]

      $ notipy deliveries list --event shop ord-1042-shipped
      $ notipy deliveries list --to ana@example.org --since 2d
      $ notipy deliveries list --channel email --state failed --limit 20
      $ notipy deliveries list --state held --limit 1000000 --json | jq -r .id
    """
    from domain.event import event_key
    from storage.deliveries import DeliveryFilter

    if event and event[1].startswith("--"):  # typer takes the next option for the ID that is missing
        raise typer.BadParameter(f"takes SOURCE and ID, and {event[1]} stands for ID", param_hint="--event")
    settings = load(ctx)
    key = event_key(*event) if event else None
    to = None if to is None else to.strip()
    if to is not None and not 0 < len(to) <= MOST_CHARACTERS:
        raise typer.BadParameter(
            f"should be an id or an address, of at most {MOST_CHARACTERS} characters", param_hint="--to"
        )
    if to is not None and state is State.SENDING:
        raise typer.BadParameter("goes with every state but sending, as which nothing is stored", param_hint="--to")
    chosen = DeliveryFilter(key, channel, state, since, read_cursor(after) if after else None)
    listed = execute(_list(settings, chosen, to, limit, as_json))
    if event and not listed.number and not listed.event_known:
        failure = unknown_event(*event)
        hint(f"{failure} {failure.hint}")
    elif not listed.number and not as_json:
        hint(f"No deliveries{_among(listed, to)}.")
    if listed.goes_on:
        hint(f"There may be more: --after {cursor_of(*listed.goes_on)}")


@dataclass(frozen=True, slots=True)
class _Listed:
    """How many deliveries were printed, where there may be more, and whether the event is stored."""

    number: int
    goes_on: "Place | None"
    event_known: bool


def _among(listed: _Listed, to: str | None) -> str:
    among = f" among those since {time_text(listed.goes_on[0])}" if listed.goes_on else ""
    return f" to {to}{among}" if to is not None else ""


async def _list(settings: "Settings", chosen: "DeliveryFilter", to: str | None, limit: int, as_json: bool) -> _Listed:
    async with storage(settings) as stores:
        if to is None:
            number, goes_on = await _print_all(stores.deliveries, chosen, limit, as_json)
        else:
            number, goes_on = await _print_found(_stretches(to, stores.deliveries, chosen, limit), as_json)
        known = chosen.event_key is None or number > 0 or await stores.events.get(chosen.event_key) is not None
    return _Listed(number, goes_on, known)


async def _print_all(
    deliveries: "MongoDeliveries", chosen: "DeliveryFilter", limit: int, as_json: bool
) -> "tuple[int, Place | None]":
    """Print them, a page at a time: a table is as wide as its page needs. How many, and where there may be more."""
    number = 0
    while number < limit and (page := await deliveries.page(chosen, min(limit - number, PAGE))):
        _print(page, as_json)
        number += len(page)
        chosen = replace(chosen, after=(page[-1].created_at, page[-1].id))
    return number, chosen.after if number == limit else None


async def _print_found(stretches: "AsyncIterator[DeliveryPage]", as_json: bool) -> "tuple[int, Place | None]":
    """Print what is found, many at once or soon. How many, and where there may be more."""
    from cli.parked import progress
    from storage.deliveries import STRETCH

    number, goes_on, ended = 0, None, False
    while not ended:
        found: list[Delivery] = []
        begun, ended = monotonic(), True
        with progress("looking through deliveries", None) as advance:
            async for stretch in stretches:
                found += stretch.deliveries
                goes_on = stretch.looked_until
                advance(STRETCH)
                if len(found) >= PAGE or (found and monotonic() - begun > SOON):
                    ended = False
                    break
        if found:
            _print(found, as_json)
        number += len(found)
    return number, goes_on


async def _stretches(
    recipient: str, deliveries: "MongoDeliveries", chosen: "DeliveryFilter", limit: int
) -> "AsyncIterator[DeliveryPage]":
    """What each of them has for the recipient, as far as is asked for."""
    from storage.deliveries import STRETCH

    in_vain = 0
    while limit and (chosen.since is not None or in_vain < LOOKED_AT):
        page = await deliveries.page_to(recipient, chosen, min(limit, PAGE))
        limit -= len(page.deliveries)
        in_vain = 0 if page.deliveries else in_vain + STRETCH
        chosen = replace(chosen, after=page.looked_until)
        yield page
        if page.looked_until is None:
            return


def _print(page: "Sequence[Delivery]", as_json: bool) -> None:
    from cli.delivery_views import print_deliveries, record_of

    if not as_json:
        print_deliveries(page)
        return
    for delivery in page:
        json_line(record_of(delivery))


@app.command("show")
def show(
    ctx: typer.Context,
    delivery_id: Annotated[str, typer.Argument(metavar="ID", help="The delivery's id, or how it begins.")],
    as_json: JsonOption = False,
) -> None:
    """Show one delivery with everything that happened to it.

    Of an id the first 8 characters will do, or more where they are those of several deliveries.

    [bold]Examples[/]

      $ notipy deliveries show 0c6f1a52
      $ notipy deliveries show 0c6f1a52-5a0e-5b7e-8d0c-6a3c6e2f9b11 --json | jq .history
    """
    from cli.delivery_views import print_delivery, whole_record_of

    settings = load(ctx)
    overdue = settings.sweeper.overdue
    delivery = execute(_current(settings, delivery_id))
    if delivery is None:
        raise CommandFailed(f"There is no delivery {delivery_id}.", "`notipy deliveries list` shows their ids.")
    if as_json:
        json_line(whole_record_of(delivery, overdue))
    else:
        print_delivery(delivery, overdue)


async def _current(settings: "Settings", delivery_id: str) -> "Delivery | None":
    from cli.delivery_ids import whole_id

    async with storage(settings) as stores:
        return await stores.deliveries.current(await whole_id(stores.deliveries, delivery_id))


@app.command("cancel")
def cancel(
    ctx: typer.Context,
    ids: Annotated[
        list[str],
        typer.Argument(metavar="ID...", help="The deliveries' ids, or how they begin; - reads them from stdin."),
    ],
    as_json: JsonOption = False,
) -> None:
    """Stop deliveries that are queued, held or waiting for another attempt.

    One that is being sent at this moment, or is final, stays as it is: that is told, and the exit code is 1.

    Of an id the first 8 characters will do. Where they are those of several deliveries, these are named, none is
    cancelled, and the exit code is 2.

    [bold]Examples[/]

      $ notipy deliveries cancel 0c6f1a52 77d0c1e9
      $ notipy deliveries list --state held --limit 1000000 --json | jq -r .id | notipy deliveries cancel -
    """
    outcomes = execute(_cancel(load(ctx), _ids(ids)))
    for delivery_id, why in outcomes:
        if as_json:
            json_line({"id": delivery_id, "action": "refused" if why else "cancelled", "why": why})
        else:
            say(f"{delivery_id}  {f'not cancelled: {why}' if why else 'cancelled'}")
    if any(why for _, why in outcomes):
        raise typer.Exit(1)


def _ids(given: list[str]) -> list[str]:
    if "-" not in given:
        return given
    read = sys.stdin.read().split()
    if not read:
        hint("Standard input names none.")
    return [*(one for one in given if one != "-"), *read]


async def _cancel(settings: "Settings", ids: list[str]) -> list[tuple[str, str | None]]:
    from cli.delivery_ids import whole_ids

    async with core(settings) as opened:
        ids = await whole_ids(opened.deliveries, ids)
        window = asyncio.Semaphore(50)

        async def one(delivery_id: str) -> "Delivery | Refused":
            async with window:
                return await opened.operate.cancel(delivery_id)

        outcomes = await asyncio.gather(*map(one, ids))
    return [(delivery_id, getattr(outcome, "why", None)) for delivery_id, outcome in zip(ids, outcomes, strict=True)]
