"""`notipy send`: publish one event, as a producer would."""

import asyncio
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import zip_longest
from typing import TYPE_CHECKING, Annotated, Any
from uuid import uuid4

import typer
from typer.core import TyperCommand

from cli.events import STATES, states_of
from cli.failures import BadInput, CommandFailed
from cli.inputs import read_document, read_json
from cli.options import JsonOption
from cli.output import hint, json_line, say
from cli.session import core, execute, load

if TYPE_CHECKING:
    from config.settings import Settings
    from consumers.app import Core
    from domain.delivery import Delivery
    from domain.event import Event

WAIT_SECONDS = 30
POLL_SECONDS = 0.2
SHOWN = 1000
"""Deliveries shown at most after waiting; an event may have more recipients than anybody reads."""
_GOOD = frozenset({"sent", "delivered", "suppressed"})
_UNDER_WAY = frozenset({"queued", "held", "retrying"})


class WaitingCommand(TyperCommand):
    """Lets `--wait` stand without a number, which typer's own options do not."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Give a `--wait` that no number follows the default."""
        return super().parse_args(ctx, with_limit(args))


def with_limit(args: Sequence[str]) -> list[str]:
    """The arguments, a number after each `--wait`."""
    full: list[str] = []
    for argument, following in zip_longest(args, args[1:], fillvalue=""):
        full.append(argument)
        if argument == "--wait" and not re.fullmatch(r"\d+(\.\d+)?", following):
            full.append(str(WAIT_SECONDS))
    return full


@dataclass(frozen=True, slots=True)
class _Outgoing:
    """What is published, and how it will be read."""

    key: str
    body: bytes
    event: "Event"


