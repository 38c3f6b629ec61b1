"""What an operator or a service does to deliveries: replay, drop, cancel."""

import asyncio
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Final

from domain.delivery import Change, Delivery
from domain.dispatch import EventData, dispatch_of, travelling
from domain.notification import INLINE
from domain.ports import Catalog, Claim, Deliveries, DispatchQueue, Events, Now, Purpose, QueueFull
from domain.stored import read_event
from domain.suppression import NOTHING_SUPPRESSED, Suppressions, screen
from domain.token import unique_token
from domain.vocabulary import REPLAYABLE, Reason, State

KEPT = 8
"""Events kept while their deliveries are replayed: thousands of dead deliveries are often of a few events."""


@dataclass(frozen=True, slots=True)
class Refused:
    """It could not be done; `why` is for a person."""

    why: str


@dataclass(frozen=True, slots=True)
class Operate:
    """Operators' actions. Each is idempotent: of two operators at once, one does it and the other is told so."""

    deliveries: Deliveries
    events: Events
    queue: DispatchQueue
    now: Now
    overdue: timedelta
    lease: timedelta
    catalog: Catalog
    suppressions: Suppressions = NOTHING_SUPPRESSED
    _reading: dict[str, "asyncio.Task[EventData | Refused | None]"] = field(default_factory=dict, repr=False)

    async def replay(self, delivery: Delivery) -> Delivery | Refused:
        """Start a new epoch of a failed delivery: its attempts are counted anew, its provider's idempotency key is new.

        One whose address is suppressed is left as it is, but for the one whose refusal has suppressed it: where it is
        sent, that was wrong, and the address is used again. What failed over its template would fail again: it is told
        in the words of the version that is in force now. A crash between the database and the queue leaves a queued
        delivery that the sweeper dispatches.
        """
        if isinstance(replayable := await self.replayable(delivery), Refused):
            return replayable
        event = await self._event(delivery.event_key)
        if isinstance(event, Refused):
            return event
        now = self.now()
        maybe_sent = delivery.state is State.UNKNOWN
        corrected = replayable.version != delivery.version
        detail = f"with version {replayable.version} of {delivery.notification}, in force now" if corrected else None
        change = Change(
            State.QUEUED, now, Reason.REPLAYED, delivery.epoch + 1, 0, detail=detail, possible_duplicate=maybe_sent
        )
        after = replayable.changed(change, now + self.overdue)
        if not await self.deliveries.reopen(delivery, after, change):
            return Refused("somebody else has just replayed or dropped it")
        with suppress(QueueFull):  # it is due
            await self.queue.dispatch(dispatch_of(after, event))
        await self.queue.status(after, change)
        return after

    async def replayable(self, delivery: Delivery) -> Delivery | Refused:
        """The delivery with the version of its notification that a replay takes; or why it would not be replayed."""
        if delivery.state not in REPLAYABLE:
            return Refused(f"it is {delivery.state}; only {' and '.join(REPLAYABLE)} ones are replayed")
        if delivery.attempt == 0 and delivery.reason in _IN_THE_EVENT:
            return Refused(_IN_THE_EVENT[delivery.reason])
        if delivery.reason is Reason.TEMPLATE_ERROR and delivery.notification == INLINE:
            return Refused(f"its event's own content cannot be rendered{_CORRECTED}")
        suppression = await screen(self.suppressions, delivery)
        if suppression is not None and suppression.stops(delivery):
            return Refused(_ANOTHERS if suppression.delivery else _SUPPRESSED)
        return self._corrected(delivery) if delivery.reason in IN_THE_WORDS else delivery

    def _corrected(self, delivery: Delivery) -> Delivery:
        """With the version of its notification that is in force, if that is told over its channel."""
        for notification in self.catalog.matching(f"{delivery.source}.{delivery.type}"):
            if notification.name == delivery.notification and delivery.channel in notification.definition.channels:
                return replace(delivery, version=notification.version)
        return delivery

    async def drop(self, delivery: Delivery) -> Delivery | Refused:
        """Give a failed delivery up: it ends `cancelled`, reason `dropped`, and is replayed no more."""
        if delivery.state not in REPLAYABLE:
            return Refused(f"it is {delivery.state}; only {' and '.join(REPLAYABLE)} ones are dropped")
        change = Change(State.CANCELLED, self.now(), Reason.DROPPED, delivery.epoch, delivery.attempt)
        after = self._final(delivery, change)
        if not await self.deliveries.reopen(delivery, after, change):
            return Refused("somebody else has just replayed or dropped it")
        return await self._tell(after, change)

    async def cancel(self, delivery_id: str) -> Delivery | Refused:
        """Stop a delivery that is not being sent, by winning its next attempt before a consumer does."""
        delivery = await self.deliveries.get(delivery_id)
        if delivery is None:
            return Refused("there is no such delivery")
        if delivery.state.final:
            return Refused(f"it is {delivery.state} already")
        now = self.now()
        claim = Claim(delivery.claim_id(delivery.attempt + 1), unique_token(), now, now + self.lease, Purpose.CANCEL)
        if not await self.deliveries.claim(claim):
            return Refused("it is being sent at this moment")
        change = Change(State.CANCELLED, now, Reason.CANCELLED, delivery.epoch, delivery.attempt)
        after = self._final(delivery, change)
        if not await self.deliveries.record(after, delivery.attempt, [change]):
            return Refused("it has just been decided otherwise")
        return await self._tell(after, change)

    async def poisoned(self, delivery_id: str) -> Delivery | Refused:
        """Give up a delivery whose work order ends its consumer; the order itself has been parked."""
        delivery = await self.deliveries.get(delivery_id)
        if delivery is None or delivery.state.final:
            return Refused("there is no such delivery, or it is final")
        claimed = await self.deliveries.claims([delivery.claim_id(delivery.attempt + 1)])
        change = Change(
            State.FAILED,
            self.now(),
            Reason.POISON,
            delivery.epoch,
            delivery.attempt,
            detail="its work order ended the process that took it, again and again",
            possible_duplicate=bool(claimed),  # it may have been sent before the process ended
        )
        after = self._final(delivery, change)
        if not await self.deliveries.record(after, delivery.attempt, [change]):
            return Refused("it has just been decided otherwise")
        return await self._tell(after, change)

    def _final(self, delivery: Delivery, change: Change) -> Delivery:
        """Told by the sweeper, should this process end before it has done so."""
        return replace(delivery.changed(change, None), tell_at=change.at + self.overdue)

    async def _tell(self, delivery: Delivery, change: Change) -> Delivery:
        await self.queue.status(delivery, change)
        await self.deliveries.told(delivery)
        return replace(delivery, tell_at=None)

    async def _event(self, key: str) -> EventData | Refused | None:
        """What travels of an event: read once for all of its deliveries that are replayed one after the other."""
        reading = self._reading.get(key)
        if reading is None:
            reading = self._reading[key] = asyncio.create_task(self._read(key))
            reading.add_done_callback(lambda task: None if _usable(task) else self._forget(key))
            if len(self._reading) > KEPT:
                self._forget(next(iter(self._reading)))
        return await asyncio.shield(reading)

    async def _read(self, key: str) -> EventData | Refused | None:
        stored = await self.events.get(key)
        if stored is None:
            return Refused("its event is no longer stored")
        return travelling(await asyncio.to_thread(read_event, stored))

    def _forget(self, key: str) -> None:
        self._reading.pop(key, None)


IN_THE_WORDS: Final = frozenset({Reason.TEMPLATE_ERROR, Reason.MESSAGE_TOO_LARGE})
"""Why it failed: the same words of the same event fail again."""
_CORRECTED: Final = "; publish it again, corrected and under another id"
_IN_THE_EVENT: Final = {
    Reason.DATA_INVALID: f"its event's data is not what the notification asks for{_CORRECTED}",
    Reason.BAD_ADDRESS: f"its event names no address that can be used{_CORRECTED}",
    Reason.ATTACHMENT_REJECTED: f"its event has not the attachments that the notification asks for{_CORRECTED}",
}
"""Why it failed as it was planned, before any attempt: neither the event nor the notification's version changes."""
_SUPPRESSED: Final = "its address is suppressed: remove it from the suppression list first"
_ANOTHERS: Final = (
    "its address is suppressed because another delivery to it was refused: replay that one and see it sent, "
    "or remove the address from the suppression list"
)


def _usable(task: "asyncio.Task[EventData | Refused | None]") -> bool:
    return not task.cancelled() and task.exception() is None and not isinstance(task.result(), Refused)
