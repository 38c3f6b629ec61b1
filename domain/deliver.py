"""The use case of a channel's queue: claim → render → send → classify → record → settle."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from functools import partial
from random import Random
from typing import Any, assert_never

from domain.delivery import Change, Delivery
from domain.dispatch import Dispatch, EventData
from domain.failures import (
    DeliveryFailure,
    PermanentFailure,
    TransientFailure,
    UnknownOutcome,
    place_of,
    unsent_by_provider,
    was_unsent,
)
from domain.message import Accepted, Message, plain_reference
from domain.notification import INLINE
from domain.outcome import Expired, Failed, FailedOver, Hold, Outcome, Retry, Sent, Suppressed, Unknown
from domain.pool import NOBODY, Chosen, Member, Paused, Pool, Trying, Untaken
from domain.ports import Catalog, Claim, Deliveries, DispatchQueue, Events, Now, QueueFull, Renderer, TemplateError
from domain.retry import RetryPolicy
from domain.stored import read_event
from domain.suppression import (
    NOTHING_SUPPRESSED,
    Suppression,
    Suppressions,
    screen,
    screen_copies,
    suppress_refused,
    withdraw_refused,
)
from domain.text import told_over
from domain.token import unique_token
from domain.vocabulary import Channel, Reason, State

SEND_SHARE = 0.8
"""The part of a lease that a send may take; the rest is for recording it."""
HELD_SPREAD = timedelta(seconds=2)
"""Over which the deliveries that a paused provider holds up come back."""
EVENTS_KEPT = 16
"""Large events kept in memory for their deliveries: as many broadcasts as run at once, times at most 15 MiB."""


@dataclass(frozen=True, slots=True)
class Settled:
    """An attempt that was made and is on record; `provider` is empty where none takes the recipient."""

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
    """Nothing was attempted: the provider is paused, or used at its rate already, and the delivery is held."""

    delivery: Delivery
    provider: str


Result = Settled | NotClaimed | Late | HeldBack


@dataclass(frozen=True, slots=True)
class Made:
    """An attempt that was made, and is to be recorded: `changes` have led to `delivery`."""

    job: Dispatch
    provider: str
    outcome: Outcome
    seconds: float
    delivery: Delivery
    changes: Sequence[Change]

    @property
    def result(self) -> Settled:
        """What it is when it is on record."""
        return Settled(self.delivery, self.outcome, self.provider, self.seconds)


@dataclass(frozen=True, slots=True)
class Deliver:
    """Delivers over one channel.

    Returning means that the outcome is committed and what follows from it confirmed. At-least-once: a crash
    between send and record leaves a claim without outcome, which the sweeper finds when its lease runs out.

    Attributes:
        lease: how long a claim holds; longer than the slowest send.
        overdue: how long after it should have happened the sweeper looks after a queued or retrying delivery.
        pool: the channel's providers.
        on_failover: called with each attempt after which another provider takes over, within the same call.
        suppressions: the addresses that nothing is sent to.
        reading: large events that were read for their deliveries, the last few of them.
    """

    pool: Pool
    deliveries: Deliveries
    events: Events
    catalog: Catalog
    queue: DispatchQueue
    renderer: Renderer
    policy: RetryPolicy
    now: Now
    lease: timedelta
    overdue: timedelta
    rng: Random = field(default_factory=Random)
    on_failover: Callable[[Settled], None] = lambda _: None
    suppressions: Suppressions = NOTHING_SUPPRESSED
    reading: dict[str, "asyncio.Future[EventData]"] = field(default_factory=dict)

    async def __call__(
        self,
        job: Dispatch,
        *,
        redelivered: bool = False,
        waited: timedelta = timedelta(0),
        tried: frozenset[str] = NOBODY,
    ) -> Result:
        """Make one attempt, if a provider is used and the attempt can be claimed.

        `waited`: how long it has been in hand, among others of its message: a token is waited for that much less.
        `tried`: the names of the providers that have just been at fault.

        Where the provider turns out to be at fault, the next attempt is another's, at once. Should this process end in
        between, the delivery is `retrying`: it goes on when its message comes again, or is due.
        """
        member, result = await self._once(job, tried, redelivered, waited)
        if member is None or not isinstance(result, Settled) or not isinstance(result.outcome, FailedOver):
            return result
        return await self.by_another(job, result, tried | {member.name}, waited)

    async def by_another(
        self, job: Dispatch, result: Settled, tried: frozenset[str], waited: timedelta = timedelta(0)
    ) -> Result:
        """The next attempt of one whose provider was at fault, by another."""
        self.on_failover(result)
        return await self(job.again(result.delivery), waited=waited, tried=tried)

    async def _once(
        self, job: Dispatch, tried: frozenset[str], redelivered: bool, waited: timedelta
    ) -> tuple[Member | None, Result]:
        """One attempt with one provider, as soon as it is known which; those that were `tried` are passed over."""
        while True:
            choice = self.pool.choose(job.delivery.recipient, tried)
            match choice:
                case Chosen(member):
                    if (result := await self._through(choice, job, tried, redelivered, waited)) is not None:
                        return member, result
                case Trying(member):
                    await member.circuit.tried()
                case Paused(member, until):
                    return None, await self._hold_back(job, member, until, redelivered)
                case Untaken():
                    return None, await self._make(job, None, tried, redelivered)
                case _:  # pragma: no cover
                    assert_never(choice)

    async def _through(
        self, chosen: Chosen, job: Dispatch, tried: frozenset[str], redelivered: bool, waited: timedelta
    ) -> Result | None:
        """Make the attempt when its turn has come; None if the provider was paused meanwhile."""
        member = chosen.member
        with member.circuit.passing(chosen.passage):
            if (limiter := member.limiter) is None:
                return await self._make(job, member, tried, redelivered)
            if (until := await limiter.turn(job.delivery.lane, waited)) is not None:
                return await self._hold(job, member, Reason.RATE_LIMITED, limiter.told, until, redelivered)
            result = None if member.circuit.why is not None else await self._make(job, member, tried, redelivered)
        if result is None or _nothing_was_sent(result):
            limiter.unused()
        return result

    async def _hold_back(self, job: Dispatch, member: Member, until: datetime | None, redelivered: bool) -> Result:
        """Wait in the database for as long as the providers are left alone at least; no attempt is claimed."""
        why = f"{member.circuit.why or member.name}: {member.circuit.detail}"
        return await self._hold(job, member, Reason.PROVIDER_PAUSED, why, self._spread(until), redelivered)

    async def _hold(
        self, job: Dispatch, member: Member, reason: Reason, why: str, until: datetime, redelivered: bool
    ) -> Result:
        before = job.delivery
        change = replace(
            self._change(job, State.HELD, self.now(), reason, why, provider=member.name), attempt=before.attempt
        )
        held = before.changed(change, _in_time(before, until))
        if not await self.deliveries.record(held, before.attempt, [change]):
            return await self.not_claimed(job, redelivered)
        await self.queue.status(held, change)
        return HeldBack(held, member.name)

    async def _make(self, job: Dispatch, member: Member | None, tried: frozenset[str], redelivered: bool) -> Result:
        """Claim → render → send → classify → record → settle."""
        claim = self.claim_of(job, member.name if member else None)
        if not (await self._still_due(job) and await self.deliveries.claim(claim)):
            return await self.not_claimed(job, redelivered)
        started, provider = self.now(), claim.provider or ""
        outcome = await self._attempt(job, member, tried, started, self.deadline(claim))
        made = self.made(job, provider, outcome, started, self.now())
        recorded = await self.deliveries.record(made.delivery, job.attempt - 1, made.changes)
        return await self.settled(made, recorded=recorded)

    async def settled(self, made: Made, *, recorded: bool) -> Settled | Late:
        """See to what follows from an attempt that is on record, or tell that somebody else has decided meanwhile."""
        if not recorded:
            await self._note_late(made.delivery, made.changes[-1])
            return Late(made.delivery, made.outcome, made.provider)
        await self._settle(made.job, made.delivery, made.changes, made.outcome)
        return made.result

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

    def claim_of(self, job: Dispatch, provider: str | None = None) -> Claim:
        """What wins the attempt, from now on for as long as a lease."""
        now = self.now()
        return Claim(job.delivery.claim_id(job.attempt), unique_token(), now, now + self.lease, provider=provider)

    def deadline(self, claim: Claim) -> datetime:
        """Until when the attempt that it has won may send; the rest of the lease is for recording it."""
        return claim.claimed_at + self.lease * SEND_SHARE

    async def _attempt(
        self, job: Dispatch, member: Member | None, tried: frozenset[str], now: datetime, deadline: datetime
    ) -> Outcome:
        delivery = job.delivery
        try:
            suppression = await screen(self.suppressions, delivery)
        except Exception as error:  # noqa: BLE001 - told, and tried again: an attempt that is claimed has an outcome
            return self.tried_again(job, TransientFailure(Reason.INTERNAL_ERROR, place_of(error)))
        if (ruled_out := self.ruled_out(delivery, suppression, now)) is not None:
            return ruled_out
        if member is None:
            return Failed(Reason.NOT_CONFIGURED, self.pool.untaken(delivery.channel, delivery.recipient))
        try:
            message, answer = await self._send(job, member, deadline)
        except DeliveryFailure as failure:
            return await self.failed(job, member, tried, failure)
        return await self.sent(delivery, suppression, message, answer)

    def ruled_out(self, delivery: Delivery, suppression: Suppression | None, now: datetime) -> Outcome | None:
        """Why it is not sent although it is claimed; None: it is."""
        if delivery.expires_at is not None and delivery.expires_at <= now:
            return Expired(told_over(delivery.expires_at))
        if suppression is not None and suppression.stops(delivery):
            return Suppressed(suppression.told)
        return None

    def tried_again(self, job: Dispatch, failure: DeliveryFailure) -> Outcome:
        """What the policy makes of a failure."""
        return self.policy.next_attempt(job.attempt - job.delivery.forgiven, failure, self.now(), self.rng)

    async def sent(
        self, delivery: Delivery, suppression: Suppression | None, message: Message, answer: Accepted
    ) -> Outcome:
        """The provider has accepted it; `suppression`: of its address, which does not stop this delivery."""
        proven = await self._withdrawn(delivery) if may_have_suppressed(delivery, suppression) else ""
        return Sent(answer + _remarks(message) + proven, plain_reference(answer.reference), message.copies_suppressed)

    async def _withdrawn(self, delivery: Delivery) -> str:
        """What the delivery's own refusal has suppressed is used again, and that in words for people.

        Before it is recorded, so that a crash leaves no address suppressed that was reached. What was sent stays sent,
        whatever goes wrong here.
        """
        try:
            withdrawn = await withdraw_refused(self.suppressions, delivery)
        except Exception as error:  # noqa: BLE001
            return f"; whether its address stays suppressed is not known: {place_of(error)}"
        return "; its address is suppressed no more" if withdrawn else ""

    async def _note_late(self, delivery: Delivery, change: Change) -> None:
        """What came of the attempt, beside what was decided meanwhile.

        A refusal suppresses no address that another attempt has reached by then.
        """
        suppressed, withdrawn = change.address_suppressed, ""
        if suppressed:
            stored = await self.deliveries.get(delivery.id)
            if stored is not None and stored.state in (State.SENT, State.DELIVERED):
                withdrawn = await self._withdrawn(delivery)
        detail = f"after its lease: {change.detail}{withdrawn}"
        late = replace(change, detail=detail, address_suppressed=suppressed and not withdrawn)
        await self.deliveries.note(delivery.id, late, reference=delivery.reference)

    async def _heeded(self, failure: DeliveryFailure, delivery: Delivery, member: Member) -> DeliveryFailure:
        """The failure, its address suppressed before it is recorded, so that a crash loses none.

        Where that cannot be: one that is tried again, so that the provider refuses the address again.
        """
        if not (failure.suppress and isinstance(failure, PermanentFailure)):
            return failure
        try:
            await suppress_refused(self.suppressions, delivery, member.name, self.now())
        except Exception as error:  # noqa: BLE001 - told, and tried again
            return TransientFailure(Reason.INTERNAL_ERROR, place_of(error))
        return failure

    async def failed(self, job: Dispatch, member: Member, tried: frozenset[str], failure: DeliveryFailure) -> Outcome:
        """What follows from a failure: the policy's answer, unless the provider alone is to blame."""
        failure = await self._heeded(failure, job.delivery, member)
        forgiven, detail = job.delivery.forgiven, f"{failure.detail}; the attempt does not count"
        if self.pool.fails_over(failure, job.delivery.recipient, tried | {member.name}, forgiven):
            return FailedOver(failure.reason, detail)
        if member.circuit.forgives(failure, forgiven):
            return Hold(failure.reason, detail, self._spread(member.circuit.until), forgiven=True)
        return self.tried_again(job, failure)

    def _spread(self, asked_at: datetime | None) -> datetime:
        """When a provider has been asked; spread a little, so that it is not always the same delivery that tries."""
        return (asked_at or self.now()) + HELD_SPREAD * self.rng.random()

    async def _send(self, job: Dispatch, member: Member, deadline: datetime) -> tuple[Message, Accepted]:
        """Render and send within the lease, and tell the circuit how that went."""
        message: Message | None = None
        try:
            async with asyncio.timeout(self.left(deadline)):
                message = await self.render(job)
                self.left(deadline)
                answer = await self.handed_over(message, member)
        except TimeoutError as error:
            raise what_was_cut_off(error, message, member) from None
        return message, answer

    async def handed_over(self, message: Message, member: Member) -> Accepted:
        """Send, and tell the circuit how that went.

        Raises:
            DeliveryFailure: it went wrong, however that was.
        """
        try:
            answer = Accepted.of(await member.provider.send(message))
        except DeliveryFailure as failure:
            member.circuit.ended(failure)
            raise
        except Exception as error:
            raise UnknownOutcome(Reason.INTERNAL_ERROR, place_of(error)) from error
        member.circuit.ended(None)
        return answer

    def left(self, deadline: datetime) -> float:
        """Seconds of the lease that are left; claiming, or reading the event, may have waited for the database."""
        left = (deadline - self.now()).total_seconds()
        if left <= 0:
            raise TransientFailure(Reason.TIMEOUT, "the lease was over before anything was sent")
        return left

    async def render(self, job: Dispatch) -> Message:
        """The message, in the words of the version that the delivery pins.

        Raises:
            DeliveryFailure: it cannot be made, for good or for now.
        """
        try:
            return await self._message(job)
        except (DeliveryFailure, TimeoutError):
            raise
        except TemplateError as error:
            raise PermanentFailure(error.reason, str(error)) from None
        except Exception as error:
            raise TransientFailure(Reason.INTERNAL_ERROR, place_of(error)) from error

    async def _message(self, job: Dispatch) -> Message:
        delivery = job.delivery
        event = job.event or await self._event(delivery)
        content = await self._content(delivery, event)
        rendered = self.renderer.render(delivery.channel, content, event.context(delivery.recipient))
        rendered, left_out = await self._screened(rendered)
        return Message(
            delivery_id=delivery.id,
            idempotency_key=delivery.ref,
            channel=delivery.channel,
            recipient=delivery.recipient,
            content=rendered,
            created_at=delivery.created_at,
            attachments=event.attachments,
            event_key=delivery.event_key,
            copies_suppressed=left_out,
        )

    async def _screened(self, rendered: Mapping[str, str]) -> tuple[Mapping[str, str], int]:
        """A mail without the copies that are suppressed, and how many these were. Who gets one is known only now."""
        if not ("cc" in rendered or "bcc" in rendered):
            return rendered, 0
        unwanted = await screen_copies(self.suppressions, self.renderer.copies(rendered))
        return (self.renderer.without_copies(rendered, unwanted) if unwanted else rendered), len(unwanted)

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
        return notification.definition.contents[delivery.channel]

    def made(self, job: Dispatch, provider: str, outcome: Outcome, started: datetime, ended: datetime) -> Made:
        """The delivery and the changes that the attempt brought: that it was sending, and what came of it."""
        delivery, before = job.delivery, []
        if not isinstance(outcome, Expired | Suppressed):
            before.append(self._change(job, State.SENDING, started, Reason.CLAIMED, provider=provider))
        change, due_at = self._outcome_change(job, provider, outcome, ended)
        after = delivery.changed(change, due_at, before)
        if isinstance(outcome, FailedOver) or (isinstance(outcome, Hold) and outcome.forgiven):
            after = replace(after, forgiven=after.forgiven + 1)
        if isinstance(outcome, Failed):  # to be parked: by the sweeper, should this process end before it has done so
            after = replace(after, tell_at=ended + self.overdue)
        if isinstance(outcome, Sent) and outcome.reference != delivery.ref:  # that one names the delivery itself
            after = replace(after, reference=outcome.reference)
        return Made(job, provider, outcome, (ended - started).total_seconds(), after, [*before, change])

    def _outcome_change(
        self, job: Dispatch, provider: str, outcome: Outcome, at: datetime
    ) -> tuple[Change, datetime | None]:
        change = partial(self._change, job, at=at, provider=provider)
        match outcome:
            case Sent(detail):
                return change(State.SENT, reason=Reason.ACCEPTED, detail=detail), None
            case Retry(reason, detail, _, back, duplicate):
                return change(State.RETRYING, reason=reason, detail=detail, duplicate=duplicate), back + self.overdue
            case FailedOver(reason, detail):
                return change(State.RETRYING, reason=reason, detail=detail), at + self.overdue
            case Hold(reason, detail, until, duplicate):
                held = change(State.HELD, reason=reason, detail=detail, duplicate=duplicate)
                return held, _in_time(job.delivery, until)
            case Failed(reason, detail, duplicate, suppressed):
                failed = change(State.FAILED, reason=reason, detail=detail, duplicate=duplicate)
                return failed.suppressing() if suppressed else failed, None
            case Unknown(reason, detail):
                return change(State.UNKNOWN, reason=reason, detail=detail), None
            case Expired(detail):
                epoch, before = job.delivery.epoch, job.attempt - 1
                return Change(State.EXPIRED, at, Reason.EXPIRED, epoch, before, detail=detail), None
            case Suppressed(detail):
                epoch, before = job.delivery.epoch, job.attempt - 1
                return Change(State.SUPPRESSED, at, Reason.SUPPRESSED_ADDRESS, epoch, before, detail=detail), None
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
        *,
        provider: str,
    ) -> Change:
        return Change(state, at, reason, job.delivery.epoch, job.attempt, provider or None, detail, duplicate)

    async def _settle(self, job: Dispatch, delivery: Delivery, changes: Sequence[Change], outcome: Outcome) -> None:
        # what follows another provider's failure follows here, and not from a queue
        followed = isinstance(outcome, FailedOver) or await self._follow_up(job, delivery)
        for change in changes:  # nothing follows the last one, unless another provider does
            patient = change is changes[-1] and not isinstance(outcome, FailedOver)
            await self.queue.status(delivery, change, patient=patient)
        if followed:
            await self._told(delivery)

    async def _told(self, delivery: Delivery) -> None:
        if delivery.tell_at is not None:
            await self.deliveries.told(delivery)

    async def _follow_up(self, job: Dispatch, delivery: Delivery) -> bool:
        """Publish what the recorded state calls for; False where a queue is full, and the sweeper will.

        Publishing it twice is harmless: claims see to that.
        """
        try:
            if delivery.state is State.RETRYING and delivery.due_at is not None:
                wait = delivery.due_at - self.overdue - delivery.updated_at
                await self.queue.retry(job.again(delivery), min(self.policy.tiers, key=lambda tier: abs(tier - wait)))
            elif delivery.state is State.FAILED:
                await self.queue.park(job.again(delivery), delivery.reason, delivery.detail or "")
        except QueueFull:
            return False
        return True

    async def not_claimed(self, job: Dispatch, redelivered: bool) -> NotClaimed:
        """Another consumer has this attempt, or had it and died: see that what follows does follow."""
        stored = await self.deliveries.get(job.delivery.id)
        if stored is None or stored.epoch != job.delivery.epoch:
            return NotClaimed(job.delivery, "superseded")
        if stored.state.final or stored.attempt == job.attempt:  # the end may be a later attempt's: another provider's
            if redelivered:
                followed = await self._follow_up(job, stored)
                await self.queue.status(stored, stored.last_change)
                if followed:
                    await self._told(stored)
            return NotClaimed(stored, "decided")
        if stored.attempt > job.attempt:
            return NotClaimed(job.delivery, "superseded")
        claims = await self.deliveries.claims([stored.claim_id(job.attempt)])
        for claim in claims.values():
            await self.deliveries.postpone(stored, claim.lease_until)
        return NotClaimed(stored, "claimed")


