"""The use case of the events queue: accept an event, plan its deliveries, store and dispatch them."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from itertools import islice
from typing import TypeVar

from domain.delivery import Delivery
from domain.dispatch import EventData, dispatch_of, travelling
from domain.event import Event, EventRejected, Incoming, parse_event
from domain.notification import Notification
from domain.plan import Planner
from domain.ports import Catalog, Deliveries, DispatchQueue, Events, Now, QueueFull, StoredEvent
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

    A small event is first stored by the primary alone, which is enough to tell a duplicate, and saves its deliveries
    one wait for a majority. They are written after it, so what confirms them confirms it, unless the primary has
    failed in between; that shows when the event is settled, and it is stored once more.
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
        """Validate → plan → dedupe and store → dispatch."""
        try:
            event = await self._parse(incoming)
        except EventRejected as fault:
            await self.queue.reject(incoming, fault.reason, fault.faults)
            return Rejected(fault.reason, fault.faults)
        notifications = () if event.content else tuple(self.catalog.matching(event.topic))
        stored, data = self._stored(event, notifications), travelling(event)
        planned = self._planned(event, notifications, stored)
        nothing: Sequence[Delivery] = []  # a tuple as the default of `anext` meets an error of CPython's (gh-128078)
        first = await anext(planned, nothing)
        # one that does not travel with its deliveries is read by them
        while not await self.events.add(stored, self.now() + self.overdue, first, durable=data is None):
            if (known := await self.events.get(event.key)) is not None:
                return await self._again(event, incoming, known)
            # lost with a primary, or deleted, between the two questions
        return await self._carry_out(event, data, stored, self._after(first, planned))

    async def resume(self, stored: StoredEvent) -> Verdict:
        """Complete an event whose planning was cut short, with the versions that it pinned.

        What is stored of its deliveries already stays as it is: one that has moved on since is not started again.
        """
        event = await asyncio.to_thread(read_event, stored)
        pinned = [await self.catalog.version(name, version) for name, version in stored.plan]
        known = frozenset(await self.deliveries.ids_of_event(stored.key))
        notifications = [notification for notification in pinned if notification]
        planned = self._after((), self._planned(event, notifications, stored))
        return await self._carry_out(event, travelling(event), stored, planned, known)

    async def _parse(self, incoming: Incoming) -> Event:
        if len(incoming.body) > THREAD_ABOVE:
            async with self.large:
                return await asyncio.to_thread(parse_event, incoming, self.now(), self.max_bytes)
        return parse_event(incoming, self.now(), self.max_bytes)

    async def _again(self, event: Event, incoming: Incoming, stored: StoredEvent) -> Verdict:
        """A second message of a stored event: the work of a consumer that died, or a producer's repetition."""
        cut_short = incoming.redelivered and stored.state is EventState.ACCEPTED
        given_up = stored.state is EventState.FAILED  # and published again, by an operator
        return await self.resume(stored) if cut_short or given_up else Duplicate(event)

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

    async def _planned(
        self, event: Event, notifications: Sequence[Notification], stored: StoredEvent
    ) -> AsyncIterator[Sequence[Delivery]]:
        """The event's deliveries, batch by batch: those to suppressed addresses final already."""
        planned = self.planner.plan(event, notifications, stored.received_at, self.now())
        for batch in batches(planned, BATCH):
            yield await screen_planned(self.suppressions, batch)

    async def _after(
        self, first: Sequence[Delivery], planned: AsyncIterator[Sequence[Delivery]]
    ) -> AsyncIterator[Sequence[Delivery]]:
        """The batches, each when it is stored; the first has been with its event."""
        if first:
            yield first
        async for batch in planned:
            await self.deliveries.add(batch)
            yield batch

    async def _carry_out(
        self,
        event: Event,
        data: EventData | None,
        stored: StoredEvent,
        deliveries: AsyncIterator[Sequence[Delivery]],
        known: frozenset[str] = frozenset(),
    ) -> Verdict:
        planned = 0
        final: Counter[tuple[Channel, State, Reason]] = Counter()
        async for batch in deliveries:
            untouched = await self._untouched(batch, known) if known else batch
            await self._start_all(untouched, data)
            planned += len(batch)
            final.update((each.channel, each.state, each.reason) for each in untouched if each.state.final)
        await self._settle(stored, EventState.PLANNED if planned else EventState.UNMATCHED, planned)
        return Accepted(event, planned, final) if planned else Unmatched(event)

    async def _settle(self, stored: StoredEvent, state: EventState, planned: int) -> None:
        while not await self.events.settle(stored.key, state, planned):
            await self.events.add(stored, self.now() + self.overdue)

    async def _untouched(self, batch: Sequence[Delivery], known: frozenset[str]) -> Sequence[Delivery]:
        """Those of a batch to which nothing has happened since they were planned, as they are stored."""
        read = await asyncio.gather(*(self.deliveries.get(each.id) for each in batch if each.id in known))
        stored = [delivery for delivery in read if delivery is not None and len(delivery.history) == 1]
        return [*stored, *(delivery for delivery in batch if delivery.id not in known)]

    async def _start_all(self, deliveries: Sequence[Delivery], event: EventData | None) -> None:
        if len(deliveries) == 1:  # of most events
            await self._start(deliveries[0], event)
            return
        queued = [delivery for delivery in deliveries if delivery.state is State.QUEUED]
        others = (delivery for delivery in deliveries if delivery.state is not State.QUEUED)
        faults, *_ = await asyncio.gather(
            self.queue.dispatch_all([dispatch_of(delivery, event) for delivery in queued]),
            *(self._start(delivery, event) for delivery in others),
        )
        await self.queue.statuses([(delivery, delivery.history[-1]) for delivery in queued])
        for fault in faults or ():
            if fault is not None and not isinstance(fault, QueueFull):
                raise fault

    async def _start(self, delivery: Delivery, event: EventData | None) -> None:
        """Dispatch or park it, and tell of it. Where a queue is full the sweeper will: other events must not wait."""
        told = delivery.tell_at is not None
        try:
            if delivery.state is State.QUEUED:
                await self.queue.dispatch(dispatch_of(delivery, event))
            elif delivery.state is State.FAILED:
                await self.queue.park(dispatch_of(delivery, event), delivery.reason, delivery.detail or "")
        except QueueFull:
            told = False
        await self.queue.status(delivery, delivery.history[-1])
        if told:
            await self.deliveries.told(delivery)


def batches(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Lists of at most `size` items, in order."""
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch
