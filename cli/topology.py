"""`notipy topology`: the exchanges and queues of the virtual host, as they should be and as they are."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from cli.failures import CommandFailed
from cli.options import JsonOption
from cli.output import Column, hint, json_line, print_table, say
from cli.session import broker, execute, load

if TYPE_CHECKING:
    from aio_pika.abc import AbstractConnection

    from config.settings import Settings
    from consumers.topology import Exchange, Queue, Topology

_STYLES = {"present": "green", "missing": "red", "differs": "bold yellow"}


@dataclass(frozen=True, slots=True)
class Seen:
    """An exchange or a queue as the broker has it; `state` is `present`, `missing` or `differs`."""

    kind: str
    name: str
    state: str
    detail: str = ""
    messages: int | None = None
    consumers: int | None = None
    bound_to: str | None = None
    key: str | None = None
    type: str | None = None

    def record(self) -> Mapping[str, Any]:
        """What `--json` prints."""
        record = {name: getattr(self, name) for name in ("kind", "name", "state")}
        if self.kind == "exchange":
            return {**record, "type": self.type, "detail": self.detail or None}
        own = {name: getattr(self, name) for name in ("bound_to", "key", "messages", "consumers")}
        return {**record, **own, "detail": self.detail or None}


def topology(
    ctx: typer.Context,
    declare: Annotated[bool, typer.Option("--declare", help="Declare what is missing; what exists is left.")] = False,
    check: Annotated[bool, typer.Option("--check", help="Exit with 1 if something is missing or differs.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Show exchanges, queues and their bindings, with the messages that wait and the consumers.

    `notipy run` declares everything by itself; --declare does so beforehand. What was declared with other arguments
    [bold]differs[/]: the broker does not change a queue, so it has to be emptied, deleted and declared anew.

    [bold]Examples[/]

      $ notipy topology
      $ notipy topology --check
      $ notipy topology --json | jq 'select(.messages > 0)'
    """
    settings = load(ctx)
    seen = execute(_look(settings, declare))
    if as_json:
        for item in seen:
            json_line(item.record())
    else:
        _print(seen)
    wrong = [item for item in seen if item.state != "present"]
    if wrong and (check or declare):
        raise CommandFailed(told(seen, wrong), _advice(wrong))
    if wrong and not as_json:
        hint(_advice(wrong))


def told(seen: Sequence[Seen], wrong: Sequence[Seen]) -> str:
    """How many are not as they should be, and the first of them."""
    names = ", ".join(f"{item.name} {item.state}" for item in wrong[:3])
    return f"{len(wrong)} of {len(seen)} are not as they should be: {names}{', …' if wrong[3:] else ''}"


def _advice(wrong: Sequence[Seen]) -> str:
    if any(item.state == "differs" for item in wrong):
        return "Empty and delete what differs, then `notipy topology --declare`."
    return "`notipy topology --declare` declares what is missing; `notipy run` does so too."


async def _look(settings: "Settings", declare: bool) -> Sequence[Seen]:
    async with broker(settings) as connection:
        return await look(connection, topology_of(settings), declare=declare)


def topology_of(settings: "Settings") -> "Topology":
    """What these settings call for."""
    from consumers.topology import Topology

    return Topology(tuple(settings.channels), settings.retry_tiers)


async def look(connection: "AbstractConnection", wanted: "Topology", *, declare: bool = False) -> Sequence[Seen]:
    """Ask the broker for each exchange and queue; with `declare`, declare those that are missing and can be."""
    exchanges = [await _exchange(connection, exchange, declare) for exchange in wanted.exchanges]
    queues = [await _queue(connection, queue, declare) for queue in wanted.queues]
    return [*exchanges, *queues]


async def _exchange(connection: "AbstractConnection", wanted: "Exchange", declare: bool) -> Seen:
    from aio_pika.exceptions import ChannelNotFoundEntity, ChannelPreconditionFailed

    async def ask(*, passive: bool) -> None:
        # a channel of its own: the broker closes the one on which a question fails
        async with await connection.channel() as channel:
            await channel.declare_exchange(
                wanted.name, wanted.type, durable=True, passive=passive, arguments=dict(wanted.arguments) or None
            )

    kind = str(wanted.type.value)
    try:
        if not declare:
            await ask(passive=True)
        await ask(passive=False)
    except ChannelNotFoundEntity:
        return Seen("exchange", wanted.name, "missing", type=kind)
    except ChannelPreconditionFailed as error:
        return Seen("exchange", wanted.name, "differs", _difference(error), type=kind)
    return Seen("exchange", wanted.name, "present", type=kind)


async def _queue(connection: "AbstractConnection", wanted: "Queue", declare: bool) -> Seen:
    from aio_pika.exceptions import ChannelNotFoundEntity, ChannelPreconditionFailed

    async def ask(*, passive: bool) -> tuple[int, int]:
        async with await connection.channel() as channel:
            found = await channel.declare_queue(
                wanted.name, durable=True, passive=passive, arguments=wanted.all_arguments
            )
            if declare:
                for exchange, key in wanted.bindings:
                    await found.bind(exchange, key)
            return found.declaration_result.message_count or 0, found.declaration_result.consumer_count or 0

    seen = partial(Seen, "queue", wanted.name, bound_to=wanted.exchange, key=wanted.key)
    try:
        if not declare:
            await ask(passive=True)
        messages, consumers = await ask(passive=False)
    except ChannelNotFoundEntity:
        return seen("missing")
    except ChannelPreconditionFailed as error:
        return seen("differs", _difference(error))
    return seen("present", messages=messages, consumers=consumers)


def _difference(error: Exception) -> str:
    """The broker's sentence without its code and the names that stand beside it already."""
    return str(error).removeprefix("PRECONDITION_FAILED - ").split(" for ")[0]


def _print(seen: Sequence[Seen]) -> None:
    exchanges = [item for item in seen if item.kind == "exchange"]
    rows = [(item.name, item.type or "", _state(item)) for item in exchanges]
    print_table((Column("exchange"), Column("type"), Column("state")), rows)
    say()
    columns = (Column("queue"), Column("bound to", rank=1), Column("key", rank=2), Column("messages"))
    print_table(
        (*columns, Column("consumers"), Column("state")),
        [
            (
                item.name,
                item.bound_to or "",
                item.key or "",
                _number(item.messages),
                _number(item.consumers),
                _state(item),
            )
            for item in seen
            if item.kind == "queue"
        ],
    )
    for item in seen:
        if item.detail:
            hint(f"{item.name}: {item.detail}")


def _state(item: Seen) -> Text:
    return Text(item.state, style=_STYLES[item.state])


def _number(value: int | None) -> str:
    return "-" if value is None else str(value)