def may_have_suppressed(delivery: Delivery, known: Suppression | None) -> bool:
    """Whether an earlier attempt of it may have suppressed its address, as far as known here or as another process."""
    return known is not None or delivery.epoch > 1 or delivery.possible_duplicate


def _in_time(delivery: Delivery, until: datetime) -> datetime:
    """When one that is held until then is looked at: not after its time is over, so that it expires when it does."""
    return min(until, delivery.expires_at or until)


def what_was_cut_off(cut_off: BaseException, message: Message | None, member: Member) -> DeliveryFailure:
    """What the end of the lease in the middle of a send means; there is no message where it was not rendered yet."""
    if message is None:
        return TransientFailure(Reason.TIMEOUT, "the event could not be read within the lease")
    if not was_unsent(cut_off):
        # neither a fault that counts nor an answer: one endpoint that hangs says nothing of the provider
        return UnknownOutcome(Reason.TIMEOUT, "no answer within the lease")
    at_fault = unsent_by_provider(cut_off)
    failure = TransientFailure(Reason.TIMEOUT, "nothing could be sent within the lease", provider_fault=at_fault)
    if at_fault:
        member.circuit.ended(failure)
    return failure


def _nothing_was_sent(result: Result) -> bool:
    """Whether the provider was not even asked."""
    return isinstance(result, NotClaimed) or (
        isinstance(result, Settled) and isinstance(result.outcome, Expired | Suppressed)
    )


def _remarks(message: Message) -> str:
    """What was left out of a mail that is sent all the same: copies, or the text that is made of long HTML."""
    number, content = message.copies_suppressed, message.content
    copies = f"; {number} cop{'ies' if number > 1 else 'y'} left out: suppressed" if number else ""
    textless = message.channel is Channel.EMAIL and "html" in content and "text" not in content
    return copies + ("; without a text part: the HTML is too large to make one of" if textless else "")


def _went_wrong(done: "asyncio.Future[EventData]") -> bool:
    return done.cancelled() or done.exception() is not None
