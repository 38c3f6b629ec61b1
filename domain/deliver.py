"""The use case of a channel's queue: claim → render → send → classify → record → settle."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from random import Random
from typing import Any, assert_never

from domain.circuit import Circuit
from domain.delivery import Change, Delivery
from domain.dispatch import Dispatch, EventData
from domain.failures import DeliveryFailure, PermanentFailure, TransientFailure, UnknownOutcome, place_of
from domain.message import Accepted, Message
from domain.notification import INLINE
from domain.outcome import Expired, Failed, Hold, Outcome, Retry, Sent, Unknown
from domain.ports import Catalog, Claim, Deliveries, DispatchQueue, Events, Now, Provider, Renderer, TemplateError
from domain.retry import RetryPolicy
from domain.stored import read_event
from domain.token import unique_token
from domain.vocabulary import Reason, State

SEND_SHARE = 0.8
"""The part of a lease that a send may take; the rest is for recording it."""
HELD_SPREAD = timedelta(seconds=2)
"""Over which the deliveries that a paused provider holds up come back."""
EVENTS_KEPT = 16
"""Large events kept in memory for their deliveries: as many broadcasts as run at once, times at most 15 MiB."""


@dataclass(frozen=True, slots=True)
class Settled:
    """An attempt that was made and is on record."""

    delivery: Delivery
    outcome: Outcome
    provider: str
    seconds: float


@dataclass(frozen=True, slots=True)
class NotClaimed:
    """Nothing was sent: somebody else has this attempt, or it is decided already."""

    delivery: Delivery
    why: str


@dataclass(frozen=True, slots=True)
class Late:
    """The attempt was made, but its lease had run out and somebody else has decided meanwhile."""

    delivery: Delivery
    outcome: Outcome
    provider: str


@dataclass(frozen=True, slots=True)
class HeldBack:
    """Nothing was attempted: the provider is paused, and the delivery is held until it is asked again."""

    delivery: Delivery
    provider: str


Result = Settled | NotClaimed | Late | HeldBack


@dataclass(frozen=True, slots=True)
class Deliver:
    """Delivers over one channel.

    Returning means that the outcome is committed and what follows from it confirmed. At-least-once: a crash
    between send and record leaves a claim without outcome, which the sweeper finds when its lease runs out.

    Attributes:
        lease: how long a claim holds; longer than the slowest send.
        overdue: how long after it should have happened the sweeper looks after a queued or retrying delivery.
        circuit: whether the provider is used at all.
        reading: large events that were read for their deliveries, the last few of them.
    """

    provider: Provider
    deliveries: Deliveries
    events: Events
    catalog: Catalog
    queue: DispatchQueue
    renderer: Renderer
    policy: RetryPolicy
    now: Now
    lease: timedelta
    overdue: timedelta
    circuit: Circuit
    rng: Random = field(default_factory=Random)
    reading: dict[str, "asyncio.Future[EventData]"] = field(default_factory=dict)

    async def __call__(self, job: Dispatch, *, redelivered: bool = False) -> Result:
        """Make one attempt, if the provider is used and the attempt can be claimed."""
        passage = await self.circuit.admission()
        if passage.paused:
            return await self._hold_back(job, redelivered)
        with self.circuit.passing(passage):
            return await self._make(job, redelivered)

    async def _hold_back(self, job: Dispatch, redelivered: bool) -> Result:
        """Wait in the database for as long as the provider is left alone at least; no attempt is claimed."""
        circuit, before = self.circuit, job.delivery
        change = replace(
            self._change(job, State.HELD, self.now(), Reason.PROVIDER_PAUSED, f"{circuit.why}: {circuit.detail}"),
            attempt=before.attempt,
        )
        held = before.changed(change, self._when_asked())
        if not await self.deliveries.record(held, before.attempt, [change]):
            return await self._not_claimed(job, redelivered)
        await self.queue.status(held, change)
        return HeldBack(held, self.provider.name)

    async def _make(self, job: Dispatch, redelivered: bool) -> Result:
        """Claim → render → send → classify → record → settle."""
        claim = self._claim(job)
        if not (await self._still_due(job) and await self.deliveries.claim(claim)):
            return await self._not_claimed(job, redelivered)
        started = self.now()
        outcome = await self._attempt(job, started, claim.claimed_at + self.lease * SEND_SHARE)
        ended = self.now()
        delivery, changes = self._after(job, outcome, started, ended)
        if not await self.deliveries.record(delivery, job.attempt - 1, changes):
            await self.deliveries.note(
                delivery.id, replace(changes[-1], detail=f"after its lease: {changes[-1].detail}")
            )
            return Late(delivery, outcome, self.provider.name)
        await self._settle(job, delivery, changes)
        return Settled(delivery, outcome, self.provider.name, (ended - started).total_seconds())

    async def _still_due(self, job: Dispatch) -> bool:
        """Whether a stale order is still to be carried out; the claims that would tell may have been deleted.

        The lease has begun: what takes longer than that between this look and the send is not sent.
        """
        if not job.stale(self.now()):
            return True
        stored = await self.deliveries.get(job.delivery.id)
        return (
            stored is not None
            and not stored.state.final
            and (stored.epoch, stored.attempt) == (job.delivery.epoch, job.attempt - 1)
        )

    def _claim(self, job: Dispatch) -> Claim:
        now = self.now()
        return Claim(job.delivery.claim_id(job.attempt), unique_token(), now, now + self.lease)

    async def _attempt(self, job: Dispatch, now: datetime, deadline: datetime) -> Outcome:
        expires = job.delivery.expires_at
        if expires is not None and expires <= now:
            return Expired(f"its time was over at {expires.isoformat()}")
        try:
            message = await self._render(job, deadline)
            answer = await self._send(message, deadline)
        except DeliveryFailure as failure:
            return self._failed(job, failure)
        return Sent(answer)

    def _failed(self, job: Dispatch, failure: DeliveryFailure) -> Outcome:
        """What follows from a failure: the policy's answer, unless the provider alone is to blame."""
        if self.circuit.forgives(failure, job.delivery.forgiven):
            detail = f"{failure.detail}; the attempt does not count"
            return Hold(failure.reason, detail, self._when_asked(), forgiven=True)
        return self.policy.next_attempt(job.attempt - job.delivery.forgiven, failure, self.now(), self.rng)

    def _when_asked(self) -> datetime:
        """When the provider has been asked; spread a little, so that it is not always the same delivery that tries."""
        return (self.circuit.until or self.now()) + HELD_SPREAD * self.rng.random()

    async def _send(self, message: Message, deadline: datetime) -> Accepted:
        """Send within the lease, and tell the circuit how that went."""
        left = self._left(deadline)
        try:
            async with asyncio.timeout(left):
                answer = await self._handed_over(message)
        except TimeoutError:
            # neither a fault that counts nor an answer: one endpoint that hangs says nothing of the provider
            raise UnknownOutcome(Reason.TIMEOUT, "no answer within the lease") from None
        self.circuit.ended(None)
        return answer

    async def _handed_over(self, message: Message) -> Accepted:
        try:
            return await self.provider.send(message)
        except DeliveryFailure as failure:
            self.circuit.ended(failure)
            raise
        except Exception as error:
            raise UnknownOutcome(Reason.INTERNAL_ERROR, place_of(error)) from error

    def _left(self, deadline: datetime) -> float:
        """Seconds of the lease that are left; claiming, or reading the event, may have waited for the database."""
        left = (deadline - self.now()).total_seconds()
        if left <= 0:
            raise TransientFailure(Reason.TIMEOUT, "the lease was over before anything was sent")
        return left

    async def _render(self, job: Dispatch, deadline: datetime) -> Message:
        try:
            async with asyncio.timeout(self._left(deadline)):
                return await self._message(job)
        except DeliveryFailure:
            raise
        except TimeoutError:
            raise TransientFailure(Reason.TIMEOUT, "the event could not be read within the lease") from None
        except TemplateError as error:
            raise PermanentFailure(Reason.TEMPLATE_ERROR, str(error)) from None
        except Exception as error:
            raise TransientFailure(Reason.INTERNAL_ERROR, place_of(error)) from error

    async def _message(self, job: Dispatch) -> Message:
        delivery = job.delivery
        event = job.event or await self._event(delivery)
        content = await self._content(delivery, event)
        return Message(
            delivery_id=delivery.id,
            idempotency_key=delivery.ref,
            channel=delivery.channel,
            recipient=delivery.recipient,
            content=self.renderer.render(delivery.channel, content, _context(event, delivery)),
            created_at=delivery.created_at,
            attachments=event.attachments,
        )

    async def _event(self, delivery: Delivery) -> EventData:
        """The data of an event too large to travel along: read once for the deliveries that follow each other."""
        key = delivery.event_key
        reading = self.reading.get(key)
        if reading is None:
            if len(self.reading) >= EVENTS_KEPT:
                self.reading.pop(next(iter(self.reading)))
            reading = self.reading[key] = asyncio.ensure_future(self._read(key))
            reading.add_done_callback(lambda done: self.reading.pop(key, None) if _went_wrong(done) else None)
        return await asyncio.shield(reading)

    async def _read(self, key: str) -> EventData:
        stored = await self.events.get(key)
        if stored is None:
            raise PermanentFailure(Reason.INTERNAL_ERROR, "the event is no longer stored")
        return EventData.of(await asyncio.to_thread(read_event, stored))

    async def _content(self, delivery: Delivery, event: EventData) -> Mapping[str, Any]:
        if delivery.notification == INLINE:
            return (event.content or {})[delivery.channel]
        notification = await self.catalog.version(delivery.notification, delivery.version)
        if notification is None:
            raise PermanentFailure(Reason.INTERNAL_ERROR, "the notification's version is no longer stored")
        return notification.definition.channels[delivery.channel]

    def _after(
        self, job: Dispatch, outcome: Outcome, started: datetime, ended: datetime
    ) -> tuple[Delivery, list[Change]]:
        """The delivery and the changes that the attempt brought: that it was sending, and what came of it."""
        delivery, changes = job.delivery, []
        if not isinstance(outcome, Expired):
            sending = self._change(job, State.SENDING, started, Reason.CLAIMED)
            changes.append(sending)
        change, due_at = self._outcome_change(job, outcome, ended)
        changes.append(change)
        after = delivery.changed(change, due_at)
        if isinstance(outcome, Hold) and outcome.forgiven:
            after = replace(after, forgiven=after.forgiven + 1)
        if isinstance(outcome, Failed):  # to be parked: by the sweeper, should this process end before it has done so
            after = replace(after, tell_at=ended + self.overdue)
        return replace(after, history=(*delivery.history, *changes)), changes

    def _outcome_change(self, job: Dispatch, outcome: Outcome, at: datetime) -> tuple[Change, datetime | None]:
        match outcome:
            case Sent(detail):
                return self._change(job, State.SENT, at, Reason.ACCEPTED, detail), None
            case Retry(reason, detail, _, back, duplicate):
                return self._change(job, State.RETRYING, at, reason, detail, duplicate), back + self.overdue
            case Hold(reason, detail, until, duplicate):
                return self._change(job, State.HELD, at, reason, detail, duplicate), until
            case Failed(reason, detail, duplicate):
                return self._change(job, State.FAILED, at, reason, detail, duplicate), None
            case Unknown(reason, detail):
                return self._change(job, State.UNKNOWN, at, reason, detail), None
            case Expired(detail):
                change = Change(State.EXPIRED, at, Reason.EXPIRED, job.delivery.epoch, job.attempt - 1, detail=detail)
                return change, None
            case _:  # pragma: no cover
                assert_never(outcome)

    def _change(
        self,
        job: Dispatch,
        state: State,
        at: datetime,
        reason: Reason,
        detail: str | None = None,
        duplicate: bool = False,
    ) -> Change:
        return Change(state, at, reason, job.delivery.epoch, job.attempt, self.provider.name, detail, duplicate)

    async def _settle(self, job: Dispatch, delivery: Delivery, changes: list[Change]) -> None:
        await self._follow_up(job.again(delivery))
        for change in changes:
            await self.queue.status(delivery, change)
        await self._told(delivery)

    async def _told(self, delivery: Delivery) -> None:
        if delivery.tell_at is not None:
            await self.deliveries.told(delivery)

    async def _follow_up(self, job: Dispatch) -> None:
        """Publish what the recorded state calls for. Publishing it twice is harmless: claims see to that."""
        delivery = job.delivery
        if delivery.state is State.RETRYING and delivery.due_at is not None:
            wait = delivery.due_at - self.overdue - delivery.updated_at
            await self.queue.retry(job, min(self.policy.tiers, key=lambda tier: abs(tier - wait)))
        elif delivery.state is State.FAILED:
            await self.queue.park(job, delivery.reason, delivery.detail or "")

    async def _not_claimed(self, job: Dispatch, redelivered: bool) -> NotClaimed:
        """Another consumer has this attempt, or had it and died: see that what follows does follow."""
        stored = await self.deliveries.get(job.delivery.id)
        if stored is None or stored.epoch != job.delivery.epoch or stored.attempt > job.attempt:
            return NotClaimed(job.delivery, "superseded")
        if stored.attempt == job.attempt or stored.state.final:
            if redelivered:
                await self._follow_up(replace(job, delivery=stored, attempt=stored.attempt + 1))
                await self.queue.status(stored, stored.last_change)
                await self._told(stored)
            return NotClaimed(stored, "decided")
        claims = await self.deliveries.claims([stored.claim_id(job.attempt)])
        for claim in claims.values():
            await self.deliveries.postpone(stored, claim.lease_until)
        return NotClaimed(stored, "claimed")


def _went_wrong(done: "asyncio.Future[EventData]") -> bool:
    return done.cancelled() or done.exception() is not None


def _context(event: EventData, delivery: Delivery) -> dict[str, Any]:
    about = {"id": event.id, "source": event.source, "type": event.type, "time": event.time.isoformat()}
    return {**event.data, "data": event.data, "event": about, "recipient": delivery.recipient}
