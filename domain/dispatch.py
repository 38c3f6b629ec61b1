"""The work order that travels to a channel: a delivery and what its content is rendered with."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any

from pydantic_core import to_json

from domain.delivery import Delivery
from domain.event import Attachment, Event
from domain.vocabulary import Channel

INLINE_LIMIT = 16 * 1024
"""Bytes of data and content up to which they travel in each dispatch; larger ones are read from the database once."""
STALE_AFTER = timedelta(hours=12)
"""Age at which an order is not believed: a queue that nobody consumes, or a person with the management UI, can keep
one for ever, and by then its delivery may be final and the claims that tell of it deleted. A younger order needs no
look: its delivery was not final when it was written, and claims are kept for twice as long after the end
(`config.settings.RETENTION_LEAST`)."""


@dataclass(frozen=True, slots=True)
class EventData:
    """What templates see of an event."""

    key: str
    id: str
    source: str
    type: str
    time: datetime
    data: Mapping[str, Any] = field(repr=False)
    content: Mapping[Channel, Mapping[str, Any]] | None = field(default=None, repr=False)
    attachments: tuple[Attachment, ...] = field(default=(), repr=False)

    @staticmethod
    def of(event: Event) -> "EventData":
        """The part of an event that its deliveries need."""
        return EventData(
            event.key, event.id, event.source, event.type, event.time, event.data, event.content, event.attachments
        )

    def context(self, recipient: Mapping[str, Any]) -> dict[str, Any]:
        """The names that a template has for this recipient (`channels/given.py` knows their fields)."""
        about = {"id": self.id, "source": self.source, "type": self.type, "time": self.time.isoformat()}
        return {**self.data, "data": self.data, "event": about, "recipient": recipient}


@dataclass(frozen=True, slots=True)
class Dispatch:
    """Make attempt number `attempt` of this delivery.

    Attributes:
        event: None where it was too large to travel along; it is then read from the database.
    """

    delivery: Delivery
    attempt: int
    event: EventData | None

    def stale(self, now: datetime) -> bool:
        """Whether the delivery may have ended, and its claims been deleted, since this was written."""
        return now - self.delivery.updated_at >= STALE_AFTER

    def again(self, delivery: Delivery) -> "Dispatch":
        """The next attempt after what is now on record."""
        return replace(self, delivery=delivery, attempt=delivery.attempt + 1)


def travelling(event: Event) -> EventData | None:
    """The part of an event that travels with each of its deliveries; None where it is too large for that."""
    data = EventData.of(event)
    if len(event.body) <= INLINE_LIMIT:
        return data
    # many recipients make a large event, but not a large dispatch
    attached = sum(len(attachment.content or b"") for attachment in data.attachments)
    small = attached + len(to_json([data.data, data.content])) <= INLINE_LIMIT
    return data if small else None


def dispatch_of(delivery: Delivery, event: EventData | None) -> Dispatch:
    """The order for the delivery's next attempt."""
    return Dispatch(delivery, delivery.attempt + 1, event)