def send(
    ctx: typer.Context,
    key: Annotated[str | None, typer.Option("--key", help="Routing key <source>.<type>: shop.order.shipped.")] = None,
    event_id: Annotated[str | None, typer.Option("--id", help="The event's id; a new one by default.")] = None,
    data: Annotated[
        str | None,
        typer.Option("--data", metavar="JSON|@FILE|-", help="The event's data: JSON, @file, or - for stdin."),
    ] = None,
    to: Annotated[
        list[str] | None, typer.Option("--to", metavar="EMAIL", help="A recipient's e-mail address; may be repeated.")
    ] = None,
    recipients: Annotated[
        str | None, typer.Option("--recipients", metavar="JSON|@FILE|-", help="A JSON array of recipients.")
    ] = None,
    whole: Annotated[
        str | None, typer.Option("--event", metavar="JSON|@FILE|-", help="The whole event; other options override it.")
    ] = None,
    wait: Annotated[
        float | None,
        typer.Option(
            "--wait",
            metavar="[SECONDS]",
            min=0,
            help=f"Wait until its deliveries are final, {WAIT_SECONDS} s by default, and show them.",
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Publish one event and, with --wait, see what becomes of it.

    It is validated first: an event that NotiPy could not use is not published, and the exit code is 2.
    With --wait the exit code is 1 if any delivery ended other than sent or suppressed (the recipient has no address for
    that channel), if not all have ended in time, or if no notification is on the event.

    [bold]Examples[/]

      $ notipy send --key shop.order.shipped --data '{"order_id": 1042, "carrier": "DHL"}' --to ana@example.org --wait
      $ notipy send --event @event.json --wait 60
      $ jq -n '{recipients: [{email: "ana@example.org"}]}' | notipy send --key shop.hello --event -
    """
    outgoing = _outgoing(_document(event_id, data, to or [], recipients, whole), key)
    settings = load(ctx)
    if len(outgoing.body) > settings.events.max_bytes:
        raise BadInput(f"The event has {len(outgoing.body)} bytes; the limit is {settings.events.max_bytes}.")
    published = execute(_send(settings, outgoing, wait))
    _print(outgoing, published, wait, as_json)


def _document(
    event_id: str | None, data: str | None, to: Sequence[str], recipients: str | None, whole: str | None
) -> dict[str, Any]:
    document = read_document(whole, "--event") if whole else {}
    if "specversion" in document and (event_id or data or to or recipients):
        raise BadInput("--event: is a CloudEvent, which --id, --data, --to and --recipients do not go with")
    if data is not None:
        document["data"] = read_document(data, "--data")
    if recipients is not None:
        document["recipients"] = read_json(recipients, "--recipients")
    if to:
        given = document.get("recipients") or []
        document["recipients"] = [*given, *({"email": address} for address in to)]
    if event_id or not document.get("id"):
        document["id"] = event_id or uuid4().hex
    return document


def _outgoing(document: Mapping[str, Any], key: str | None) -> _Outgoing:
    """The event, read as a consumer will read it.

    Raises:
        BadInput: it cannot be used; every fault is told.
    """
    from domain.event import EventRejected, FaultyRecipient, Incoming, parse_event

    body = json.dumps(document, ensure_ascii=False).encode()
    try:
        event = parse_event(Incoming(body, key, str(document.get("id"))), datetime.now(UTC), max_bytes=len(body))
    except EventRejected as rejected:
        listed = "\n".join(f"  {fault}" for fault in rejected.faults)
        raise BadInput(f"The event cannot be used:\n{listed}", _advice(document, key)) from None
    for recipient in event.recipients:
        if isinstance(recipient, FaultyRecipient):
            hint(f"Warning: recipients.{recipient.position}: {'; '.join(map(str, recipient.faults))}")
    return _Outgoing(key or event.topic, body, event)


def _advice(document: Mapping[str, Any], key: str | None) -> str:
    if not key and not document.get("type"):
        return "Name source and type with --key, for example --key shop.order.shipped."
    if key and "." not in key and not document.get("type"):
        return "The key is <source>.<type>, for example --key shop.order.shipped."
    return "" if document.get("recipients") else "Name recipients with --to or --recipients."


@dataclass(frozen=True, slots=True)
class _Published:
    """What is known of an event after it was published: without waiting, nothing but that."""

    known_before: bool
    state: str | None
    deliveries: "Sequence[Delivery]"
    states: Mapping[str, int]
    final: bool


async def _send(settings: "Settings", outgoing: _Outgoing, wait: float | None) -> _Published:
    async with core(settings) as opened:
        known = await opened.events.get(outgoing.event.key) is not None
        await opened.publisher.event(outgoing.key, outgoing.body, outgoing.event.id)
        if wait is None:
            return _Published(known, None, (), {}, final=False)
        return await _await(opened, outgoing.event.key, known, wait)


async def _await(opened: "Core", key: str, known: bool, seconds: float) -> _Published:
    """Look until the event's deliveries are final, or the time is over."""
    from consumers.stores import Stores
    from domain.vocabulary import EventState, State
    from storage.deliveries import DeliveryFilter

    stores = Stores(
        opened.database, opened.events, opened.deliveries, opened.catalog, opened.inbox, opened.suppressions
    )
    deadline = asyncio.get_running_loop().time() + seconds
    while True:
        event = await stores.events.get(key)
        states = await states_of(stores, key) if event and event.state is not EventState.ACCEPTED else None
        final = states is not None and all(State(state).final for state in states)
        if final or asyncio.get_running_loop().time() >= deadline:
            deliveries = await stores.deliveries.page(DeliveryFilter(event_key=key), SHOWN)
            return _Published(known, str(event.state) if event else None, deliveries, states or {}, final)
        await asyncio.sleep(POLL_SECONDS)


def _print(outgoing: _Outgoing, published: _Published, wait: float | None, as_json: bool) -> None:
    event = outgoing.event
    name = f"{event.source}/{event.id}"
    if published.known_before:
        hint(f"{name} was stored before: publishing it again changes nothing.")
    if wait is None:
        _print_sent(outgoing, as_json)
        return
    _print_deliveries(published, as_json)
    if not published.final:
        raise CommandFailed(f"{name} is not done after {wait:g} s: {_stands(published)}.", _follow(event))
    if published.state == "unmatched":
        raise _unmatched(event, published)
    bad = sum(count for state, count in published.states.items() if state not in _GOOD)
    if bad:
        raise CommandFailed(
            f"{bad} of {sum(published.states.values())} deliveries ended neither sent nor suppressed.",
            _inspect(published),
        )


def _unmatched(event: "Event", published: _Published) -> CommandFailed:
    """One that was stored before stays as it was, whatever is in force now."""
    if not published.known_before:
        return CommandFailed(f"No notification is on {event.topic}: nobody is told.", "`notipy apply` defines one.")
    return CommandFailed(
        f"{event.source}/{event.id} was stored as unmatched when it first came: nobody is told.",
        f"`notipy events replay {event.source} {event.id}` plans it with the notifications that are in force now.",
    )


def _inspect(published: _Published) -> str:
    bad = next((delivery for delivery in published.deliveries if str(delivery.state) not in _GOOD), None)
    return f"`notipy deliveries show {bad.id}` says why." if bad else "`notipy dead list` shows them."


def _print_sent(outgoing: _Outgoing, as_json: bool) -> None:
    event = outgoing.event
    if as_json:
        json_line({"id": event.id, "source": event.source, "type": event.type, "key": outgoing.key})
        return
    say(f"Published {event.source}/{event.id} under {outgoing.key}.")
    hint(_follow(event))


def _print_deliveries(published: _Published, as_json: bool) -> None:
    from cli.delivery_views import print_deliveries, record_of

    if as_json:
        for delivery in published.deliveries:
            json_line(record_of(delivery))
    elif published.deliveries:
        print_deliveries(published.deliveries)


def _stands(published: _Published) -> str:
    if published.state is None:
        return "no consumer has taken it yet (is `notipy run` running?), or it was parked"
    waiting = [f"{count} {state}" for state, count in published.states.items() if state in _UNDER_WAY]
    return ", ".join(waiting) or STATES[published.state]


def _follow(event: "Event") -> str:
    return f"See what becomes of it: notipy events show {event.source} {event.id}"
