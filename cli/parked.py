"""Replaying and dropping dead letters by the thousand, in bounded memory.

Deliveries are dead in MongoDB; the messages in `notipy.dead.<channel>` only show them, and are cleared away
afterwards. Events are dead in `notipy.dead.events` alone: one leaves it after its republishing was confirmed.
"""

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any
from uuid import uuid4

from aio_pika.abc import AbstractIncomingMessage

from cli.delivery_ids import whole_ids
from cli.events import body_values
from cli.output import json_line, say, stderr
from consumers import codec
from consumers.app import Core, utc_now
from consumers.dead_letters import CLEARING, TURN, DeadEvent, Decide, dead_event, walk
from consumers.topology import DEAD_EVENTS, DEAD_RECEIPTS, dead_queue
from domain.delivery import Delivery
from domain.operate import IN_THE_WORDS, Refused
from domain.ports import DeadFilter
from domain.vocabulary import Channel, Reason, State
from storage.deliveries import MongoDeliveries
from storage.leadership import MongoLeadership

CONCURRENCY = 50
"""Deliveries replayed at once: the database groups their writes."""


@dataclass(frozen=True, slots=True)
class Chosen:
    """Which dead letters are meant: events, receipts, or the deliveries of a filter; at most `limit`.

    Attributes:
        ids: these of them alone; none: all.
    """

    events: bool
    filter: DeadFilter
    limit: int | None
    receipts: bool = False
    ids: tuple[str, ...] = ()

    @property
    def messages(self) -> bool:
        """Whether it means what stands in a dead-letter queue alone."""
        return self.events or self.receipts

    @property
    def queue(self) -> str:
        """Where that stands."""
        return DEAD_RECEIPTS if self.receipts else DEAD_EVENTS

    def means(self, event: DeadEvent) -> bool:
        """Whether it means this event, or receipt."""
        return meant(event, self.filter) and (not self.ids or event.id in self.ids)


@dataclass(slots=True)
class Done:
    """What was done, and what was left alone and why.

    Attributes:
        removed: messages cleared from the dead-letter queues.
        refused: how many were replayed whose own refusal has suppressed their address.
        corrected: how many with another version of their notification, as theirs could not be rendered.
        unchanged: how many with the very version that could not be rendered.
    """

    treated: int = 0
    failed: int = 0
    removed: int = 0
    refused: int = 0
    corrected: int = 0
    unchanged: int = 0
    skipped: Counter[str] = field(default_factory=Counter)


@dataclass(slots=True)
class Report:
    """Tells of each item: as JSON always, to a person of the first `shown` only."""

    as_json: bool
    shown: int
    dry_run: bool = False

    def treated(self, line: str, **record: Any) -> None:
        """One item that was, or would be, treated."""
        if self.as_json:
            json_line({**record, "dry_run": True} if self.dry_run else record)
        elif self.shown > 0:
            self.shown -= 1
            say(line)

    def skipped(self, **record: Any) -> None:
        """One item that was left alone."""
        if self.as_json:
            json_line({**record, "action": "skipped"})


async def with_whole_ids(deliveries: MongoDeliveries, chosen: Chosen) -> Chosen:
    """The same, its deliveries' ids whole.

    Raises:
        BadInput: one means several deliveries.
    """
    if chosen.messages:
        return chosen
    return replace(chosen, ids=tuple(await whole_ids(deliveries, chosen.ids)))


async def count(core: Core, chosen: Chosen) -> int:
    """How many there are, up to the limit."""
    if chosen.messages:
        return (await list_events(core, replace(chosen, limit=0)))[1]
    if chosen.ids:
        return len([None async for _ in dead_deliveries(core.deliveries, chosen)])
    found = await core.deliveries.count_dead(chosen.filter)
    return min(found, chosen.limit or found)


async def dead_deliveries(deliveries: MongoDeliveries, chosen: Chosen) -> AsyncIterator[Delivery]:
    """The deliveries that are meant, those that have been dead for longest first; or in the order of their ids."""
    if not chosen.ids:
        async for delivery in deliveries.dead(chosen.filter, chosen.limit):
            yield delivery
        return
    left = chosen.limit
    for name in dict.fromkeys(chosen.ids):
        if left == 0:
            return
        found = await deliveries.get(name)
        if found is not None and _is_meant(found, chosen.filter):
            left = None if left is None else left - 1
            yield found


def _is_meant(delivery: Delivery, chosen: DeadFilter) -> bool:
    wanted = {name: getattr(chosen, name) for name in ("state", "channel", "reason", "source", "type")}
    return (
        all(value is None or getattr(delivery, name) == value for name, value in wanted.items())
        and (chosen.since is None or delivery.updated_at >= chosen.since)
        and (chosen.until is None or delivery.updated_at <= chosen.until)
    )


async def treat(core: Core, chosen: Chosen, action: str, report: Report, *, dry_run: bool) -> Done:
    """Replay (`action` is `replayed`) or drop (`dropped`) what was chosen."""
    if chosen.messages:
        return await _treat_events(core, chosen, action, report, dry_run)
    done = Done()
    await core.catalog.refresh()
    carry_out = _preview(core, action) if dry_run else _treatment(core, action)
    with progress(action, await count(core, chosen)) as advance:
        await _each(core, chosen, _operation(carry_out, action, report, done, advance))
    if dry_run:
        return done
    if chosen.filter.state is State.FAILED:  # unknown ones were never parked
        done.removed = await clear(core, chosen.filter.channel)
    return done


# ---------------------------------------------------------------------------------------------------------------
# Deliveries
# ---------------------------------------------------------------------------------------------------------------

Operation = Callable[[Delivery], Awaitable[None]]


Treatment = Callable[[Delivery], Awaitable[Delivery | Refused]]


def _treatment(core: Core, action: str) -> Treatment:
    return core.operate.replay if action == "replayed" else core.operate.drop


def _preview(core: Core, action: str) -> Treatment:
    """What a dry run asks instead: one that would be refused is told as such."""

    async def as_it_is(delivery: Delivery) -> Delivery | Refused:
        return delivery

    return core.operate.replayable if action == "replayed" else as_it_is


def _operation(
    carry_out: Treatment, action: str, report: Report, done: Done, advance: Callable[[int], None]
) -> Operation:
    async def one(delivery: Delivery) -> None:
        after = await carry_out(delivery)
        if isinstance(after, Refused):
            done.skipped[after.why] += 1
            report.skipped(id=delivery.id, why=after.why)
        else:
            _treated(done, report, delivery, after, action)
        advance(1)

    return one


def _treated(done: Done, report: Report, before: Delivery, after: Delivery, action: str) -> None:
    suppressed = before.last_change.address_suppressed  # of which a replay that is sent gives back the use
    done.treated += 1
    if action == "replayed":
        done.refused += suppressed
        done.corrected += before.version != after.version
        done.unchanged += before.version == after.version and before.reason in IN_THE_WORDS
    about = f"{after.id}  {after.channel}  {after.reason}  {after.source}/{after.event_id}"
    record = {"channel": str(after.channel), "epoch": after.epoch, "address_suppressed": suppressed}
    report.treated(about, id=after.id, action=action, **record, version=after.version)


async def _each(core: Core, chosen: Chosen, operation: Operation) -> None:
    """The operation on every chosen delivery, a few at a time; no more of them are held than that."""
    deliveries = dead_deliveries(core.deliveries, chosen)
    turn = asyncio.Lock()

    async def work() -> None:
        while (delivery := await _next(deliveries, turn)) is not None:
            await operation(delivery)

    await asyncio.gather(*(work() for _ in range(CONCURRENCY)))


async def _next(deliveries: AsyncIterator[Delivery], turn: asyncio.Lock) -> Delivery | None:
    async with turn:
        return await anext(deliveries, None)


async def clear(core: Core, channel: Channel | None) -> int:
    """Remove the messages whose delivery is not failed any more, or has been replayed since.

    One operator at a time: what another holds in its hands while it looks would be missing from this look.
    """
    turn = MongoLeadership(core.database, CLEARING, uuid4().hex)

    async def decide(batch: Sequence[AbstractIncomingMessage]) -> Sequence[bool]:
        await turn.held(utc_now(), TURN)
        return await _stale(core, batch)

    while not await turn.held(utc_now(), TURN):  # noqa: ASYNC110 - the other may be another process
        await asyncio.sleep(0.2)
    try:
        queues = [dead_queue(own) for own in Channel if channel in {None, own}]
        return sum([await _clear_queue(core, queue, decide) for queue in queues])
    finally:
        await turn.give_up()


async def _clear_queue(core: Core, queue: str, decide: Decide) -> int:
    """Look until a look finds nothing to remove: another operator may have replayed more during the one before."""
    removed = 0
    while waiting := (await core.publisher.counts(queue) or (0, 0))[0]:
        with progress(f"clearing {queue}", waiting) as advance:
            found = await walk(core.connection, queue, decide, advance)
        removed += found
        if not found:
            break
    return removed


async def _stale(core: Core, batch: Sequence[AbstractIncomingMessage]) -> Sequence[bool]:
    ids = [str(message.headers.get(codec.DELIVERY)) for message in batch]
    standing = await core.deliveries.standing(sorted(set(ids)))
    return [_is_stale(message, standing.get(own)) for message, own in zip(batch, ids, strict=True)]


def _is_stale(message: AbstractIncomingMessage, standing: tuple[State, int] | None) -> bool:
    """A message of an unknown delivery stays: it is all that there is of it."""
    return standing is not None and standing != (State.FAILED, message.headers.get(codec.EPOCH))


# ---------------------------------------------------------------------------------------------------------------
# Events
# ---------------------------------------------------------------------------------------------------------------


async def list_events(core: Core, chosen: Chosen) -> tuple[list[DeadEvent], int]:
    """The first of the dead events that were chosen, and how many there are."""
    found: list[DeadEvent] = []
    total = 0

    async def look(batch: Sequence[AbstractIncomingMessage]) -> Sequence[bool]:
        nonlocal total
        matching = [event for event in map(dead_event, batch) if chosen.means(event)]
        total += len(matching)
        found.extend(matching if chosen.limit is None else matching[: max(0, chosen.limit - len(found))])
        return [False] * len(batch)

    await walk(core.connection, chosen.queue, look)
    return found, total


async def _treat_events(core: Core, chosen: Chosen, action: str, report: Report, dry_run: bool) -> Done:
    done = Done()

    async def one(event: DeadEvent) -> bool:
        if not chosen.means(event) or (chosen.limit is not None and done.treated >= chosen.limit):
            return False
        key = _own_key(event) if chosen.receipts else key_of(event)
        if action == "replayed" and isinstance(key, Refused):
            done.skipped[key.why] += 1
            report.skipped(id=event.id, message_id=event.message_id, why=key.why)
            return False
        done.treated += 1
        about = f"{event.id}  {event.routing_key or '-'}  {event.reason}"
        report.treated(about, id=event.id, message_id=event.message_id, action=action, routing_key=event.routing_key)
        if isinstance(key, str) and action == "replayed" and not dry_run:
            if chosen.receipts:
                await core.publisher.receipt(key, event.body, event.content_type)
            else:
                await core.publisher.event(key, event.body, event.message_id)
        return not dry_run

    async def decide(batch: Sequence[AbstractIncomingMessage]) -> Sequence[bool]:
        return await asyncio.gather(*(one(dead_event(message)) for message in batch))

    waiting = (await core.publisher.counts(chosen.queue) or (0, 0))[0]
    with progress(f"looking through {chosen.queue}", waiting) as advance:
        done.removed = await walk(core.connection, chosen.queue, decide, advance)
    return done


def meant(event: DeadEvent, chosen: DeadFilter) -> bool:
    """Whether a filter means this event; source and type are those of its routing key."""
    source, _, kind = (event.routing_key or "").partition(".")
    at = event.parked_at
    return (
        (chosen.reason is None or event.reason == chosen.reason)
        and (chosen.source is None or source == chosen.source)
        and (chosen.type is None or kind == chosen.type)
        and (chosen.since is None or (at is not None and at >= chosen.since))
        and (chosen.until is None or (at is not None and at <= chosen.until))
    )


def _own_key(receipt: DeadEvent) -> str | Refused:
    """The key under which a receipt is published again; nothing is read from it."""
    return receipt.routing_key or "replayed"


def key_of(event: DeadEvent) -> str | Refused:
    """The key under which an event is published again: its own, or what its body says."""
    if event.reason == Reason.BAD_COMMAND:
        return Refused("it is a command, not an event")
    if event.routing_key:
        return event.routing_key
    try:
        body = json.loads(event.body)
        return f"{body['source']}.{body['type']}"
    except (ValueError, KeyError, TypeError, RecursionError):
        return Refused("it has no routing key, and its body names no source and type")


def faults_told(event: DeadEvent) -> str:
    """The faults of an event in a line."""
    faults = _faults(event)
    if isinstance(faults, str):
        return faults
    return "; ".join(
        f"{fault['field']}: {fault['fault']}" if fault.get("field") else fault["fault"] for fault in faults
    )


def event_record(event: DeadEvent, *, body: bool, channel: str = "events") -> dict[str, Any]:
    """The event, or the receipt, as `--json` prints it; `detail` is a list of faults."""
    return {
        "channel": channel,
        "id": event.id,
        "message_id": event.message_id,
        "routing_key": event.routing_key,
        "reason": event.reason,
        "detail": _faults(event),
        "parked_at": event.parked_at,
        "bytes": event.size,
    } | (body_values(event.body) if body else {})


def _faults(event: DeadEvent) -> list[dict[str, str]] | str:
    """As they were written, or the text itself: a long list is cut off in the header."""
    try:
        faults = json.loads(event.detail)
    except ValueError:
        return event.detail
    usable = isinstance(faults, list) and all(isinstance(fault, dict) and "fault" in fault for fault in faults)
    return faults if usable else event.detail


# ---------------------------------------------------------------------------------------------------------------


@contextmanager
def progress(what: str, total: int | None) -> Iterator[Callable[[int], None]]:
    """A progress bar on standard error while the block lasts, where that is a terminal."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    screen = stderr()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=screen, disable=not screen.is_terminal, transient=True) as bar:
        task = bar.add_task(what, total=total)
        yield lambda number: bar.advance(task, number)
