"""The sweeper: whatever is overdue in the database is driven on, so that a lost message loses no notification."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from random import Random
from typing import TypeVar

from domain.accept import Accept
from domain.delivery import Change, Delivery
from domain.dispatch import Dispatch, EventData, dispatch_of, travelling
from domain.failures import UnknownOutcome, place_of
from domain.outcome import Failed, Unknown
from domain.ports import (
    Claim,
    Deliveries,
    DispatchQueue,
    Events,
    Now,
    Purpose,
    QueueFull,
    StoredEvent,
    Unreadable,
    Waiting,
)
from domain.retry import RetryPolicy
from domain.stored import as_received, read_event
from domain.text import Fault, told_over
from domain.token import unique_token
from domain.vocabulary import Channel, EventState, Lane, Reason, State

BATCH = 500
EVENTS_BATCH = 20
"""Events resumed in a round: each may hold a body of many MiB."""
GIVE_UP_AFTER = timedelta(days=1)
"""How long a delivery that our own code cannot drive on is tried."""
PATIENCE = 4
"""A delivery whose queue is not empty is presumed to wait in it for this many times `overdue`."""
LONGEST_PATIENCE = timedelta(hours=1)
"""Between two looks at a delivery that is presumed to wait in its queue, or whose dead-letter queue is full."""
RESUMPTIONS = 5
"""An event whose planning was taken up so often and never completed ends the process that plans it: it is parked."""
PLANNED_WITHIN = timedelta(minutes=5)
"""That planning an event may take, of many thousand recipients too."""
TAKEN_WITHIN = timedelta(seconds=10)
"""That a queue may take to accept a work order. A full one must not stop those of other channels."""
RECORDING = timedelta(seconds=10)
"""How long after an outage of the database a claim counts as live: its owner repeats its write every few seconds
(`domain.backoff.LONGEST_WAIT`), and has not died."""
UNREADABLE_FOR = timedelta(minutes=10)
"""Between two looks at a document that cannot be read: such ones must not stand before the others for ever."""
STOPPED_WITHIN = timedelta(seconds=2)
"""That a stop waits for the database, so that an event is not blamed for it."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Swept:
    """What one round did.

    Attributes:
        events: how many were resumed.
        poison: how many of them were parked, because planning them ends the process.
        deliveries: how many were driven on, by the reason that they were given.
        final: those of them that are final now.
        faults: places in our own code where one of them could not be driven on; it is tried again later.
        told: final deliveries whose end was told, because whoever recorded it had not been able to.
    """

    events: int
    deliveries: Mapping[Reason, int]
    final: Mapping[tuple[Channel, State, Reason], int]
    faults: Sequence[str]
    poison: int = 0
    told: int = 0

    @property
    def idle(self) -> bool:
        """Nothing was due."""
        return not (self.events or self.deliveries or self.faults or self.told)


@dataclass(frozen=True, slots=True)
class Driven:
    """A delivery that was driven on, and what it is now."""

    channel: Channel
    state: State
    reason: Reason


@dataclass(frozen=True, slots=True)
class Found:
    """An event that is still stored; `data` is what travels with its deliveries."""

    data: EventData | None


Looked = Found | Exception | None
"""An event, why it cannot be read, or that it is stored no more."""


