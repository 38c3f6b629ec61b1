"""One delivery: one event × notification × recipient × channel, and every change that it went through."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from domain.identity import named_uuid
from domain.text import detail_text
from domain.vocabulary import IN_FLIGHT, Channel, Lane, Reason, State


@dataclass(frozen=True, slots=True)
class Change:
    """One change of state, as it stands in a delivery's history and is published to `notipy.status`.

    Attributes:
        attempt: the attempt that it belongs to; 0 where none was made.
        detail: for people; never an address or content.
        address_suppressed: nothing more is sent to the delivery's address, because of this change.
    """

    state: State
    at: datetime
    reason: Reason
    epoch: int
    attempt: int
    provider: str | None = None
    detail: str | None = None
    possible_duplicate: bool = False
    address_suppressed: bool = False

    def __post_init__(self) -> None:
        """Whatever the detail was made of, it can be stored."""
        if self.detail is not None:
            object.__setattr__(self, "detail", detail_text(self.detail))

    def suppressing(self) -> "Change":
        """The same, and it has cost the address its use."""
        return replace(self, address_suppressed=True)

    def document(self) -> dict[str, Any]:
        """The change as a flat record, without what is unset."""
        record = {
            "state": str(self.state),
            "at": self.at,
            "reason": str(self.reason),
            "epoch": self.epoch,
            "attempt": self.attempt,
            "provider": self.provider,
            "detail": self.detail,
            "possible_duplicate": self.possible_duplicate or None,
            "address_suppressed": self.address_suppressed or None,
        }
        return {name: value for name, value in record.items() if value is not None}


@dataclass(frozen=True, slots=True)
class Delivery:
    """What must reach one recipient over one channel, and where that stands.

    Attributes:
        id: a UUIDv5 of event, notification, recipient and channel: planning twice plans the same delivery.
        event_key: the event in the database; `event_id` is the producer's.
        epoch: 1, and one more with each replay; attempts are counted within it.
        attempt: the last attempt of this epoch whose outcome is on record; 0 before the first.
        forgiven: how many of this epoch's attempts do not count, because a provider was at fault: paused, or followed.
        due_at: when the sweeper looks after it, if nobody has by then; None once final.
        tell_at: when the sweeper tells of the final state, if whoever recorded it has not been able to; None once told.
        send_at: when the event wanted it to be sent, where that was later than its planning.
        possible_duplicate: an attempt with unknown outcome was followed by another.
        reference: what `provider` called the message when it took it; None where that is `ref` or nothing.
    """

    id: str
    event_key: str
    event_id: str
    source: str
    type: str
    notification: str
    version: int
    channel: Channel
    lane: Lane
    recipient: Mapping[str, Any]
    recipient_key: str
    state: State
    reason: Reason
    created_at: datetime
    updated_at: datetime
    epoch: int = 1
    attempt: int = 0
    forgiven: int = 0
    detail: str | None = None
    provider: str | None = None
    due_at: datetime | None = None
    tell_at: datetime | None = None
    expires_at: datetime | None = None
    possible_duplicate: bool = False
    reference: str | None = None
    history: tuple[Change, ...] = ()
    send_at: datetime | None = None

    @property
    def ref(self) -> str:
        """What a provider takes as the idempotency key: the same for every attempt of an epoch."""
        return f"{self.id}/{self.epoch}"

    @property
    def wanted_at(self) -> datetime:
        """From when on nothing but NotiPy and its providers kept it from being sent."""
        return max(self.created_at, self.send_at or self.created_at)

    @property
    def last_change(self) -> Change:
        """The one that led to its present state; a late outcome may have been noted after it."""
        return next((each for each in reversed(self.history) if each.state is self.state), self.history[-1])

    def claim_id(self, attempt: int) -> str:
        """The unique id under which an attempt of this epoch is claimed."""
        return f"{self.id}/{self.epoch}/{attempt}"

    def changed(self, change: Change, due_at: datetime | None, before: Sequence[Change] = ()) -> "Delivery":
        """The delivery after the change; `due_at` is for states that are not final.

        `before`: changes that it went through on the way, and that are over.
        """
        if change.state in IN_FLIGHT and due_at is None:
            raise ValueError(f"a delivery that is {change.state} needs a time at which it is looked after")
        return replace(
            self,
            state=change.state,
            reason=change.reason,
            detail=change.detail,
            epoch=change.epoch,
            attempt=change.attempt,
            provider=change.provider or self.provider,
            forgiven=self.forgiven if change.epoch == self.epoch else 0,
            reference=self.reference if change.epoch == self.epoch else None,
            due_at=due_at,
            tell_at=None,
            updated_at=change.at,
            possible_duplicate=self.possible_duplicate or change.possible_duplicate,
            history=(*self.history, *before, change),
        )


def delivery_id(event_key: str, notification: str, recipient: str, channel: Channel) -> str:
    """The id that every planning of the same delivery comes to; `recipient` is who it is and where."""
    return named_uuid(f"{event_key}\n{notification}\n{recipient}\n{channel}")
