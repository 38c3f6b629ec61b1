"""The accepted events."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from pymongo import ASCENDING, UpdateMany, WriteConcern

from domain.delivery import Delivery
from domain.group_commit import GroupCommit, enough
from domain.ports import StoredEvent, Unreadable
from domain.vocabulary import EventState
from storage.database import Database, Document
from storage.documents import delivery_document, event_document, read_event, readable
from storage.writes import UNWRITABLE, Update, insert, insert_all, insert_own, update_all, write_all

SETTLE_LINGER = 0.05
"""Seconds that the end of an event's planning waits for others': its deliveries are on their way already, and each
write that is saved is one that a delivery does not queue behind. The prefetch of events lasts for far longer."""

FEW = 20
"""Deliveries of an event that is stored together with others; one of more would hold them up."""

_USED = {"key": str, "resumed": int, "received_at": datetime}
"""What an event that is due is taken up by."""
_EVER = datetime.max.replace(tzinfo=UTC)
_UNMATCHED = str(EventState.UNMATCHED)
_REOPENED = frozenset({"state", "plan", "token", "resumed"})


@dataclass(frozen=True, slots=True)
class _New:
    """An event and its first deliveries, as they are inserted."""

    event: Document
    deliveries: Sequence[Document]
    durable: bool


class MongoEvents:
    """`domain.ports.Events` in the collection `events`."""

    def __init__(self, database: Database, in_progress: int = 1) -> None:
        """`in_progress`: how many events are worked at a time."""
        self._database = database
        self._collection = database.collection("events")
        self._deliveries = database.collection("deliveries")
        self._inserts: GroupCommit[_New, bool] = GroupCommit(self._insert)
        self._updates: GroupCommit[Update, None] = GroupCommit(self._update)
        self._settlements: GroupCommit[tuple[str, str, int], bool] = GroupCommit(
            self._settle, linger=SETTLE_LINGER, enough=enough(in_progress)
        )

    async def add(
        self, event: StoredEvent, due_at: datetime, deliveries: Sequence[Delivery] = (), *, durable: bool = True
    ) -> bool:
        """Insert with whoever else inserts; the unique `_id` tells a duplicate.

        Without `durable` the primary alone answers, before its journal is on disk.
        """
        document = {**event_document(event), "due_at": due_at}
        new = _New(document, [delivery_document(delivery) for delivery in deliveries], durable)
        if len(deliveries) <= FEW:
            return await self._inserts.submit(new)
        (result,) = await self._insert([new])
        if isinstance(result, Exception):
            raise result
        return result

    async def get(self, key: str) -> StoredEvent | None:
        """By primary key."""
        document = await self._database.run(lambda: self._collection.find_one({"_id": key}))
        return read_event(document) if document else None

    async def settle(self, key: str, state: EventState, planned: int) -> bool:
        """Leaves the sweeper's index."""
        return await self._settlements.submit((key, str(state), planned))

    async def reopen(self, event: StoredEvent, due_at: datetime) -> bool:
        """By primary key; enters the sweeper's index."""
        values = {name: value for name, value in event_document(event).items() if name in _REOPENED}
        condition, update = {"_id": event.key, "state": _UNMATCHED}, {"$set": {**values, "due_at": due_at}}
        result = await self._database.run(lambda: self._collection.update_one(condition, update))
        own = {"_id": event.key, "token": event.token}  # the answer to the same update may have been lost
        return bool(
            result.matched_count or await self._database.run(lambda: self._collection.find_one(own, {"_id": 1}))
        )

    async def due(self, now: datetime, limit: int) -> Sequence[StoredEvent | Unreadable]:
        """From the partial index `due`."""
        query = self._collection.find({"due_at": {"$lte": now}}).sort("due_at", ASCENDING).limit(limit)
        documents = await self._database.run(lambda: query.clone().to_list(limit))
        return [readable(document, read_event, _USED, "due_at") for document in documents]

    async def count_due(self, before: datetime | None = None) -> int:
        """How many are not planned to the end: all of them, or those due since before this time."""
        query = {"due_at": {"$lt": before or _EVER}}  # of one that may be missing MongoDB would read the document
        return await self._database.run(lambda: self._collection.count_documents(query, hint="due_at"))

    async def postpone(self, key: str, due_at: datetime, taken_up: int = 1) -> None:
        """Only while it is due at all: one that is settled meanwhile stays so."""
        condition = {"_id": key, "due_at": {"$exists": True}}
        change: Document = {"$set": {"due_at": due_at}}
        if taken_up:
            change["$inc"] = {"resumed": taken_up}
        await self._updates.submit(Update(condition, change))

    async def _insert(self, several: list[_New]) -> Sequence[bool | Exception]:
        """What is not simply new is looked at durably: it may be a duplicate, or something that cannot be stored.

        A duplicate may be this process's own, after an outage, or of a primary that is no more.
        """
        try:
            stored = await self._database.write(lambda: self._at_once(several))
        except UNWRITABLE:
            stored = [False] * len(several)
        left = [new for new, done in zip(several, stored, strict=True) if not done]
        told = iter(await self._durably(left) if left else ())
        return [done or next(told) for done in stored]

    def _at_once(self, several: Sequence[_New]) -> Sequence[bool]:
        """In one go to the database: which events were new, and are stored with their deliveries."""
        concern = None if any(new.durable for new in several) else WriteConcern(w=1)
        events = self._collection.delegate.with_options(write_concern=concern)
        stored = [result is True for result in insert(events, [new.event for new in several])]
        if documents := _deliveries(several, stored):
            results = insert(self._deliveries.delegate, [document for _, document in documents])
            for (position, _), result in zip(documents, results, strict=True):
                stored[position] &= not isinstance(result, Exception)
        return stored

    async def _durably(self, several: Sequence[_New]) -> Sequence[bool | Exception]:
        stored = list(await insert_own(self._database, self._collection, [new.event for new in several]))
        if documents := _deliveries(several, stored):
            results = await insert_all(self._database, self._deliveries, [document for _, document in documents])
            for (position, _), result in zip(documents, results, strict=True):
                if isinstance(result, Exception):
                    stored[position] = result
        return stored

    async def _settle(self, settlements: list[tuple[str, str, int]]) -> Sequence[bool]:
        """Most come to the same: one update for all of those. It tells only totals."""
        alike: dict[tuple[str, int], list[str]] = defaultdict(list)
        for key, state, planned in settlements:
            alike[state, planned].append(key)
        updates = [
            UpdateMany({"_id": {"$in": keys}}, {"$set": {"state": state, "planned": planned}, "$unset": {"due_at": ""}})
            for (state, planned), keys in alike.items()
        ]
        matched = await write_all(self._database, self._collection, updates)
        if matched == len(settlements):
            return [True] * len(settlements)
        stored = await self._stored([key for key, _, _ in settlements])
        return [key in stored for key, _, _ in settlements]

    async def _stored(self, keys: Sequence[str]) -> frozenset[str]:
        query = self._collection.find({"_id": {"$in": keys}}, {"_id": 1})
        return frozenset([each["_id"] for each in await self._database.run(lambda: query.clone().to_list(None))])

    async def _update(self, updates: list[Update]) -> Sequence[Exception | None]:
        return (await update_all(self._database, self._collection, updates))[1]


def _deliveries(several: Sequence[_New], stored: Sequence[bool | Exception]) -> Sequence[tuple[int, Document]]:
    """Those of the events that are stored, each with its event's position."""
    return [
        (position, document)
        for position, new in enumerate(several)
        if stored[position] is True
        for document in new.deliveries
    ]
