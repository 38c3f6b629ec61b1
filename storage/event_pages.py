"""Events as an operator looks through them: the newest first, in pages, those of one state."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from pymongo import DESCENDING

from domain.ports import StoredEvent
from domain.vocabulary import EventState
from storage.database import Database, Document
from storage.documents import read_event

STRETCH: Final = 20_000
"""Events whose keys are looked at in one query for those of a state: some 30 ms of the server's time."""
Place = tuple[datetime, str]
"""When an event was received, and its key: its place in the order."""
_NEWEST_FIRST: Final = {"received_at": DESCENDING, "_id": DESCENDING}
_KEYS: Final = {"$project": {"received_at": 1, "state": 1}}


@dataclass(frozen=True, slots=True)
class EventPage:
    """Some events, and how far the look for them went.

    Attributes:
        looked_until: the last one that was looked at, behind which the next page begins; None where there are no more.
    """

    events: Sequence[StoredEvent]
    looked_until: Place | None


async def event_page(database: Database, state: EventState | None, after: Place | None, limit: int) -> EventPage:
    """At most `limit` of the next `STRETCH` events, the newest first; without their bodies.

    From the keys of the index `received`, which hold the state: what is in another state costs a key and no document.
    A page may be empty and yet not the last: one of a rare state is looked for in bounded steps, between which the
    caller decides whether to go on.
    """
    size = limit if state is None else STRETCH
    looked = await _look(database, state, after, size)
    chosen = looked.found[:limit]
    cut_off = len(looked.found) > limit
    ends_at = chosen[-1] if cut_off else looked.last
    goes_on = cut_off or looked.keys == size
    return EventPage(await _events(database, [key for _, key in chosen]), ends_at if goes_on else None)


@dataclass(frozen=True, slots=True)
class _Looked:
    """What a look at the index found: the places of those that are wanted, the last that it came to, how many keys."""

    found: Sequence[Place] = ()
    last: Place | None = None
    keys: int = 0

    def and_then(self, other: "_Looked") -> "_Looked":
        return _Looked([*self.found, *other.found], other.last or self.last, self.keys + other.keys)


async def _look(database: Database, state: EventState | None, after: Place | None, size: int) -> _Looked:
    """Where a page goes on, two queries: what is of the same moment, then the rest; each from the keys alone."""
    aggregate = database.collection("events").aggregate
    looked = _Looked()
    for chosen in _beyond(after):
        if left := size - looked.keys:
            stages = [*chosen, {"$sort": _NEWEST_FIRST}, {"$limit": left}, _KEYS, _gathered(state)]
            found = await database.run(lambda stages=stages: aggregate(stages, hint="received").to_list(None))  # type: ignore[misc]
            looked = looked.and_then(_read(found[0])) if found else looked
    return looked


def _beyond(after: Place | None) -> Sequence[Sequence[Document]]:
    if after is None:
        return [[]]
    at, key = after
    return [[{"$match": {"received_at": at, "_id": {"$lt": key}}}], [{"$match": {"received_at": {"$lt": at}}}]]


def _gathered(state: EventState | None) -> Document:
    """One document: the keys of those in this state, the last key that was looked at, and how many were."""
    key = {"_id": "$_id", "received_at": "$received_at"}
    wanted: Any = key if state is None else {"$cond": [{"$eq": ["$state", str(state)]}, key, "$$REMOVE"]}
    return {"$group": {"_id": None, "found": {"$push": wanted}, "last": {"$last": key}, "keys": {"$sum": 1}}}


def _read(gathered: Document) -> _Looked:
    return _Looked([_place(each) for each in gathered["found"]], _place(gathered["last"]), gathered["keys"])


def _place(key: Document) -> Place:
    return key["received_at"], key["_id"]


async def _events(database: Database, keys: Sequence[str]) -> Sequence[StoredEvent]:
    """By primary keys, in their order; without one that has been deleted meanwhile."""
    query = database.collection("events").find({"_id": {"$in": list(keys)}}, {"body": 0})
    documents = await database.run(lambda: query.clone().to_list(None)) if keys else []
    found = {document["_id"]: read_event(document | {"body": b""}) for document in documents}
    return [found[key] for key in keys if key in found]
