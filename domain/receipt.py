"""The use case of the receipts queue: what a provider says later of a message that it had taken.

A receipt refines a delivery that is `sent` to `delivered` or `bounced`, and feeds the suppression list. Receipts come
late, twice, out of order and before their `sent` is recorded; each of these ends in the same state as good order does.
"""

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated, Self

from pydantic import AwareDatetime, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from domain.delivery import Change, Delivery
from domain.message import plain_reference
from domain.ports import Deliveries, DispatchQueue, Now
from domain.suppression import (
    SOFT_BOUNCES,
    Suppressions,
    addresses_of,
    keys_of,
    normalised,
    suppress,
)
from domain.text import SingleLine, single_line
from domain.vocabulary import Channel, Reason, State, SuppressionReason

TRIES = 5
"""How often a receipt is decided again because somebody else moved the delivery at the same moment."""
_DELIVERY = re.compile(r"([0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12})(?:[/._](\d{1,9}))?")


class Status(StrEnum):
    """What a receipt says."""

    DELIVERED = "delivered"
    """It has arrived."""
    BOUNCED = "bounced"
    """It has not, and to this address nothing ever will: suppressed at once."""
    SOFT_BOUNCED = "soft_bounced"
    """It has not, and the provider has given up; a later message may. Five in a row, and the address is suppressed."""
    FAILED = "failed"
    """It has not, for a reason that says nothing of the address: its content, the network, a policy."""
    COMPLAINED = "complained"
    """It has arrived, and was called spam: suppressed at once."""
    UNSUBSCRIBED = "unsubscribed"
    """It has arrived, and the recipient wants no more: suppressed at once."""
    PROGRESS = "progress"
    """Nothing that decides anything: taken, deferred, opened, clicked. Nothing is recorded."""


@dataclass(frozen=True, slots=True)
class _Said:
    """What follows from a status."""

    state: State
    reason: Reason
    suppresses: SuppressionReason | None = None


_SAID: Mapping[Status, _Said] = {
    Status.DELIVERED: _Said(State.DELIVERED, Reason.DELIVERED),
    Status.BOUNCED: _Said(State.BOUNCED, Reason.HARD_BOUNCE, SuppressionReason.HARD_BOUNCE),
    Status.SOFT_BOUNCED: _Said(State.BOUNCED, Reason.SOFT_BOUNCE),
    Status.FAILED: _Said(State.BOUNCED, Reason.NOT_DELIVERED),
    Status.COMPLAINED: _Said(State.DELIVERED, Reason.COMPLAINED, SuppressionReason.COMPLAINT),
    Status.UNSUBSCRIBED: _Said(State.DELIVERED, Reason.UNSUBSCRIBED, SuppressionReason.UNSUBSCRIBED),
}
_REFINES: Mapping[State, Collection[State]] = {
    State.SENT: {State.DELIVERED, State.BOUNCED},
    State.UNKNOWN: {State.DELIVERED, State.BOUNCED},
    State.DELIVERED: {State.BOUNCED},  # a mailbox's own server may give up after it has taken the message
    State.FAILED: {State.DELIVERED},  # an attempt of unknown outcome had arrived after all: not to be replayed
}
"""Which states a receipt may lead to, from which. What leads nowhere is noted in the history alone."""


