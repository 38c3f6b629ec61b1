"""How events, deliveries and claims stand in MongoDB."""

from collections.abc import Callable, Mapping
from dataclasses import fields
from operator import attrgetter
from typing import Any, TypeVar

from domain.delivery import Change, Delivery
from domain.ports import Claim, Purpose, StoredEvent, Unreadable
from domain.vocabulary import Channel, EventState, Lane, Reason, State

Document = dict[str, Any]
T = TypeVar("T")
WHY_LENGTH = 200
"""Characters of what is wrong with a document."""
_ENUMS: Mapping[str, type[Any]] = {"channel": Channel, "lane": Lane, "state": State, "reason": Reason}
_FIELDS = tuple(field.name for field in fields(Delivery) if field.name not in {"id", "history"})
_values = attrgetter(*_FIELDS)
_CHANGE_FIELDS = frozenset(field.name for field in fields(Change))


class CannotRead(Exception):
    """A stored delivery that this version cannot read: a newer one has written it, or a hand has changed it."""

    def __init__(self, delivery_id: str, why: str) -> None:
        super().__init__(f"delivery {delivery_id} cannot be read: {why}")
        self.delivery_id, self.why = delivery_id, why


def delivery_document(delivery: Delivery) -> Document:
    """A delivery as it is inserted; unset fields are left out, so that `due_at` exists only where something is due."""
    values = zip(_FIELDS, _values(delivery), strict=True)
    document = {name: value for name, value in values if value is not None}
    for name in _ENUMS:
        document[name] = str(document[name])
    document["_id"], document["history"] = delivery.id, [change.document() for change in delivery.history]
    return document


def read_delivery(document: Mapping[str, Any]) -> Delivery:
    """The delivery of a document."""
    values = {name: _typed(name, document[name]) for name in _FIELDS if name in document}
    return Delivery(id=document["_id"], **values, history=tuple(read_change(c) for c in document.get("history", ())))


def delivery_of(document: Mapping[str, Any]) -> Delivery:
    """As `read_delivery`, where anybody may have written anything.

    Raises:
        CannotRead: it cannot be read.
    """
    try:
        return read_delivery(document)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CannotRead(document["_id"], _told(error)) from error


def read_change(document: Mapping[str, Any]) -> Change:
    """One entry of a delivery's history."""
    return Change(**{name: _typed(name, value) for name, value in document.items() if name in _CHANGE_FIELDS})


def event_document(event: StoredEvent) -> Document:
    """An event as it is inserted, its body as received."""
    return {
        "_id": event.key,
        "id": event.id,
        "source": event.source,
        "type": event.type,
        "time": event.time,
        "received_at": event.received_at,
        "state": str(event.state),
        "plan": [[name, version] for name, version in event.plan],
        "planned": event.planned,
        "token": event.token,
        "resumed": event.resumed,
        "body": event.body,
    }


def read_event(document: Mapping[str, Any]) -> StoredEvent:
    """The event of a document."""
    return StoredEvent(
        key=document["_id"],
        body=bytes(document["body"]),
        id=document["id"],
        source=document["source"],
        type=document["type"],
        time=document["time"],
        received_at=document["received_at"],
        state=EventState(document["state"]),
        plan=tuple((name, version) for name, version in document["plan"]),
        planned=document["planned"],
        token=document["token"],
        resumed=document.get("resumed", 0),
    )


def claim_document(claim: Claim) -> Document:
    """A claim as it is inserted: its id is what only one can win."""
    document = {
        "_id": claim.id,
        "token": claim.token,
        "claimed_at": claim.claimed_at,
        "lease_until": claim.lease_until,
        "purpose": str(claim.purpose),
    }
    if claim.provider is not None:
        document["provider"] = claim.provider
    return document


def read_claim(document: Mapping[str, Any]) -> Claim:
    """The claim of a document."""
    purpose = Purpose(document.get("purpose", Purpose.SEND))
    lease = document["claimed_at"], document["lease_until"]
    return Claim(document["_id"], document["token"], *lease, purpose, document.get("provider"))


def readable(
    document: Mapping[str, Any], read: Callable[[Mapping[str, Any]], T], used: Mapping[str, type], due: str
) -> T | Unreadable:
    """What is read; or what is wrong with it, which concerns nothing but itself: anybody may have written anything.

    `used`: the types of what is counted and compared. `due`: the field that says when it is looked after.
    """
    try:
        value = read(document)
        for name, kind in used.items():
            if not isinstance(getattr(value, name), kind):
                raise TypeError(f"{name} is not of the type {kind.__name__}")
    except Exception as error:  # noqa: BLE001 - told by whoever asked
        return Unreadable(document["_id"], _told(error), **{due: document[due]})
    return value


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:WHY_LENGTH]


def _typed(name: str, value: Any) -> Any:
    return _ENUMS[name](value) if name in _ENUMS else value
