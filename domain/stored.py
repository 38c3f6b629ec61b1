"""Reading an event back from the database."""

from domain.event import Event, Incoming, parse_event
from domain.ports import StoredEvent


def as_received(stored: StoredEvent) -> Incoming:
    """The message that the event was accepted from."""
    return Incoming(
        body=stored.body,
        source=stored.source,
        type=stored.type,
        message_id=stored.id,
        timestamp=stored.time,
    )


def read_event(stored: StoredEvent) -> Event:
    """The event as it was accepted: what its message left out comes from the stored fields."""
    return parse_event(as_received(stored), stored.received_at, max_bytes=len(stored.body))