class Receipt(BaseModel):
    """One receipt, whatever provider it came from.

    Attributes:
        delivery: the delivery's id, also as `<id>/<epoch>`, or as providers take it as `<id>_<epoch>`.
        provider: the kind or the name of the provider that `reference` belongs to.
        reference: what the provider called the message when it took it.
        time: when it happened, by the provider's clock.
        code: the provider's own, or an SMTP status.
        detail: the provider's words; an address in them is taken out.
        recipient: the address that it is about. One that is not the delivery's (a copy's) changes nothing.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    delivery: Annotated[SingleLine, Field(min_length=1, max_length=100)] | None = None
    provider: Annotated[SingleLine, Field(min_length=1, max_length=64)] | None = None
    reference: Annotated[SingleLine, Field(min_length=1, max_length=500)] | None = None
    status: Status
    time: AwareDatetime | None = None
    code: Annotated[str, BeforeValidator(str), Field(max_length=64)] | None = None
    detail: Annotated[str, Field(max_length=2000)] | None = None
    recipient: Annotated[str | None, Field(max_length=4096)] = Field(default=None, repr=False)

    @model_validator(mode="after")
    def _about_something(self) -> Self:
        if self.delivery is None and self.reference is None:
            raise ValueError("needs delivery, or provider and reference")
        if self.delivery is None and self.provider is None and _named(self.reference) is None:
            raise ValueError("needs the provider that reference belongs to")
        if self.code is not None:
            single_line(self.code)
        return self

    @property
    def about(self) -> tuple[str, int | None] | None:
        """The delivery's id and epoch, where it names them: a mail server's reference is `<delivery>/<epoch>`."""
        return _named(self.delivery) or _named(plain_reference(self.reference))

    @property
    def told(self) -> str | None:
        """Code, words and time in a line."""
        at = f"at {self.time.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}" if self.time else ""
        return " ".join(filter(None, (self.code, self.detail, at))) or None


def _named(text: str | None) -> tuple[str, int | None] | None:
    match = _DELIVERY.fullmatch(text.strip() if text else "")
    return (match[1], int(match[2]) if match[2] else None) if match else None


# ---------------------------------------------------------------------------------------------------------------
# What became of a receipt
# ---------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Refined:
    """The delivery has another state now; or the same, and something new is on record of it (`noted`).

    Attributes:
        suppressed: why its address has been suppressed by this, if it has.
    """

    delivery: Delivery
    change: Change
    suppressed: SuppressionReason | None
    noted: bool


@dataclass(frozen=True, slots=True)
class Ignored:
    """Nothing follows from it: it says nothing final, was known already, or is about another address."""

    why: str


@dataclass(frozen=True, slots=True)
class NotYet:
    """It came before what it is about: the attempt is not on record, or no such reference is. It may be, soon."""

    reason: Reason
    detail: str


@dataclass(frozen=True, slots=True)
class Unmatched:
    """It is about nothing that is stored here, and never will be."""

    reason: Reason
    detail: str


Verdict = Refined | Ignored | NotYet | Unmatched


@dataclass(frozen=True, slots=True)
class Refine:
    """Takes receipts.

    Returning means that what follows is committed and told. The address is suppressed before the delivery is changed,
    so that a crash in between leaves a receipt that is handed out again and finds the rest to be done.

    Attributes:
        names: the names of the providers that a kind or a name in a receipt may mean.
    """

    deliveries: Deliveries
    suppressions: Suppressions
    queue: DispatchQueue
    now: Now
    names: Callable[[str], Collection[str]]

    async def __call__(self, receipt: Receipt, *, redelivered: bool = False) -> Verdict:
        """Find → decide → suppress → record → tell."""
        if receipt.status is Status.PROGRESS:
            return Ignored("progress")
        for _ in range(TRIES):
            delivery = await self._find(receipt)
            if not isinstance(delivery, Delivery):
                return delivery
            if (early := _too_early(delivery)) is not None:
                await self._suppressed_early(delivery, receipt)
                return early
            verdict = await self._decided(delivery, receipt, redelivered)
            if verdict is not None:
                return verdict
        return NotYet(Reason.NOT_SENT, "the delivery is being changed at this moment")

    async def _find(self, receipt: Receipt) -> Delivery | NotYet | Unmatched:
        if receipt.about is not None:
            found = await self.deliveries.get(receipt.about[0])
            return found or Unmatched(Reason.UNKNOWN_DELIVERY, "no such delivery is stored")
        reference = plain_reference(receipt.reference)
        if reference is None or receipt.provider is None:
            return Unmatched(Reason.UNKNOWN_DELIVERY, "delivery is not the id of one")
        found = await self.deliveries.by_reference(reference, self.names(receipt.provider))
        return found or NotYet(Reason.UNKNOWN_DELIVERY, "no delivery has this provider's reference")

    async def _decided(self, delivery: Delivery, receipt: Receipt, redelivered: bool) -> Verdict | None:
        """What follows; None: somebody else has moved the delivery meanwhile."""
        if not _concerns(delivery, receipt):
            return Ignored("other_recipient")
        epoch = _epoch(delivery, receipt)
        change = _change(delivery, receipt, epoch, self.now())
        if (known := _known(delivery, change)) is not None:
            if redelivered and known.state is delivery.state:  # whoever had it may have ended before it told of it
                await self.queue.status(delivery, known)
            return Ignored("repeated")
        suppressed = await self._address(delivery, receipt)
        change = change.suppressing() if suppressed else change
        if epoch == delivery.epoch and change.state in _REFINES.get(delivery.state, ()):
            return await self._refined(delivery, change, suppressed)
        if not await self.deliveries.note(delivery.id, change, once=True):
            return Ignored("repeated")
        if change.state is delivery.state:
            await self.queue.status(delivery, change)
        return Refined(delivery, change, suppressed, noted=True)

    async def _refined(
        self, delivery: Delivery, change: Change, suppressed: SuppressionReason | None
    ) -> Refined | None:
        after = delivery.changed(change, None)
        if not await self.deliveries.refine(delivery, after, change):
            return None
        await self.queue.status(after, change)
        return Refined(after, change, suppressed, noted=False)

    async def _suppressed_early(self, delivery: Delivery, receipt: Receipt) -> None:
        """What is said of the address does not wait for the delivery. Said again when it is final, it does nothing."""
        if _SAID[receipt.status].suppresses is not None and _concerns(delivery, receipt):
            await self._address(delivery, receipt)

    async def _address(self, delivery: Delivery, receipt: Receipt) -> SuppressionReason | None:
        """Why its address is suppressed from now on; None if it is not."""
        reason = _SAID[receipt.status].suppresses
        if receipt.status is Status.SOFT_BOUNCED:
            counts = [await self.suppressions.soft_bounced(key, delivery.ref) for key in keys_of(delivery)]
            reason = SuppressionReason.SOFT_BOUNCES if max(counts, default=0) >= SOFT_BOUNCES else None
        elif receipt.status is Status.DELIVERED:
            for key in keys_of(delivery):
                await self.suppressions.forget_soft_bounces(key)
        if reason is not None:
            source = f"receipt:{delivery.provider or receipt.provider or 'unknown'}"
            await suppress(self.suppressions, delivery, reason, source, self.now())
        return reason


def _too_early(delivery: Delivery) -> NotYet | None:
    if delivery.state.final:
        return None
    return NotYet(Reason.NOT_SENT, f"the delivery is {delivery.state}: its sending is not on record yet")


def _concerns(delivery: Delivery, receipt: Receipt) -> bool:
    """Whether it is about the delivery's own address, where it says which: a copy has an address of its own."""
    if receipt.recipient is None:
        return True
    own = {_compared(delivery.channel, each) for each in addresses_of(delivery.channel, delivery.recipient)}
    return _compared(delivery.channel, receipt.recipient) in own


def _compared(channel: Channel, address: str) -> str:
    """Of a phone number its digits: providers leave out the + of E.164, or write it with spaces."""
    if channel is Channel.SMS:
        return "".join(filter(str.isdecimal, address))
    return normalised(channel, address)


def _epoch(delivery: Delivery, receipt: Receipt) -> int:
    """The epoch that it is about: the one that it names, else the present one.

    After a replay, a receipt without an epoch and with another reference than the present epoch's is one of before.
    """
    named = (receipt.about or ("", None))[1]
    if named is not None:
        return named
    own, told = delivery.reference, plain_reference(receipt.reference)
    before = delivery.epoch > 1 and own is not None and told is not None and own != told
    return delivery.epoch - 1 if before else delivery.epoch


def _change(delivery: Delivery, receipt: Receipt, epoch: int, now: datetime) -> Change:
    said = _SAID[receipt.status]
    attempt = delivery.attempt if epoch == delivery.epoch else 0
    return Change(said.state, now, said.reason, epoch, attempt, delivery.provider, receipt.told)


def _known(delivery: Delivery, change: Change) -> Change | None:
    """The same change where it is on record already. A delivery that is delivered need not be told so again."""
    same = (change.state, change.reason, change.epoch)
    for each in delivery.history:
        if (each.state, each.reason, each.epoch) == same:
            return each
    plain = change.reason is Reason.DELIVERED and change.epoch == delivery.epoch
    return delivery.last_change if plain and delivery.state is State.DELIVERED else None
