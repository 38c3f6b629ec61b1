"""The sweeper: whatever is overdue in the database is driven on, so that a lost message loses no notification."""

import asyncio
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from random import Random
from uuid import uuid4

from domain.accept import Accept
from domain.delivery import Change, Delivery
from domain.dispatch import Dispatch, EventData, dispatch_of, travelling
from domain.failures import UnknownOutcome
from domain.outcome import Failed, Outcome, Unknown
from domain.ports import Claim, Deliveries, DispatchQueue, Events, Now
from domain.retry import RetryPolicy
from domain.stored import read_event
from domain.vocabulary import Channel, Lane, Reason, State

BATCH = 500
PATIENCE = 4
"""A delivery whose queue is not empty is presumed to wait in it for this many times `overdue`."""


@dataclass(frozen=True, slots=True)
class Swept:
    """What one round did: events resumed, and deliveries driven on by the reason that they were given."""

    events: int
    deliveries: Mapping[Reason, int]

    @property
    def idle(self) -> bool:
        """Nothing was due."""
        return not self.events and not self.deliveries


@dataclass(frozen=True, slots=True)
class Found:
    """An event that is still stored; `data` is what travels with its deliveries."""

    data: EventData | None


@dataclass(frozen=True, slots=True)
class Sweep:
    """Drives on what is overdue. Running it in several places at once is wasteful, never wrong."""

    events: Events
    deliveries: Deliveries
    queue: DispatchQueue
    accept: Accept
    policies: Mapping[Channel, RetryPolicy]
    now: Now
    overdue: timedelta
    lease: timedelta
    rng: Random = field(default_factory=Random)

    async def __call__(self) -> Swept:
        """One round: events that were not planned to the end, then deliveries that are due."""
        events = await self._events()
        found: Counter[Reason] = Counter()
        waiting: dict[tuple[Channel, Lane], int] = {}
        while batch := await self.deliveries.due(self.now(), BATCH):
            found.update(await self._batch(batch, waiting))
            if len(batch) < BATCH:
                break
        return Swept(events, dict(found))

    async def _events(self) -> int:
        due = await self.events.due(self.now(), BATCH)
        for stored in due:
            await self.events.postpone(stored.key, self.now() + self.overdue)
            await self.accept.resume(stored)
        return len(due)

    async def _batch(self, batch: Sequence[Delivery], waiting: dict[tuple[Channel, Lane], int]) -> Counter[Reason]:
        claims = await self.deliveries.claims([delivery.claim_id(delivery.attempt + 1) for delivery in batch])
        await self._look(batch, waiting)
        keys = sorted({delivery.event_key for delivery in batch})
        events = dict(zip(keys, await asyncio.gather(*map(self._read, keys)), strict=True))
        done = await asyncio.gather(
            *(
                self._one(
                    delivery,
                    claims.get(delivery.claim_id(delivery.attempt + 1)),
                    events[delivery.event_key],
                    waiting[delivery.channel, delivery.lane],
                )
                for delivery in batch
            )
        )
        return Counter(reason for reason in done if reason is not None)

    async def _read(self, key: str) -> Found | None:
        stored = await self.events.get(key)
        return Found(travelling(read_event(stored))) if stored else None

    async def _look(self, batch: Sequence[Delivery], waiting: dict[tuple[Channel, Lane], int]) -> None:
        """Learn how full the queues are; once a round, for what the round itself dispatches fills them."""
        for delivery in batch:
            lane = (delivery.channel, delivery.lane)
            if lane not in waiting:
                waiting[lane] = await self.queue.waiting(*lane)

    async def _one(self, delivery: Delivery, claim: Claim | None, event: Found | None, waiting: int) -> Reason | None:
        """Drive one overdue delivery on; returns the reason under which, None if it is left to wait."""
        now = self.now()
        if claim is not None:
            return await self._claimed(delivery, claim, event, now)
        if delivery.expires_at is not None and delivery.expires_at <= now:
            return await self._expire(delivery, now)
        if event is None:
            return await self._conclude(delivery, Failed(Reason.INTERNAL_ERROR, "the event is no longer stored"), None)
        if delivery.state is State.HELD:
            return await self._release(delivery, event, now)
        return await self._redrive(delivery, event, waiting, now)

    async def _redrive(self, delivery: Delivery, event: Found, waiting: int, now: datetime) -> Reason | None:
        """Dispatch it again, unless it may well stand in its queue still.

        The next look comes after as long as it has waited already, so that a long backlog is not multiplied.
        """
        age = now - delivery.updated_at
        patient = waiting > 0 and age < self.overdue * PATIENCE
        if not patient:
            await self.queue.dispatch(dispatch_of(delivery, event.data))
        await self.deliveries.postpone([delivery.id], now + max(self.overdue, age if waiting else self.overdue))
        return None if patient else Reason.REDRIVEN

    async def _release(self, delivery: Delivery, event: Found, now: datetime) -> Reason:
        change = Change(State.QUEUED, now, Reason.RELEASED, delivery.epoch, delivery.attempt)
        released = delivery.changed(change, now + self.overdue)
        await self.queue.dispatch(dispatch_of(released, event.data))
        if await self.deliveries.record(released, delivery.attempt, [change]):
            await self.queue.status(released, change)
        return Reason.RELEASED

    async def _expire(self, delivery: Delivery, now: datetime) -> Reason | None:
        """Expire it under a claim, so that nobody sends it at the same moment."""
        if not await self.deliveries.claim(_own_claim(delivery, now, self.lease)):
            return None
        change = Change(
            State.EXPIRED, now, Reason.EXPIRED, delivery.epoch, delivery.attempt, detail=f"at {delivery.expires_at}"
        )
        return await self._record(delivery, change, None)

    async def _claimed(self, delivery: Delivery, claim: Claim, event: Found | None, now: datetime) -> Reason | None:
        """Somebody is on it, or was: a lease that has run out leaves an attempt with unknown outcome."""
        if claim.lease_until > now:
            await self.deliveries.postpone([delivery.id], claim.lease_until)
            return None
        attempt = delivery.attempt + 1
        lost = UnknownOutcome(Reason.OUTCOME_UNKNOWN, "the consumer that had claimed it did not record an outcome")
        outcome = self.policies.get(delivery.channel, RetryPolicy()).next_attempt(attempt, lost, now, self.rng)
        return await self._conclude(delivery, outcome, event, attempt)

    async def _conclude(
        self, delivery: Delivery, outcome: Outcome, event: Found | None, attempt: int | None = None
    ) -> Reason | None:
        number = delivery.attempt if attempt is None else attempt
        now = self.now()
        if isinstance(outcome, Failed | Unknown):
            state = State.FAILED if isinstance(outcome, Failed) else State.UNKNOWN
            change = Change(state, now, outcome.reason, delivery.epoch, number, detail=outcome.detail)
            return await self._record(delivery, change, None, Dispatch(delivery, number, None))
        change = Change(
            State.QUEUED,
            now,
            Reason.OUTCOME_UNKNOWN,
            delivery.epoch,
            number,
            detail="its lease ran out; sent again",
            possible_duplicate=True,
        )
        again = delivery.changed(change, now + self.overdue)
        if event is None or not await self.deliveries.record(again, delivery.attempt, [change]):
            return None
        await self.queue.dispatch(dispatch_of(again, event.data))
        await self.queue.status(again, change)
        return Reason.OUTCOME_UNKNOWN

    async def _record(
        self, delivery: Delivery, change: Change, due_at: datetime | None, parked: Dispatch | None = None
    ) -> Reason | None:
        after = delivery.changed(change, due_at)
        if not await self.deliveries.record(after, delivery.attempt, [change]):
            return None
        if parked is not None and change.state is State.FAILED:
            await self.queue.park(parked.again(after), change.reason, change.detail or "")
        await self.queue.status(after, change)
        return change.reason


def _own_claim(delivery: Delivery, now: datetime, lease: timedelta) -> Claim:
    return Claim(delivery.claim_id(delivery.attempt + 1), uuid4().hex, now, now + lease)
