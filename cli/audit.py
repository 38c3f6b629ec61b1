"""`notipy audit`: whether everything that was accepted is accounted for, and driving on what is not."""

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.failures import CommandFailed
from cli.inputs import read_time
from cli.options import JsonOption
from cli.output import Column, counted, hint, json_line, print_fields, print_table, say, state_text, time_text
from cli.session import broker, core, execute, load, storage

if TYPE_CHECKING:
    from aio_pika.abc import AbstractConnection

    from config.settings import Settings
    from consumers.stores import Stores
    from domain.audit import Audited, Discrepancy
    from domain.conserve import Audit, Repaired, Scope
    from domain.vocabulary import Channel, State
    from storage.deliveries import MongoDeliveries
    from storage.events import MongoEvents

LISTED, REPAIRED = 50, 10_000
"""Exceptions of each kind that are named, and that are repaired in one go, unless --limit says otherwise."""
SinceOption = Annotated[
    datetime | None,
    typer.Option(
        "--since",
        parser=read_time,
        metavar="TIME",
        help="Only events received since 2026-11-22T17:00:00Z, 2026-11-22, or how long ago (2h, 7d).",
    ),
]


@dataclass(frozen=True, slots=True)
class Standing:
    """What an audit has found, and what stands in the database beside.

    Attributes:
        states: deliveries by channel and state, as stored.
        unplanned: events whose planning is not complete, those that are being planned at this moment included.
        oldest_due_at: the earliest time at which a delivery is, or was, due.
        repaired: what a repair has done; None where none was asked for.
        untaken: queues of events and of deliveries from which nobody takes what waits in them, and how much that is.
    """

    audited: "Audited"
    states: Mapping[str, Mapping[str, int]]
    unplanned: int
    oldest_due_at: datetime | None
    repaired: "Repaired | None" = None
    untaken: Mapping[str, int] = field(default_factory=dict)

    @property
    def dead(self) -> int:
        """Deliveries that wait for a replay or a drop."""
        return sum(states.get("failed", 0) + states.get("unknown", 0) for states in self.states.values())

    @property
    def exceptions(self) -> int:
        """How many there are, those not named included."""
        return sum(self.audited.counts.values())

    @property
    def left(self) -> int:
        """How many are not named, or not repaired."""
        return self.exceptions - len(self.audited.found)

    def record(self) -> dict[str, Any]:
        """The first line of `--json`."""
        audited, sums = self.audited, self.audited.sums
        counts = {str(kind): count for kind, count in audited.counts.items() if count}
        return {
            "in_order": audited.in_order,
            "since": audited.since,
            "planned": sums.planned,
            "final": sums.final,
            "in_flight": sums.in_flight,
            "planning": sums.planning,
            "events": sums.events,
            "exceptions": counts,
            "states": self.states,
            "unplanned": self.unplanned,
            "stale_events": counts.get("unplanned", 0),
            "overdue": counts.get("overdue", 0),
            "oldest_due_at": self.oldest_due_at,
            "dead": self.dead,
            "queues": audited.queues,
            "untaken": self.untaken,
            "hours_verified": audited.verified,
            "hours_read": audited.read,
        }

    def lines(self) -> list[dict[str, Any]]:
        """The other lines of `--json`: one for each exception."""
        found = self.audited.found
        if self.repaired is None:
            return [_record(each) for each in found]
        return [_record(each) | {"repaired": done} for each, done in zip(found, self.repaired.done, strict=True)]


def audit(
    ctx: typer.Context,
    since: SinceOption = None,
    full: Annotated[bool, typer.Option("--full", help="Read also the hours that were found in order.")] = False,
    repair: Annotated[bool, typer.Option("--repair", help="Drive on what is found.")] = False,
    limit: Annotated[
        int | None,
        typer.Option("--limit", min=1, help=f"Of each kind: name {LISTED}, repair {REPAIRED:,} unless this is given."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Prove that of every accepted event, deliveries planned = final + in flight, and that what is in flight moves.

    Every event is compared with its deliveries, hour by hour. An hour that is over and in order is remembered, so only
    the first audit and --full read everything. What is not as it should be is named:

      unplanned     an event whose planning was cut short, and that nobody has taken up

      missing       an event of which fewer deliveries are stored than planned

      surplus       an event of which more are

      orphaned      a delivery whose event is not stored

      overdue       a delivery that nobody has looked after when it was due

      undispatched  a delivery that should stand in a queue, and the queues are empty

      duplicated    a delivery that is on record as sent more than once

    --repair plans events again, dispatches what is lost, and fails and parks what has no event any more; of what cannot
    be undone (surplus, duplicated) it notes that you know. It can be repeated, by several people at once, while
    everything runs. The exit code is 1 if something is found, and with --repair if something is left.

    Queues from which nobody takes what waits in them are told as well; they change no exit code.

    With --json the first line has the sums, and each line after it one exception. Without a broker the queues are not
    looked at ([bold]queues[/] is then false), and nothing can be repaired.

    [bold]Examples[/]

      $ notipy audit
      $ notipy audit --since 2h --repair
      $ notipy audit --json | jq -r 'select(.exception == "missing") | .event_id'
    """
    from domain.conserve import Scope

    settings = load(ctx)
    scope = Scope(since, full, limit or (REPAIRED if repair else LISTED))
    standing = execute(_repair(settings, scope) if repair else _look(settings, scope))
    if as_json:
        for line in (standing.record(), *standing.lines()):
            json_line(line)
    else:
        _print(standing)
    _conclude(standing)


def _conclude(standing: Standing) -> None:
    """The exit code, and what to do next.

    Raises:
        CommandFailed: there are exceptions, or some are left.
    """
    if standing.repaired is None and standing.exceptions:
        counts = ", ".join(f"{count:,} {kind}" for kind, count in standing.audited.counts.items() if count)
        one = standing.exceptions == 1
        raise CommandFailed(
            f"{counted(standing.exceptions, 'exception')}: {counts}.",
            f"`notipy audit --repair` drives {'it' if one else 'them'} on; --limit names more.",
        )
    if standing.repaired is not None and standing.left:
        raise CommandFailed(f"{counted(standing.left, 'exception')} left.", "Run `notipy audit --repair` again.")
    if standing.repaired is not None and standing.repaired.faults:
        faults = standing.repaired.faults
        raise CommandFailed(
            f"{counted(len(faults), 'item')} could not be driven on: {faults[0]}.",
            "That is a fault of NotiPy's own. The sweeper tries again; `notipy audit` tells what is left.",
        )


# ---------------------------------------------------------------------------------------------------------------
# looking and repairing
# ---------------------------------------------------------------------------------------------------------------


async def _look(settings: "Settings", scope: "Scope") -> Standing:
    async with storage(settings) as stores, _perhaps_broker(settings) as connection:
        audited = await _audit(settings, stores, connection)(scope)
        standing = await _standing(stores.events, stores.deliveries, audited)
        return replace(standing, untaken=await _untaken(settings, connection))


async def _repair(settings: "Settings", scope: "Scope") -> Standing:
    """With the queues of the broker, to which everything goes that is driven on."""
    from consumers.app import audit_of, sweep_of
    from domain.conserve import Repair
    from storage.audit import MongoLedger

    async with core(settings) as opened:
        ledger = MongoLedger(opened.database)
        audited = await audit_of(opened, ledger)(scope)
        repaired = await Repair(ledger, sweep_of(opened), opened.now)(audited.found)
        return await _standing(opened.events, opened.deliveries, audited, repaired)


async def _standing(
    events: "MongoEvents", deliveries: "MongoDeliveries", audited: "Audited", repaired: "Repaired | None" = None
) -> Standing:
    from domain.audit import MOVING

    tally = dict(audited.sums.tally)
    if audited.since is None:  # also what is older than anything that is compared
        tally |= await deliveries.count_by_state(MOVING)
    return Standing(
        audited=audited,
        states=_by_channel(tally),
        unplanned=await events.count_due(),
        oldest_due_at=await deliveries.oldest_due(),
        repaired=repaired,
    )


def _by_channel(tally: "Mapping[tuple[Channel, State], int]") -> Mapping[str, Mapping[str, int]]:
    states: dict[str, dict[str, int]] = {}
    for (channel, state), count in sorted(tally.items()):
        if count:
            states.setdefault(str(channel), {})[str(state)] = count
    return states


def _audit(settings: "Settings", stores: "Stores", connection: "AbstractConnection | None") -> "Audit":
    from cli.topology import topology_of
    from consumers.auditing import look_into
    from domain.audit import Patience, Queued
    from domain.conserve import Audit
    from storage.audit import MongoLedger

    async def queued() -> Queued:
        return await look_into(lambda queue: _counts(connection, queue), topology_of(settings))

    patience = Patience(settings.sweeper.overdue, settings.lease)
    return Audit(MongoLedger(stores.database), queued if connection else None, lambda: datetime.now(UTC), patience)


@asynccontextmanager
async def _perhaps_broker(settings: "Settings") -> "AsyncIterator[AbstractConnection | None]":
    """The broker, if it can be reached: most of an audit does without."""
    async with AsyncExitStack() as stack:
        try:
            connection = await stack.enter_async_context(broker(settings))
        except CommandFailed as failure:
            hint(f"{failure}: the queues are not looked at.")
            connection = None
        yield connection


async def _untaken(settings: "Settings", connection: "AbstractConnection | None") -> Mapping[str, int]:
    """Queues in which messages wait and that have no consumer: no process runs that should, or a provider is paused."""
    from cli.topology import topology_of
    from consumers.topology import EVENTS, channel_queue
    from domain.vocabulary import Lane

    channels = topology_of(settings).channels
    queues = [EVENTS, *(channel_queue(channel, lane) for channel in channels for lane in Lane)]
    counts = {queue: await _counts(connection, queue) or (0, 0) for queue in queues}
    return {queue: messages for queue, (messages, consumers) in counts.items() if messages and not consumers}


async def _counts(connection: "AbstractConnection | None", queue: str) -> tuple[int, int] | None:
    """A queue's messages and consumers; None if there is no such queue."""
    from aio_pika.exceptions import ChannelNotFoundEntity

    if connection is None:
        return None
    try:
        # a channel of its own: the broker closes the one that asks for a queue that is missing
        async with await connection.channel() as channel:
            found = (await channel.declare_queue(queue, passive=True)).declaration_result
    except ChannelNotFoundEntity:
        return None
    return found.message_count or 0, found.consumer_count or 0


# ---------------------------------------------------------------------------------------------------------------
# telling
# ---------------------------------------------------------------------------------------------------------------


def _record(found: "Discrepancy") -> dict[str, Any]:
    from domain.audit import ADVICE

    return {
        "exception": str(found.kind),
        "id": found.id,
        "source": found.source,
        "event_id": found.event_id,
        "received_at": found.at,
        "channel": str(found.channel) if found.channel else None,
        "state": str(found.state) if found.state else None,
        "detail": found.detail,
        "repair": ADVICE[found.kind],
    }


def _print(standing: Standing) -> None:
    _print_states(standing)
    _print_exceptions(standing)
    sums, audited = standing.audited.sums, standing.audited
    fields = {
        "Events": f"{sums.events:,}" + (f" since {time_text(audited.since)}" if audited.since else ""),
        "Planned": f"{sums.planned:,}",
        "Final": f"{sums.final:,}",
        "In flight": f"{sums.in_flight:,}",
        "Being planned": f"{standing.unplanned:,} {'event' if standing.unplanned == 1 else 'events'}",
        "Dead": f"{standing.dead:,}" + (" (notipy dead list)" if standing.dead else ""),
        "Next due": time_text(standing.oldest_due_at) or "nothing",
        "Hours": f"{audited.read:,} read, {audited.verified:,} known to be in order",
    }
    print_fields(fields)
    say()
    for queue, messages in standing.untaken.items():
        say(f"Nobody takes from {queue}, where {counted(messages, 'message')} wait{'s' * (messages == 1)}.")
    if standing.untaken:
        say("`notipy doctor` says whether a provider is at fault, or nothing runs that should.")
    if audited.in_order:
        say("Everything is accounted for" + (", but not all of it moves." if standing.untaken else "."))


def _print_states(standing: Standing) -> None:
    rows = [
        (channel, state_text(state), f"{count:,}")
        for channel, states in standing.states.items()
        for state, count in states.items()
    ]
    if rows:
        print_table((Column("channel"), Column("state"), Column("deliveries")), rows)
        say()


def _print_exceptions(standing: Standing) -> None:
    if not standing.audited.found:
        return
    columns = (
        Column("exception"),
        Column("id"),
        Column("event", rank=1),
        Column("received", rank=4),
        Column("what is wrong", rank=2),
        Column("repair" if standing.repaired is None else "repaired", rank=3),
    )
    print_table(columns, [_row(line) for line in standing.lines()])
    if standing.left:
        hint(f"{standing.left:,} more: --limit names them.")
    say()


def _row(line: Mapping[str, Any]) -> Sequence[str]:
    treated = line["repair"] if line.get("repaired", True) else "nothing was left to do"
    event = f"{line['source']}/{line['event_id']}"
    return line["exception"], line["id"], event, time_text(line["received_at"]), line["detail"], treated