@dataclass(frozen=True, slots=True)
class Sweep:
    """Drives on what is overdue. Running it in several places at once is wasteful, never wrong.

    Attributes:
        outage_ended: when the database was back after its last outage; None if there was none.
    """

    events: Events
    deliveries: Deliveries
    queue: DispatchQueue
    accept: Accept
    policies: Mapping[Channel, RetryPolicy]
    now: Now
    overdue: timedelta
    lease: timedelta
    rng: Random = field(default_factory=Random)
    outage_ended: Callable[[], datetime | None] = lambda: None

    async def __call__(self) -> Swept:
        """One round of both, one after the other.

        What cannot be driven on is told and tried again later; it does not stop the others.
        """
        driven, planned = await self.drive(), await self.plan()
        return replace(driven, events=planned.events, poison=planned.poison, faults=[*driven.faults, *planned.faults])

    async def drive(self) -> Swept:
        """One round of deliveries that are due, and of ends that nobody was told of; it waits for no full queue."""
        faults: list[str] = []
        found: list[Driven] = []
        waiting: dict[tuple[Channel, Lane], Waiting] = {}
        seen: set[str] = set()
        while True:
            batch = await self.deliveries.due(self.now(), BATCH)
            fresh = [each for each in batch if each.id not in seen]
            readable = await self._readable("deliveries", fresh, self.deliveries.postpone, faults)
            found += await self._batch(readable, waiting, faults)
            if len(fresh) < BATCH:  # these were the last; or some are due still, because nothing could be written
                break
            seen.update(each.id for each in fresh)
        told = await self._tell(faults)
        return Swept(
            0,
            Counter(driven.reason for driven in found),
            Counter((driven.channel, driven.state, driven.reason) for driven in found if driven.state.final),
            faults,
            told=told,
        )

    async def plan(self) -> Swept:
        """One round of events that were not planned to the end: one after the other, each for minutes at most."""
        faults: list[str] = []
        found = await self.events.due(self.now(), EVENTS_BATCH)
        due = await self._readable("events", found, self._postpone_event, faults)
        for stored in due:
            await self._take_up(stored, faults)
        return Swept(len(due), {}, {}, faults, sum(map(_poison, due)))

    async def _take_up(self, stored: StoredEvent, faults: list[str]) -> None:
        """Marked before, so that one which ends this process is known; the mark goes where it was not the event."""
        await self.events.postpone(stored.key, self.now() + max(self.overdue, self.now() - stored.received_at))
        try:
            async with asyncio.timeout(PLANNED_WITHIN.total_seconds()):
                await (self._park_event(stored) if _poison(stored) else self.accept.resume(stored))
        except TimeoutError:
            faults.append("an event was not planned in time: a queue may be full")
            await self.events.postpone(stored.key, self.now() + self.overdue, taken_up=-1)
        except asyncio.CancelledError:  # this process is stopped: another one goes on at once
            taken_back = asyncio.gather(
                self.events.postpone(stored.key, self.now(), taken_up=-1), return_exceptions=True
            )
            await asyncio.wait([taken_back], timeout=STOPPED_WITHIN.total_seconds())
            raise
        except Exception as error:  # noqa: BLE001 - told, and tried again; the others go on
            faults.append(place_of(error))

    async def _postpone_event(self, found: Unreadable, at: datetime) -> None:
        await self.events.postpone(found.id, at, taken_up=0)

    async def _readable(
        self,
        what: str,
        found: Sequence[T | Unreadable],
        postpone: Callable[[Unreadable, datetime], Awaitable[None]],
        faults: list[str],
    ) -> Sequence[T]:
        """Those that can be read; the others are told, and looked at again later."""
        unreadable = [each for each in found if isinstance(each, Unreadable)]
        if unreadable:
            faults.append(f"{len(unreadable)} {what} cannot be read: {unreadable[0].id}: {unreadable[0].why}")
            await asyncio.gather(*(postpone(each, self.now() + UNREADABLE_FOR) for each in unreadable))
        return [each for each in found if not isinstance(each, Unreadable)]

    async def _park_event(self, stored: StoredEvent) -> None:
        """Park it as `poison`; those of its deliveries that are stored go their way."""
        fault = Fault(
            "", f"its planning was taken up {stored.resumed} times and never completed: it may end its process"
        )
        await self.queue.reject(as_received(stored), Reason.POISON, [fault])
        planned = len(await self.deliveries.ids_of_event(stored.key))
        await self.events.settle(stored.key, EventState.FAILED, planned)

    async def _tell(self, faults: list[str]) -> int:
        """Repeat what a process that ended between its record and its publishes has left undone."""
        found = await self.deliveries.untold(self.now(), BATCH)
        untold = await self._readable("deliveries", found, self.deliveries.postpone, faults)
        return sum(await asyncio.gather(*(self._told_at_last(delivery, faults) for delivery in untold)))

    async def _told_at_last(self, delivery: Delivery, faults: list[str]) -> bool:
        try:
            async with asyncio.timeout(TAKEN_WITHIN.total_seconds()):
                await self._told(delivery)
        except (TimeoutError, QueueFull):
            faults.append(f"notipy.dead.{delivery.channel} takes nothing: it is full")
        except Exception as error:  # noqa: BLE001 - told, and tried again; the others go on
            faults.append(place_of(error))
        else:
            return True
        age = self.now() - delivery.updated_at  # longer each time: many for one full queue must not hold others up
        await self.deliveries.postpone(delivery, self.now() + min(max(self.overdue, age), LONGEST_PATIENCE))
        return False

    async def _told(self, delivery: Delivery) -> None:
        change = delivery.last_change
        if delivery.state is State.FAILED:
            await self.queue.park(Dispatch(delivery, delivery.attempt, None), change.reason, change.detail or "")
        await self.queue.status(delivery, change)
        await self.deliveries.told(delivery)

    async def _batch(
        self, batch: Sequence[Delivery], waiting: dict[tuple[Channel, Lane], Waiting], faults: list[str]
    ) -> list[Driven]:
        claims = await self._claims(batch)
        await self._look(batch, waiting)
        keys = sorted({delivery.event_key for delivery in batch})
        events = dict(zip(keys, await asyncio.gather(*map(self._read, keys)), strict=True))

        async def guarded(delivery: Delivery) -> Driven | None:
            claim, event = claims.get(_next_claim(delivery)), events[delivery.event_key]
            try:
                if isinstance(claim, Exception):
                    raise claim
                async with asyncio.timeout(TAKEN_WITHIN.total_seconds()):
                    after = await self._one(delivery, claim, event, waiting[delivery.channel, delivery.lane])
            except (TimeoutError, QueueFull):
                faults.append(f"notipy.channel.{delivery.channel}.{delivery.lane} takes nothing: it is full")
                await self.deliveries.postpone(delivery, self.now() + self.overdue)
                return None
            except Exception as error:  # noqa: BLE001 - told, and tried again; the others go on
                faults.append(place_of(error))
                after = await self._unable(delivery, claim if isinstance(claim, Claim) else None, error, faults)
            return Driven(after.channel, after.state, after.reason) if after else None

        return [driven for driven in await asyncio.gather(*map(guarded, batch)) if driven]

    async def _claims(self, batch: Sequence[Delivery]) -> Mapping[str, Claim | Exception]:
        """Those on their next attempts: all at once, or one by one where one cannot be read."""
        ids = [_next_claim(delivery) for delivery in batch]
        try:
            return await self.deliveries.claims(ids)
        except Exception:  # noqa: BLE001 - whose it is shows now
            found = await asyncio.gather(*map(self._claims_on, ids))
            return {name: claim for claims in found for name, claim in claims.items()}

    async def _claims_on(self, attempt: str) -> Mapping[str, Claim | Exception]:
        try:
            return await self.deliveries.claims([attempt])
        except Exception as error:  # noqa: BLE001 - handed to its delivery
            return {attempt: error}

    async def _unable(
        self, delivery: Delivery, claim: Claim | None, error: Exception, faults: list[str]
    ) -> Delivery | None:
        """Try again after as long as it has waited already; in the end give it up, with the place of our fault."""
        age = self.now() - delivery.updated_at
        if age < GIVE_UP_AFTER:
            await self.deliveries.postpone(delivery, self.now() + max(self.overdue, age))
            return None
        try:
            async with asyncio.timeout(TAKEN_WITHIN.total_seconds()):
                if (after := await self._give_up(delivery, _internal(place_of(error)), claim)) is not None:
                    return after
        except Exception as another:  # noqa: BLE001 - told, and tried again; the others go on
            faults.append(place_of(another))
        await self.deliveries.postpone(delivery, self.now() + self.overdue)
        return None

    async def _give_up(self, delivery: Delivery, why: Failed, claim: Claim | None = None) -> Delivery | None:
        """Under a claim, for its order may stand in a queue still and must not be carried out any more.

        `claim`: on its next attempt, where there is one: it may have been sent under it.
        """
        now = self.now()
        if claim is None:
            won = await self.deliveries.claim(_own_claim(delivery, now, self.lease))
            return await self._conclude(delivery, why, delivery.attempt) if won else None
        if self._live_until(claim) > now:
            return None
        doubtful = replace(why, possible_duplicate=claim.purpose is Purpose.SEND)
        return await self._conclude(delivery, doubtful, delivery.attempt)

    async def _read(self, key: str) -> Looked:
        """The event; an exception of reading it is a value, for it concerns its own deliveries alone."""
        try:
            stored = await self.events.get(key)
            return Found(travelling(await asyncio.to_thread(read_event, stored))) if stored else None
        except Exception as error:  # noqa: BLE001 - handed to its deliveries
            return error

    async def _look(self, batch: Sequence[Delivery], waiting: dict[tuple[Channel, Lane], Waiting]) -> None:
        """Learn how full the queues are; once a round, for what the round itself dispatches fills them."""
        for delivery in batch:
            lane = (delivery.channel, delivery.lane)
            if lane not in waiting:
                waiting[lane] = await self.queue.waiting(*lane)

    async def _one(self, delivery: Delivery, claim: Claim | None, event: Looked, waiting: Waiting) -> Delivery | None:
        """Drive one overdue delivery on; returns what it is now, None if it is left to wait."""
        now = self.now()
        if claim is not None:
            return await self._claimed(delivery, claim, event, now)
        if delivery.expires_at is not None and delivery.expires_at <= now:
            return await self._expire(delivery, now)
        if isinstance(event, Exception):
            raise event
        if event is None:
            return await self._give_up(delivery, _internal("the event is no longer stored"))
        if delivery.channel not in self.policies:
            return await self._give_up(delivery, _not_configured(delivery.channel))
        if delivery.state is State.HELD:
            return await self._release(delivery, event, now)
        return await self._redrive(delivery, event, waiting, now)

    async def _redrive(self, delivery: Delivery, event: Found, waiting: Waiting, now: datetime) -> Delivery | None:
        """Dispatch it again, unless it may well stand in its queue still; certainly so while nobody takes from it.

        The next look comes after as long as it has waited already, so that a long backlog is not multiplied.
        """
        age = now - delivery.updated_at
        patient = waiting.messages > 0 and (not waiting.consumers or age < self.overdue * PATIENCE)
        if not patient:
            await self.queue.dispatch(dispatch_of(delivery, event.data))
        pause = min(age, LONGEST_PATIENCE) if waiting.messages else self.overdue
        await self.deliveries.postpone(delivery, now + max(self.overdue, pause))
        return None if patient else replace(delivery, reason=Reason.REDRIVEN)

    async def _release(self, delivery: Delivery, event: Found, now: datetime) -> Delivery | None:
        """Record, then dispatch: one that is held again at once is not overwritten, and a crash between is redriven.

        With why it was held: it may wait in its queue for as long as its provider is paused, or for its turn.
        """
        why = None if delivery.reason is Reason.SCHEDULED else f"was held, {delivery.reason}: {delivery.detail}"
        change = Change(State.QUEUED, now, Reason.RELEASED, delivery.epoch, delivery.attempt, detail=why)
        released = await self._record(delivery, change, now + self.overdue)
        if released is not None:
            await self.queue.dispatch(dispatch_of(released, event.data))
        return released

    async def _expire(self, delivery: Delivery, now: datetime) -> Delivery | None:
        """Expire it under a claim, so that nobody sends it at the same moment."""
        if not await self.deliveries.claim(_own_claim(delivery, now, self.lease)):
            return None
        return await self._expired(delivery, now)

    async def _expired(self, delivery: Delivery, now: datetime) -> Delivery | None:
        change = Change(
            State.EXPIRED, now, Reason.EXPIRED, delivery.epoch, delivery.attempt, detail=told_over(delivery.expires_at)
        )
        return await self._record(delivery, change, None)

    async def _claimed(self, delivery: Delivery, claim: Claim, event: Looked, now: datetime) -> Delivery | None:
        """Somebody is on it, or was: a lease that has run out leaves an attempt with unknown outcome."""
        live_until = self._live_until(claim)
        if live_until > now:
            await self.deliveries.postpone(delivery, live_until)
            return None
        if claim.purpose is Purpose.EXPIRE:
            return await self._ended(delivery, event, now)
        if claim.purpose is Purpose.CANCEL:
            cancelled = Change(State.CANCELLED, now, Reason.CANCELLED, delivery.epoch, delivery.attempt)
            return await self._record(delivery, cancelled, None)
        attempt = delivery.attempt + 1
        lost = UnknownOutcome(Reason.OUTCOME_UNKNOWN, "the consumer that had claimed it did not record an outcome")
        policy = self.policies.get(delivery.channel, RetryPolicy())
        outcome = policy.next_attempt(attempt - delivery.forgiven, lost, now, self.rng)
        if isinstance(outcome, Failed) and _every_attempt_lost(delivery):
            outcome = replace(outcome, reason=Reason.POISON)
        if isinstance(outcome, Failed | Unknown):
            return await self._conclude(delivery, outcome, attempt, claim.provider)
        return await self._again(delivery, event, attempt, claim.provider)

    async def _ended(self, delivery: Delivery, event: Looked, now: datetime) -> Delivery | None:
        """A sweeper has claimed it to end it, and ended itself before it recorded why; nothing was sent."""
        if delivery.expires_at is not None and delivery.expires_at <= now:
            return await self._expired(delivery, now)
        if event is not None and delivery.channel not in self.policies:
            return await self._conclude(delivery, _not_configured(delivery.channel), delivery.attempt)
        why = "the event is no longer stored" if event is None else "the process that gave it up has ended"
        return await self._conclude(delivery, _internal(why), delivery.attempt)

    def _live_until(self, claim: Claim) -> datetime:
        """The end of its lease; later if the database was away, for then its owner may still be about to record."""
        ended = self.outage_ended()
        return max(claim.lease_until, ended + RECORDING) if ended else claim.lease_until

    async def _again(self, delivery: Delivery, event: Looked, attempt: int, provider: str | None) -> Delivery | None:
        """At once: its lease was wait enough."""
        now = self.now()
        change = Change(
            State.QUEUED,
            now,
            Reason.OUTCOME_UNKNOWN,
            delivery.epoch,
            attempt,
            provider,
            detail="its lease ran out; sent again",
            possible_duplicate=True,
        )
        again = await self._record(delivery, change, now + self.overdue)
        if again is not None and isinstance(event, Found):
            await self.queue.dispatch(dispatch_of(again, event.data))
        return again

    async def _conclude(
        self, delivery: Delivery, outcome: Failed | Unknown, attempt: int, provider: str | None = None
    ) -> Delivery | None:
        failed = isinstance(outcome, Failed)
        change = Change(
            State.FAILED if failed else State.UNKNOWN,
            self.now(),
            outcome.reason,
            delivery.epoch,
            attempt,
            provider,
            detail=outcome.detail,
            possible_duplicate=isinstance(outcome, Failed) and outcome.possible_duplicate,
        )
        return await self._record(delivery, change, None)

    async def _record(self, delivery: Delivery, change: Change, due_at: datetime | None) -> Delivery | None:
        after = delivery.changed(change, due_at)
        if after.state.final:
            after = replace(after, tell_at=change.at + self.overdue)
        if not await self.deliveries.record(after, delivery.attempt, [change]):
            return None
        if after.state.final:
            try:
                await self._told(after)
            except QueueFull:  # of dead letters: it is parked at `tell_at`
                await self.queue.status(after, change)
        else:
            await self.queue.status(after, change)
        return after


def _poison(stored: StoredEvent) -> bool:
    return stored.resumed >= RESUMPTIONS


def _own_claim(delivery: Delivery, now: datetime, lease: timedelta) -> Claim:
    return Claim(_next_claim(delivery), unique_token(), now, now + lease, Purpose.EXPIRE)


def _next_claim(delivery: Delivery) -> str:
    return delivery.claim_id(delivery.attempt + 1)


def _internal(why: str) -> Failed:
    return Failed(Reason.INTERNAL_ERROR, why)


def _not_configured(channel: Channel) -> Failed:
    return Failed(Reason.NOT_CONFIGURED, f"no provider any more: channels.{channel}.providers")


def _every_attempt_lost(delivery: Delivery) -> bool:
    """Whether no attempt of this epoch but ended with its process: the delivery itself may be what ends it."""
    own = [change for change in delivery.history if change.epoch == delivery.epoch and change.attempt > 0]
    return len(own) > 1 and all(change.reason is Reason.OUTCOME_UNKNOWN for change in own)
