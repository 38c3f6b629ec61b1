"""The use case of the events queue: accept an event, plan its deliveries, store and dispatch them."""

import asyncio
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from itertools import islice
from typing import TypeVar

from domain.delivery import Delivery
from domain.dispatch import EventData, dispatch_of, travelling
from domain.event import Event, EventRejected, Incoming, parse_event
from domain.notification import Notification
from domain.plan import Planner
from domain.ports import Catalog, Deliveries, DispatchQueue, Events, Now, StoredEvent
from domain.stored import read_event
from domain.suppression import NOTHING_SUPPRESSED, Suppressions, screen_planned
from domain.text import Fault
from domain.token import unique_token
from domain.vocabulary import Channel, EventState, Reason, State

BATCH = 500
"""Deliveries planned, stored and dispatched at a time: one insert of 500 costs a 25th of 500 inserts."""
THREAD_ABOVE = 64 * 1024
"""Bytes of a body above which it is parsed in a thread, so that one large event does not hold up the others."""
LARGE_AT_ONCE = 2
"""Large bodies parsed at a time: each holds many times its size in memory meanwhile."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Accepted:
    """Stored; its deliveries are on their way, but for those that were final as soon as they were planned."""

    event: Event
    planned: int
    final: Mapping[tuple[Channel, State, Reason], int]


@dataclass(frozen=True, slots=True)
class Unmatched:
    """Stored; nobody is told of it."""

    event: Event


@dataclass(frozen=True, slots=True)
class Duplicate:
    """An event of the same source and id is stored already; nothing was done."""

    event: Event


@dataclass(frozen=True, slots=True)
class Rejected:
    """Parked in `notipy.dead.events`."""

    reason: Reason
    faults: tuple[Fault, ...]


Verdict = Accepted | Unmatched | Duplicate | Rejected


@dataclass(frozen=True, slots=True)
class Accept:
    """Accepts events.

    Returning means that everything the message calls for is committed and confirmed, so that it may be
    acknowledged. A crash anywhere before leaves a message that is redelivered or an event that the sweeper
    resumes; both come to the same deliveries, because planning is pure and pins what it was planned with.
    """

    events: Events
    deliveries: Deliveries
    catalog: Catalog
    queue: DispatchQueue
    planner: Planner
    now: Now
    max_bytes: int
    overdue: timedelta
    suppressions: Suppressions = NOTHING_SUPPRESSED
    large: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(LARGE_AT_ONCE))

    async def __call__(self, incoming: Incoming) -> Verdict:
        """Validate → dedupe → plan → store → dispatch."""
        try:
            event = await self._parse(incoming)
        except EventRejected as fault:
            await self.queue.reject(incoming, fault.reason, fault.faults)
            return Rejected(fault.reason, fault.faults)
        notifications = () if event.content else tuple(self.catalog.matching(event.topic))
        stored = self._stored(event, notifications)
        if await self.events.add(stored, self.now() + self.overdue):
            return await self._carry_out(event, notifications, stored.received_at)
        return await self._again(event, incoming)

    async def resume(self, stored: StoredEvent) -> Verdict:
        """Complete an event whose planning was cut short, with the versions that it pinned.

        What is stored of its deliveries already stays as it is: one that has moved on since is not started again.
        """
        event = await asyncio.to_thread(read_event, stored)
        pinned = [await self.catalog.version(name, version) for name, version in stored.plan]
        known = frozenset(await self.deliveries.ids_of_event(stored.key))
        notifications = [notification for notification in pinned if notification]
        return await self._carry_out(event, notifications, stored.received_at, known)

    async def _parse(self, incoming: Incoming) -> Event:
        if len(incoming.body) > THREAD_ABOVE:
            async with self.large:
                return await asyncio.to_thread(parse_event, incoming, self.now(), self.max_bytes)
        return parse_event(incoming, self.now(), self.max_bytes)

    async def _again(self, event: Event, incoming: Incoming) -> Verdict:
        """A second message of a stored event: the work of a consumer that died, or a producer's repetition."""
        stored = await self.events.get(event.key)
        cut_short = incoming.redelivered and stored is not None and stored.state is EventState.ACCEPTED
        given_up = stored is not None and stored.state is EventState.FAILED  # and published again, by an operator
        if stored is not None and (cut_short or given_up):
            return await self.resume(stored)
        return Duplicate(event)

    def _stored(self, event: Event, notifications: Sequence[Notification]) -> StoredEvent:
        return StoredEvent(
            key=event.key,
            body=event.body,
            id=event.id,
            source=event.source,
            type=event.type,
            time=event.time,
            received_at=self.now(),
            state=EventState.ACCEPTED,
            plan=tuple((notification.name, notification.version) for notification in notifications),
            token=unique_token(),
        )

    async def _carry_out(
        self,
        event: Event,
        notifications: Sequence[Notification],
        received_at: datetime,
        known: frozenset[str] = frozenset(),
    ) -> Verdict:
        planned, data = 0, travelling(event)
        final: Counter[tuple[Channel, State, Reason]] = Counter()
        for planned_batch in batches(self.planner.plan(event, notifications, received_at, self.now()), BATCH):
            batch = await screen_planned(self.suppressions, planned_batch)
            await self.deliveries.add(batch)
            untouched = await self._untouched(batch, known) if known else batch
            await asyncio.gather(*(self._start(delivery, data) for delivery in untouched))
            planned += len(batch)
            final.update((each.channel, each.state, each.reason) for each in untouched if each.state.final)
        await self.events.settle(event.key, EventState.PLANNED if planned else EventState.UNMATCHED, planned)
        return Accepted(event, planned, final) if planned else Unmatched(event)

    async def _untouched(self, batch: Sequence[Delivery], known: frozenset[str]) -> Sequence[Delivery]:
        """Those of a batch to which nothing has happened since they were planned, as they are stored."""
        read = await asyncio.gather(*(self.deliveries.get(each.id) for each in batch if each.id in known))
        stored = [delivery for delivery in read if delivery is not None and len(delivery.history) == 1]
        return [*stored, *(delivery for delivery in batch if delivery.id not in known)]

    async def _start(self, delivery: Delivery, event: EventData | None) -> None:
        if delivery.state is State.QUEUED:
            await self.queue.dispatch(dispatch_of(delivery, event))
        elif delivery.state is State.FAILED:
            await self.queue.park(dispatch_of(delivery, event), delivery.reason, delivery.detail or "")
        await self.queue.status(delivery, delivery.history[-1])


def batches(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Lists of at most `size` items, in order."""
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch
